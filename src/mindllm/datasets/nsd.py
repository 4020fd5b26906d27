"""Reader of the Natural Scenes Dataset in its official layout (Allen et al. 2022).

    nsddata_betas/ppdata/subjXX/func1pt8mm/<version>/
        betas_sessionNN.nii.gz or .hdf5    int16, 300 times the percent signal change
        ncsnr.nii.gz                       noise ceilings (optional)
    nsddata/ppdata/subjXX/func1pt8mm/
        roi/*.nii.gz, brainmask.nii.gz     masks and atlases
    nsddata/ppdata/subjXX/transforms/
        MNI-to-func1pt8.nii.gz             where each voxel is in MNI space
    nsddata/freesurfer/subjXX/label/
        *.mgz.ctab (or fsaverage's)        names of parcels
    nsddata/experiments/nsd/
        nsd_expdesign.mat, nsd_stim_info_merged.csv    what was shown when

The file A-to-B lies on the grid of B and holds, per voxel, the 1-based voxel of A that belongs
there (nsdcode). MNI-to-func1pt8 thus gives the position of every functional voxel in FSL's 1 mm
template, which is stored from right to left.

References
----------
Allen et al. 2022, Nature Neuroscience 25:116, https://naturalscenesdataset.org.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from functools import partial as bind
from pathlib import Path

import numpy as np
import pandas as pd

from mindllm.datasets.base import DatasetDescription, SessionFilesReader
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import check_same_grid, get_data, load_img
from mindllm.fmri.roi_volumes import MASK, load_roi_maskers
from mindllm.utils.errors import InputError
from mindllm.utils.hdf5 import get_dataset, open_hdf5, read_values
from mindllm.utils.matlab import load_mat
from mindllm.utils.tables import read_table, require_values, to_whole_numbers

# What NSD is known to contain (data manual; Allen et al. 2022).
SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
GENERAL_VOXELS = {1: 15724, 2: 14278, 3: 15226, 4: 13153, 5: 13039, 6: 17907, 7: 12682, 8: 14386}
TRIALS = 750  # per session
SHARED = 1000
N_IMAGES = 10_000  # per subject
CHUNK_SIZE = 25  # volumes of a NIfTI file in memory at once
SCALE = 300  # the stored whole numbers are percent signal change, times this
# Sessions published before August 2023, whose shared images are the 982 of many papers.
EARLY_SESSIONS = 37
MNI_SHAPE, MNI_ORIGIN = (182, 218, 182), np.array([91, 127, 73])  # 1-based voxel at 0 mm
BETAS, BRAIN = "betas_fithrf_GLMdenoise_RR", "brain"
EXPERIMENT = Path("nsddata", "experiments", "nsd")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NSDSubjectFiles:
    """Paths of one NSD subject's betas, ROIs and transforms.

    Attributes
    ----------
    root : Path
        Folder that holds nsddata and nsddata_betas.
    number : int
        Number of the subject, 1 to 8.
    """

    root: Path
    number: int

    @property
    def name(self) -> str:
        """Label of the subject, such as subj01."""
        return f"subj{self.number:02d}"

    @property
    def functional(self) -> Path:
        """Folder of masks and ROIs."""
        return self.root / "nsddata" / "ppdata" / self.name / "func1pt8mm"

    @property
    def transform(self) -> Path:
        """Image of the voxels' positions in MNI space."""
        folder = self.root / "nsddata" / "ppdata" / self.name / "transforms"
        return folder / "MNI-to-func1pt8.nii.gz"

    @property
    def labels(self) -> list[Path]:
        """Folders of lookup tables: the subject's own, then fsaverage's."""
        freesurfer = self.root / "nsddata" / "freesurfer"
        return [freesurfer / name / "label" for name in (self.name, "fsaverage")]

    def betas(self, version: str) -> Path:
        """Return the folder of the sessions' betas."""
        return self.root / "nsddata_betas" / "ppdata" / self.name / "func1pt8mm" / version

    def session(self, version: str, number: int) -> Path:
        """Return the file of a session: the NIfTI file if it alone is there, else the HDF5 file."""
        stem = f"betas_session{number:02d}"
        hdf5, nifti = (self.betas(version) / f"{stem}{suffix}" for suffix in (".hdf5", ".nii.gz"))
        return nifti if nifti.is_file() and not hdf5.is_file() else hdf5


class NSDReader(SessionFilesReader):
    """Reader of the Natural Scenes Dataset.

    A stimulus is named by its 0-based nsdId; the shared images are `test`, the others `train`. The
    stimulus sets are 1000 (shared images) and 982 (those shown in the first 37 sessions). A store
    holds no text yet: ``mindllm prepare instructions`` adds it.

    Parameters
    ----------
    root : str or Path
        Folder that holds nsddata and nsddata_betas.
    subjects : sequence of int, optional
        Numbers of subjects, 1 to 8. Default: all that are there.
    betas : str
        Version of the betas: a folder in func1pt8mm.
    mask : str
        Name of an ROI, or ``brain`` for the whole brain.
    sessions : sequence of int, optional
        Sessions to read. Default: all that a subject took part in; a missing one is an error.
    """

    prepared_by = "nsd"

    def __init__(
        self,
        root: str | Path,
        *,
        subjects: Sequence[int] | None = None,
        betas: str = BETAS,
        mask: str = MASK,
        sessions: Sequence[int] | None = None,
    ) -> None:
        labels = [f"subj{number:02d}" for number in subjects or []] or None
        super().__init__(root, subjects=labels, sessions=sessions)
        self.betas, self.mask = betas, mask

    def files(self, subject: str) -> NSDSubjectFiles:
        """Return the paths of a subject's files."""
        return NSDSubjectFiles(self.root, int(subject.removeprefix("subj")))

    def find_subjects(self) -> list[str]:
        files = [NSDSubjectFiles(self.root, number) for number in SESSIONS]
        present = [subject.name for subject in files if subject.functional.is_dir()]
        if not present:
            raise InputError(
                f"{self.root} does not hold NSD: expected {files[0].functional}. "
                "Give the folder that holds nsddata and nsddata_betas."
            )
        return present

    def expected_sessions(self, subject: str) -> list[int]:
        return list(range(1, SESSIONS[self.files(subject).number] + 1))

    def session_files(self, subject: str, session: int) -> list[Path]:
        return [self.files(subject).session(self.betas, session)]

    def select_sessions(self, subject: str) -> list[int]:
        folder = self.files(subject).betas(self.betas)
        if not folder.is_dir():
            versions = sorted(path.name for path in folder.parent.glob("betas_*"))
            raise InputError(
                f"there is no {folder}; {subject} has the versions {', '.join(versions) or 'none'}."
            )
        expected = self.expected_sessions(subject)
        if unknown := sorted(set(self.sessions or []) - set(expected)):
            raise InputError(
                f"{subject} took part in sessions 1 to {expected[-1]}; {unknown} were asked for."
            )
        return super().select_sessions(subject)

    @cached_property
    def design(self) -> "NSDExperimentDesign":
        """What was shown when."""
        return NSDExperimentDesign.read(self.root / EXPERIMENT / "nsd_expdesign.mat")

    @cached_property
    def coco_ids(self) -> dict[int, int]:
        """The COCO id of every 0-based nsdId."""
        numbers = [self.files(subject).number for subject in self.select_subjects()]
        file = self.root / EXPERIMENT / "nsd_stim_info_merged.csv"
        return read_coco_ids(file, self.design, numbers)

    @cached_property
    def roi_maskers(self) -> dict[str, VoxelMasker]:
        """The maskers of all subjects in native space, with parcel labels that they share."""
        files = [self.files(subject) for subject in self.select_subjects()]
        return load_roi_maskers(
            {subject.name: subject.functional / "roi" for subject in files},
            masks={subject.name: find_mask(subject, self.mask) for subject in files},
            lookups={subject.name: subject.labels for subject in files},
            needs_orientation=False,  # the transform gives the coordinates
        )

    def read_trials(self, subject: str) -> pd.DataFrame:
        sessions = self.select_sessions(subject)
        return self.design.trials(self.files(subject).number, sessions, self.coco_ids)

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        files, masker = self.files(subject), self.roi_maskers[subject]
        expected = GENERAL_VOXELS[files.number]
        if self.mask == MASK and len(masker) != expected:
            logger.warning(
                "%s: %s has %d voxels; NSD's has %d", subject, MASK, len(masker), expected
            )
        return move_to_mni(files, masker)

    def bind_read(
        self, masker: VoxelMasker, session: int, trials: pd.DataFrame, dtype: str
    ) -> Callable[[], np.ndarray]:
        file = self.files(masker.subject).session(self.betas, session)
        return bind(read_betas, file, masker.shape, masker.voxel_indices, dtype)

    def read_ncsnr(self, masker: VoxelMasker) -> np.ndarray | None:
        file = self.files(masker.subject).betas(self.betas) / "ncsnr.nii.gz"
        if not file.is_file():
            logger.info(
                "%s: no %s, so the store has no published noise ceiling", masker.subject, file
            )
            return None
        img = load_img(file, "noise ceiling", dimensions=3)
        check_same_grid(img, masker.shape, masker.affine, "noise ceiling", "the mask")
        return get_data(img, "noise ceiling")[tuple(masker.voxel_indices.T)].astype(np.float32)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        return DatasetDescription(
            name="Natural Scenes Dataset",
            source="Allen et al. 2022, https://naturalscenesdataset.org",
            license="NSD Data Access Agreement",
        )

    def options(self) -> dict[str, object]:
        subjects = self.select_subjects()
        return {
            "subjects": [self.files(subject).number for subject in subjects],
            "betas": self.betas,
            "mask": self.mask,
            "sessions": {subject: self.select_sessions(subject) for subject in subjects},
        }

    def stimulus_sets(self, trials: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
        return self.design.stimulus_sets()


@dataclass(frozen=True)
class NSDExperimentDesign:
    """What NSD showed when, with 0-based numbers.

    Attributes
    ----------
    order : np.ndarray
        (30000,) position of each trial's image among the images of a subject.
    images : np.ndarray
        (8, 10000) nsdIds of each subject's images.
    runs : np.ndarray
        (40, 12) number of trials in each run of each session.
    """

    order: np.ndarray
    images: np.ndarray
    runs: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "NSDExperimentDesign":
        """Read nsd_expdesign.mat, in which everything is 1-based.

        Raises
        ------
        InputError
            If the file is missing, damaged or not the design of NSD.
        """
        if not file.is_file():
            raise InputError(
                f"there is no {file}, which tells what was shown when. Fetch it from NSD."
            )
        names = ("masterordering", "subjectim", "sharedix", "stimpattern")
        content = load_mat(file, names, "Fetch it from NSD again.")
        order, shared = (content[name].ravel() - 1.0 for name in ("masterordering", "sharedix"))
        images, pattern = content["subjectim"] - 1.0, content["stimpattern"]
        runs = pattern.sum(2, dtype=int) if pattern.ndim == 3 else np.zeros((1, 1), int)
        if not is_nsd_design(order, images, shared, runs):
            raise InputError(
                f"{file} is not the design of NSD: expected 30,000 trials, 8 x 10,000 images of "
                f"which the first {SHARED} are the shared ones, and {TRIALS} trials a session; "
                f"found {len(order)} trials, images {images.shape}. Fetch it again."
            )
        return cls(order.astype(int), images.astype(int), runs)

    def shown_nsd_ids(self, number: int) -> np.ndarray:
        """Return the nsdId of each trial of subject `number` (1 to 8), (30000,)."""
        return self.images[number - 1, self.order]

    def trials(
        self, number: int, sessions: Sequence[int], coco_ids: Mapping[int, int]
    ) -> pd.DataFrame:
        """Tabulate a subject's trials in these sessions; repetitions count over all sessions."""
        n_sessions = SESSIONS[number]
        n_trials = n_sessions * TRIALS
        nsd_ids = self.shown_nsd_ids(number)[:n_trials]
        session = np.arange(n_trials) // TRIALS + 1
        run = np.concatenate(
            [np.repeat(np.arange(1, len(runs) + 1), runs) for runs in self.runs[:n_sessions]]
        )
        table = pd.DataFrame(
            {
                "stimulus": nsd_ids.astype(str),
                "session": session.astype(str),
                "run": run.astype(str),
                "repetition": pd.Series(nsd_ids).groupby(nsd_ids).cumcount(),
                "split": np.where(self.order[:n_trials] < SHARED, "test", "train"),
                "coco_id": [coco_ids[nsd_id] for nsd_id in nsd_ids],
            }
        )
        return table[np.isin(session, sessions)].reset_index(drop=True)

    def stimulus_sets(self) -> dict[str, list[str]]:
        """Name the test images: all shared ones, and those among the first 37 sessions."""
        early = self.order[: EARLY_SESSIONS * TRIALS]
        return {
            "1000": self.images[0, :SHARED].astype(str).tolist(),
            "982": self.images[0, np.unique(early[early < SHARED])].astype(str).tolist(),
        }


def is_nsd_design(
    order: np.ndarray, images: np.ndarray, shared: np.ndarray, runs: np.ndarray
) -> bool:
    """Return whether these arrays have the sizes and the shared images of NSD's design."""
    n_sessions = max(SESSIONS.values())
    sizes_fit = (
        images.shape == (len(SESSIONS), N_IMAGES)
        and order.shape == (n_sessions * TRIALS,)
        and shared.shape == (SHARED,)
        and len(runs) == n_sessions
    )
    return bool(
        sizes_fit
        and (runs.sum(1) == TRIALS).all()
        and (runs >= 0).all()
        and all((array == np.round(array)).all() for array in (order, images))
        and order.min() >= 0
        and order.max() < N_IMAGES
        and images.min() >= 0
        and (images[:, :SHARED] == shared).all()
    )


def read_coco_ids(
    file: Path, design: NSDExperimentDesign, numbers: Sequence[int]
) -> dict[int, int]:
    """Read the COCO id of every 0-based nsdId.

    Parameters
    ----------
    file : Path
        nsd_stim_info_merged.csv.
    design : NSDExperimentDesign
        The design that the table is checked against.
    numbers : sequence of int
        Numbers of the subjects to check.

    Raises
    ------
    InputError
        If the table has other trials than the design: an off-by-one, or another release.
    """
    if not file.is_file():
        raise InputError(
            f"there is no {file}, which tells the COCO id of each image. Fetch it from NSD."
        )
    table = read_table(file, "NSD's table of images")
    needed = {"nsdId", "cocoId", *(f"subject{number}_rep0" for number in numbers)}
    if missing := sorted(needed - set(table.columns)):
        raise InputError(f"{file} lacks the columns {', '.join(missing)}. Fetch it from NSD again.")
    require_values(table, ("nsdId", "cocoId"), file)
    for number in numbers:
        column = f"subject{number}_rep0"
        first = to_whole_numbers(table[column], file).fillna(0).set_axis(table["nsdId"])
        first = first[first > 0]  # 1-based trial of the first showing
        shown = design.shown_nsd_ids(number)
        if first.max() > len(shown):
            raise InputError(
                f"{file} has the trial {first.max()} in {column}; expected numbers up to "
                f"{len(shown)}. Fetch it from NSD again."
            )
        nsd_ids = shown[first.to_numpy(int) - 1]
        n_wrong = int((nsd_ids != first.index.to_numpy()).sum())
        if n_wrong:
            raise InputError(
                f"{file} and nsd_expdesign.mat disagree about {n_wrong} of {len(first)} images of "
                f"subj{number:02d}. One of them is of another release, or was changed; "
                "fetch both again."
            )
    return dict(zip(table["nsdId"].astype(int), table["cocoId"].astype(int), strict=True))


def find_mask(files: NSDSubjectFiles, mask: str) -> Path:
    """Find a subject's mask: the brain, or an ROI of this name."""
    file = files.functional / ("brainmask.nii.gz" if mask == BRAIN else f"roi/{mask}.nii.gz")
    if not file.is_file():
        rois = sorted(
            path.name.removesuffix(".nii.gz")
            for path in (files.functional / "roi").glob("*.nii.gz")
        )
        raise InputError(
            f"{files.name} has no mask {file}; "
            f"choose {BRAIN} or one of {', '.join(rois) or 'none'}."
        )
    return file


def move_to_mni(files: NSDSubjectFiles, masker: VoxelMasker) -> VoxelMasker:
    """Give a masker its MNI coordinates; voxels without any are left out with a warning."""
    coords_mm, in_template = read_mni_coords(files.transform, masker)
    if not in_template.all():
        logger.warning(
            "%s: %d of %d voxels have no place in MNI space and are left out",
            files.name,
            (~in_template).sum(),
            len(masker),
        )
    if not in_template.any():
        raise InputError(
            f"{files.transform} gives no voxel of {files.name} a place in MNI space. "
            "Fetch it again."
        )
    check_hemispheres(files, masker, coords_mm)
    return replace(masker, coords_mm=coords_mm).select_voxels(in_template)


def read_mni_coords(transform: Path, masker: VoxelMasker) -> tuple[np.ndarray, np.ndarray]:
    """Read the MNI coordinates (V, 3) in mm of a subject's voxels, and which have any (V,)."""
    img = load_img(transform, f"the transform of {masker.subject}")
    if img.shape != (*masker.shape, 3):
        raise InputError(
            f"{transform} has shape {img.shape}; expected {(*masker.shape, 3)}: for each "
            "functional voxel its place in MNI space. Is it another subject's, or the transform "
            "of another direction?"
        )
    mni_voxels = get_data(img, "transform")[tuple(masker.voxel_indices.T)].astype(np.float64)
    in_template = np.isfinite(mni_voxels).all(1)
    in_template &= (mni_voxels >= 1).all(1) & (mni_voxels <= MNI_SHAPE).all(1)  # 1-based
    return ((mni_voxels - MNI_ORIGIN) * [-1, 1, 1]).astype(np.float32), in_template


def check_hemispheres(files: NSDSubjectFiles, masker: VoxelMasker, coords_mm: np.ndarray) -> None:
    """Raise InputError if a left-hemisphere ROI lies on the right: the transform is mirrored."""
    file = files.functional / "roi" / f"lh.{MASK}.nii.gz"
    if not file.is_file():
        return
    img = load_img(file, "left hemisphere", dimensions=3)
    check_same_grid(img, masker.shape, masker.affine, "left hemisphere", "the mask")
    hemisphere = get_data(img, "left hemisphere")
    left = hemisphere[tuple(masker.voxel_indices.T)] > 0
    if left.any() and np.median(coords_mm[left, 0]) > 0:
        raise InputError(
            f"{files.transform} places the left hemisphere of {files.name} at "
            f"x = {np.median(coords_mm[left, 0]):.0f} mm, on the right. "
            "The transform is mirrored; fetch it again."
        )


def read_betas(
    file: Path, shape: tuple[int, int, int], voxel_indices: np.ndarray, dtype: str
) -> np.ndarray:
    """Read a session's betas in percent signal change, a part of the file in memory at a time.

    Parameters
    ----------
    file : Path
        A session in either format.
    shape : tuple of int
        Grid of the volumes.
    voxel_indices : np.ndarray
        (V, 3) voxels to read.
    dtype : str
        Type of the betas returned.

    Returns
    -------
    np.ndarray
        (750, V).
    """
    betas = np.empty((TRIALS, len(voxel_indices)), dtype)
    if file.suffix == ".hdf5":
        read_hdf5_betas(file, shape, voxel_indices, betas)
        return betas
    img = load_img(file, "betas")
    if img.shape != (*shape, TRIALS):
        raise InputError(f"{file} has shape {img.shape}; expected {(*shape, TRIALS)}.")
    for start in range(0, TRIALS, CHUNK_SIZE):
        trials = slice(start, start + CHUNK_SIZE)
        chunk = get_data(img, "betas", (trials,))[tuple(voxel_indices.T)]
        betas[trials] = (chunk / np.float32(SCALE)).T
    return betas


def read_hdf5_betas(
    file: Path, shape: tuple[int, int, int], voxel_indices: np.ndarray, out: np.ndarray
) -> None:
    """Fill `out` (750, V), a slice at a time; MATLAB's (X, Y, Z, 750) reads as (750, Z, Y, X)."""
    with open_hdf5(file, "a session of NSD") as content:
        betas = get_dataset(content, "betas")
        if betas.shape != (TRIALS, *shape[::-1]):
            raise InputError(f"{file} has shape {betas.shape}; expected {(TRIALS, *shape[::-1])}.")
        x, y, slices = voxel_indices.T
        for z in np.unique(slices):
            columns = np.flatnonzero(slices == z)
            in_slice = read_values(betas, (slice(None), int(z)))[:, y[columns], x[columns]]
            out[:, columns] = in_slice / np.float32(SCALE)
