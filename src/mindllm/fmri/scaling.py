"""Normalization: each trial is levelled over its voxels, then each voxel is z-scored over trials."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from mindllm.utils.errors import InputError

MIN_TRIALS = 8  # fewer trials than this have no mean and spread worth normalizing with
CHUNK_SIZE = 2**22  # betas looked at at once


def zscore_trials(values: np.ndarray) -> np.ndarray:
    """Z-score each trial of values (B, V) over its voxels: the level and gain of a run say nothing about a stimulus."""
    values = np.asarray(values, np.float64)
    spread = values.std(1, keepdims=True)
    return np.divide(
        values - values.mean(1, keepdims=True), spread, out=np.zeros_like(values), where=spread > 0
    )


def fit_mean_std(pieces: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of trials, and mean and standard deviation (V,) of the levelled values, from pieces (b, V) of raw ones.

    One piece is in memory at a time. A voxel whose raw value never varies gets the standard deviation 0.
    """
    count, total, square, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for piece in pieces:
        low, high = np.minimum(low, piece.min(0)), np.maximum(high, piece.max(0))
        levelled = zscore_trials(piece)
        count, total, square = (
            count + len(piece),
            total + levelled.sum(0),
            square + (levelled**2).sum(0),
        )
    if count < MIN_TRIALS:
        raise InputError(
            f"{count} trials are too few to normalize voxels with; at least {MIN_TRIALS} are needed. To decode a short scan, give a longer one of the same person and grid as reference (--standardize-with)."
        )
    mean = np.asarray(total / count)
    return count, mean, np.where(high > low, np.sqrt(np.maximum(square / count - mean**2, 0)), 0)


def standardize_betas(betas: np.ndarray) -> np.ndarray:
    """Raw values (B, V) of one person, normalized with their own statistics: what `MindLLM.encode` and `decode` expect."""
    _, mean, std = fit_mean_std([betas])
    return apply_mean_std(betas, mean, std)


def apply_mean_std(values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Raw values (B, V) -> levelled z-scores (B, V), float32. Voxels that never vary (std 0) become 0, not infinity."""
    scale = np.divide(1.0, std, out=np.zeros(len(std)), where=std > 1e-6)
    return ((zscore_trials(values) - mean) * scale).astype(np.float32)


class SessionScaler:
    """Normalization of one subject: `mean` and `std` (S, V) of S sessions."""

    def __init__(
        self, sessions: Sequence[str], mean: np.ndarray, std: np.ndarray, fitted_on: str
    ) -> None:
        self.sessions, self.mean, self.std, self.fitted_on = (
            list(map(str, sessions)),
            mean,
            std,
            fitted_on,
        )

    @classmethod
    def fit(cls, betas: np.ndarray, trials: pd.DataFrame) -> Self:
        """From the training trials of each session, read session by session.

        A session with fewer than MIN_TRIALS of them takes the subject's statistics over all sessions. A subject without
        training trials is normalized with all of its own trials, which needs no label; `fitted_on` says so.
        """
        train = (trials["split"] == "train").to_numpy()
        fitted_on = "training trials"
        if train.sum() < MIN_TRIALS:
            train, fitted_on = (
                np.ones(len(trials), bool),
                "all own trials, without labels (no training trials)",
            )
        session = trials["session"].astype(str).to_numpy()
        names = sorted(set(session))
        parts = [np.flatnonzero(train & (session == name)) for name in names]
        found = [rows if len(rows) >= MIN_TRIALS else np.flatnonzero(train) for rows in parts]
        _, mean, std = zip(*(fit_mean_std(iter_chunks(betas, rows)) for rows in found), strict=True)
        return cls(
            names, np.stack(mean).astype(np.float32), np.stack(std).astype(np.float32), fitted_on
        )

    def transform(self, betas: np.ndarray, sessions: Iterable[str]) -> np.ndarray:
        """Z-scores (B, V) float32 of betas (B, V) measured in these sessions (B,)."""
        index = {name: i for i, name in enumerate(self.sessions)}
        found = np.array([index[str(s)] for s in sessions])
        out = np.empty(betas.shape, np.float32)
        for i in np.unique(found):
            out[found == i] = apply_mean_std(betas[found == i], self.mean[i], self.std[i])
        return out

    def save(self, path: Path) -> None:
        np.savez(
            path,
            sessions=np.array(self.sessions),
            mean=self.mean,
            std=self.std,
            fitted_on=np.array(self.fitted_on),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as file:
            return cls(file["sessions"].tolist(), file["mean"], file["std"], str(file["fitted_on"]))


def iter_chunks(betas: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The betas (b, V) of these rows, a few at a time."""
    size = max(1, CHUNK_SIZE // betas.shape[1])
    for start in range(0, len(rows), size):
        yield betas[rows[start : start + size]]
