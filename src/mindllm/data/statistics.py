"""What a person's values are normalized with: mean and standard deviation per session and voxel, from training trials alone."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from mindllm.normalization import MIN_TRIALS, moments, standardize

BLOCK = 2**22  # betas looked at at once


class Statistics:
    """Normalization of one subject: `mean` and `std` (S, V) of S sessions."""

    def __init__(self, sessions: Sequence[str], mean: np.ndarray, std: np.ndarray, origin: str) -> None:
        self.sessions, self.mean, self.std, self.origin = list(map(str, sessions)), mean, std, origin

    @classmethod
    def measure(cls, betas: np.ndarray, trials: pd.DataFrame) -> Self:
        """From the training trials of each session, read session by session.

        A session with fewer than MIN_TRIALS of them takes the subject's statistics over all sessions. A subject without
        training trials is normalized with all of its own trials, which needs no label; `origin` says so.
        """
        train = (trials["split"] == "train").to_numpy()
        origin = "training trials"
        if train.sum() < MIN_TRIALS:
            train, origin = np.ones(len(trials), bool), "all own trials, without labels (no training trials)"
        session = trials["session"].astype(str).to_numpy()
        names = sorted(set(session))
        parts = [np.flatnonzero(train & (session == name)) for name in names]
        found = [rows if len(rows) >= MIN_TRIALS else np.flatnonzero(train) for rows in parts]
        _, mean, std = zip(*(moments(blocks(betas, rows)) for rows in found), strict=True)
        return cls(names, np.stack(mean).astype(np.float32), np.stack(std).astype(np.float32), origin)

    def apply(self, betas: np.ndarray, sessions: Iterable[str]) -> np.ndarray:
        """Z-scores (B, V) float32 of betas (B, V) measured in these sessions (B,)."""
        index = {name: i for i, name in enumerate(self.sessions)}
        found = np.array([index[str(s)] for s in sessions])
        out = np.empty(betas.shape, np.float32)
        for i in np.unique(found):
            out[found == i] = standardize(betas[found == i], self.mean[i], self.std[i])
        return out

    def save(self, path: Path) -> None:
        np.savez(path, sessions=np.array(self.sessions), mean=self.mean, std=self.std, origin=np.array(self.origin))

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path, allow_pickle=False) as file:
            return cls(file["sessions"].tolist(), file["mean"], file["std"], str(file["origin"]))


def blocks(betas: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The betas (b, V) of these rows, a few at a time."""
    size = max(1, BLOCK // betas.shape[1])
    for start in range(0, len(rows), size):
        yield betas[rows[start : start + size]]
