"""Region tables: means over trials and subjects with intervals, controls and p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from mindllm.explain.lesions import exceedance
from mindllm.explain.regions import Region
from mindllm.metrics.inference import bootstrap_interval

COLUMNS = (
    "atlas",
    "region",
    "n_voxels",
    "voxel_fraction",
    "mean",
    "ci_low",
    "ci_high",
    "control",
    "p_value",
    "q_value",
)


@dataclass(frozen=True)
class RegionSamples:
    """A number per trial and region of one subject, and the same under the null.

    Parameters
    ----------
    regions : sequence of Region
    values : ndarray of shape (n_trials, n_regions)
    stimuli : ndarray of shape (n_trials,)
        Trials of one stimulus are resampled together.
    null : ndarray of shape (n_draws, n_regions)
        Means over trials under the null.
    """

    regions: Sequence[Region]
    values: np.ndarray
    stimuli: np.ndarray
    null: np.ndarray

    def select(self, labels: Sequence[str]) -> RegionSamples:
        """The regions with these labels."""
        numbers = {region.label: i for i, region in enumerate(self.regions)}
        rows = [numbers[label] for label in labels]
        regions = [self.regions[row] for row in rows]
        return RegionSamples(regions, self.values[:, rows], self.stimuli, self.null[:, rows])


def permuted_means(
    weights: np.ndarray, sums: np.ndarray, permutations: int, seed: int
) -> np.ndarray:
    """Weighted sums over trials with the weights permuted among them.

    Parameters
    ----------
    weights : ndarray of shape (n_trials, n_words)
        Rows are permuted, those of all words together.
    sums : ndarray of shape (n_trials, n_words, n_regions)
    permutations, seed : int

    Returns
    -------
    ndarray of shape (permutations, n_regions)
    """
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            np.einsum("tk,tkr->r", weights[rng.permutation(len(weights))], sums)
            for _ in range(permutations)
        ]
    )


def tabulate_regions(parts: Sequence[RegionSamples], seed: int = 0) -> pd.DataFrame:
    """Tabulate the regions that all subjects have.

    Parameters
    ----------
    parts : sequence of RegionSamples
        One per subject.
    seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        `mean` of the subjects' means with its 95 % interval over stimuli and subjects, `control`
        (mean under the null), one-sided `p_value`, and `q_value`, corrected for all regions of
        the atlas (Benjamini-Hochberg). The largest mean of each atlas comes first.
    """
    shared = [region.label for region in parts[0].regions]
    for part in parts[1:]:
        labels = {region.label for region in part.regions}
        shared = [label for label in shared if label in labels]
    chosen = [part.select(shared) for part in parts]
    if not shared:
        return pd.DataFrame(columns=list(COLUMNS))
    subjects = np.repeat(np.arange(len(parts)), [len(part.values) for part in parts])
    low, high = bootstrap_interval(
        np.concatenate([part.values for part in chosen]),
        np.concatenate([part.stimuli for part in chosen]),
        subjects,
        seed=seed,
    )
    observed = np.mean([part.values.mean(0) for part in chosen], 0)
    null = np.mean([part.null for part in chosen], 0)
    sizes = np.array([[region.voxels.sum() for region in part.regions] for part in chosen])
    totals = np.array([[len(region.voxels) for region in part.regions] for part in chosen])
    table = pd.DataFrame(
        {
            "atlas": [region.atlas for region in chosen[0].regions],
            "region": [region.name for region in chosen[0].regions],
            "n_voxels": sizes.mean(0),
            "voxel_fraction": (sizes / totals).mean(0),
            "mean": observed,
            "ci_low": low,
            "ci_high": high,
            "control": null.mean(0),
            "p_value": exceedance(observed, null),
        }
    )
    by_atlas = table.groupby("atlas", sort=False)["p_value"]
    table["q_value"] = by_atlas.transform(lambda p: false_discovery_control(p.to_numpy()))
    order = table.sort_values("mean", ascending=False, kind="stable")
    return order.sort_values("atlas", kind="stable").reset_index(drop=True)[list(COLUMNS)]
