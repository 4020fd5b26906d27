"""The conditions that are compared: their names and meanings."""

from dataclasses import dataclass
from typing import Literal

ALL_SUBJECTS = "all"
Kind = Literal["fmri", "shuffled", "blind", "trained", "baseline", "reference"]


@dataclass(frozen=True, slots=True)
class Condition:
    """What is predicted from, and how it is tested.

    Parameters
    ----------
    kind : {"fmri", "shuffled", "blind", "trained", "baseline", "reference"}
        shuffled: the same model on fMRI that is not the trial's. blind: nothing of the trial is
        known. trained: another model on the trial. baseline: a simpler method on the trial.
        reference: an upper reference that knows a part of the target.
    label : str
        In tables and figures.
    words : str
        In sentences.
    meaning : str
        In one phrase.
    """

    kind: Kind
    label: str
    words: str
    meaning: str


CONDITIONS = {
    "fmri": Condition(
        kind="fmri",
        label="fMRI",
        words="fMRI",
        meaning="the fMRI of the trial itself",
    ),
    "shuffled_trials": Condition(
        kind="shuffled",
        label="shuffled trials",
        words="shuffled trials",
        meaning="any trial of the same subject, at random",
    ),
    "shuffled_within_session": Condition(
        kind="shuffled",
        label="shuffled within session",
        words="trials shuffled within the session",
        meaning="any trial of the same session, at random",
    ),
    "other_subject": Condition(
        kind="shuffled",
        label="other subject",
        words="trials of another subject",
        meaning="any trial of another subject",
    ),
    "null_tokens": Condition(
        kind="blind",
        label="null tokens",
        words="null tokens",
        meaning="the mean fMRI tokens of training",
    ),
    "question_only": Condition(
        kind="blind",
        label="question only",
        words="the question alone",
        meaning="the prompt without fMRI tokens",
    ),
    "zero": Condition(
        kind="blind",
        label="zero input",
        words="zero input",
        meaning="every voxel at its mean",
    ),
    "noise": Condition(
        kind="blind",
        label="noise input",
        words="noise input",
        meaning="independent Gaussian noise in every voxel",
    ),
    "most_frequent": Condition(
        kind="blind",
        label="most frequent",
        words="the most frequent answer",
        meaning="the most frequent training answer",
    ),
    "trained_on_permuted_pairs": Condition(
        kind="trained",
        label="trained on permuted pairs",
        words="the model trained on permuted pairs",
        meaning="the same training, with each trial paired with another trial's text",
    ),
    "other_model": Condition(
        kind="trained",
        label="other model",
        words="the other model",
        meaning="another model on the same trials",
    ),
    "ridge": Condition(
        kind="baseline",
        label="ridge",
        words="ridge with the nearest training caption",
        meaning="ridge regression to text embeddings, then the nearest training caption",
    ),
    "nearest_neighbor": Condition(
        kind="baseline",
        label="nearest neighbor",
        words="the nearest neighbor",
        meaning="the training stimulus whose mean pattern correlates most",
    ),
    "linear_discriminant": Condition(
        kind="baseline",
        label="shrunk LDA",
        words="linear discriminant analysis",
        meaning="linear discriminant analysis of the answers, its covariance shrunk",
    ),
    "cluster_oracle": Condition(
        kind="reference",
        label="cluster oracle",
        words="the cluster oracle",
        meaning="known is only which of k clusters of answers the target is in",
    ),
    "human": Condition(
        kind="reference",
        label="human",
        words="a human caption",
        meaning="one reference against the others",
    ),
}
