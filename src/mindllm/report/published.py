"""Published text scores of other systems."""

from collections.abc import Mapping
from importlib.resources import files

from pydantic import BaseModel, ConfigDict


class PublishedScores(BaseModel):
    """Scores of one system in one subject.

    Parameters
    ----------
    system, subject, setting : str
        Which system, in which subject, and how it was trained.
    scores : mapping of str to float
        Score to its value as published.
    source : str
        A key of `PublishedResults.sources`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    subject: str
    setting: str
    scores: Mapping[str, float]
    source: str


class PublishedResults(BaseModel):
    """Published scores, and where they are from.

    Parameters
    ----------
    data : str
        The data that they are about.
    scores_are : str
        Their unit.
    sources : mapping of str to str
        Key to reference.
    caption, grounding : tuple of PublishedScores
        Scores of captions, and of boxes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    scores_are: str
    sources: Mapping[str, str]
    caption: tuple[PublishedScores, ...]
    grounding: tuple[PublishedScores, ...]


def load_published_results() -> PublishedResults:
    """Read the published scores that come with the package.

    Returns
    -------
    PublishedResults
        Of published_results.json.
    """
    file = files("mindllm.report").joinpath("published_results.json")
    return PublishedResults.model_validate_json(file.read_text(encoding="utf-8"))
