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
from mindllm.explain.tables import RegionSamples, permuted_means
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


@dataclass(frozen=True)
class WordContributions:
    """Contributions of one subject's voxels to a word, in all its trials.

    Parameters
    ----------
    name : str
        The word.
    naming : ndarray of bool, shape (n_trials,)
        Whether the text of the trial names it.
    voxels, control : ndarray of shape (n_voxels,)
        Means over the trials that name it, and over the others; nats.
    sums : ndarray of shape (n_trials, n_regions)
        By region.
    evidence, at_zero : ndarray of shape (n_trials,)
        Of the trials, and of zero betas.
    error : float
        Largest miss of a trial's sum from its evidence, nats.
    """

    name: str
    naming: np.ndarray
    voxels: np.ndarray
    control: np.ndarray
    sums: np.ndarray
    evidence: np.ndarray
    at_zero: np.ndarray
    error: float


def weigh_word(
    features: AffineFeatures,
    question: Question,
    name: str,
    naming: np.ndarray,
    regions: Sequence[Region],
) -> WordContributions:
    """Contributions to a word in all trials of a subject.

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
    regions : sequence of Region

    Returns
    -------
    WordContributions
    """
    result = contribute(features, question)
    return WordContributions(
        name=name,
        naming=naming,
        voxels=result.voxels[naming].mean(0),
        control=result.voxels[~naming].mean(0),
        sums=sum_by_region(result.voxels, regions),
        evidence=result.evidence,
        at_zero=result.at_zero,
        error=result.error,
    )


def map_word(
    word: WordContributions,
    stimuli: np.ndarray,
    regions: Sequence[Region],
    permutations: int = 1000,
    seed: int = 0,
) -> TextMap:
    """Mean contribution of every voxel to a word, in trials whose text names it.

    Parameters
    ----------
    word : WordContributions
    stimuli : ndarray of str, shape (n_trials,)
    regions : sequence of Region
    permutations, seed : int
        Of texts among trials.

    Returns
    -------
    TextMap
        The control is the mean over the trials that do not name it.
    """
    naming, sums = word.naming, word.sums
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(naming) for _ in range(permutations)])
    return TextMap(
        name=word.name,
        n_trials=int(naming.sum()),
        voxels=word.voxels,
        control=word.control,
        evidence=float(word.evidence[naming].mean()),
        at_zero=float(word.at_zero[naming].mean()),
        error=word.error,
        samples=RegionSamples(regions, sums[naming], stimuli[naming], drawn @ sums / naming.sum()),
    )


def map_attribute(
    name: str,
    words: Sequence[WordContributions],
    stimuli: np.ndarray,
    regions: Sequence[Region],
    permutations: int = 1000,
    seed: int = 0,
) -> TextMap:
    """Mean of the maps of several words, such as those of one attribute.

    Parameters
    ----------
    name : str
        Of the attribute.
    words : sequence of WordContributions
        Of one subject.
    stimuli, regions, permutations, seed
        As for `map_word`; texts are permuted among trials once for all words.

    Returns
    -------
    TextMap
        Of each word in the trials that name it, mean over words; the control is the mean over
        words in the trials that do not.
    """
    naming = np.stack([word.naming for word in words], 1)
    sums = np.stack([word.sums for word in words], 1)  # (n_trials, n_words, n_regions)
    weights = naming / naming.sum(0) / len(words)
    null = permuted_means(weights, sums, permutations, seed)
    rows = naming.any(1)
    values = rows.sum() * np.einsum("tk,tkr->tr", weights, sums)[rows]
    evidence, at_zero = (
        float(np.mean([getattr(word, field)[word.naming].mean() for word in words]))
        for field in ("evidence", "at_zero")
    )
    return TextMap(
        name=name,
        n_trials=int(rows.sum()),
        voxels=np.mean([word.voxels for word in words], 0),
        control=np.mean([word.control for word in words], 0),
        evidence=evidence,
        at_zero=at_zero,
        error=max(word.error for word in words),
        samples=RegionSamples(regions, values, stimuli[rows], null),
    )
