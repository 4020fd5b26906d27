"""What is compared, and by which scores: the names and meanings that every table, picture and sentence uses."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mindllm.evaluate.scores import n_way, top_k

ALL = "all"
Kind = Literal["brain", "shuffled", "blind", "trained", "baseline", "reference"]


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
    "brain": Condition("brain", "brain", "the scan", "the scan itself"),
    "shuffled": Condition("shuffled", "shuffled", "shuffled scans", "any trial of the same person, at random"),
    "shuffled_session": Condition(
        "shuffled", "shuffled in session", "scans shuffled within the session", "any trial of the same session, at random"
    ),
    "other_person": Condition("shuffled", "other person", "another person's scans", "any trial of another person"),
    "no_brain": Condition("blind", "no brain", "no brain", "the mean fMRI token of training"),
    "question_only": Condition("blind", "question only", "the question alone", "the prompt without fMRI tokens"),
    "zero": Condition("blind", "zero input", "a scan of zeros", "a scan in which every voxel is at its mean"),
    "noise": Condition("blind", "noise input", "noise", "scans of independent Gaussian noise"),
    "constant": Condition("blind", "constant", "the constant answer", "the most frequent training answer"),
    "shuffled_pairs": Condition(
        "trained", "trained on shuffled pairs", "the model trained on shuffled pairs",
        "the same training, with each scan paired with another trial's text",
    ),
    "other_model": Condition("trained", "other model", "the other model", "another model, reading the same trials"),
    "ridge": Condition(
        "baseline", "ridge", "ridge with the nearest training caption", "ridge regression to text embeddings, then the nearest training caption"
    ),
    "nearest_pattern": Condition(
        "baseline", "nearest pattern", "the nearest training pattern", "the training stimulus whose mean pattern correlates most"
    ),
    "cluster_oracle": Condition(
        "reference", "cluster oracle", "an oracle of clusters", "told only which of k clusters of answers is the true one"
    ),
    "human": Condition("reference", "human", "another person's caption", "one accepted caption against the others"),
}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A score from 0 to 1 per trial. `weights` (C,): what each rank of the truth earns; None for free-running text."""

    label: str
    meaning: str
    gain: bool = False
    ranks: Literal["top_k", "n_way"] | None = None
    number: int = 0

    def weights(self, candidates: int) -> np.ndarray:
        """(C,): what each rank of the truth among this many candidates earns."""
        return (top_k if self.ranks == "top_k" else n_way)(candidates, self.number)

    def chance(self, candidates: int) -> float | None:
        """What guessing earns; free-running text has no chance level of its own."""
        return None if self.ranks is None else float(self.weights(candidates).mean())


METRICS = {
    "exact_match": Metric("Exact match", "free-running text equals an accepted answer"),
    "identification_top1": Metric("Top 1", "the true answer is the likeliest, given the scan", False, "top_k", 1),
    "identification_top5": Metric("Top 5", "it is among the five likeliest", False, "top_k", 5),
    "identification_10way": Metric("10-way", "it is likelier than nine others, drawn at random", False, "n_way", 10),
    "identification_pairwise": Metric(
        "Pairwise", "it is likelier than another one, drawn at random", False, "n_way", 2
    ),
    "identification_gain_top1": Metric(
        "Top 1 by gain", "ranked by log p(answer | scan) - log p(answer | no brain)", True, "top_k", 1
    ),
    "identification_gain_top5": Metric("Top 5 by gain", "among the five with the largest gain", True, "top_k", 5),
    "identification_gain_10way": Metric("10-way by gain", "a larger gain than nine others", True, "n_way", 10),
    "identification_gain_pairwise": Metric("Pairwise by gain", "a larger gain than another one", True, "n_way", 2),
}
