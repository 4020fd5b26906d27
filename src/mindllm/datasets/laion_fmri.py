"""A store from LAION-fMRI as it is published (ViCCo-Group/LAION-fMRI; https://laion-fmri.hebartlab.com).

derivatives/glmsingle-tedana/sub-XX/ses-YY/func/sub-XX_ses-YY_task-images_
    space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz   (143, 143, 143, trials)
    desc-SingletrialBetas_trials.tsv                             session, run, beta_index (0-based), label
derivatives/glmsingle-tedana/sub-XX/sub-XX_task-images_space-T1w_
    stat-rsquare_desc-R2mean_statmap.nii.gz                      the default mask: above 0
    desc-Noiseceiling12rep_statmap.nii.gz, desc-Noiseceiling4rep_statmap.nii.gz
derivatives/anatomical/sub-XX/*/anat/*_space-T1w_res-1pt8_desc-brain_mask.nii.gz
derivatives/rois/sub-XX/<set>/sub-XX_space-T1w_res-1pt8_label-<NAME>_mask.nii.gz
derivatives/freesurfer/sub-XX/mri/transforms/talairach.xfm (or .lta)
stimuli/task-images_metadata.csv, task-images_desc-captions.csv  (both optional)
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial as bind
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import hold_out_validation
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter, cast_betas, conversations_from_captions
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.atlases import extract_label_values
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import check_same_grid, get_data, img_filename, load_img
from mindllm.fmri.noise_ceiling import ncsnr_from_noise_ceiling
from mindllm.fmri.transforms import scanner_to_mni152
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists
from mindllm.utils.ranges import format_ranges
from mindllm.utils.tables import read_table

# What LAION-fMRI is known to contain.
SESSIONS = 30  # the main ones
SHAPE = (143, 143, 143)
SHARED, OOD = 1121, 371
CEILINGS = {"Noiseceiling12rep": 12, "Noiseceiling4rep": 4}  # map -> trials averaged
R2, BRAIN = "R2mean", "brain"
METADATA, CAPTIONS = "task-images_metadata.csv", "task-images_desc-captions.csv"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LAIONSubjectFiles:
    """Where one person's files are."""

    root: Path
    name: str

    @property
    def betas(self) -> Path:
        return self.root / "derivatives" / "glmsingle-tedana" / self.name

    @property
    def rois(self) -> Path:
        return self.root / "derivatives" / "rois" / self.name

    @property
    def anatomy(self) -> Path:
        return self.root / "derivatives" / "anatomical" / self.name

    @property
    def transforms(self) -> Path:
        return self.root / "derivatives" / "freesurfer" / self.name / "mri" / "transforms"

    def session(self, number: int) -> tuple[Path, Path]:
        """The files of a session: its betas and its trials."""
        stem = (
            self.betas / f"ses-{number:02d}" / "func" / f"{self.name}_ses-{number:02d}_task-images_"
        )
        return (
            Path(f"{stem}space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"),
            Path(f"{stem}desc-SingletrialBetas_trials.tsv"),
        )


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    mask: str = R2,
    sessions: Sequence[int] | None = None,
    native_space: bool = False,
    val_fraction: float = 0.0,
    dtype: str = "float16",
    seed: int = 0,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make the store `out`. A stimulus is its published label; the images that everybody saw are `test`, the others `train`.

    mask: `R2mean` (where GLMsingle explains something), `brain` (the anatomical mask), a ROI's name, such as laion-general, or
    a pattern with * for files in `derivatives`.
    sessions: which to take; None: the 30 main ones and any later ones there, a missing one being an error.
    val: share of the training stimuli.  native: take each person's own millimetres, where no transform to MNI space is.

    The data come without MNI positions: they are made with FreeSurfer's linear transform, right to some millimetres.
    Each set of ROIs is a parcellation. The store names the sets `shared` (1,121 images) and `ood` (371 out of distribution).
    Text are the people's captions, where stimuli/task-images_desc-captions.csv is there.
    Raises InputError, naming the file, for anything missing, damaged or not as known.
    """
    check_not_exists(Path(out))
    root = Path(root)
    people = select_subjects(root, subjects)
    taken = {p.name: select_sessions(p, sessions) for p in people}
    tables = {
        p.name: pd.concat([read_trials(p, n) for n in taken[p.name]], ignore_index=True)
        for p in people
    }
    shared = split_trials(root / "stimuli" / METADATA, tables)
    sets = {
        "shared": [s for s in shared if "_OOD_" not in s],
        "ood": [s for s in shared if "_OOD_" in s],
    }
    regions = load_parcel_names(people)
    if not native_space:
        logger.warning(
            "positions in MNI space come from FreeSurfer's linear transform: they are right to some millimetres"
        )
    spaces = {p.name: load_masker(p, mask, taken[p.name], regions, native_space) for p in people}
    options: dict[str, Any] = {"subjects": [p.name for p in people], "mask": mask, "sessions": taken, "native_space": native_space, "val_fraction": val_fraction, "dtype": dtype, "seed": seed}  # fmt: skip
    writer = StoreWriter(
        out, name="LAION-fMRI", source="ViCCo Group, https://laion-fmri.hebartlab.com",
        license="LAION-fMRI terms of use", prepared_by="laion", options=options,
        stimulus_sets={name: members for name, members in sets.items() if members},
    )  # fmt: skip
    drawn = hold_out_validation(tables, val_fraction, seed)
    recordings = []
    for p in people:
        table, space = drawn[p.name], spaces[p.name]
        bare = replace(space, parcel_labels={}, parcel_names={})  # what a worker needs
        read = [
            SessionReader(f"{p.name}, session {n}", rows.index.to_numpy(), bind(read_betas, bare, p.session(n)[0], rows["beta_index"].tolist(), dtype))
            for n in taken[p.name]
            for rows in [table[table["session"] == str(n)]]
        ]  # fmt: skip
        recordings.append(
            SubjectRecording(space, table.drop(columns="beta_index"), read, read_ncsnr(p, space))
        )
    write_recordings(
        writer, recordings, dtype, n_jobs=n_jobs, dask_scheduler=dask_scheduler, progress=progress
    )
    return writer.finish(read_captions(root / "stimuli" / CAPTIONS, tables))


def select_subjects(root: Path, subjects: Sequence[str] | None) -> list[LAIONSubjectFiles]:
    """The people to prepare: those asked for, or all who are there."""
    there = sorted(
        f.name for f in (root / "derivatives" / "glmsingle-tedana").glob("sub-*") if f.is_dir()
    )
    if not there:
        raise InputError(
            f"{root} does not hold LAION-fMRI: expected {root}/derivatives/glmsingle-tedana/sub-01 and so on. Give the folder that holds derivatives and stimuli."
        )
    if odd := sorted(set(subjects or []) - set(there)):
        raise InputError(f"{root} has no subject {', '.join(odd)}; it holds {', '.join(there)}.")
    return [LAIONSubjectFiles(root, name) for name in sorted(subjects or there)]


def select_sessions(person: LAIONSubjectFiles, sessions: Sequence[int] | None) -> list[int]:
    """The sessions to take. Raises InputError, naming them, for those that are not there."""
    there = {int(f.name[4:]) for f in person.betas.glob("ses-*") if f.name[4:].isdecimal()}
    wanted = sorted(set(sessions or {*range(1, SESSIONS + 1), *there}))
    if missing := [n for n in wanted if not all(file.is_file() for file in person.session(n))]:
        left = [n for n in wanted if n not in missing]
        raise InputError(
            f"{person.name} lacks the sessions {format_ranges(missing)} ({len(missing)} of {len(wanted)}): expected {person.session(missing[0])[0]} and its trials.tsv. Fetch them, or say which to take, e.g. --sessions {format_ranges(left) or '1-10'}."
        )
    return wanted


def read_trials(person: LAIONSubjectFiles, session: int) -> pd.DataFrame:
    """A session's trials: `stimulus`, `session`, `run`, `beta_index`, in the order of their betas."""
    betas, file = person.session(session)
    table = read_table(file, "the table of a session's trials", ("beta_index", "label"))
    image = load_img(betas, f"betas of {person.name}, session {session}")
    count = image.shape[3] if image.ndim == 4 else 1
    if sorted(table["beta_index"]) != list(range(count)) or table["label"].isna().any():
        raise InputError(
            f"{file} lists {len(table)} trials ({table['beta_index'].min()} to {table['beta_index'].max()}, {table['label'].isna().sum()} without a label), but {betas.name} has {count} volumes. One row per volume, numbered from 0, is expected. Fetch both again."
        )
    told = set(table["session"].dropna()) if "session" in table else set()
    if others := sorted(name for name in told if int(re.sub(r"\D", "", name) or -1) != session):
        raise InputError(
            f"{file} is the table of session {', '.join(others)}; expected that of session {session}."
        )
    return table.assign(
        stimulus=table["label"], session=str(session), run=table.get("run", "1")
    ).sort_values("beta_index")[["stimulus", "session", "run", "beta_index"]]


def split_trials(metadata: Path, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Give each trial its `split`, by the metadata or else by the label; returns the shared images shown."""
    shown = pd.concat(
        [t[["stimulus"]].assign(subject=s) for s, t in tables.items()]
    ).drop_duplicates()
    if metadata.is_file():
        known = pd.read_csv(metadata)
        if missing := sorted({"image_name", "unique_or_shared"} - set(known.columns)):
            raise InputError(f"{metadata} lacks the columns {', '.join(missing)}.")
        kind = shown["stimulus"].map(
            dict(zip(known["image_name"], known["unique_or_shared"], strict=True))
        )
    else:
        kind = shown["stimulus"].str.split("_").str[0]
    if (odd := ~kind.isin(["shared", "unique"])).any():
        raise InputError(
            f"{odd.sum()} images are neither shared nor unique, first {shown['stimulus'][odd].iloc[0]!r}; expected {metadata} to tell, or labels that begin with shared_ or unique_."
        )
    alone = shown[(kind == "unique").to_numpy()]
    if (twice := alone[alone.duplicated("stimulus", keep=False)]).size:
        who = twice.loc[twice["stimulus"] == twice["stimulus"].iloc[0], "subject"]
        raise InputError(
            f"{twice['stimulus'].nunique()} unique images were shown to several people, first {twice['stimulus'].iloc[0]} to {', '.join(who)}. One of their trials tables is another person's; fetch them again."
        )
    shared = set(shown["stimulus"][kind == "shared"])
    for table in tables.values():
        table["split"] = np.where(table["stimulus"].isin(shared), "test", "train")
    if len(shared) > SHARED + OOD:
        logger.warning("%d shared images were shown; LAION-fMRI has %d", len(shared), SHARED + OOD)
    return sorted(shared)


def roi_files(person: LAIONSubjectFiles) -> dict[str, dict[str, Path]]:
    """Set of ROIs -> name -> mask."""
    out: dict[str, dict[str, Path]] = {}
    for file in sorted(person.rois.glob("*/*_space-T1w_res-1pt8_label-*_mask.nii.gz")):
        out.setdefault(file.parent.name, {})[
            file.name.split("_label-")[1].removesuffix("_mask.nii.gz")
        ] = file
    return out


def load_parcel_names(people: Sequence[LAIONSubjectFiles]) -> dict[str, dict[str, int]]:
    """Set of ROIs -> name -> number, the same for all people."""
    found: dict[str, set[str]] = {}
    for p in people:
        for kind, files in roi_files(p).items():
            found.setdefault(kind, set()).update(files)
    return {
        kind: {name: n for n, name in enumerate(sorted(names), 1)} for kind, names in found.items()
    }


def find_mask(person: LAIONSubjectFiles, mask: str) -> Path:
    """The mask file: R2mean's map, the brain, a ROI, or what fits a pattern."""
    rois = {name: file for files in roi_files(person).values() for name, file in files.items()}
    places = {
        R2: person.betas.glob(f"*_desc-{R2}_statmap.nii.gz"),
        BRAIN: person.anatomy.rglob("*_res-1pt8_desc-brain_mask.nii.gz"),
    }
    plain = mask.replace(
        "-", ""
    )  # the data set's own downloader takes the hyphens out of names: laiongeneral
    found = [
        *places.get(mask, []),
        *(file for name, file in rois.items() if name.replace("-", "") == plain),
    ]
    if "*" in mask:
        found = [
            f
            for f in (person.root / "derivatives").rglob(mask)
            if f.name.startswith(f"{person.name}_")
        ]
    if len(found) != 1:
        raise InputError(
            f"{person.name} has {len(found) or 'no'} masks {mask}; choose {R2}, {BRAIN}, a ROI ({', '.join(rois) or 'none is there'}), or a pattern with * that fits one file."
        )
    return found[0]


def load_masker(
    person: LAIONSubjectFiles,
    mask: str,
    sessions: Sequence[int],
    regions: Mapping[str, Mapping[str, int]],
    native: bool,
) -> VoxelMasker:
    """A person's voxels in MNI millimetres; those without a number in some session are left out, saying how many."""
    image = load_img(find_mask(person, mask), f"mask of {person.name}", dimensions=3)
    if image.shape != SHAPE:
        logger.warning("%s: the grid is %s; LAION-fMRI's is %s", person.name, image.shape, SHAPE)
    inside = np.nan_to_num(get_data(image, f"mask of {person.name}")) > 0
    for (
        n
    ) in sessions:  # GLMsingle fits a voxel's trials of a session together: the first tells of all
        betas = load_img(person.session(n)[0], f"betas of {person.name}, session {n}")
        check_same_grid(betas, image.shape, image.affine, "betas", f"the mask {mask}")
        finite = np.isfinite(get_data(betas, "betas", (slice(0, 1),))[..., 0])
        if lost := int((inside & ~finite).sum()):
            logger.warning(
                "%s, session %d: %d voxels have no number and are left out", person.name, n, lost
            )
        inside &= finite
    left = nib.Nifti1Image(inside.astype(np.uint8), image.affine)
    left.file_map["image"].filename = img_filename(image)  # so that messages name the file
    space = VoxelMasker.from_mask_img(left, subject=person.name)
    numbered = {kind: add_atlas(person, space, kind, names) for kind, names in regions.items()}
    space = replace(space, parcel_labels=numbered, parcel_names={k: {n: name for name, n in r.items()} for k, r in regions.items()})  # fmt: skip
    if native:
        logger.warning(
            "%s: millimetres are the person's own, so voxels of different people do not correspond",
            person.name,
        )
        return space
    try:
        return replace(space, coords_mm=scanner_to_mni152(space.coords_mm, person.transforms))
    except InputError as error:
        raise InputError(
            f"{error} Fetch the FreeSurfer derivatives of {person.name}, or take the person's own millimetres (--native-space)."
        ) from error


def add_atlas(
    person: LAIONSubjectFiles, space: VoxelMasker, kind: str, names: Mapping[str, int]
) -> np.ndarray:
    """(V,) region numbers of one set of ROIs. Where two overlap the smaller one stands: V1v in EVC."""
    out, overlaps = np.zeros(len(space), np.int32), 0
    files = roi_files(person).get(kind, {})
    grid = space.inverse_transform(np.ones(len(space), np.uint8))
    masks = {
        name: extract_label_values(file, name, space.voxel_indices, grid) > 0
        for name, file in files.items()
    }
    for name in sorted(masks, key=lambda n: -masks[n].sum()):
        overlaps += int((out[masks[name]] > 0).sum())
        out[masks[name]] = names[name]
    if overlaps:
        logger.warning(
            "%s: ROIs of %s overlap at %d voxels; the smaller one stands",
            person.name,
            kind,
            overlaps,
        )
    return out


def read_ncsnr(person: LAIONSubjectFiles, space: VoxelMasker) -> np.ndarray | None:
    """(V,) the published noise ceiling signal-to-noise ratio."""
    for name, averaged in CEILINGS.items():
        for file in person.betas.glob(f"*_desc-{name}_statmap.nii.gz"):
            image = load_img(file, "noise ceiling", dimensions=3)
            check_same_grid(image, space.shape, space.affine, "noise ceiling", "the mask")
            return ncsnr_from_noise_ceiling(
                get_data(image, "noise ceiling")[tuple(space.voxel_indices.T)], 1 / averaged
            )
    logger.info("%s: no noise ceiling in %s", person.name, person.betas)
    return None


def read_betas(space: VoxelMasker, file: Path, volumes: Sequence[int], dtype: str) -> np.ndarray:
    """A session's betas (trials, V); a few volumes of the file in memory at a time."""
    out = np.empty((len(volumes), len(space)), dtype)
    for rows, values in space.iter_transform(file, volumes):
        out[rows] = cast_betas(values, len(space), dtype, str(file))
    return out


def read_captions(file: Path, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Conversations from the captions that people wrote, best first; none without the file."""
    if not file.is_file():
        logger.info("no %s, so the store has no text", file)
        return conversations_from_captions(pd.DataFrame({"stimulus": [], "caption": []}))
    table = pd.read_csv(file)
    if missing := sorted({"image_name", "caption_idx", "source", "caption"} - set(table.columns)):
        raise InputError(f"{file} lacks the columns {', '.join(missing)}.")
    shown = set(pd.concat(tables.values())["stimulus"])
    written = table[(table["source"] == "human") & table["image_name"].isin(shown)].dropna(
        subset=["caption"]
    )
    return conversations_from_captions(
        written.sort_values(["image_name", "caption_idx"]).rename(
            columns={"image_name": "stimulus"}
        )
    )
