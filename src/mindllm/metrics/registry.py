"""The scores per trial: their names and meanings."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mindllm.metrics.identification import n_way_weights, top_k_weights


@dataclass(frozen=True)
class Metric:
    """A score from 0 to 1 per trial. `weights` (C,): what each rank of the truth earns; None for free-running text."""

    label: str
    meaning: str
    uses_llr: bool = False
    rank_weights: Literal["top_k", "n_way"] | None = None
    number: int = 0

    def weights(self, candidates: int) -> np.ndarray:
        """(C,): what each rank of the truth among this many candidates earns."""
        return (top_k_weights if self.rank_weights == "top_k" else n_way_weights)(
            candidates, self.number
        )

    def chance(self, candidates: int) -> float | None:
        """What guessing earns; free-running text has no chance level of its own."""
        return None if self.rank_weights is None else float(self.weights(candidates).mean())


METRICS = {
    "exact_match": Metric("Exact match", "free-running text equals an accepted answer"),
    "identification_top1": Metric(
        "Top 1", "the true answer is the likeliest, given the scan", False, "top_k", 1
    ),
    "identification_top5": Metric("Top 5", "it is among the five likeliest", False, "top_k", 5),
    "identification_10way": Metric(
        "10-way", "it is likelier than nine others, drawn at random", False, "n_way", 10
    ),
    "identification_2way": Metric(
        "Pairwise", "it is likelier than another one, drawn at random", False, "n_way", 2
    ),
    "identification_llr_top1": Metric(
        "Top 1 by gain",
        "ranked by log p(answer | scan) - log p(answer | no brain)",
        True,
        "top_k",
        1,
    ),
    "identification_llr_top5": Metric(
        "Top 5 by gain", "among the five with the largest gain", True, "top_k", 5
    ),
    "identification_llr_10way": Metric(
        "10-way by gain", "a larger gain than nine others", True, "n_way", 10
    ),
    "identification_llr_2way": Metric(
        "Pairwise by gain", "a larger gain than another one", True, "n_way", 2
    ),
}
