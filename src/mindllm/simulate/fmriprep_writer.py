"""Simulated time series in the layout of fMRIPrep, with the raw data set that they belong to.

    OUT/bids/          dataset_description.json, events, captions
    OUT/derivatives/   preprocessed runs, brain masks, confounds, atlases
    OUT/truth/         sub-XX_betas.npy, the planted response to each trial

The events' responses are convolved with nilearn's Glover HRF on a fine grid, apart from nilearn's
design matrices; drift, motion, autocorrelated noise and volumes before the steady state are added.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from mindllm.simulate.bids_writer import write_tsv
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.subject import SimulatedSubject, simulate_subject
from mindllm.simulate.world import SimulatedExperiment, build_experiment
from mindllm.utils.files import check_not_exists, write_json
from mindllm.utils.folders import atomic_directory

TASK, TEMPLATE = "scenes", "MNI152NLin2009cAsym"
BASELINE = 1000.0  # of every voxel
FINE_SECONDS = 0.05  # grid of the convolution
MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
TISSUES = ("csf", "white_matter", "global_signal")
N_COMPONENTS = 6  # of aCompCor
FIRST_ONSET_SECONDS, LAST_SECONDS = 10.0, 16.0  # before the first and after the last trial


class TimeSeriesConfig(BaseModel):
    """How responses become time series; amplitudes are in percent of the baseline."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tr_seconds: float = Field(default=2.0, gt=0)
    slice_time_ref: float = Field(default=0.5, ge=0, le=1)
    stimulus_seconds: float = Field(default=2.0, gt=0)
    interval_seconds: float = Field(default=8.0, gt=0, description="mean of those between onsets")
    jitter_seconds: float = Field(default=2.0, ge=0, description="largest deviation from the mean")
    noise_percent: float = Field(default=0.5, ge=0, description="sd of a voxel's noise")
    autocorrelation: float = Field(default=0.3, ge=0, lt=1)
    drift_percent: float = Field(default=1.0, ge=0)
    motion_percent: float = Field(default=0.5, ge=0, description="sd of the effect of motion")
    non_steady_volumes: int = Field(default=1, ge=0)


@dataclass(frozen=True)
class SimulatedRun:
    """A run of a subject.

    Attributes
    ----------
    events : pd.DataFrame
        Its table of events.
    confounds : pd.DataFrame
        Its table of confounds.
    series : np.ndarray
        (n_volumes, n_voxels).
    """

    events: pd.DataFrame
    confounds: pd.DataFrame
    series: np.ndarray


def simulate_fmriprep(
    out: str | Path,
    config: SimulateConfig | None = None,
    timing: TimeSeriesConfig | None = None,
) -> Path:
    """Write simulated runs in the layout of fMRIPrep, and their raw data set, to a new folder.

    Parameters
    ----------
    out : str or Path
        The folder to make.
    config : SimulateConfig, optional
        Subjects, stimuli and their responses.
    timing : TimeSeriesConfig, optional
        How responses become time series.

    Returns
    -------
    Path
        The folder, which holds bids, derivatives and truth.

    Raises
    ------
    InputError
        If `out` already holds something, or if the atlases are missing or not as expected.

    References
    ----------
    fMRIPrep documentation, "Outputs of fMRIPrep".
    """
    out, config, timing = Path(out), config or SimulateConfig(), timing or TimeSeriesConfig()
    check_not_exists(out)
    experiment = build_experiment(config)
    with atomic_directory(out) as folder:
        write_shared_files(folder, experiment)
        (folder / "truth").mkdir()
        for index in range(config.n_subjects):
            subject = simulate_subject(experiment, index)
            rng = np.random.default_rng([config.seed, 2, index])
            np.save(folder / "truth" / f"{subject.subject}_betas.npy", subject.betas)
            for keys, rows in subject.trials.groupby(["session", "run"]):
                labels = {"ses": f"{keys[0]:02d}", "run": f"{keys[1]}"}
                run = simulate_run(subject, rows, timing, rng)
                write_run(folder, experiment, subject, run, labels, timing)
    return out


def write_shared_files(folder: Path, experiment: SimulatedExperiment) -> None:
    """Write the descriptions, captions and atlases."""
    raw, derivatives = folder / "bids", folder / "derivatives"
    (raw / "stimuli").mkdir(parents=True)
    derivatives.mkdir()
    note = "No subject was scanned, and fMRIPrep was not run: mindllm.simulate made these files."
    description = {"BIDSVersion": "1.10.0", "License": "CC0", "HowToAcknowledge": note}
    write_json(
        raw / "dataset_description.json",
        {"Name": "Simulated scenes", "DatasetType": "raw", **description},
    )
    write_json(
        derivatives / "dataset_description.json",
        {
            "Name": "fMRIPrep - fMRI PREProcessing workflow",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "fMRIPrep", "Version": "simulated", "Description": note}],
            **description,
        },
    )
    write_tsv(raw / "stimuli" / "captions.tsv", experiment.captions)
    for atlas, volume in experiment.labels.items():
        stem = f"atlas-{atlas}_space-{TEMPLATE}_dseg"
        img = nib.Nifti1Image(volume.astype(np.int16), experiment.affine)
        img.set_sform(experiment.affine, "mni")
        img.to_filename(derivatives / f"{stem}.nii.gz")
        table = pd.DataFrame(experiment.names[atlas].items(), columns=["index", "name"])
        write_tsv(derivatives / f"{stem}.tsv", table)


def simulate_run(
    subject: SimulatedSubject,
    trials: pd.DataFrame,
    timing: TimeSeriesConfig,
    rng: np.random.Generator,
) -> SimulatedRun:
    """Simulate a run, whose trials are rows of the subject's table."""
    jitter = timing.jitter_seconds * rng.uniform(-1, 1, len(trials))
    onsets = FIRST_ONSET_SECONDS + timing.interval_seconds * np.arange(len(trials)) + jitter
    onsets = onsets.round(2)
    n_volumes = int(np.ceil((onsets[-1] + LAST_SECONDS) / timing.tr_seconds))
    frame_times = (np.arange(n_volumes) + timing.slice_time_ref) * timing.tr_seconds
    responses = respond(onsets, timing.stimulus_seconds, frame_times)
    events = pd.DataFrame(
        {
            "onset": onsets,
            "duration": timing.stimulus_seconds,
            "trial_type": "scene",
            "stim_file": trials["stimulus"].to_numpy(),
            "split": trials["split"].to_numpy(),
        }
    )
    confounds, motion = draw_confounds(n_volumes, timing, rng)
    n_voxels = subject.betas.shape[1]
    percent = responses @ subject.betas[trials.index.to_numpy()].astype(np.float64)
    time = np.linspace(-1, 1, n_volumes)[:, None]
    percent += timing.drift_percent * time * rng.normal(size=n_voxels)
    weights = rng.normal(size=(len(MOTION), n_voxels)) / np.sqrt(len(MOTION))
    percent += timing.motion_percent * motion @ weights
    percent += draw_noise(percent.shape, timing, rng)
    percent[: timing.non_steady_volumes] += 20  # T1 has not settled yet
    return SimulatedRun(events, confounds, (BASELINE * (1 + percent / 100)).astype(np.float32))


def respond(onsets: np.ndarray, seconds: float, frame_times: np.ndarray) -> np.ndarray:
    """Responses (n_volumes, n_trials) to events, of height 1 for a long one."""
    from nilearn.glm.first_level import glover_hrf  # slow to import

    hrf = glover_hrf(FINE_SECONDS, oversampling=1, time_length=32.0)
    boxcar = np.ones(round(seconds / FINE_SECONDS))
    response = np.convolve(boxcar, hrf / hrf.sum())
    times = FINE_SECONDS * (np.arange(len(response)) + 0.5)
    lags = frame_times[:, None] - onsets[None]
    return np.interp(lags, times, response, left=0.0, right=0.0)


def draw_noise(
    shape: tuple[int, int], timing: TimeSeriesConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw noise (n_volumes, n_voxels) that is autocorrelated in time."""
    noise = rng.normal(size=shape)
    rho = timing.autocorrelation
    for volume in range(1, shape[0]):
        noise[volume] = rho * noise[volume - 1] + np.sqrt(1 - rho**2) * noise[volume]
    return timing.noise_percent * noise


def draw_confounds(
    n_volumes: int, timing: TimeSeriesConfig, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw a table of confounds with fMRIPrep's names, and the standardized motion (n, 6)."""
    motion = np.cumsum(rng.normal(size=(n_volumes, len(MOTION))), axis=0)
    motion = (motion - motion.mean(0)) / motion.std(0)
    scale = np.array([0.05] * 3 + [0.001] * 3)  # mm and radians
    table: dict[str, np.ndarray] = {}
    for name, values in zip(MOTION, (motion * scale).T, strict=True):
        table |= expand(name, values)
    for name in TISSUES:
        table |= expand(name, BASELINE + rng.normal(size=n_volumes))
    difference = np.abs(np.diff(motion * scale * ([1] * 3 + [50] * 3), axis=0)).sum(1)
    table["framewise_displacement"] = np.concatenate([[np.nan], difference])
    table["std_dvars"] = np.concatenate([[np.nan], 1 + 0.1 * rng.normal(size=n_volumes - 1)])
    table["dvars"] = 10 * table["std_dvars"]
    for component in range(N_COMPONENTS):
        table[f"a_comp_cor_{component:02d}"] = rng.normal(size=n_volumes) / np.sqrt(n_volumes)
    run_seconds = n_volumes * timing.tr_seconds
    for order in range(int(2 * run_seconds / 128)):
        phase = np.pi * (order + 1) * (np.arange(n_volumes) + 0.5) / n_volumes
        table[f"cosine{order:02d}"] = np.sqrt(2 / n_volumes) * np.cos(phase)
    for volume in range(timing.non_steady_volumes):
        is_volume = np.arange(n_volumes) == volume
        table[f"non_steady_state_outlier{volume:02d}"] = is_volume.astype(float)
    return pd.DataFrame(table), motion


def expand(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Add the derivative and the squares, as fMRIPrep does."""
    derivative = np.concatenate([[np.nan], np.diff(values)])
    return {
        name: values,
        f"{name}_derivative1": derivative,
        f"{name}_power2": values**2,
        f"{name}_derivative1_power2": derivative**2,
    }


def write_run(
    folder: Path,
    experiment: SimulatedExperiment,
    subject: SimulatedSubject,
    run: SimulatedRun,
    labels: dict[str, str],
    timing: TimeSeriesConfig,
) -> None:
    """Write the files of a run; but for the first, its mask has a voxel that others lack."""
    name, session = subject.subject, f"ses-{labels['ses']}"
    stem = f"{name}_{session}_task-{TASK}_run-{labels['run']}"
    raw = folder / "bids" / name / session / "func"
    func = folder / "derivatives" / name / session / "func"
    for path in (raw, func):
        path.mkdir(parents=True, exist_ok=True)
    write_tsv(raw / f"{stem}_events.tsv", run.events)
    run.confounds.to_csv(
        func / f"{stem}_desc-confounds_timeseries.tsv", sep="\t", index=False, na_rep="n/a"
    )
    write_json(func / f"{stem}_desc-confounds_timeseries.json", describe_components())
    prefix = f"{stem}_space-{TEMPLATE}"
    shape, voxels = experiment.labels["HCPEx"].shape, tuple(subject.voxel_indices.T)
    volumes, mask = np.zeros((*shape, len(run.series)), np.float32), np.zeros(shape, np.uint8)
    volumes[voxels], mask[voxels] = run.series.T, 1
    if (labels["ses"], labels["run"]) != ("01", "1"):
        extra = np.argwhere(mask == 0)[int(labels["ses"]) * 10 + int(labels["run"])]
        mask[tuple(extra)] = 1
    for array, suffix in ((volumes, "desc-preproc_bold"), (mask, "desc-brain_mask")):
        img = nib.Nifti1Image(array, experiment.affine)
        img.set_sform(experiment.affine, "mni")
        img.header.set_xyzt_units("mm", "sec")
        if array is volumes:
            img.header.set_zooms((*img.header.get_zooms()[:3], timing.tr_seconds))
        img.to_filename(func / f"{prefix}_{suffix}.nii.gz")
    write_json(
        func / f"{prefix}_desc-preproc_bold.json",
        {
            "RepetitionTime": timing.tr_seconds,
            "SkullStripped": False,
            "SliceTimingCorrected": True,
            "StartTime": timing.slice_time_ref * timing.tr_seconds,
            "TaskName": TASK,
        },
    )


def describe_components() -> dict[str, dict[str, object]]:
    """Describe the components of aCompCor, as fMRIPrep does in the JSON file of the confounds."""
    return {
        f"a_comp_cor_{component:02d}": {
            "Method": "aCompCor",
            "Mask": "combined",
            "Retained": True,
            "SingularValue": 10.0 - component,
            "VarianceExplained": 0.1,
            "CumulativeVarianceExplained": 0.1 * (component + 1),
        }
        for component in range(N_COMPONENTS)
    }
