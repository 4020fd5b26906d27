"""Normalization: each trial is levelled over its voxels, then each voxel is z-scored over trials."""

from collections.abc import Iterable

import numpy as np

from mindllm.errors import InputError

MIN_TRIALS = 8  # fewer trials than this have no mean and spread worth normalizing with


def level(values: np.ndarray) -> np.ndarray:
    """Z-score each trial of values (B, V) over its voxels: the level and gain of a run say nothing about a stimulus."""
    values = np.asarray(values, np.float64)
    spread = values.std(1, keepdims=True)
    return np.divide(values - values.mean(1, keepdims=True), spread, out=np.zeros_like(values), where=spread > 0)


def moments(pieces: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of trials, and mean and standard deviation (V,) of the levelled values, from pieces (b, V) of raw ones.

    One piece is in memory at a time. A voxel whose raw value never varies gets the standard deviation 0.
    """
    count, total, square, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for piece in pieces:
        low, high = np.minimum(low, piece.min(0)), np.maximum(high, piece.max(0))
        levelled = level(piece)
        count, total, square = count + len(piece), total + levelled.sum(0), square + (levelled**2).sum(0)
    if count < MIN_TRIALS:
        raise InputError(
            f"{count} trials are too few to normalize voxels with; at least {MIN_TRIALS} are needed. To decode a short scan, give a longer one of the same person and grid as reference (--reference)."
        )
    mean = np.asarray(total / count)
    return count, mean, np.where(high > low, np.sqrt(np.maximum(square / count - mean**2, 0)), 0)


def normalize(values: np.ndarray) -> np.ndarray:
    """Raw values (B, V) of one person, normalized with their own statistics: what `MindLLM.encode` and `decode` expect."""
    _, mean, std = moments([values])
    return standardize(values, mean, std)


def standardize(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Raw values (B, V) -> levelled z-scores (B, V), float32. Voxels that never vary (std 0) become 0, not infinity."""
    scale = np.divide(1.0, std, out=np.zeros(len(std)), where=std > 1e-6)
    return ((level(values) - mean) * scale).astype(np.float32)
