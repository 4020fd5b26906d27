"""Reader of fMRIPrep's derivatives: from preprocessed runs and events to single-trial betas.

    DERIVATIVES/sub-XX/[ses-YY/]func/
        *_space-<template>[_res-<n>]_desc-preproc_bold.nii.gz, .json     a run, with RepetitionTime
        *_space-<template>[_res-<n>]_desc-brain_mask.nii.gz
        *_desc-confounds_timeseries.tsv, .json
    DERIVATIVES/*atlas-<NAME>*_dseg.nii.gz       with `space` or `tpl`; a lookup table (optional)
    BIDS/sub-XX/[ses-YY/]func/*_events.tsv       onset, duration, stim_file or trial_type
    BIDS/stimuli/captions.tsv                    `stimulus`, `caption`, one row each (optional)

References
----------
fMRIPrep documentation, "Outputs of fMRIPrep". Esteban et al. 2019, Nature Methods 16:111.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, TypeAdapter

from mindllm.data.store_writer import check_captions
from mindllm.datasets.base import DatasetDescription, DatasetReader, assign_fractions, drop_voxels
from mindllm.datasets.bids import read_captions
from mindllm.datasets.confounds import load_confounds, parse_confounds_options
from mindllm.datasets.events import EventOptions, check_fit, check_same_column, read_events
from mindllm.datasets.fmriprep_files import (
    AROMA,
    BOLD,
    TR_TOLERANCE,
    PreprocessedRun,
    find_events,
    find_runs,
    intersect_masks,
    load_atlases,
    select_value,
)
from mindllm.datasets.parallel import SessionReader
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.single_trial import (
    HRF_MODELS,
    DesignQuality,
    Method,
    NoiseModel,
    RunDesign,
    ScanTimes,
    build_design,
    compute_weights,
    describe_design,
    estimate_betas,
    find_constant_voxels,
    read_time_series,
)
from mindllm.utils.errors import InputError, name_file
from mindllm.utils.files import read_json
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.validation import validate_content

MIN_SAMPLED = 0.5  # fraction of a trial's response that must be in the kept volumes
NOT_KEPT = ("nuisance", "session", "run", "repetition")  # columns of events
logger = logging.getLogger(__name__)


class GeneratingProgram(BaseModel):
    """A program that made derivatives, with BIDS's names."""

    Name: str
    Version: str = ""


class DerivativesDescription(BaseModel):
    """What is read of dataset_description.json, with BIDS's names."""

    Name: str = ""
    License: str = "unknown"
    GeneratedBy: list[GeneratingProgram] = []


DESCRIPTION = TypeAdapter(DerivativesDescription)


@dataclass(frozen=True)
class ModelOptions:
    """How single-trial betas are estimated.

    Attributes
    ----------
    single_trial : {"lsa", "lss"}
        Least squares all, or separate.
    hrf_model : str
        One of HRF_MODELS, with nilearn's names.
    high_pass_hz : float
        Cut-off of the cosine drift model; 0: no drift. fMRIPrep's is 1/128.
    noise_model : {"ols", "ar1"}
        As nilearn's `FirstLevelModel`.
    smoothing_fwhm_mm : float, optional
        Width of the Gaussian kernel; by default volumes are not smoothed.
    confounds : str
        Strategy of nilearn's `load_confounds_strategy`, or none.
    confounds_options : mapping of str to str
        Its options, with nilearn's names.
    slice_time_ref : float, optional
        In place of `StartTime` of the JSON files, as a fraction of the repetition time.
    """

    single_trial: Method = "lss"
    hrf_model: str = "glover"
    high_pass_hz: float = 1 / 128
    noise_model: NoiseModel = "ols"
    smoothing_fwhm_mm: float | None = None
    confounds: str = "simple"
    confounds_options: Mapping[str, str] = field(default_factory=dict)
    slice_time_ref: float | None = None

    def __post_init__(self) -> None:
        if str(self.single_trial).lower() == "glmsingle":
            raise InputError(
                "GLMsingle needs all runs of a session at once, and is not run here; expected lsa "
                "or lss. Run it on the preprocessed runs, and read its outputs with `mindllm "
                "prepare glmsingle`."
            )
        known = {
            "single_trial": ("lsa", "lss"),
            "hrf_model": HRF_MODELS,
            "noise_model": ("ols", "ar1"),
        }
        for name, values in known.items():
            if (value := getattr(self, name)) not in values:
                raise InputError(f"{name}={value!r} is unknown; expected {', '.join(values)}.")
        for name in ("high_pass_hz", "smoothing_fwhm_mm", "slice_time_ref"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise InputError(f"{name}={value!r} is out of range; expected 0 or more.")
        parse_confounds_options(self.confounds, self.confounds_options)


@dataclass(frozen=True)
class RunModel:
    """A run and the model of its trials, without its time series.

    Attributes
    ----------
    run : PreprocessedRun
    events_file : Path
    stimulus_column : str
        Column of the events that names the stimuli.
    times : ScanTimes
    design : RunDesign
    quality : DesignQuality
    trials : pd.DataFrame
        One row per trial that is kept.
    n_dropped : int
        Trials that the kept volumes hardly show.
    n_confounds : int
        Regressors of the confounds.
    """

    run: PreprocessedRun
    events_file: Path
    stimulus_column: str
    times: ScanTimes
    design: RunDesign
    quality: DesignQuality
    trials: pd.DataFrame
    n_dropped: int
    n_confounds: int

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the betas are made of."""
        confounds = self.run.confounds_candidates
        present = [f for f in confounds if f.is_file()]
        sidecars = [f.with_suffix(".json") for f in present]
        return (self.run.file, self.run.sidecar_file, self.events_file, *present, *sidecars)

    def describe(self, subject: str) -> dict[str, object]:
        """Describe the run in a row of a table."""
        n_volumes, kept = self.times.n_volumes, len(self.design.kept)
        return {
            "subject": subject,
            "session": self.run.session,
            "run": self.run.run,
            "tr_seconds": self.times.tr_seconds,
            "slice_time_ref": self.times.slice_time_ref,
            "n_volumes": n_volumes,
            "excluded_fraction": 1 - kept / n_volumes,
            "n_trials": len(self.trials),
            "n_dropped_trials": self.n_dropped,
            "n_confounds": self.n_confounds,
            "condition_number": self.quality.condition_number,
            "mean_efficiency": float(self.quality.efficiency.mean()),
            "max_variance_inflation": float(self.quality.variance_inflation.max()),
            "max_correlation_of_trials": self.quality.max_correlation,
            "max_r2_with_nuisance": self.quality.max_nuisance_r2,
        }


class FMRIPrepReader(DatasetReader):
    """Reader of fMRIPrep's derivatives, of which it estimates single-trial betas.

    Parameters
    ----------
    root : str or Path
        Folder of the derivatives.
    events : str or Path
        The raw BIDS data set, with the tables of events.
    subjects : sequence of str, optional
        Labels such as sub-01. Default: all that are there.
    space : str, optional
        As fMRIPrep's --output-spaces names it, such as MNI152NLin2009cAsym:res-2, where the runs
        are there in several.
    task : str, optional
        Label of the task, where there are several.
    model : ModelOptions, optional
        How betas are estimated.
    event_options : EventOptions, optional
        Which events are trials.
    mask : str or Path, optional
        Image in the same template; voxels outside it are left out.
    nan : {"error", "drop"}
        What to do about voxels that are constant or not positive in a run: raise an error, or
        leave them out, for which all runs are read once more.
    test_fraction : float
        Fraction of the stimuli for testing, where the tables of events have no `split`.
    """

    prepared_by = "fmriprep"
    default_dtype = "float32"
    reader_columns = ("file",)

    def __init__(
        self,
        root: str | Path,
        *,
        events: str | Path,
        subjects: Sequence[str] | None = None,
        space: str | None = None,
        task: str | None = None,
        model: ModelOptions | None = None,
        event_options: EventOptions | None = None,
        mask: str | Path | None = None,
        nan: Literal["error", "drop"] = "error",
        test_fraction: float = 0.0,
    ) -> None:
        super().__init__(root, subjects=subjects)
        if nan not in ("error", "drop"):
            raise InputError(f"nan={nan!r} is unknown; expected error or drop.")
        self.events_root, self.space, self.task = Path(events), space, task
        self.model, self.event_options = model or ModelOptions(), event_options or EventOptions()
        self.mask, self.nan = Path(mask) if mask is not None else None, nan
        self.test_fraction = test_fraction
        self._models: dict[str, list[RunModel]] = {}
        self._columns: dict[Path, str] = {}  # of stimuli, by table of events

    def find_subjects(self) -> list[str]:
        subjects = natural_sorted(p.name for p in self.root.glob("sub-*") if p.is_dir())
        if not subjects:
            raise InputError(
                f"{self.root} holds no folder sub-*: expected fMRIPrep's derivatives with "
                f"sub-XX/func/*_{BOLD}.nii.gz."
            )
        return subjects

    def select_subjects(self) -> list[str]:
        subjects = super().select_subjects()
        if not self.events_root.is_dir():
            raise InputError(
                f"{self.events_root} is no folder; expected the raw BIDS data set with the tables "
                "of events (--events)."
            )
        suffix = AROMA if self.model.confounds == "ica_aroma" else BOLD
        runs = [run for subject in subjects for run in find_runs(self.root / subject, suffix)]
        tasks = [run.entities.get("task", "") for run in runs]
        self.task = select_value(tasks, self.task, "task", "--task")
        runs = [run for run in runs if run.entities.get("task", "") == self.task]
        self.space = select_value([run.space for run in runs], self.space, "space", "--space")
        return subjects

    @property
    def template(self) -> str:
        """Template of the selected space."""
        return (self.space or "").split(":")[0]

    def select_runs(self, subject: str) -> list[PreprocessedRun]:
        """Select the runs of a subject in the selected space and task.

        Raises
        ------
        InputError
            If there is none, or two of one session have the same label.
        """
        suffix = AROMA if self.model.confounds == "ica_aroma" else BOLD
        runs = [
            run
            for run in find_runs(self.root / subject, suffix)
            if run.space == self.space and run.entities.get("task", "") == self.task
        ]
        if not runs:
            raise InputError(
                f"{subject} has no run of the task {self.task} in the space {self.space}; "
                "expected some. Leave the subject out with --subjects, or run fMRIPrep with this "
                "space."
            )
        labels: dict[tuple[str, str], PreprocessedRun] = {}
        for run in runs:
            first = labels.setdefault((run.session, run.run), run)
            if first is not run:
                raise InputError(
                    f"{first.file} and {run.file} both are run {run.run} of session {run.session}; "
                    "expected one file per run. Move one of them elsewhere."
                )
        return runs

    def read_trials(self, subject: str) -> pd.DataFrame:
        runs = self.select_runs(subject)
        times = [run.read_times(self.model.slice_time_ref) for run in runs]
        check_equal_trs(runs, times, subject)
        models = [self._build_model(run, t, subject) for run, t in zip(runs, times)]
        self._columns |= {model.events_file: model.stimulus_column for model in models}
        check_same_column(self._columns)
        self._models[subject] = models
        return pd.concat([model.trials for model in models], ignore_index=True).pipe(unify_types)

    def _build_model(self, run: PreprocessedRun, times: ScanTimes, subject: str) -> RunModel:
        """Read what a run was shown, and build the model of its trials."""
        options = self.model
        events_file = find_events(self.events_root, run)
        events = read_events(events_file, self.event_options)
        check_fit(events, times, events_file)
        parsed = parse_confounds_options(options.confounds, options.confounds_options)
        confounds = load_confounds(run, times.n_volumes, options.confounds, parsed)
        design = build_design(
            events,
            times,
            confounds.regressors,
            confounds.kept,
            options.hrf_model,
            options.high_pass_hz,
        )
        sampled = design.sampled_fraction >= MIN_SAMPLED
        trials = events[events["nuisance"].isna()]
        report_dropped(trials, sampled, f"{subject}, {run.file.name}")
        design = design.select_trials(sampled)
        with name_file(run.file):
            quality = describe_design(design, compute_weights(design, options.single_trial))
        return RunModel(
            run=run,
            events_file=events_file,
            stimulus_column=events.attrs["stimulus_column"],
            times=times,
            design=design,
            quality=quality,
            trials=make_trials(trials[sampled], run, design, quality),
            n_dropped=int((~sampled).sum()),
            n_confounds=len(confounds.names),
        )

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        fractions = {"val": val_fraction, "test": self.test_fraction}
        return assign_fractions(trials, fractions, seed, "the tables of events")

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        models = self._models[subject]
        mask_img = intersect_masks([model.run for model in models], self.mask)
        folder = self.root / subject
        files = [
            *sorted(self.root.glob("*atlas-*_dseg.nii*")),
            *sorted(folder.rglob("*atlas-*_dseg.nii*")),
        ]
        atlases = load_atlases(files, mask_img, self.template)
        masker = VoxelMasker.from_mask_img(
            mask_img, atlases.images, parcel_names=atlases.parcel_names, subject=subject
        )
        if not self.template.startswith("MNI"):
            logger.warning(
                "%s: the space %s is no MNI space; its coordinates are taken as they are, so "
                "voxels of different subjects may not correspond",
                subject,
                self.space,
            )
        if self.nan == "drop":
            masker = drop_constant_voxels(masker, models, self.model.smoothing_fwhm_mm)
        return masker

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        models = {str(model.run.file): model for model in self._models[masker.subject]}
        return [
            SessionReader(
                f"{masker.subject}, {Path(str(file)).name}",
                rows.index.to_numpy(),
                bind(read_betas, masker, models[str(file)], self.model),
                models[str(file)].files,
            )
            for file, rows in trials.groupby("file", sort=False)
        ]

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        for table in trials.values():
            if "caption" in table:
                check_captions(table.dropna(subset="caption"), self.events_root)
        return read_captions(self.events_root / "stimuli" / "captions.tsv", trials)

    def describe_runs(self, subjects: Sequence[str]) -> pd.DataFrame:
        rows = [model.describe(subject) for subject in subjects for model in self._models[subject]]
        return pd.DataFrame(rows)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        raw, derived = read_description(self.events_root), read_description(self.root)
        programs = [f"{p.Name} {p.Version}".strip() for p in derived.GeneratedBy]
        return DatasetDescription(
            name=raw.Name or self.events_root.resolve().name,
            source=f"single-trial betas of derivatives of {', '.join(programs) or 'fMRIPrep'}",
            license=raw.License,
        )

    def options(self) -> dict[str, object]:
        events, model = self.event_options, self.model
        return {
            "template": self.template,
            "space": self.space,
            "task": self.task,
            "single_trial": model.single_trial,
            "hrf_model": model.hrf_model,
            "high_pass_hz": model.high_pass_hz,
            "noise_model": model.noise_model,
            "smoothing_fwhm_mm": model.smoothing_fwhm_mm,
            "confounds": model.confounds,
            "confounds_options": dict(model.confounds_options),
            "slice_time_ref": model.slice_time_ref,
            "stimulus_column": events.stimulus_column,
            "trial_types": list(events.trial_types) if events.trial_types is not None else None,
            "missing": events.missing,
            "duration_seconds": events.duration_seconds,
            "mask": str(self.mask) if self.mask else None,
            "nan": self.nan,
            "test_fraction": self.test_fraction,
        }


def read_description(folder: Path) -> DerivativesDescription:
    """Read dataset_description.json of a BIDS data set, if there is one."""
    file = folder / "dataset_description.json"
    if not file.is_file():
        return DerivativesDescription()
    remedy = "Expected `Name` and `License` as text, `GeneratedBy` as a list with `Name`."
    return validate_content(DESCRIPTION, read_json(file, "a BIDS data set"), str(file), remedy)


def make_trials(
    trials: pd.DataFrame, run: PreprocessedRun, design: RunDesign, quality: DesignQuality
) -> pd.DataFrame:
    """Make the rows of a run in the table of trials; `file` is its image."""
    columns = [name for name in trials if name not in NOT_KEPT]
    return trials[columns].assign(
        session=run.session,
        run=run.run,
        file=str(run.file),
        sampled_fraction=design.sampled_fraction,
        efficiency=quality.efficiency,
        variance_inflation=quality.variance_inflation,
    )


def unify_types(table: pd.DataFrame) -> pd.DataFrame:
    """Make columns that hold numbers in one run and texts in another texts."""
    for name in table.select_dtypes(object).columns:
        if len({type(value) for value in table[name].dropna()}) > 1:
            table[name] = table[name].map(str, na_action="ignore")
    return table


def report_dropped(trials: pd.DataFrame, sampled: np.ndarray, where: str) -> None:
    """Warn of the trials that are left out, and refuse a run of which none is left."""
    if not sampled.any():
        raise InputError(
            f"{where}: the volumes that are kept show less than {MIN_SAMPLED:.0%} of the response "
            f"to each of its {len(sampled)} trials; expected more. Leave the run out, or take "
            "confounds that exclude fewer volumes."
        )
    if not sampled.all():
        logger.warning(
            "%s: %d of %d trials are left out, since the volumes that are kept show less than "
            "%.0f %% of their response (first: onset %g s); they stay in the model as a regressor "
            "of no interest",
            where,
            (~sampled).sum(),
            len(sampled),
            100 * MIN_SAMPLED,
            trials["onset"].to_numpy()[~sampled][0],
        )


def check_equal_trs(
    runs: Sequence[PreprocessedRun], times: Sequence[ScanTimes], subject: str
) -> None:
    """Refuse runs with different repetition times."""
    first = times[0].tr_seconds
    for run, run_times in zip(runs, times, strict=True):
        if abs(run_times.tr_seconds - first) > TR_TOLERANCE:
            raise InputError(
                f"{subject}: {run.file.name} has a repetition time of {run_times.tr_seconds:g} s, "
                f"{runs[0].file.name} of {first:g} s; expected one for all runs. Correct "
                "the JSON file, or prepare the tasks apart with --task."
            )


def read_betas(masker: VoxelMasker, model: RunModel, options: ModelOptions) -> np.ndarray:
    """Read a run and estimate the betas (n_trials, n_voxels) of its trials.

    Raises
    ------
    InputError
        If voxels have no signal, or the file is damaged.
    """
    file = model.run.file
    series = read_time_series(masker, file, options.smoothing_fwhm_mm)
    constant = find_constant_voxels(series[model.design.kept])
    if constant.any():
        raise InputError(
            f"{file}: {constant.sum()} of {len(constant)} voxels of the masks are constant or not "
            "positive; expected a signal in all, of whose mean betas are percent. Give a smaller "
            "--mask, or leave such voxels out with --nan drop."
        )
    with name_file(file):
        return estimate_betas(series, model.design, options.single_trial, options.noise_model)


def drop_constant_voxels(
    masker: VoxelMasker, models: Sequence[RunModel], smoothing_fwhm_mm: float | None
) -> VoxelMasker:
    """Leave out the voxels without a signal in some run, with a warning."""
    kept = np.ones(len(masker), bool)
    for model in models:
        logger.info("%s: looking for voxels without a signal", model.run.file.name)
        series = read_time_series(masker, model.run.file, smoothing_fwhm_mm)
        kept &= ~find_constant_voxels(series[model.design.kept])
    reason = "are constant or not positive in some run"
    return drop_voxels(masker, kept, reason, "Give another mask (--mask).")
