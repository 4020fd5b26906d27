"""The metrics of an evaluation: their names and meanings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mindllm.metrics.identification import n_way_weights, top_k_weights


@dataclass(frozen=True, slots=True)
class Metric:
    """A score in [0, 1] per trial.

    Parameters
    ----------
    label : str
        In tables and figures.
    meaning : str
        In one phrase.
    uses_llr : bool
        Candidates are ranked by log-likelihood ratio, not by log-likelihood.
    rank_weights : {"top_k", "n_way"} or None
        What a rank scores; None: the metric is of the generated text.
    number : int
        k, or n.
    """

    label: str
    meaning: str
    uses_llr: bool = False
    rank_weights: Literal["top_k", "n_way"] | None = None
    number: int = 0

    def weights(self, n_candidates: int) -> np.ndarray:
        """Return the score of each rank of the target among this many candidates, (C,)."""
        weights = top_k_weights if self.rank_weights == "top_k" else n_way_weights
        return weights(n_candidates, self.number)

    def chance(self, n_candidates: int) -> float | None:
        """Return the expected score of guessing; None for generated text, which has none."""
        return None if self.rank_weights is None else float(self.weights(n_candidates).mean())


METRICS = {
    "exact_match": Metric("Exact match", "the generated text equals a reference"),
    "identification_top1": Metric(
        "Top 1", "the target is the most likely, given the fMRI", False, "top_k", 1
    ),
    "identification_top5": Metric("Top 5", "it is among the five most likely", False, "top_k", 5),
    "identification_10way": Metric(
        "10-way", "it is more likely than nine others, drawn at random", False, "n_way", 10
    ),
    "identification_2way": Metric(
        "2-way", "it is more likely than another one, drawn at random", False, "n_way", 2
    ),
    "identification_llr_top1": Metric(
        "Top 1 by log-likelihood ratio",
        "ranked by log p(answer | fMRI) - log p(answer | null tokens)",
        True,
        "top_k",
        1,
    ),
    "identification_llr_top5": Metric(
        "Top 5 by log-likelihood ratio", "among the five with the largest ratio", True, "top_k", 5
    ),
    "identification_llr_10way": Metric(
        "10-way by log-likelihood ratio", "a larger ratio than nine others", True, "n_way", 10
    ),
    "identification_llr_2way": Metric(
        "2-way by log-likelihood ratio", "a larger ratio than another one", True, "n_way", 2
    ),
}
