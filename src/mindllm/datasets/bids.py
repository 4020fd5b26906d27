"""Reads BIDS derivatives with single-trial betas: statmaps, masks, dseg parcellations and trials tables, into a store.

    sub-XX[/ses-YY]/func/*_desc-SingletrialBetas_statmap.nii.gz   one volume per trial
    sub-XX[/ses-YY]/func/*_desc-SingletrialBetas_trials.tsv       one row per volume, the same entities
    sub-XX/**/*_desc-brain_mask.nii.gz                            (or *_desc-R2mean_statmap.nii.gz: where it is above 0)
    atlas-<NAME>_*_dseg.nii.gz, atlas-<NAME>_dseg.tsv             at the root or beside the subject's files
    stimuli/captions.tsv                                          `stimulus`, `caption`, one row each (optional)

The trials table has `volume` and `stimulus` (LAION-fMRI: `beta_index` and `label`), and `caption` where stimuli/captions.tsv
does not exist; `session`, `run`, `repeat` and `split` are kept.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import split_stimuli
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter, conversations_from_captions
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.atlases import atlases_by_name
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import get_data, img_filename, load_img
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json
from mindllm.utils.tables import read_table

BETAS = "*_desc-SingletrialBetas_statmap.nii*"
MASKS = ("*_desc-brain_mask.nii*", "*_desc-R2mean_statmap.nii*")
ALIASES = {"beta_index": "volume", "label": "stimulus"}
logger = logging.getLogger(__name__)


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    mask: str | None = None,
    split: Mapping[str, float] | None = None,
    nan: Literal["error", "drop"] = "error",
    dtype: str = "float32",
    seed: int = 0,
    n_jobs: int = 1,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make the store `out` of the BIDS derivatives in `root`. A second call after an interruption goes on.

    mask: a glob for the mask files, in place of the usual names.  split: shares of the stimuli for val and test, where the
    trials tables have no column `split`.  nan: what to do about voxels with NaN: refuse, or leave them out.
    workers: files read at once; dask: address of a scheduler to run them on.
    """
    root = Path(root)
    if nan not in ("error", "drop"):
        raise InputError(f"nan={nan!r} is unknown; expected error or drop.")
    found = sorted(path.name for path in root.glob("sub-*") if path.is_dir())
    if not found:
        raise InputError(
            f"{root} holds no folder sub-*: expected BIDS derivatives with sub-XX/func/{BETAS}."
        )
    unknown = sorted(set(subjects or []) - set(found))
    if unknown:
        raise InputError(f"{root} has no subject {', '.join(unknown)}; found {', '.join(found)}.")
    names = sorted(set(subjects or found))
    description = root / "dataset_description.json"
    about = read_json(description, "a BIDS dataset") if description.is_file() else {}
    options = {
        "subjects": names,
        "mask": mask,
        "split": dict(split or {}),
        "nan": nan,
        "dtype": dtype,
        "seed": seed,
    }
    tables = {name: read_trials(root, name) for name in names}
    assigned = {}
    if split and any("split" in table for table in tables.values()):
        logger.warning(
            "the trials tables have a column `split`; the shares %s are not used", dict(split)
        )
    elif split:
        assigned = split_stimuli(pd.concat(tables.values())["stimulus"].tolist(), split, seed)
    writer = StoreWriter(
        out,
        name=about.get("Name", root.name),
        source="; ".join(about.get("ReferencesAndLinks", [])) or str(root.name),
        license=about.get("License", "unknown"),
        prepared_by="bids",
        options=options,
    )
    recordings = []
    for name in names:
        trials = tables[name]
        if assigned:
            trials["split"] = trials["stimulus"].map(assigned)
        space = load_masker(root, name, mask, trials, nan)
        read = [
            SessionReader(f"{name}, {Path(str(file)).name}", rows.index.to_numpy(), bind(space.transform, str(file), rows["volume"].tolist()))
            for file, rows in trials.groupby("file", sort=False)
        ]  # fmt: skip
        recordings.append(SubjectRecording(space, trials.drop(columns=["file"]), read))
    write_recordings(
        writer, recordings, dtype, n_jobs=n_jobs, dask_scheduler=dask_scheduler, progress=progress
    )
    return writer.finish(read_captions(root, tables))


def read_trials(root: Path, name: str) -> pd.DataFrame:
    """All trials of a subject, one row per volume of each of its betas files; `file` is the statmap it stands in."""
    files = sorted((root / name).rglob(BETAS))
    if not files:
        raise InputError(
            f"{root / name} has no {BETAS}: expected one 4-D file of single-trial betas per session."
        )
    tables = []
    for file in files:
        table = read_table(
            trials_file(file), "the table of the trials in the statmap beside it"
        ).rename(columns=ALIASES)
        if not {"volume", "stimulus"} <= set(table.columns):
            raise InputError(
                f"{trials_file(file)} has the columns {list(table.columns)}; expected `volume` and `stimulus` (or `beta_index` and `label`)."
            )
        if table["stimulus"].isna().any():
            raise InputError(
                f"{trials_file(file)} has {table['stimulus'].isna().sum()} rows without a stimulus; expected one in each row."
            )
        image = load_img(file, f"betas of {name}")
        count = image.shape[3] if image.ndim == 4 else 1
        if sorted(table["volume"]) != list(range(count)):
            raise InputError(
                f"{trials_file(file)} lists {len(table)} volumes ({table['volume'].min()} to {table['volume'].max()}), but {file.name} has {count}. One row per volume, numbered from 0, is expected."
            )
        session = re.search(r"_ses-([A-Za-z0-9]+)", file.name)
        defaults = {"session": session[1] if session else "1"}
        tables.append(
            table.assign(
                file=str(file), **{k: v for k, v in defaults.items() if k not in table}
            ).sort_values("volume")
        )  # in the order of showing, which tells what was seen before a trial
    return pd.concat(tables, ignore_index=True)


def trials_file(betas: Path) -> Path:
    """The trials table of a statmap: the same entities without `space`, `res` and `stat`."""
    stem = re.sub(r"_(space|res|stat)-[A-Za-z0-9]+", "", betas.name.split(".nii")[0])
    return betas.with_name(stem.replace("_statmap", "_trials") + ".tsv")


def load_masker(
    root: Path, name: str, pattern: str | None, trials: pd.DataFrame, nan: str
) -> VoxelMasker:
    """The subject's voxels: its mask on the betas' grid, labelled by every parcellation found."""
    image = None
    for glob in [pattern] if pattern else MASKS:
        files = sorted((root / name).rglob(glob))
        if len(files) > 1:
            raise InputError(
                f"{name} has {len(files)} masks that match {glob}: {', '.join(f.name for f in files[:3])}. Name one with --mask."
            )
        if files:
            image = load_img(files[0], f"mask of {name}", dimensions=3)
            break
    if image is None:
        raise InputError(
            f"{root / name} has no mask: expected {' or '.join([pattern] if pattern else MASKS)}."
        )
    inside = np.nan_to_num(get_data(image, f"mask of {name}")) > 0
    mask = nib.Nifti1Image(inside.astype(np.uint8), image.affine)
    mask.file_map["image"].filename = img_filename(image)  # so that messages name the file
    atlases = [
        *sorted(root.glob("atlas-*_dseg.nii*")),
        *sorted((root / name).rglob("*atlas-*_dseg.nii*")),
    ]
    space = VoxelMasker.from_mask_img(mask, atlases_by_name(atlases), subject=name)
    scans = trials["file"].unique()
    if "MNI" not in Path(scans[0]).name:
        logger.warning(
            "%s: %s names no MNI space; its millimetres are taken as they are, so voxels of different people may not correspond",
            name,
            Path(scans[0]).name,
        )
    if nan == "drop":
        keep = np.ones(len(space), bool)
        for scan in scans:
            for _, values in space.iter_transform(scan, finite=False):
                keep &= np.isfinite(values).all(0)
        if not keep.all():
            logger.warning(
                "%s: %d of %d voxels hold NaN or infinity in some trial and are left out",
                name,
                (~keep).sum(),
                len(keep),
            )
        if not keep.any():
            raise InputError(
                f"{name}: all {len(keep)} voxels of its mask hold NaN or infinity in some trial, so none is left. Mend the scans or give another mask (--mask)."
            )
        space = space.select_voxels(keep)
    return space


def read_captions(root: Path, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Conversations about the stimuli, from stimuli/captions.tsv or the trials tables' column `caption`."""
    shown = pd.concat(tables.values(), ignore_index=True)
    file = root / "stimuli" / "captions.tsv"
    if file.is_file():
        table = read_table(file, "captions", ("stimulus", "caption"))
        table = table[table["stimulus"].isin(set(shown["stimulus"]))]
    else:
        table = (
            shown[["stimulus", "caption"]]
            if "caption" in shown
            else pd.DataFrame({"stimulus": [], "caption": []})
        )
    table = table.dropna()
    silent = sorted(set(shown["stimulus"]) - set(table["stimulus"]))
    if silent:
        logger.warning(
            "%d of %d stimuli have no caption (first: %s): their trials can be decoded but not trained on",
            len(silent),
            shown["stimulus"].nunique(),
            silent[0],
        )
    return conversations_from_captions(table)
