"""Single-trial betas of a run: design matrices, least squares all (LSA) and separate (LSS).

References
----------
Rissman et al. 2004, NeuroImage 23:752 (LSA). Mumford et al. 2012, NeuroImage 59:2636 (LSS).
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd

from mindllm.fmri.masker import CHUNK_BYTES, VoxelMasker
from mindllm.fmri.nifti import check_orientation, check_same_grid, get_data, load_img
from mindllm.utils.errors import InputError
from mindllm.utils.validation import check_finite

Method = Literal["lsa", "lss"]
NoiseModel = Literal["ols", "ar1"]
HRF_MODELS = (
    "glover",
    "glover + derivative",
    "glover + derivative + dispersion",
    "spm",
    "spm + derivative",
    "spm + derivative + dispersion",
)
RESPONSE_SECONDS = 32  # from the end of an event to that of its response
VOXELS_AT_ONCE = 10_000
TOLERANCE = 1e-6  # of the response of a trial that other regressors do not explain


@dataclass(frozen=True, slots=True)
class ScanTimes:
    """When the volumes of a run were acquired.

    Attributes
    ----------
    n_volumes : int
        Number of volumes.
    tr_seconds : float
        Repetition time.
    slice_time_ref : float
        Time within a volume to which its slices belong, as a fraction of the repetition time.
    """

    n_volumes: int
    tr_seconds: float
    slice_time_ref: float

    @property
    def run_seconds(self) -> float:
        """Duration of the run."""
        return self.n_volumes * self.tr_seconds

    def frame_times(self, seconds_after: float = 0.0) -> np.ndarray:
        """Times of the volumes, and of as many as fit into some seconds after them."""
        count = self.n_volumes + int(np.ceil(seconds_after / self.tr_seconds))
        return (np.arange(count) + self.slice_time_ref) * self.tr_seconds


@dataclass(frozen=True)
class RunDesign:
    """Regressors of a run, at the volumes that are kept.

    Attributes
    ----------
    responses : np.ndarray
        (n_basis, n_kept, n_trials) response to each trial, and its derivatives where the HRF model
        has them.
    nuisance : np.ndarray
        (n_kept, n_nuisance) other events, confounds, drift and the constant.
    kept : np.ndarray
        (n_kept,) volumes that are kept.
    sampled_fraction : np.ndarray
        (n_trials,) fraction of a trial's response, in squares, that the kept volumes show.
    """

    responses: np.ndarray
    nuisance: np.ndarray
    kept: np.ndarray
    sampled_fraction: np.ndarray

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return self.responses.shape[2]

    def matrices(self, method: Method) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over the design matrices of a method.

        Parameters
        ----------
        method : {"lsa", "lss"}
            One matrix with a regressor per trial, or one per trial with a regressor of this trial
            and one of all others.

        Yields
        ------
        trials : np.ndarray
            Trials whose betas the matrix gives: those of its first columns.
        matrix : np.ndarray
            (n_kept, n_regressors).
        """
        if method == "lsa":
            columns = [*self.responses, self.nuisance]
            yield np.arange(self.n_trials), np.concatenate(columns, axis=1)
            return
        total = self.responses.sum(2)  # (n_basis, n_kept)
        for trial in range(self.n_trials):
            response = self.responses[:, :, trial]
            others = total - response if self.n_trials > 1 else total[:0]
            columns = [response.T, others.T, self.nuisance]
            yield np.array([trial]), np.concatenate(columns, axis=1)

    def select_trials(self, selected: np.ndarray) -> "RunDesign":
        """Make the others, such as trials that are hardly sampled, regressors of no interest."""
        others = self.responses[:, :, ~selected].sum(2).T
        others = others[:, np.abs(others).max(0, initial=0) > 0]
        return RunDesign(
            responses=self.responses[:, :, selected],
            nuisance=np.concatenate([others, self.nuisance], axis=1),
            kept=self.kept,
            sampled_fraction=self.sampled_fraction[selected],
        )


@dataclass(frozen=True, slots=True)
class DesignQuality:
    """How well a design tells the trials of a run apart.

    Attributes
    ----------
    efficiency : np.ndarray
        (n_trials,) 1 / variance of a beta where the noise has variance 1.
    variance_inflation : np.ndarray
        (n_trials,) by how much the other regressors increase the variance of a beta.
    condition_number : float
        Of the design matrix with all trials, its columns scaled to length 1.
    max_correlation : float
        Largest absolute correlation of the responses to two trials.
    max_nuisance_r2 : float
        Largest fraction of the variance of a trial's response that confounds and drift explain.
    """

    efficiency: np.ndarray
    variance_inflation: np.ndarray
    condition_number: float
    max_correlation: float
    max_nuisance_r2: float


def build_design(
    events: pd.DataFrame,
    times: ScanTimes,
    confounds: np.ndarray,
    kept: np.ndarray,
    hrf_model: str = "glover",
    high_pass_hz: float = 1 / 128,
) -> RunDesign:
    """Build the regressors of a run with nilearn.

    Parameters
    ----------
    events : pd.DataFrame
        `onset` and `duration` in seconds; `nuisance`: None for a trial, else the name of the
        regressor of no interest to which the event belongs.
    times : ScanTimes
        When the volumes were acquired.
    confounds : np.ndarray
        (n_volumes, n_confounds).
    kept : np.ndarray
        (n_kept,) volumes that are kept.
    hrf_model : str
        One of HRF_MODELS, as nilearn names them.
    high_pass_hz : float
        Cut-off of the cosine drift model; 0: no drift.

    Returns
    -------
    RunDesign
        The trials in the order of `events`.

    Examples
    --------
    >>> events = pd.DataFrame({"onset": [4.0, 20.0], "duration": 2.0, "nuisance": None})
    >>> design = build_design(events, ScanTimes(30, 2.0, 0.5), np.zeros((30, 0)), np.arange(30))
    >>> design.responses.shape, design.sampled_fraction.round(2).tolist()
    ((1, 30, 2), [1.0, 1.0])
    """
    is_trial = events["nuisance"].isna().to_numpy()
    names = [f"trial{i:05d}" for i in range(is_trial.sum())]
    trial_type = events["nuisance"].astype(object).to_numpy(copy=True)
    trial_type[is_trial] = names
    labels = {str(name): f"nuisance{i}" for i, name in enumerate(dict.fromkeys(trial_type))}
    others = [label for name, label in labels.items() if name not in set(names)]
    table = pd.DataFrame(
        {
            "onset": events["onset"].to_numpy(float),
            "duration": events["duration"].to_numpy(float),
            "trial_type": [n if n in set(names) else labels[str(n)] for n in trial_type],
        }
    )
    matrix = convolve(table, times.frame_times(), hrf_model)
    full = convolve(table, times.frame_times(RESPONSE_SECONDS + table["duration"].max()), hrf_model)
    energy = (full[names].to_numpy() ** 2).sum(0)
    shown = (matrix[names].to_numpy()[kept] ** 2).sum(0)
    responses = [matrix[[f"{name}{s}" for name in names]] for s in list_suffixes(hrf_model)]
    event_columns = [f"{name}{s}" for s in list_suffixes(hrf_model) for name in others]
    drift = make_drift(times.frame_times(), high_pass_hz)
    nuisance = np.concatenate([matrix[event_columns].to_numpy(), confounds, drift], axis=1)
    return RunDesign(
        responses=np.stack([part.to_numpy() for part in responses])[:, kept],
        nuisance=nuisance[kept],
        kept=kept,
        sampled_fraction=np.divide(shown, energy, out=np.zeros(len(names)), where=energy > 0),
    )


def list_suffixes(hrf_model: str) -> list[str]:
    """List what nilearn appends to a condition's name for each regressor of an HRF model."""
    return ["", *(f"_{part}" for part in hrf_model.split(" + ")[1:])]


def convolve(events: pd.DataFrame, frame_times: np.ndarray, hrf_model: str) -> pd.DataFrame:
    """Convolve events with the HRF, a regressor per `trial_type` and derivative."""
    from nilearn.glm.first_level import make_first_level_design_matrix  # slow to import

    with warnings.catch_warnings():
        # events of duration 0 are impulses, as intended
        warnings.filterwarnings("ignore", message=".*null duration.*")
        warnings.filterwarnings("ignore", message="Matrix is singular.*")
        return make_first_level_design_matrix(
            frame_times, events, hrf_model=hrf_model, drift_model=None
        )


def make_drift(frame_times: np.ndarray, high_pass_hz: float) -> np.ndarray:
    """Make nilearn's cosine drift model (n_volumes, n_columns), the constant last."""
    from nilearn.glm.first_level import make_first_level_design_matrix  # slow to import

    drift_model = "cosine" if high_pass_hz else None
    return make_first_level_design_matrix(
        frame_times, drift_model=drift_model, high_pass=high_pass_hz
    ).to_numpy()


def compute_weights(design: RunDesign, method: Method) -> np.ndarray:
    """Compute the weights (n_trials, n_kept) with which ordinary least squares adds up volumes.

    Raises
    ------
    InputError
        If a trial cannot be told apart from the other regressors, or there are too many.
    """
    weights = np.empty((design.n_trials, len(design.kept)))
    for trials, matrix in design.matrices(method):
        if matrix.shape[1] >= len(matrix):
            raise InputError(
                f"{len(matrix)} volumes are kept and the {method.upper()} design has "
                f"{matrix.shape[1]} regressors; expected fewer. Take fewer confounds or a lower "
                "--high-pass, or --single-trial lss."
            )
        inverse = np.linalg.pinv(matrix, rcond=1e-10)[: len(trials)]
        estimable = np.einsum("ij,ji->i", inverse, matrix[:, : len(trials)])
        if (mixed := np.abs(estimable - 1) > TOLERANCE).any():
            raise InputError(
                f"trial {trials[mixed][0] + 1} and {mixed.sum() - 1} more cannot be told apart "
                f"from the other regressors of the {method.upper()} design; expected trials whose "
                "responses differ. Take fewer confounds, or --single-trial lss."
            )
        weights[trials] = inverse
    return weights


def describe_design(design: RunDesign, weights: np.ndarray) -> DesignQuality:
    """Describe how well a design tells trials apart.

    Parameters
    ----------
    design : RunDesign
    weights : np.ndarray
        (n_trials, n_kept) as `compute_weights` gives them.

    Returns
    -------
    DesignQuality
    """
    responses = design.responses[0]
    _, matrix = next(design.matrices("lsa"))
    lengths = np.linalg.norm(matrix, axis=0)
    centered = responses - responses.mean(0)
    squares = (centered**2).sum(0)
    unit = centered / np.sqrt(squares)
    correlations = unit.T @ unit - np.eye(design.n_trials)
    basis, _ = np.linalg.qr(design.nuisance - design.nuisance.mean(0))
    explained = ((basis.T @ unit) ** 2).sum(0)
    variance = (weights**2).sum(1)
    return DesignQuality(
        efficiency=1 / variance,
        variance_inflation=squares * variance,
        condition_number=float(np.linalg.cond(matrix / np.where(lengths, lengths, 1))),
        max_correlation=float(np.abs(correlations).max(initial=0)),
        max_nuisance_r2=float(explained.max(initial=0)),
    )


def read_time_series(
    masker: VoxelMasker, file: Path, smoothing_fwhm_mm: float | None = None
) -> np.ndarray:
    """Read the time series (n_volumes, n_voxels) of a run, a few volumes at a time.

    Parameters
    ----------
    masker : VoxelMasker
        The voxels.
    file : Path
        4-D image on their grid.
    smoothing_fwhm_mm : float, optional
        Width of the Gaussian kernel; by default volumes are not smoothed.

    Raises
    ------
    InputError
        As `VoxelMasker.transform`.
    """
    if not smoothing_fwhm_mm:
        return masker.transform(file)
    from nilearn.image import smooth_img  # slow to import

    img, what = load_img(file, "run", dimensions=4), f"run {file}"
    check_orientation(img, "run")
    check_same_grid(img, masker.shape, masker.affine, "run", "the mask")
    series = np.empty((img.shape[3], len(masker)), np.float32)
    step = max(1, CHUNK_BYTES // int(np.prod(masker.shape) * 4))
    for start in range(0, len(series), step):
        chunk = get_data(img, "run", (slice(start, start + step),)).astype(np.float32)
        smooth = smooth_img(nib.Nifti1Image(chunk, img.affine), smoothing_fwhm_mm)
        inside = np.asarray(smooth.dataobj)[tuple(masker.voxel_indices.T)]
        series[start : start + step] = inside.T
    check_finite(series, what)
    return series


def find_constant_voxels(series: np.ndarray) -> np.ndarray:
    """Find the voxels (n_voxels,) without a signal: constant, or with a mean of 0 or less."""
    return (series.min(0) == series.max(0)) | (series.mean(0, dtype=np.float64) <= 0)


def estimate_betas(
    series: np.ndarray,
    design: RunDesign,
    method: Method = "lss",
    noise_model: NoiseModel = "ols",
) -> np.ndarray:
    """Estimate single-trial betas in percent of each voxel's mean.

    Parameters
    ----------
    series : np.ndarray
        (n_volumes, n_voxels) all volumes of the run.
    design : RunDesign
        Its regressors.
    method : {"lsa", "lss"}
        Least squares all: one model with a regressor per trial; or separate: one model per trial,
        with a regressor of the trial and one of all others.
    noise_model : {"ols", "ar1"}
        As nilearn's `FirstLevelModel`.

    Returns
    -------
    np.ndarray
        (n_trials, n_voxels), float32.

    Raises
    ------
    InputError
        If a trial cannot be told apart from the other regressors.

    Examples
    --------
    >>> events = pd.DataFrame({"onset": [4.0, 20.0], "duration": 2.0, "nuisance": None})
    >>> design = build_design(events, ScanTimes(30, 2.0, 0.5), np.zeros((30, 0)), np.arange(30))
    >>> series = 100 + design.responses[0] @ np.array([[1.0], [3.0]])
    >>> estimate_betas(series, design).round(1).ravel().tolist()
    [1.0, 3.0]
    """
    weights = compute_weights(design, method)
    betas = np.empty((design.n_trials, series.shape[1]), np.float32)
    for start in range(0, series.shape[1], VOXELS_AT_ONCE):
        voxels = slice(start, start + VOXELS_AT_ONCE)
        part = series[design.kept, voxels].astype(np.float64)
        part = 100 * (part / part.mean(0) - 1)
        betas[:, voxels] = weights @ part if noise_model == "ols" else fit_ar1(part, design, method)
    return betas


def fit_ar1(series: np.ndarray, design: RunDesign, method: Method) -> np.ndarray:
    """Estimate betas (n_trials, n_voxels) with nilearn's AR(1) noise model."""
    from nilearn.glm.first_level import run_glm  # slow to import

    betas = np.empty((design.n_trials, series.shape[1]))
    for trials, matrix in design.matrices(method):
        labels, results = run_glm(series, matrix, noise_model="ar1")
        for label, result in results.items():
            betas[np.ix_(trials, labels == label)] = result.theta[: len(trials)]
    return betas
