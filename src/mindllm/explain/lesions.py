"""Virtual lesions: what a trial says for a text without a region, against random voxels.

The standardized betas of a region's voxels are set to 0, their mean. The evidence lost is compared
with that of random sets of as many voxels of the same subject: `contiguous` ones are a random
voxel and those nearest to it, as a parcel is one patch of neighbours that vary together;
`scattered` ones are drawn one by one, which makes their losses vary far less than those of any
patch, so that a patch differs from them by being a patch alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree

from mindllm.explain.evidence_path import Question
from mindllm.explain.features import AffineFeatures
from mindllm.explain.regions import Region
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.evidence import Betas
from mindllm.model.modeling import MindLLM

ORDERS_AT_ONCE = 50
RandomSets = Literal["contiguous", "scattered"]


@dataclass(frozen=True)
class Lesions:
    """What trials lose without each of several regions.

    Parameters
    ----------
    lost : ndarray of shape (n_trials, n_regions)
        In nats.
    random : ndarray of shape (n_trials, n_random, n_regions)
        Lost without random voxels of the same number; the same sets in all trials.
    """

    lost: np.ndarray
    random: np.ndarray

    @property
    def p_values(self) -> np.ndarray:
        """Fraction of random sets that cost as much as the region, (n_regions,).

        By the mean over trials, the region itself being one of the sets.
        """
        return exceedance(self.lost.mean(0), self.random.mean(0))


def exceedance(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """One-sided p-values (m,) of observed values (m,) among draws of the null (n, m).

    References
    ----------
    Phipson & Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9.

    Examples
    --------
    >>> exceedance(np.array([2.0]), np.array([[1.0], [3.0], [0.0]]))
    array([0.5])
    """
    return (1 + (null >= observed).sum(0)) / (1 + len(null))


def random_orders(
    masker: VoxelMasker, size: int, n_random: int, kind: RandomSets, seed: int = 0
) -> np.ndarray:
    """Draw random voxels, of which the first n are a random set of n.

    Parameters
    ----------
    masker : VoxelMasker
    size : int
        Largest set.
    n_random : int
    kind : {"contiguous", "scattered"}
    seed : int

    Returns
    -------
    ndarray of int, shape (n_random, size)
    """
    rng = np.random.default_rng(seed)
    size = min(size, len(masker))
    if kind == "scattered":
        return np.stack([rng.permutation(len(masker))[:size] for _ in range(n_random)])
    centers = rng.integers(len(masker), size=n_random)
    _, orders = cKDTree(masker.coords_mm).query(masker.coords_mm[centers], k=size)
    return orders.reshape(n_random, size)


@torch.no_grad()
def lesion_trial(
    features: AffineFeatures,
    trial: int,
    question: Question,
    regions: Sequence[Region],
    orders: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Evidence that one trial loses without regions, and without random voxels.

    Parameters
    ----------
    features : AffineFeatures
        Of the subject's trials.
    trial : int
        Row of the features.
    question : Question
        What the evidence is for.
    regions : sequence of Region
    orders : ndarray of int, shape (n_random, size)
        As `random_orders` draws them.

    Returns
    -------
    lost : ndarray of shape (n_regions,)
        In nats.
    random : ndarray of shape (n_random, n_regions)
        Of sets of as many voxels.
    """
    parts, values = features.voxel_features(trial), features.values[trial]
    evidence = question.evidence(values[None])[0]
    masks = torch.from_numpy(np.stack([region.voxels for region in regions])).double()
    lost = evidence - question.evidence(values - masks @ parts)
    sizes = masks.sum(1).long() - 1
    random = []
    for start in range(0, len(orders), ORDERS_AT_ONCE):
        chosen = torch.from_numpy(orders[start : start + ORDERS_AT_ONCE])
        removed = torch.stack([parts[order].cumsum(0)[sizes] for order in chosen])
        rest = question.evidence((values - removed).flatten(0, 1))
        random.append(evidence - rest.view(len(chosen), len(regions)))
    losses = torch.cat(random) if random else lost.new_zeros(0, len(regions))
    return lost.numpy(), losses.numpy()


def lesion_trials(
    features: AffineFeatures,
    questions: Sequence[Question],
    regions: Sequence[Region],
    orders: np.ndarray,
) -> Lesions:
    """Evidence that trials lose without regions; see `lesion_trial`.

    Parameters
    ----------
    features : AffineFeatures
    questions : sequence of Question, length n_trials
        One per trial, such as the evidence for its text.
    regions, orders
        As for `lesion_trial`.

    Returns
    -------
    Lesions
    """
    pairs = [
        lesion_trial(features, trial, question, regions, orders)
        for trial, question in enumerate(questions)
    ]
    lost, random = zip(*pairs, strict=True)
    return Lesions(np.stack(lost), np.stack(random))


def answer_without(
    model: MindLLM,
    masker: VoxelMasker,
    betas: Betas,
    answer: str,
    masks: np.ndarray,
    question: str | None = None,
) -> np.ndarray:
    """Log-likelihood ratio of an answer that a trial loses without voxels.

    Parameters
    ----------
    model : MindLLM
    masker : VoxelMasker
    betas : ndarray or Tensor of shape (n_voxels,)
        Standardized betas of one trial.
    answer : str
    masks : ndarray of bool, shape (n_sets, n_voxels)
        Voxels whose betas are set to 0.
    question : str, optional
        By default the one that the model was trained with.

    Returns
    -------
    ndarray of shape (n_sets,)
        log p(answer | trial) - log p(answer | trial without the voxels), in nats. The answer's
        likelihood given null tokens, which the ratio compares with, is the same in both.
    """
    trial = np.asarray(torch.as_tensor(betas).cpu())
    rows = np.concatenate([trial[None], np.where(masks, 0, trial)]).astype(np.float32)
    scores = model.log_likelihood(rows, masker, [answer], question)[:, 0].numpy()
    return scores[0] - scores[1:]
