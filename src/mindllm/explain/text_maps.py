"""Contributions to the text of every trial, and to words, beside the shuffled control.

The control of a text is the mean over the texts of all trials of the subject: what the same voxels
contribute to the text of a random trial. Of a word it is the trials whose text does not name it.
Its p-values are by permutation of the texts among trials, which is exact where texts and trials
have nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mindllm.explain.contributions import contribute
from mindllm.explain.evidence_path import Question, integrate
from mindllm.explain.features import AffineFeatures
from mindllm.explain.regions import Region, sum_by_region
from mindllm.explain.tables import RegionSamples
from mindllm.utils.progress import Advance


@dataclass(frozen=True)
class TextMap:
    """Mean contribution of every voxel of one subject, and of its control.

    Parameters
    ----------
    name : str
        What it is a map of: a word, or "text".
    n_trials : int
        Trials that are averaged.
    voxels, control : ndarray of shape (n_voxels,)
        Means over trials, nats.
    evidence, at_zero : float
        Mean evidence of the trials and of zero betas.
    error : float
        Largest miss of a trial's sum from its evidence, nats.
    samples : RegionSamples
        Contributions of regions per trial.
    """

    name: str
    n_trials: int
    voxels: np.ndarray
    control: np.ndarray
    evidence: float
    at_zero: float
    error: float
    samples: RegionSamples


@dataclass(frozen=True)
class TrialTexts:
    """Texts of trials as numbers.

    Parameters
    ----------
    texts : sequence of str
        Different texts.
    numbers : ndarray of int, shape (n_trials,)
        Text of each trial to explain.
    pool : ndarray of int, shape (n_pool,)
        Texts of all trials of the subject, those to explain first.
    stimuli : ndarray of str, shape (n_trials,)
    """

    texts: Sequence[str]
    numbers: np.ndarray
    pool: np.ndarray
    stimuli: np.ndarray


@torch.no_grad()
def map_texts(
    features: AffineFeatures,
    questions: Sequence[Question],
    trials: TrialTexts,
    regions: Sequence[Region],
    permutations: int = 1000,
    seed: int = 0,
    advance: Advance | None = None,
) -> TextMap:
    """Mean contribution of every voxel to the text of its own trial.

    Parameters
    ----------
    features : AffineFeatures
        Of the trials to explain.
    questions : sequence of Question
        One per text.
    trials : TrialTexts
    regions : sequence of Region
    permutations, seed : int
        Of texts among trials.
    advance : Advance, optional
        Called after each text.

    Returns
    -------
    TextMap
    """
    n_trials, rows = len(features), torch.arange(len(features))
    paths = []
    for question in questions:
        paths.append(integrate(question, features.values, features.at_zero))
        if advance:
            advance(1)
    numbers = torch.from_numpy(trials.numbers)
    gradients = torch.stack([path.gradients for path in paths])  # (n_texts, n_trials, rank)
    counts = torch.bincount(torch.from_numpy(trials.pool), minlength=len(paths)).double()
    voxels = features.to_voxels(gradients[numbers, rows])
    control = features.to_voxels(torch.einsum("t,tnr->nr", counts / counts.sum(), gradients))
    evidence = torch.stack([path.evidence for path in paths])[numbers, rows]
    at_zero = torch.stack([path.at_zero for path in paths])[numbers, rows]
    masks = torch.from_numpy(np.stack([region.voxels for region in regions])).double()
    of_text = torch.stack(  # (n_trials, n_texts, n_regions)
        [gradients[:, i] @ (masks @ features.voxel_features(i)).T for i in range(n_trials)]
    ).numpy()
    rng = np.random.default_rng(seed)
    null = []
    for _ in range(permutations):
        shuffled = rng.permutation(trials.pool)[:n_trials]
        null.append(of_text[np.arange(n_trials), shuffled].mean(0))
    values = of_text[np.arange(n_trials), trials.numbers]
    return TextMap(
        name="text",
        n_trials=n_trials,
        voxels=voxels.mean(0).numpy(),
        control=control.mean(0).numpy(),
        evidence=float(evidence.mean()),
        at_zero=float(at_zero.mean()),
        error=float((voxels.sum(1) + at_zero - evidence).abs().max()),
        samples=RegionSamples(regions, values, trials.stimuli, np.stack(null)),
    )


def map_word(
    features: AffineFeatures,
    question: Question,
    name: str,
    naming: np.ndarray,
    stimuli: np.ndarray,
    regions: Sequence[Region],
    permutations: int = 1000,
    seed: int = 0,
) -> TextMap:
    """Mean contribution of every voxel to a word, in trials whose text names it.

    Parameters
    ----------
    features : AffineFeatures
        Of all trials.
    question : Question
        Texts that name the word against those that do not.
    name : str
        The word.
    naming : ndarray of bool, shape (n_trials,)
        Whether the text of the trial names it.
    stimuli : ndarray of str, shape (n_trials,)
    regions : sequence of Region
    permutations, seed : int
        Of texts among trials.

    Returns
    -------
    TextMap
        The control is the mean over the trials that do not name it.
    """
    result = contribute(features, question)
    sums = sum_by_region(result.voxels, regions)
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(naming) for _ in range(permutations)])
    return TextMap(
        name=name,
        n_trials=int(naming.sum()),
        voxels=result.voxels[naming].mean(0),
        control=result.voxels[~naming].mean(0),
        evidence=float(result.evidence[naming].mean()),
        at_zero=float(result.at_zero[naming].mean()),
        error=result.error,
        samples=RegionSamples(regions, sums[naming], stimuli[naming], drawn @ sums / naming.sum()),
    )
