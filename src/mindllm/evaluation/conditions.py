"""What is compared: the names and meanings that every table, picture and sentence uses."""

from dataclasses import dataclass
from typing import Literal

ALL_SUBJECTS = "all"
Kind = Literal["fmri", "shuffled", "blind", "trained", "baseline", "reference"]


@dataclass(frozen=True)
class Condition:
    """A reader that the brain is compared with. `kind` decides how it is tested and what the verdict makes of it.

    shuffled: the same model with a scan that is not the trial's.  blind: it knows nothing of the trial.  trained: another
    model, that reads the trial.  baseline: a simpler method that reads the trial.  reference: it knows a part of the truth.
    """

    kind: Kind
    label: str
    words: str
    meaning: str


CONDITIONS = {
    "fmri": Condition("fmri", "fmri", "the scan", "the scan itself"),
    "shuffled_trials": Condition("shuffled", "shuffled trials", "shuffled scans", "any trial of the same person, at random"),
    "shuffled_within_session": Condition(
        "shuffled", "shuffled in session", "scans shuffled within the session", "any trial of the same session, at random"
    ),
    "other_subject": Condition("shuffled", "other subject", "another subject's scans", "any trial of another subject"),
    "null_tokens": Condition("blind", "null tokens", "null tokens", "the mean fMRI token of training"),
    "question_only": Condition("blind", "question only", "the question alone", "the prompt without fMRI tokens"),
    "zero": Condition("blind", "zero input", "a scan of zeros", "a scan in which every voxel is at its mean"),
    "noise": Condition("blind", "noise input", "noise", "scans of independent Gaussian noise"),
    "most_frequent": Condition("blind", "most frequent", "the constant answer", "the most frequent training answer"),
    "trained_on_permuted_pairs": Condition(
        "trained", "trained on permuted pairs", "the model trained on permuted pairs",
        "the same training, with each scan paired with another trial's text",
    ),
    "other_model": Condition("trained", "other model", "the other model", "another model, reading the same trials"),
    "ridge": Condition(
        "baseline", "ridge", "ridge with the nearest training caption", "ridge regression to text embeddings, then the nearest training caption"
    ),
    "nearest_neighbor": Condition(
        "baseline", "nearest neighbor", "the nearest training pattern", "the training stimulus whose mean pattern correlates most"
    ),
    "cluster_oracle": Condition(
        "reference", "cluster oracle", "an oracle of clusters", "told only which of k clusters of answers is the true one"
    ),
    "human": Condition("reference", "human", "another person's caption", "one accepted caption against the others"),
}  # fmt: skip
