"""The metrics of an evaluation: their names and meanings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mindllm.metrics.identification import n_way_weights, top_k_weights

Ranking = Literal["log_likelihood", "log_likelihood_ratio", "evidence"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A score in [0, 1] per trial.

    Parameters
    ----------
    label : str
        In tables and figures.
    meaning : str
        In one phrase.
    ranked_by : {"log_likelihood", "log_likelihood_ratio", "evidence"}
        What candidates are ranked by: the language model's log-likelihood given the fMRI tokens,
        its ratio to that given null tokens, or the evidence of the encoding model.
    rank_weights : {"top_k", "n_way"} or None
        What a rank scores; None: the metric is of the generated text.
    number : int
        k, or n.
    """

    label: str
    meaning: str
    ranked_by: Ranking = "log_likelihood"
    rank_weights: Literal["top_k", "n_way"] | None = None
    number: int = 0

    def weights(self, n_candidates: int) -> np.ndarray:
        """Return the score of each rank of the target among this many candidates, (C,)."""
        weights = top_k_weights if self.rank_weights == "top_k" else n_way_weights
        return weights(n_candidates, self.number)

    def chance(self, n_candidates: int) -> float | None:
        """Return the expected score of guessing; None for generated text, which has none."""
        return None if self.rank_weights is None else float(self.weights(n_candidates).mean())


RANKINGS: dict[str, tuple[Ranking, str, str]] = {
    # Prefix of the name: what candidates are ranked by, its label, and its words.
    "identification_evidence": ("evidence", " by evidence", "by log p(fMRI | text) - log p(fMRI)"),
    "identification": ("log_likelihood", "", "by log p(text | fMRI)"),
    "identification_llr": (
        "log_likelihood_ratio",
        " by log-likelihood ratio",
        "by log p(text | fMRI) - log p(text | null tokens)",
    ),
}
RANK_METRICS: dict[str, tuple[str, str, Literal["top_k", "n_way"], int]] = {
    "top1": ("Top 1", "the target ranks first", "top_k", 1),
    "top5": ("Top 5", "it is among the first five", "top_k", 5),
    "10way": ("10-way", "it ranks before nine others, drawn at random", "n_way", 10),
    "2way": ("2-way", "it ranks before another one, drawn at random", "n_way", 2),
}
METRICS = {"exact_match": Metric("Exact match", "the generated text equals a reference")} | {
    f"{prefix}_{name}": Metric(f"{label}{suffix}", f"{meaning}, {words}", ranking, kind, number)
    for prefix, (ranking, suffix, words) in RANKINGS.items()
    for name, (label, meaning, kind, number) in RANK_METRICS.items()
}
# Of a cross-validation: the answers are ranked by their similarity with a text.
TEXT_SIMILARITY_METRICS = {
    f"text_similarity_{name}": Metric(
        f"{label} by the text", f"{meaning}, by similarity with the text", "evidence", kind, number
    )
    for name, (label, meaning, kind, number) in RANK_METRICS.items()
}
