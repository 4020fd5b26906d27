"""Standardization: z-score each trial over its voxels, then each voxel over trials."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from mindllm.utils.arrays import Shape, load_arrays, read_checked_arrays
from mindllm.utils.errors import InputError
from mindllm.utils.validation import check_finite

MIN_TRIALS = 8  # fewer trials give no useful mean and standard deviation
CHUNK_SIZE = 2**22  # betas in memory at once


def zscore_trials(betas: np.ndarray) -> np.ndarray:
    """Z-score each trial over its voxels, which removes the level and gain of its run.

    Parameters
    ----------
    betas : ndarray of shape (n_trials, n_voxels)
        Raw betas.

    Returns
    -------
    ndarray of shape (n_trials, n_voxels), float64
        Betas with mean 0 and standard deviation 1 over voxels; 0 in a trial that is constant.

    Raises
    ------
    InputError
        If a beta is NaN or infinite.

    Examples
    --------
    >>> zscore_trials(np.array([[1.0, 3.0], [5.0, 5.0]]))
    array([[-1.,  1.],
           [ 0.,  0.]])
    """
    betas = np.asarray(betas, np.float64)
    std = betas.std(1, keepdims=True)
    if not np.isfinite(std).all():
        check_finite(betas, "an array of betas")
    centered = betas - betas.mean(1, keepdims=True)
    return np.divide(centered, std, out=np.zeros_like(betas), where=std > 0)


def fit_mean_std(chunks: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each voxel over trials.

    One chunk is in memory at a time.

    Parameters
    ----------
    chunks : iterable of ndarray of shape (n_chunk_trials, n_voxels)
        Raw betas of one subject.

    Returns
    -------
    n_trials : int
        Number of trials.
    mean, std : ndarray of shape (n_voxels,)
        Of the betas z-scored by `zscore_trials`. The standard deviation of a voxel whose raw
        betas never vary is 0.

    Raises
    ------
    InputError
        If there are fewer than 8 trials.
    """
    n_trials, total, total_square, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for chunk in chunks:
        low, high = np.minimum(low, chunk.min(0)), np.maximum(high, chunk.max(0))
        zscored = zscore_trials(chunk)
        n_trials += len(chunk)
        total = total + zscored.sum(0)
        total_square = total_square + (zscored**2).sum(0)
    if n_trials < MIN_TRIALS:
        raise InputError(
            f"{n_trials} trials are too few to standardize voxels with; at least {MIN_TRIALS} are "
            "needed. To decode a short scan, give a longer one of the same subject and grid "
            "(--standardize-with)."
        )
    mean = np.asarray(total / n_trials)
    variance = np.maximum(total_square / n_trials - mean**2, 0)
    return n_trials, mean, np.where(high > low, np.sqrt(variance), 0)


def apply_mean_std(betas: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Z-score each trial over its voxels, then each voxel with a given mean and deviation.

    Parameters
    ----------
    betas : ndarray of shape (n_trials, n_voxels)
        Raw betas.
    mean, std : ndarray of shape (n_voxels,)
        As from `fit_mean_std`.

    Returns
    -------
    ndarray of shape (n_trials, n_voxels), float32
        Standardized betas. Voxels that never vary (`std` 0) become 0, not infinity.
    """
    scale = np.divide(1.0, std, out=np.zeros(len(std)), where=std > 1e-6)
    return ((zscore_trials(betas) - mean) * scale).astype(np.float32)


def standardize_betas(betas: np.ndarray) -> np.ndarray:
    """Standardize the betas of one subject with their own mean and standard deviation.

    Each trial is z-scored over its voxels, then each voxel over the trials. This is what
    `MindLLM.decode` expects.

    Parameters
    ----------
    betas : ndarray of shape (n_trials, n_voxels)
        Raw betas of one subject, at least 8 trials.

    Returns
    -------
    ndarray of shape (n_trials, n_voxels), float32
        Standardized betas; voxels that never vary are 0.

    Raises
    ------
    InputError
        If there are fewer than 8 trials.

    Examples
    --------
    >>> import numpy as np
    >>> from mindllm import standardize_betas
    >>> betas = np.random.default_rng(0).normal(50, 10, size=(20, 100))
    >>> standardized = standardize_betas(betas)
    >>> standardized.shape
    (20, 100)
    >>> bool(np.allclose(standardized.mean(0), 0, atol=1e-5))
    True
    >>> bool(np.allclose(standardized.std(0), 1, atol=1e-5))
    True
    """
    _, mean, std = fit_mean_std([betas])
    return apply_mean_std(betas, mean, std)


class SessionScaler:
    """Standardize one subject's betas session by session.

    Parameters
    ----------
    sessions : sequence of str
        Labels of the sessions.
    mean, std : ndarray of shape (n_sessions, n_voxels)
        Mean and standard deviation of each session's z-scored trials.
    fitted_on : str
        Which trials they were computed from.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> betas = rng.normal(size=(20, 5))
    >>> trials = pd.DataFrame({"session": ["1"] * 10 + ["2"] * 10, "split": "train"})
    >>> scaler = SessionScaler.fit(betas, trials)
    >>> scaler
    SessionScaler(n_sessions=2, n_voxels=5, fitted_on='training trials')
    >>> scaler.transform(betas, trials["session"]).shape
    (20, 5)
    """

    def __init__(
        self, sessions: Sequence[str], mean: np.ndarray, std: np.ndarray, fitted_on: str
    ) -> None:
        self.sessions = list(map(str, sessions))
        self.mean, self.std = mean, std
        self.fitted_on = fitted_on

    def __repr__(self) -> str:
        n_sessions, n_voxels = self.mean.shape
        return (
            f"{type(self).__name__}(n_sessions={n_sessions}, n_voxels={n_voxels}, "
            f"fitted_on={self.fitted_on!r})"
        )

    @classmethod
    def fit(cls, betas: np.ndarray, trials: pd.DataFrame) -> Self:
        """Compute mean and standard deviation of the training trials of each session.

        A session with fewer than 8 training trials takes the mean and standard deviation over all
        sessions. For a subject with fewer than 8 training trials, all trials are used, which needs
        no label; `fitted_on` says so.

        Parameters
        ----------
        betas : ndarray of shape (n_trials, n_voxels)
            Raw betas of one subject; may be memory-mapped, since one chunk is read at a time.
        trials : pandas.DataFrame
            `session` and `split` of each trial.

        Returns
        -------
        SessionScaler
            The fitted scaler.

        Raises
        ------
        InputError
            If there are fewer than 8 trials, or no voxel varies.
        """
        is_used, fitted_on = (trials["split"] == "train").to_numpy(), "training trials"
        if is_used.sum() < MIN_TRIALS:
            is_used = np.ones(len(trials), bool)
            fitted_on = "all own trials, without labels (no training trials)"
        session_of_trial = trials["session"].astype(str).to_numpy()
        sessions = sorted(set(session_of_trial))
        means, stds = [], []
        for session in sessions:
            rows = np.flatnonzero(is_used & (session_of_trial == session))
            if len(rows) < MIN_TRIALS:
                rows = np.flatnonzero(is_used)
            _, mean, std = fit_mean_std(iter_chunks(betas, rows))
            means.append(mean.astype(np.float32))
            stds.append(std.astype(np.float32))
        if not np.any(stds):
            raise InputError(
                f"the betas, {len(betas)} trials of {betas.shape[1]} voxels, never vary once the "
                "mean over voxels is taken off each trial; expected at least two voxels whose "
                "betas differ from trial to trial. Check the mask and the betas."
            )
        return cls(sessions, np.stack(means), np.stack(stds), fitted_on)

    def transform(self, betas: np.ndarray, sessions: Iterable[str]) -> np.ndarray:
        """Standardize betas with the mean and standard deviation of their sessions.

        Parameters
        ----------
        betas : ndarray of shape (n_trials, n_voxels)
            Raw betas.
        sessions : iterable of str
            Session of each trial.

        Returns
        -------
        ndarray of shape (n_trials, n_voxels), float32
            Standardized betas.
        """
        index = {session: i for i, session in enumerate(self.sessions)}
        session_of_trial = np.array([index[str(session)] for session in sessions])
        standardized = np.empty(betas.shape, np.float32)
        for i in np.unique(session_of_trial):
            rows = session_of_trial == i
            standardized[rows] = apply_mean_std(betas[rows], self.mean[i], self.std[i])
        return standardized

    def save(self, path: Path) -> None:
        """Write the scaler to an .npz file."""
        np.savez(
            path,
            sessions=np.array(self.sessions),
            mean=self.mean,
            std=self.std,
            fitted_on=np.array(self.fitted_on),
        )

    @classmethod
    def load(
        cls,
        path: Path,
        n_voxels: int | None = None,
        sessions: Collection[str] = (),
        remedy: str = "Prepare the store anew.",
    ) -> Self:
        """Read and check a scaler that `save` wrote.

        Parameters
        ----------
        path : Path
        n_voxels : int, optional
            Voxels of the subject; None: any number.
        sessions : collection of str
            Sessions that it must know.
        remedy : str
            What to do about a file that does not fit, for the message.

        Returns
        -------
        SessionScaler

        Raises
        ------
        InputError
            If the file is damaged, is of other voxels or lacks a session, a mean or standard
            deviation is NaN or infinite, or a standard deviation is below 0.
        """
        names = load_arrays(path, ["sessions"], remedy)["sessions"]
        shape, numbers = (names.size, n_voxels), ("float32", "float64")
        expected: dict[str, tuple[Shape, tuple[str, ...]]] = {
            "sessions": ((None,), ("text",)),
            "fitted_on": ((), ("text",)),
            "mean": (shape, numbers),
            "std": (shape, numbers),
        }
        arrays = read_checked_arrays(path, expected, remedy)
        scaler = cls(names.tolist(), arrays["mean"], arrays["std"], str(arrays["fitted_on"]))
        missing = sorted(set(sessions) - set(scaler.sessions))
        if missing or len(set(scaler.sessions)) < len(scaler.sessions):
            raise InputError(
                f"{path} has the sessions {scaler.sessions}; expected each once, and those of the "
                f"trials, {sorted(sessions)}. {remedy}"
            )
        if (scaler.std < 0).any():
            raise InputError(
                f"{path}, std has numbers below 0, first {scaler.std[scaler.std < 0][0]:g}; "
                f"expected standard deviations. {remedy}"
            )
        return scaler


def iter_chunks(betas: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the betas of some rows in chunks of shape (n_chunk_trials, n_voxels)."""
    size = max(1, CHUNK_SIZE // betas.shape[1])
    for start in range(0, len(rows), size):
        yield betas[rows[start : start + size]]
