"""Reader of LAION-fMRI as it is published.

derivatives/glmsingle-tedana/sub-XX/ses-YY/func/sub-XX_ses-YY_task-images_
    space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz   (143, 143, 143, trials)
    desc-SingletrialBetas_trials.tsv                     session, run, beta_index (0-based), label
derivatives/glmsingle-tedana/sub-XX/sub-XX_task-images_space-T1w_
    stat-rsquare_desc-R2mean_statmap.nii.gz              the default mask: above 0
    desc-Noiseceiling12rep_statmap.nii.gz, desc-Noiseceiling4rep_statmap.nii.gz
derivatives/anatomical/sub-XX/*/anat/*_space-T1w_res-1pt8_desc-brain_mask.nii.gz
derivatives/rois/sub-XX/<set>/sub-XX_space-T1w_res-1pt8_label-<NAME>_mask.nii.gz
derivatives/freesurfer/sub-XX/mri/transforms/talairach.xfm (or .lta)
stimuli/task-images_metadata.csv, task-images_desc-captions.csv  (both optional)

References
----------
ViCCo Group, https://laion-fmri.hebartlab.com; github.com/ViCCo-Group/LAION-fMRI.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from functools import partial as bind
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.spatialimages import SpatialImage

from mindllm.data.store_writer import cast_betas, check_captions, conversations_from_captions
from mindllm.datasets.base import DatasetDescription, SessionFilesReader, SubjectFiles
from mindllm.fmri.atlases import extract_label_values
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import (
    binarize_mask,
    check_same_grid,
    get_data,
    img_filename,
    load_img,
)
from mindllm.fmri.noise_ceiling import ncsnr_from_noise_ceiling
from mindllm.fmri.transforms import scanner_to_mni152
from mindllm.utils.errors import InputError
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.tables import read_table, require_values

# What LAION-fMRI is known to contain.
SESSIONS = 30  # the main ones
SHAPE = (143, 143, 143)
SHARED, OOD = 1121, 371
CEILINGS = {"Noiseceiling12rep": 12, "Noiseceiling4rep": 4}  # map -> trials averaged
R2, BRAIN = "R2mean", "brain"
METADATA, CAPTIONS = "task-images_metadata.csv", "task-images_desc-captions.csv"
logger = logging.getLogger(__name__)


class LAIONSubjectFiles(SubjectFiles):
    """Paths of one LAION-fMRI subject's betas, ROIs and transforms."""

    @property
    def betas(self) -> Path:
        """Folder of the sessions' betas and of the maps of all sessions."""
        return self.root / "derivatives" / "glmsingle-tedana" / self.name

    @property
    def rois(self) -> Path:
        """Folder of the sets of ROIs."""
        return self.root / "derivatives" / "rois" / self.name

    @property
    def anatomy(self) -> Path:
        """Folder of the anatomical images."""
        return self.root / "derivatives" / "anatomical" / self.name

    @property
    def transforms(self) -> Path:
        """Folder of FreeSurfer's linear transforms."""
        return self.root / "derivatives" / "freesurfer" / self.name / "mri" / "transforms"

    def session(self, number: int) -> tuple[Path, Path]:
        """Return the files of a session: its betas and its trials."""
        session = f"ses-{number:02d}"
        folder, stem = self.betas / session / "func", f"{self.name}_{session}_task-images_"
        return (
            folder / f"{stem}space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz",
            folder / f"{stem}desc-SingletrialBetas_trials.tsv",
        )

    def roi_masks(self) -> dict[str, dict[str, Path]]:
        """Find the mask of every ROI: set of ROIs -> name -> file."""
        masks: dict[str, dict[str, Path]] = {}
        for file in sorted(self.rois.glob("*/*_space-T1w_res-1pt8_label-*_mask.nii.gz")):
            name = file.name.split("_label-")[1].removesuffix("_mask.nii.gz")
            masks.setdefault(file.parent.name, {})[name] = file
        return masks


class LAIONReader(SessionFilesReader):
    """Reader of LAION-fMRI.

    A stimulus is named by its published label; the images that all subjects saw are `test`, the
    others `train`. The stimulus sets are `shared` (1,121 images) and `ood` (371 out of
    distribution). Each set of ROIs is an atlas. The text are the captions that humans wrote, where
    stimuli/task-images_desc-captions.csv is there.

    The data come without MNI coordinates: they are made with FreeSurfer's linear transform, and
    are right to some millimeters.

    Parameters
    ----------
    root : str or Path
        Folder that holds derivatives and stimuli.
    subjects : sequence of str, optional
        Labels such as sub-01. Default: all that are there.
    mask : str
        ``R2mean`` (where GLMsingle explains something), ``brain`` (the anatomical mask), the name
        of an ROI such as ``laion-general``, or a pattern with * for files in derivatives.
    sessions : sequence of int, optional
        Sessions to read. Default: the 30 main ones and any later ones that are there; a missing
        one is an error.
    native_space : bool
        Take the coordinates of each subject's own scanner space, where no transform to MNI is.
    """

    prepared_by = "laion"
    reader_columns = ("beta_index",)

    def __init__(
        self,
        root: str | Path,
        *,
        subjects: Sequence[str] | None = None,
        mask: str = R2,
        sessions: Sequence[int] | None = None,
        native_space: bool = False,
    ) -> None:
        super().__init__(root, subjects=subjects, sessions=sessions)
        self.mask, self.native_space = mask, native_space

    def files(self, subject: str) -> LAIONSubjectFiles:
        """Return the paths of a subject's files."""
        return LAIONSubjectFiles(self.root, subject)

    def find_subjects(self) -> list[str]:
        folder = self.root / "derivatives" / "glmsingle-tedana"
        subjects = natural_sorted(path.name for path in folder.glob("sub-*") if path.is_dir())
        if subjects:
            return subjects
        raise InputError(
            f"{self.root} does not hold LAION-fMRI: expected {folder}/sub-01 and so on. "
            "Give the folder that holds derivatives and stimuli."
        )

    def expected_sessions(self, subject: str) -> list[int]:
        folders = self.files(subject).betas.glob("ses-*")
        present = {int(path.name[4:]) for path in folders if path.name[4:].isdecimal()}
        return sorted({*range(1, SESSIONS + 1), *present})

    def session_files(self, subject: str, session: int) -> list[Path]:
        return list(self.files(subject).session(session))

    @cached_property
    def parcel_labels(self) -> dict[str, dict[str, int]]:
        """Parcel labels that all subjects share: set of ROIs -> name -> label."""
        names: dict[str, set[str]] = {}
        for subject in self.select_subjects():
            for roi_set, masks in self.files(subject).roi_masks().items():
                names.setdefault(roi_set, set()).update(masks)
        return {
            roi_set: {name: label for label, name in enumerate(sorted(rois), 1)}
            for roi_set, rois in names.items()
        }

    def read_trials(self, subject: str) -> pd.DataFrame:
        files = self.files(subject)
        sessions = self.select_sessions(subject)
        return pd.concat([read_trials(files, n) for n in sessions], ignore_index=True)

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        shared = find_shared_stimuli(self.root / "stimuli" / METADATA, trials)
        tables = {
            subject: table.assign(split=np.where(table["stimulus"].isin(shared), "test", "train"))
            for subject, table in trials.items()
        }
        return super().assign_splits(tables, val_fraction, seed)

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        files = self.files(subject)
        img = load_mask_with_betas(files, self.mask, self.select_sessions(subject))
        masker = VoxelMasker.from_mask_img(img, subject=subject)
        masker = replace(
            masker,
            parcel_labels={
                roi_set: label_voxels(files, masker, roi_set, labels)
                for roi_set, labels in self.parcel_labels.items()
            },
            parcel_names={
                roi_set: {label: name for name, label in labels.items()}
                for roi_set, labels in self.parcel_labels.items()
            },
        )
        if self.native_space:
            logger.warning(
                "%s: coordinates are those of the subject's own scanner space, "
                "so voxels of different subjects do not correspond",
                subject,
            )
            return masker
        return move_to_mni(files, masker)

    def bind_read(
        self, masker: VoxelMasker, session: int, trials: pd.DataFrame, dtype: str
    ) -> Callable[[], np.ndarray]:
        grid = replace(masker, parcel_labels={}, parcel_names={})  # what a worker needs
        file, _ = self.files(masker.subject).session(session)
        return bind(read_betas, grid, file, trials["beta_index"].tolist(), dtype)

    def read_ncsnr(self, masker: VoxelMasker) -> np.ndarray | None:
        folder = self.files(masker.subject).betas
        for name, n_averaged in CEILINGS.items():
            for file in folder.glob(f"*_desc-{name}_statmap.nii.gz"):
                img = load_img(file, "noise ceiling", dimensions=3)
                check_same_grid(img, masker.shape, masker.affine, "noise ceiling", "the mask")
                percent = get_data(img, "noise ceiling")[tuple(masker.voxel_indices.T)]
                return ncsnr_from_noise_ceiling(percent, 1 / n_averaged)
        logger.info("%s: no noise ceiling in %s", masker.subject, folder)
        return None

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        shown = set(pd.concat(trials.values())["stimulus"])
        return read_captions(self.root / "stimuli" / CAPTIONS, shown)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        return DatasetDescription(
            name="LAION-fMRI",
            source="ViCCo Group, https://laion-fmri.hebartlab.com",
            license="LAION-fMRI terms of use",
        )

    def options(self) -> dict[str, object]:
        sessions = {subject: self.select_sessions(subject) for subject in self.select_subjects()}
        return {"mask": self.mask, "sessions": sessions, "native_space": self.native_space}

    def stimulus_sets(self, trials: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
        table = pd.concat(trials.values())
        shared = sorted(set(table.loc[table["split"] == "test", "stimulus"]))
        return {
            "shared": [stimulus for stimulus in shared if "_OOD_" not in stimulus],
            "ood": [stimulus for stimulus in shared if "_OOD_" in stimulus],
        }


def read_trials(files: LAIONSubjectFiles, session: int) -> pd.DataFrame:
    """Read a session's trials in the order of their betas.

    Returns
    -------
    pd.DataFrame
        Columns `stimulus`, `session`, `run`, `beta_index`.

    Raises
    ------
    InputError
        If the table is not of this session, or does not list each volume of the betas once.
    """
    betas, file = files.session(session)
    columns = ("beta_index", "label")
    table = read_table(file, "the table of a session's trials", columns)
    require_values(table, columns, file)
    table = table.dropna(axis="columns", how="all")
    require_values(table, ("session", "run"), file)
    img = load_img(betas, f"betas of {files.name}, session {session}")
    n_volumes = img.shape[3] if img.ndim == 4 else 1
    if sorted(table["beta_index"]) != list(range(n_volumes)):
        raise InputError(
            f"{file} lists {len(table)} trials ({table['beta_index'].min()} to "
            f"{table['beta_index'].max()}), but {betas.name} has {n_volumes} volumes. "
            "One row per volume, numbered from 0, is expected. Fetch both again."
        )
    names = set(table["session"].dropna()) if "session" in table else set()
    if others := sorted(
        name for name in names if int(re.sub(r"\D", "", name)[:9] or -1) != session
    ):
        raise InputError(
            f"{file} is the table of session {', '.join(others)}; "
            f"expected that of session {session}."
        )
    table = table.assign(
        stimulus=table["label"], session=str(session), run=table.get("run", "1")
    ).sort_values("beta_index")
    return table[["stimulus", "session", "run", "beta_index"]]


def find_shared_stimuli(metadata: Path, trials: Mapping[str, pd.DataFrame]) -> list[str]:
    """Find the shared images that were shown, by the metadata or else by their labels.

    Raises
    ------
    InputError
        If an image is neither shared nor unique, or a unique one was shown to several subjects.
    """
    shown = pd.concat(
        [table[["stimulus"]].assign(subject=subject) for subject, table in trials.items()]
    ).drop_duplicates()
    kinds = read_stimulus_kinds(metadata, shown["stimulus"])
    if (unknown := ~kinds.isin(["shared", "unique"])).any():
        raise InputError(
            f"{unknown.sum()} images are neither shared nor unique, first "
            f"{shown['stimulus'][unknown].iloc[0]!r}; expected {metadata} to tell, or labels that "
            "begin with shared_ or unique_."
        )
    unique = shown[(kinds == "unique").to_numpy()]
    if (repeated := unique[unique.duplicated("stimulus", keep=False)]).size:
        first = repeated["stimulus"].iloc[0]
        subjects = repeated.loc[repeated["stimulus"] == first, "subject"]
        raise InputError(
            f"{repeated['stimulus'].nunique()} unique images were shown to several subjects, "
            f"first {first} to {', '.join(subjects)}. One of their trials tables is another "
            f"subject's, or {metadata} is wrong; fetch them again."
        )
    shared = sorted(set(shown["stimulus"][kinds == "shared"]))
    if len(shared) > SHARED + OOD:
        logger.warning("%d shared images were shown; LAION-fMRI has %d", len(shared), SHARED + OOD)
    return shared


def read_stimulus_kinds(metadata: Path, stimuli: pd.Series) -> pd.Series:
    """Read of each stimulus whether it is `shared` or `unique`: the metadata, else its label."""
    if not metadata.is_file():
        return stimuli.str.split("_").str[0]
    table = read_table(metadata, "the table of images", ("image_name", "unique_or_shared"))
    return stimuli.map(dict(zip(table["image_name"], table["unique_or_shared"], strict=True)))


def find_mask(files: LAIONSubjectFiles, mask: str) -> Path:
    """Find the mask file: the map R2mean, the brain, an ROI, or what matches a pattern.

    Raises
    ------
    InputError
        If there is none, or several.
    """
    rois = {name: file for masks in files.roi_masks().values() for name, file in masks.items()}
    # The data set's own downloader takes the hyphens out of names: laiongeneral.
    plain = mask.replace("-", "")
    matches = [file for name, file in rois.items() if name.replace("-", "") == plain]
    if mask == R2:
        matches = [*files.betas.glob(f"*_desc-{R2}_statmap.nii.gz"), *matches]
    elif mask == BRAIN:
        matches = [*files.anatomy.rglob("*_res-1pt8_desc-brain_mask.nii.gz"), *matches]
    elif "*" in mask:
        derivatives = (files.root / "derivatives").rglob(mask)
        matches = [file for file in derivatives if file.name.startswith(f"{files.name}_")]
    if len(matches) != 1:
        raise InputError(
            f"{files.name} has {len(matches) or 'no'} masks {mask}; choose {R2}, {BRAIN}, a ROI "
            f"({', '.join(rois) or 'none is there'}), or a pattern with * that fits one file."
        )
    return matches[0]


def load_mask_with_betas(
    files: LAIONSubjectFiles, mask: str, sessions: Sequence[int]
) -> SpatialImage:
    """Load the mask without voxels that have NaN in some session, of which a warning is given."""
    img = binarize_mask(find_mask(files, mask), what=f"mask of {files.name}")
    if img.shape != SHAPE:
        logger.warning("%s: the grid is %s; LAION-fMRI's is %s", files.name, img.shape, SHAPE)
    in_mask = get_data(img, f"mask of {files.name}") > 0
    for session in sessions:
        betas = load_img(files.session(session)[0], f"betas of {files.name}, session {session}")
        check_same_grid(betas, img.shape, img.affine, "betas", f"the mask {mask}")
        # GLMsingle fits a voxel's trials of a session together: the first shows if there is a fit.
        first = get_data(
            betas, "betas", (slice(0, 1),), checked=False
        )  # reading it all comes later
        finite = np.isfinite(first[..., 0])
        if n_lost := int((in_mask & ~finite).sum()):
            logger.warning(
                "%s, session %d: %d voxels have no number and are left out",
                files.name,
                session,
                n_lost,
            )
        in_mask &= finite
    finite_img = nib.Nifti1Image(in_mask.astype(np.uint8), img.affine)
    finite_img.file_map["image"].filename = img_filename(img)  # so that messages name the file
    return finite_img


def move_to_mni(files: LAIONSubjectFiles, masker: VoxelMasker) -> VoxelMasker:
    """Give a masker its MNI coordinates."""
    try:
        coords_mm = scanner_to_mni152(masker.coords_mm, files.transforms)
    except InputError as error:
        raise InputError(
            f"{error} Fetch the FreeSurfer derivatives of {files.name}, or take the subject's own "
            "coordinates (--native-space)."
        ) from error
    return replace(masker, coords_mm=coords_mm)


def label_voxels(
    files: LAIONSubjectFiles, masker: VoxelMasker, roi_set: str, labels: Mapping[str, int]
) -> np.ndarray:
    """Label the voxels (V,) with a set of ROIs; where two overlap the smaller one stands."""
    parcel_labels, n_overlapping = np.zeros(len(masker), np.int32), 0
    grid = masker.inverse_transform(np.ones(len(masker), np.uint8))
    masks = {
        name: extract_label_values(file, name, masker.voxel_indices, grid) > 0
        for name, file in files.roi_masks().get(roi_set, {}).items()
    }
    for name in sorted(masks, key=lambda name: -masks[name].sum()):
        n_overlapping += int((parcel_labels[masks[name]] > 0).sum())
        parcel_labels[masks[name]] = labels[name]
    if n_overlapping:
        logger.warning(
            "%s: ROIs of %s overlap at %d voxels; the smaller one stands",
            files.name,
            roi_set,
            n_overlapping,
        )
    return parcel_labels


def read_betas(masker: VoxelMasker, file: Path, volumes: Sequence[int], dtype: str) -> np.ndarray:
    """Read a session's betas (n_trials, n_voxels), a few volumes of the file in memory at once."""
    betas = np.empty((len(volumes), len(masker)), dtype)
    for rows, chunk in masker.iter_transform(file, volumes):
        betas[rows] = cast_betas(chunk, len(masker), dtype, str(file))
    return betas


def read_captions(file: Path, shown: set[str]) -> pd.DataFrame:
    """Read conversations from the captions that humans wrote, best first; none without the file."""
    if not file.is_file():
        logger.info("no %s, so the store has no text", file)
        return conversations_from_captions(pd.DataFrame({"stimulus": [], "caption": []}))
    columns = ("image_name", "caption_idx", "source", "caption")
    table = read_table(file, "the table of captions", columns)
    written = table[(table["source"] == "human") & table["image_name"].isin(shown)]
    written = written.dropna(subset=["caption"])
    check_captions(written, file)
    written = written.sort_values(["image_name", "caption_idx"])
    return conversations_from_captions(written.rename(columns={"image_name": "stimulus"}))
