"""A store from the Natural Scenes Dataset in its official layout (Allen et al. 2022, Nature Neuroscience 25:116).

    nsddata_betas/ppdata/subjXX/func1pt8mm/<version>/betas_sessionNN.nii.gz or .hdf5   int16, 300 times the per cent change
    nsddata_betas/ppdata/subjXX/func1pt8mm/<version>/ncsnr.nii.gz                      noise ceilings (optional)
    nsddata/ppdata/subjXX/func1pt8mm/roi/*.nii.gz, ../brainmask.nii.gz                 masks and parcellations
    nsddata/freesurfer/subjXX/label/*.mgz.ctab (or fsaverage's)                        names of regions
    nsddata/ppdata/subjXX/transforms/MNI-to-func1pt8.nii.gz                            where each voxel is in MNI space
    nsddata/experiments/nsd/nsd_expdesign.mat, nsd_stim_info_merged.csv                what was shown when

The file A-to-B lies on the grid of B and holds, per voxel, the 1-based voxel of A that belongs there (nsdcode). MNI-to-
func1pt8 thus tells the place of every functional voxel in FSL's 1 mm template, which is stored from right to left.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial as bind
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from rich.progress import Progress
from scipy.io import loadmat

from mindllm.data.splits import hold_out_validation
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import check_same_grid, get_data, load_img
from mindllm.fmri.roi_volumes import MASK, load_roi_maskers
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists
from mindllm.utils.ranges import format_ranges

# What NSD is known to contain (data manual; Allen et al. 2022).
SESSIONS = {1: 40, 2: 40, 3: 32, 4: 30, 5: 40, 6: 32, 7: 40, 8: 30}
GENERAL_VOXELS = {1: 15724, 2: 14278, 3: 15226, 4: 13153, 5: 13039, 6: 17907, 7: 12682, 8: 14386}
TRIALS = 750  # per session
SHARED = 1000
CHUNK_SIZE = 25  # volumes of a NIfTI file in memory at once
SCALE = 300  # the stored whole numbers are per cent signal change, times this
EARLY_SESSIONS = (
    37  # those published before August 2023, whose shared images are the 982 of many papers
)
MNI_SHAPE, MNI_ORIGIN = (182, 218, 182), np.array([91, 127, 73])  # 1-based voxel at 0 mm
BETAS, BRAIN = "betas_fithrf_GLMdenoise_RR", "brain"
EXPERIMENT = Path("nsddata", "experiments", "nsd")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NSDSubjectFiles:
    """Where one person's files are."""

    root: Path
    number: int

    @property
    def name(self) -> str:
        return f"subj{self.number:02d}"

    @property
    def functional(self) -> Path:
        return self.root / "nsddata" / "ppdata" / self.name / "func1pt8mm"

    @property
    def transform(self) -> Path:
        return (
            self.root / "nsddata" / "ppdata" / self.name / "transforms" / "MNI-to-func1pt8.nii.gz"
        )

    @property
    def labels(self) -> list[Path]:
        return [
            self.root / "nsddata" / "freesurfer" / who / "label" for who in (self.name, "fsaverage")
        ]

    def betas(self, version: str) -> Path:
        """The folder of the sessions' betas."""
        return self.root / "nsddata_betas" / "ppdata" / self.name / "func1pt8mm" / version

    def session(self, version: str, number: int) -> Path:
        """The file of a session, in the format that is there."""
        hdf5, nifti = (
            self.betas(version) / f"betas_session{number:02d}{suffix}"
            for suffix in (".hdf5", ".nii.gz")
        )
        return nifti if nifti.is_file() and not hdf5.is_file() else hdf5


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[int] | None = None,
    betas: str = BETAS,
    mask: str = MASK,
    sessions: Sequence[int] | None = None,
    val_fraction: float = 0.0,
    dtype: str = "float16",
    seed: int = 0,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make the store `out`. A stimulus is its 0-based nsdId; the shared images are `test`, the others `train`.

    mask: a ROI's name, or brain.  sessions: which to take; None: all that a person has, and a missing one is an error.
    val: share of the training stimuli.  workers: sessions read at once; dask: address of a scheduler to run them on.
    The store names the sets 1000 (shared images) and 982 (those shown in the first 37 sessions). It holds no text yet:
    `mindllm prepare instructions` adds it. Raises InputError, naming the file, for anything missing, damaged or not as known.
    """
    check_not_exists(Path(out))
    root = Path(root)
    people = select_subjects(root, subjects)
    taken = {p.name: select_sessions(p, betas, sessions) for p in people}
    design = NSDExperimentDesign.read(root / EXPERIMENT / "nsd_expdesign.mat")
    coco = read_info(root / EXPERIMENT / "nsd_stim_info_merged.csv", design, people)
    spaces = load_maskers(people, mask)
    tables = hold_out_validation(
        {p.name: design.trials(p.number, taken[p.name], coco) for p in people}, val_fraction, seed
    )
    options: dict[str, Any] = {"subjects": [p.number for p in people], "betas": betas, "mask": mask, "sessions": taken, "val_fraction": val_fraction, "dtype": dtype, "seed": seed}  # fmt: skip
    writer = StoreWriter(
        out, name="Natural Scenes Dataset", source="Allen et al. 2022, https://naturalscenesdataset.org",
        license="NSD Data Access Agreement", prepared_by="nsd", options=options, stimulus_sets=design.sets(),
    )  # fmt: skip
    recordings = []
    for p in people:
        space, table = spaces[p.name], tables[p.name]
        files = {
            f"{p.name}, session {n}": (
                p.session(betas, n),
                np.flatnonzero((table["session"] == str(n)).to_numpy()),
            )
            for n in taken[p.name]
        }
        read = [SessionReader(name, rows, bind(read_betas, file, space.shape, space.voxel_indices, dtype)) for name, (file, rows) in files.items()]  # fmt: skip
        recordings.append(
            SubjectRecording(space, table, read, read_ncsnr(p.betas(betas) / "ncsnr.nii.gz", space))
        )
    write_recordings(
        writer, recordings, dtype, n_jobs=n_jobs, dask_scheduler=dask_scheduler, progress=progress
    )
    return writer.finish(pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []}))


def select_subjects(root: Path, subjects: Sequence[int] | None) -> list[NSDSubjectFiles]:
    """The people to prepare: those asked for, or all who are there."""
    known = [NSDSubjectFiles(root, n) for n in SESSIONS]
    there = [p.number for p in known if p.functional.is_dir()]
    if not there:
        raise InputError(
            f"{root} does not hold NSD: expected {known[0].functional}. Give the folder that holds nsddata and nsddata_betas."
        )
    if odd := sorted(set(subjects or []) - set(there)):
        raise InputError(
            f"{root} has no subject {', '.join(map(str, odd))}; it holds {', '.join(map(str, there))}."
        )
    return [p for p in known if p.number in (subjects or there)]


def select_sessions(
    person: NSDSubjectFiles, version: str, sessions: Sequence[int] | None
) -> list[int]:
    """The sessions to take. Raises InputError, naming them, for those that are not there."""
    if not person.betas(version).is_dir():
        there = sorted(f.name for f in person.betas(version).parent.glob("betas_*"))
        raise InputError(
            f"there is no {person.betas(version)}; {person.name} has the versions {', '.join(there) or 'none'}."
        )
    known = range(1, SESSIONS[person.number] + 1)
    wanted = sorted(set(sessions or known))
    if odd := [n for n in wanted if n not in known]:
        raise InputError(
            f"{person.name} took part in sessions 1 to {known[-1]}; {odd} were asked for."
        )
    if missing := [n for n in wanted if not person.session(version, n).is_file()]:
        raise InputError(
            f"{person.name} lacks the sessions {format_ranges(missing)} of {version} ({len(missing)} of {len(wanted)}): expected {person.betas(version)}/betas_session{missing[0]:02d}.hdf5 or .nii.gz. Fetch them, or say which to take, e.g. --sessions {format_ranges([n for n in wanted if n not in missing]) or '1-20'}."
        )
    return wanted


@dataclass(frozen=True)
class NSDExperimentDesign:
    """What was shown, 0-based: `order` (30000,) places in a person's images, `images` (8, 10000) nsdIds, `runs` (sessions, 12) trials."""

    order: np.ndarray
    images: np.ndarray
    runs: np.ndarray

    @classmethod
    def read(cls, file: Path) -> "NSDExperimentDesign":
        """From nsd_expdesign.mat, in which everything is 1-based. Raises InputError if it is not the design of NSD."""
        if not file.is_file():
            raise InputError(
                f"there is no {file}, which tells what was shown when. Fetch it from NSD."
            )
        try:
            content = loadmat(
                file, variable_names=["masterordering", "subjectim", "sharedix", "stimpattern"]
            )
            order, images = (
                content["masterordering"].ravel().astype(int) - 1,
                content["subjectim"].astype(int) - 1,
            )
            shared, runs = (
                content["sharedix"].ravel().astype(int) - 1,
                content["stimpattern"].astype(int).sum(2),
            )
        except Exception as error:  # loadmat has many errors for a damaged file
            raise InputError(
                f"{file} cannot be read as NSD's design ({type(error).__name__}: {error}). Fetch it again."
            ) from error
        fits = (
            images.shape[0] == len(SESSIONS)
            and len(order) == max(SESSIONS.values()) * TRIALS
            and (runs.sum(1) == TRIALS).all()
        )
        if (
            not fits
            or order.min() < 0
            or order.max() >= images.shape[1]
            or (images[:, :SHARED] != shared).any()
        ):
            raise InputError(
                f"{file} is not the design of NSD: expected 30,000 trials, 8 x 10,000 images of which the first {SHARED} are the shared ones, and {TRIALS} trials a session; found {len(order)} trials, images {images.shape}. Fetch it again."
            )
        return cls(order, images, runs)

    def shown(self, person: int) -> np.ndarray:
        """(30000,): the nsdId of each trial of a person (1 to 8)."""
        return self.images[person - 1, self.order]

    def trials(self, person: int, sessions: Sequence[int], coco: Mapping[int, int]) -> pd.DataFrame:
        """A person's trials in these sessions; `repeat` counts over all sessions, taken or not."""
        count = SESSIONS[person] * TRIALS
        nsd, session = self.shown(person)[:count], np.arange(count) // TRIALS + 1
        run = np.concatenate(
            [np.repeat(np.arange(1, len(runs) + 1), runs) for runs in self.runs[: SESSIONS[person]]]
        )
        table = pd.DataFrame({
            "stimulus": nsd.astype(str), "session": session.astype(str), "run": run.astype(str),
            "repetition": pd.Series(nsd).groupby(nsd).cumcount(), "split": np.where(self.order[:count] < SHARED, "test", "train"),
            "coco_id": [coco[n] for n in nsd],
        })  # fmt: skip
        return table[np.isin(session, sessions)].reset_index(drop=True)

    def sets(self) -> dict[str, list[str]]:
        """The test images by name: all shared ones, and those among the first 37 sessions."""
        early = self.order[: EARLY_SESSIONS * TRIALS]
        return {
            "1000": self.images[0, :SHARED].astype(str).tolist(),
            "982": self.images[0, np.unique(early[early < SHARED])].astype(str).tolist(),
        }


def read_info(
    file: Path, design: NSDExperimentDesign, people: Sequence[NSDSubjectFiles]
) -> dict[int, int]:
    """0-based nsdId -> COCO id. Raises InputError if the table tells other trials than the design: an off-by-one, or another one's."""
    if not file.is_file():
        raise InputError(
            f"there is no {file}, which tells the COCO id of each image. Fetch it from NSD."
        )
    table = pd.read_csv(file)
    needed = {"nsdId", "cocoId", *(f"subject{p.number}_rep0" for p in people)}
    if missing := sorted(needed - set(table.columns)):
        raise InputError(f"{file} lacks the columns {', '.join(missing)}. Fetch it from NSD again.")
    by_id = table.set_index("nsdId")
    for p in people:
        first = by_id[f"subject{p.number}_rep0"]
        first = first[first > 0]  # 1-based trial of the first showing
        told = design.shown(p.number)[first.to_numpy(int) - 1]
        wrong = int((told != first.index.to_numpy()).sum())
        if wrong:
            raise InputError(
                f"{file} and nsd_expdesign.mat disagree about {wrong} of {len(first)} images of {p.name}. One of them is of another release, or was changed; fetch both again."
            )
    return dict(zip(table["nsdId"].astype(int), table["cocoId"].astype(int), strict=True))


def load_maskers(people: Sequence[NSDSubjectFiles], mask: str) -> dict[str, VoxelMasker]:
    """The voxel spaces, in MNI millimetres; voxels without a place there are left out, saying how many."""
    files = {
        p.name: p.functional / ("brainmask.nii.gz" if mask == BRAIN else f"roi/{mask}.nii.gz")
        for p in people
    }
    for p in people:
        if not files[p.name].is_file():
            there = sorted(
                f.name.removesuffix(".nii.gz") for f in (p.functional / "roi").glob("*.nii.gz")
            )
            raise InputError(
                f"{p.name} has no mask {files[p.name]}; choose {BRAIN} or one of {', '.join(there) or 'none'}."
            )
    spaces = load_roi_maskers(
        {p.name: p.functional / "roi" for p in people},
        masks=files,
        lookups={p.name: p.labels for p in people},
    )
    out = {}
    for p in people:
        space = spaces[p.name]
        expected = GENERAL_VOXELS[p.number]
        if mask == MASK and len(space) != expected:
            logger.warning("%s: %s has %d voxels; NSD's has %d", p.name, MASK, len(space), expected)
        mm, inside = positions(p.transform, space)
        if not inside.all():
            logger.warning(
                "%s: %d of %d voxels have no place in MNI space and are left out",
                p.name,
                (~inside).sum(),
                len(space),
            )
        if not inside.any():
            raise InputError(
                f"{p.transform} gives no voxel of {p.name} a place in MNI space. Fetch it again."
            )
        check_sides(p, space, mm)
        out[p.name] = replace(space, coords_mm=mm).select_voxels(inside)
    return out


def positions(transform: Path, space: VoxelMasker) -> tuple[np.ndarray, np.ndarray]:
    """MNI millimetres (V, 3) of a person's voxels, and which of them have any (V,)."""
    image = load_img(transform, f"the transform of {space.subject}")
    if image.shape != (*space.shape, 3):
        raise InputError(
            f"{transform} has shape {image.shape}; expected {(*space.shape, 3)}: for each functional voxel its place in MNI space. Is it another person's, or the transform of another direction?"
        )
    voxel = get_data(image, "transform")[tuple(space.voxel_indices.T)].astype(
        np.float64
    )  # (V, 3), 1-based
    inside = np.isfinite(voxel).all(1) & (voxel >= 1).all(1) & (voxel <= MNI_SHAPE).all(1)
    return ((voxel - MNI_ORIGIN) * [-1, 1, 1]).astype(np.float32), inside


def check_sides(person: NSDSubjectFiles, space: VoxelMasker, mm: np.ndarray) -> None:
    """Raise InputError if the voxels of a left-hemisphere ROI are on the right, which a mirrored transform would make them."""
    file = person.functional / "roi" / f"lh.{MASK}.nii.gz"
    if file.is_file():
        left = (
            get_data(load_img(file, "left hemisphere", dimensions=3), "left hemisphere")[
                tuple(space.voxel_indices.T)
            ]
            > 0
        )
        if left.any() and np.median(mm[left, 0]) > 0:
            raise InputError(
                f"{person.transform} places the left hemisphere of {person.name} at x = {np.median(mm[left, 0]):.0f} mm, on the right. The transform is mirrored; fetch it again."
            )


def read_ncsnr(file: Path, space: VoxelMasker) -> np.ndarray | None:
    """(V,) the noise ceiling signal-to-noise ratio that NSD publishes beside the betas, NaN where it is invalid."""
    if not file.is_file():
        logger.info("%s: no %s, so the store has no published noise ceiling", space.subject, file)
        return None
    image = load_img(file, "noise ceiling", dimensions=3)
    check_same_grid(image, space.shape, space.affine, "noise ceiling", "the mask")
    return get_data(image, "noise ceiling")[tuple(space.voxel_indices.T)].astype(np.float32)


def read_betas(file: Path, shape: tuple[int, int, int], ijk: np.ndarray, dtype: str) -> np.ndarray:
    """A session's betas (750, V) in per cent signal change, at these voxels; a part of the file in memory at a time."""
    out = np.empty((TRIALS, len(ijk)), dtype)
    if file.suffix == ".hdf5":
        read_hdf5(file, shape, ijk, out)
        return out
    image = load_img(file, "betas")
    if image.shape != (*shape, TRIALS):
        raise InputError(f"{file} has shape {image.shape}; expected {(*shape, TRIALS)}.")
    for start in range(0, TRIALS, CHUNK_SIZE):
        part = get_data(image, "betas", (slice(start, start + CHUNK_SIZE),))[tuple(ijk.T)]
        out[start : start + CHUNK_SIZE] = (part / np.float32(SCALE)).T
    return out


def read_hdf5(file: Path, shape: tuple[int, int, int], ijk: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` (750, V). MATLAB wrote (X, Y, Z, 750), which is read as (750, Z, Y, X); a slice at a time."""
    try:
        with h5py.File(file) as content:
            betas = content["betas"]
            if betas.shape != (TRIALS, *shape[::-1]):
                raise InputError(
                    f"{file} has shape {betas.shape}; expected {(TRIALS, *shape[::-1])}."
                )
            for z in np.unique(ijk[:, 2]):
                here = np.flatnonzero(ijk[:, 2] == z)
                out[:, here] = betas[:, int(z)][:, ijk[here, 1], ijk[here, 0]] / np.float32(SCALE)
    except (OSError, KeyError) as error:
        raise InputError(
            f"betas {file} are damaged or truncated ({error}). Fetch the file again."
        ) from error
