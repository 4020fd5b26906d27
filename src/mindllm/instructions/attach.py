"""Attach the conversations of a source to the stimuli or trials of a store."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import pandas as pd
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.instructions.registry import (
    ASPECTS,
    SOURCES,
    Source,
    Style,
    format_sample,
    get_source,
)
from mindllm.instructions.source_files import SourceFiles
from mindllm.language.conversation import Conversation, check_conversation
from mindllm.utils.errors import InputError

COLUMNS = ("stimulus", "subject", "trial_index", "source", "turns", "answers", "key")
SUMMARY_COLUMNS = (
    "aspect",
    "source",
    "conversations",
    "with text",
    "of",
    "fraction",
    "words",
)
TYPED_SOURCES = ("tdiuc",)  # whose last reference is the type of the question
logger = logging.getLogger(__name__)


class Target(NamedTuple):
    """What a conversation is about: a stimulus, or a trial of a subject."""

    stimulus: str | None = None
    subject: str | None = None
    trial_index: int | None = None


Targets = Mapping[int | str, Sequence[Target]]  # of each COCO id, or name of a stimulus


@dataclass(frozen=True, slots=True)
class Summary:
    """How much of a store a source covers.

    Parameters
    ----------
    source : str
        Name of the source.
    conversations : int
        Number of conversations.
    covered, total : int
        Number of stimuli or trials with a conversation, and of all.
    unit : {"stimuli", "trials"}
        What is counted.

    Examples
    --------
    >>> print(Summary("vqa-v2", 12, covered=3, total=4, unit="stimuli"))
    vqa-v2: 12 conversations about 3 of 4 stimuli (75%)
    """

    source: str
    conversations: int
    covered: int
    total: int
    unit: str

    @property
    def fraction(self) -> float:
        """Fraction of the stimuli or trials that have a conversation."""
        return self.covered / max(self.total, 1)

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.conversations:,} conversations about {self.covered:,} of "
            f"{self.total:,} {self.unit} ({self.fraction:.0%})"
        )


def attach_source(
    store: Store,
    source: str,
    files: Sequence[str | Path],
    *,
    style: Style = "mindllm",
    images: pd.DataFrame | None = None,
    by_type: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Put the conversations of a source into a store, in place of those it has of the source.

    Parameters
    ----------
    store : Store
        The store.
    source : str
        Key of `SOURCES`.
    files : sequence of str or Path
        The official files, in any order, or folders of them.
    style : {"mindllm", "published"}
        Wording; see `mindllm.instructions.registry.format_sample`.
    images : pandas.DataFrame, optional
        `stimulus` and `coco_id`, where the trials have no `coco_id`.
    by_type : bool
        Make a source of each type of question, such as `tdiuc/counting`, so that types can be
        left out of a training.
    progress : rich.progress.Progress, optional
        Where a bar per file is shown.

    Returns
    -------
    Summary
        How much of the store the source covers.

    Raises
    ------
    InputError
        As `collect`; or if the questions of the source have no types.
    """
    if by_type and source not in TYPED_SOURCES:
        raise InputError(
            f"the questions of {source} have no types; those of {', '.join(TYPED_SOURCES)} do. "
            "Leave --by-type out."
        )
    table = collect(store, source, files, style=style, images=images, progress=progress)
    if by_type:
        table["source"] = [f"{source}/{answers[-1]}" for answers in table["answers"]]
    store.add_conversations(table)
    return summarize(store, source, table)


def collect(
    store: Store,
    source: str,
    files: Sequence[str | Path],
    *,
    style: Style = "mindllm",
    images: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Collect the conversations of a source about a store's stimuli.

    A source's own split is ignored: every question about an image that was shown is taken, and the
    split of the trials decides what is trained on.

    Parameters
    ----------
    store, source, files, style, images, progress
        As for `attach_source`.

    Returns
    -------
    pandas.DataFrame
        `stimulus` (or `subject` and `trial_index`), `source`, `turns`, `answers`, `key`.

    Raises
    ------
    InputError
        If the style or source is unknown, the files are not those of the source, the store does
        not know its images, or no conversation is about any stimulus.
    """
    if style not in get_args(Style):
        raise InputError(f"there is no style {style!r}; choose {' or '.join(get_args(Style))}.")
    description = get_source(source)
    source_files = SourceFiles(source, files, description.files, description.url, progress)
    targets = find_targets(store, description, images)
    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    n_samples = n_unanswered = 0
    for sample in description.read(source_files, targets.keys()):
        n_samples += 1
        if not sample.answers or not all(answer for _, answer in sample.turns):
            n_unanswered += 1
            continue
        turns, answers = format_sample(sample, description, style)
        check_sample(turns, f"{source}, {sample.key} of {', '.join(map(str, files))}")
        for target in targets[sample.image]:
            row = (*target, source, turns, answers, sample.key)
            for name, value in zip(COLUMNS, row, strict=True):
                columns[name].append(value)
    unanswered = f"{n_unanswered} of {n_samples} items have no answer, as in a test split"
    if n_unanswered:
        logger.warning(
            "%s: %d items have no answer, as in a test split, and are left out",
            source,
            n_unanswered,
        )
    if not columns["turns"]:
        raise InputError(
            no_conversation_message(
                store, source, files, targets, unanswered if n_unanswered else ""
            )
        )
    table = pd.DataFrame(columns).astype(
        {"trial_index": "Int64", "stimulus": object, "subject": object}
    )
    coverage = summarize(store, source, table)
    if coverage.covered < coverage.total:
        logger.info("%s; %d have none", coverage, coverage.total - coverage.covered)
    return table


def check_sample(turns: Conversation, where: str) -> None:
    """Check a conversation as `check_conversation` does; the message says where it is from."""
    try:
        check_conversation(turns)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def no_conversation_message(
    store: Store, source: str, files: Sequence[str | Path], targets: Targets, unanswered: str
) -> str:
    """Say that the files have no conversation about any of the store's stimuli."""
    file_list = ", ".join(map(str, files))
    if get_source(source).joined_by == "stimulus":
        return (
            f"{source}: {file_list} tells of none of the {len(targets):,} stimuli of {store.path}, "
            f"which are called as {next(iter(targets))!r}. Name them alike."
        )
    return (
        f"{source}: none of {len(targets):,} images of {store.path} is asked about in {file_list}"
        f"{f'; {unanswered}' if unanswered else ''}. Give the files of train and val; if they are, "
        "the store's coco_id (or the names of its stimuli) are others than theirs."
    )


def find_targets(store: Store, source: Source, images: pd.DataFrame | None) -> Targets:
    """Find what a sample about an image is attached to, as `source.joined_by` says."""
    if source.joined_by == "stimulus":
        return {name: [Target(stimulus=name)] for name in list_stimuli(store)}
    if source.joined_by == "previous":
        return find_following_trials(store, images)
    targets: dict[int | str, list[Target]] = defaultdict(list)
    for stimulus, coco_id in stimulus_coco_ids(store, images).items():
        targets[coco_id].append(Target(stimulus=stimulus))
    return dict(targets)


def find_following_trials(store: Store, images: pd.DataFrame | None) -> Targets:
    """Find the trials that come right after an image in the same session and run.

    Where the trials have `prev_coco_id`, it says the image before.

    Parameters
    ----------
    store : Store
        The store.
    images : pandas.DataFrame, optional
        `stimulus` and `coco_id`, where the trials have no `coco_id`.

    Returns
    -------
    dict of int to list of Target
        COCO id -> trials.

    Raises
    ------
    InputError
        If the store does not know the order of its trials.
    """
    if not store.meta.get("has_presentation_order", True):
        raise InputError(
            f"{store.path} is of {store.meta['name']}, which does not say in which order its "
            "trials were shown, so what was seen before a trial is unknown. Add other sources."
        )
    coco_ids = stimulus_coco_ids(store, images)
    targets: dict[int | str, list[Target]] = defaultdict(list)
    for subject in store.subjects:
        trials = store.trials(subject)
        by_run = trials.groupby(["session", "run"], sort=False)
        previous = by_run["stimulus"].shift().map(coco_ids)
        if "prev_coco_id" in trials:
            previous = trials["prev_coco_id"].where(trials["prev_coco_id"] >= 0)
        for row, coco_id in enumerate(previous):
            if pd.notna(coco_id):
                targets[int(coco_id)].append(Target(subject=subject, trial_index=row))
    return dict(targets)


def list_stimuli(store: Store) -> list[str]:
    """List every stimulus of a store once."""
    return list(
        dict.fromkeys(
            name for subject in store.subjects for name in store.trials(subject)["stimulus"]
        )
    )


def stimulus_coco_ids(store: Store, images: pd.DataFrame | None) -> dict[str, int]:
    """Look up the COCO ids of a store's stimuli.

    Parameters
    ----------
    store : Store
        The store.
    images : pandas.DataFrame, optional
        `stimulus` and `coco_id`; by default those of the trials.

    Returns
    -------
    dict of str to int
        Stimulus -> COCO id.

    Raises
    ------
    InputError
        If no stimulus has a COCO id, one has two, or one is no whole number.
    """
    if images is not None and not {"stimulus", "coco_id"} <= set(images.columns):
        raise InputError(
            f"the table of images has the columns {list(images.columns)}; "
            "expected `stimulus` and `coco_id`."
        )
    tables = [store.trials(subject) for subject in store.subjects] if images is None else [images]
    known = [table[["stimulus", "coco_id"]].dropna() for table in tables if "coco_id" in table]
    pairs = (
        pd.concat(known).astype({"stimulus": str}).drop_duplicates() if known else pd.DataFrame()
    )
    if pairs.empty:
        raise InputError(
            f"no trial in {store.path} has a coco_id, by which images are known to this source. "
            "Give a table with the columns stimulus and coco_id (--images TABLE)."
        )
    stimuli = set(list_stimuli(store))
    pairs = pairs[pairs["stimulus"].isin(stimuli)]
    if pairs.empty:
        raise InputError(
            f"the table of images names no stimulus of {store.path}, "
            f"whose stimuli are called as {min(stimuli)!r}."
        )
    ambiguous = pairs[pairs["stimulus"].duplicated(keep=False)]
    if len(ambiguous):
        first, second = ambiguous["coco_id"].iloc[:2]
        raise InputError(
            f"the stimulus {ambiguous['stimulus'].iloc[0]!r} has two COCO ids, {first} and "
            f"{second}; expected one."
        )
    try:
        return dict(zip(pairs["stimulus"], map(int, pairs["coco_id"]), strict=True))
    except ValueError as error:
        raise InputError(f"a coco_id is no whole number ({error}).") from error


def summarize(store: Store, source: str, table: pd.DataFrame) -> Summary:
    """Count what conversations cover.

    Parameters
    ----------
    store : Store
        The store.
    source : str
        Name of the source, or "all".
    table : pandas.DataFrame
        Its conversations.

    Returns
    -------
    Summary
        Numbers of conversations and of stimuli, or of trials where none is about a stimulus.
    """
    if table["stimulus"].notna().any():
        n_covered, n_stimuli = table["stimulus"].nunique(), len(list_stimuli(store))
        return Summary(source, len(table), n_covered, n_stimuli, "stimuli")
    n_covered = len(table[["subject", "trial_index"]].drop_duplicates())
    n_trials = sum(len(store.trials(subject)) for subject in store.subjects)
    return Summary(source, len(table), n_covered, n_trials, "trials")


def aspect(source: str) -> str:
    """Return the aspect of a source, or of a type of its questions; `other` if it is unknown."""
    name = source.split("/")[0]
    return SOURCES[name].aspect if name in SOURCES else "other"


def summary(store: Store) -> pd.DataFrame:
    """Tabulate the conversations of a store by aspect and source.

    Parameters
    ----------
    store : Store
        The store.

    Returns
    -------
    pandas.DataFrame
        A row per source and, below the sources of an aspect that has several, one for `all`:
        `aspect`, `source`, `conversations`, `with text` (number of stimuli, or of trials, as `of`
        says), their `fraction` of all, and the mean number of `words` of an answer.
    """
    table = store.conversations
    answer_lengths = table["turns"].map(
        lambda turns: [len(t["content"].split()) for t in turns if t["role"] == "assistant"]
    )
    table = table.assign(n_words=answer_lengths.map(sum), n_answers=answer_lengths.map(len))
    aspects = table["source"].map(aspect)
    rows = []
    for name in (*ASPECTS, "other"):
        of_aspect = table[aspects == name]
        parts = [
            (source, of_aspect[of_aspect["source"] == source])
            for source in dict.fromkeys(of_aspect["source"])
        ]
        if len(parts) > 1:
            parts.append(("all", of_aspect))
        for source, part in parts:
            coverage = summarize(store, source, part)
            n_words, n_answers = part["n_words"].sum(), part["n_answers"].sum()
            row = (
                name,
                source,
                coverage.conversations,
                coverage.covered,
                coverage.unit,
                coverage.fraction,
                n_words / max(n_answers, 1),
            )
            rows.append(dict(zip(SUMMARY_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
