"""Reader of BIDS derivatives with single-trial betas: statmaps, masks, atlases, trials tables.

    sub-XX[/ses-YY]/func/
        *_desc-SingletrialBetas_statmap.nii.gz   one volume per trial
        *_desc-SingletrialBetas_trials.tsv       one row per volume, the same entities
    sub-XX/**/*_desc-brain_mask.nii.gz           (or *_desc-R2mean_statmap.nii.gz: where above 0)
    atlas-<NAME>_*_dseg.nii.gz, atlas-<NAME>_dseg.tsv    at the root or beside the subject's files
    stimuli/captions.tsv                         `stimulus`, `caption`, one row each (optional)

The trials table has `volume` and `stimulus` (LAION-fMRI: `beta_index` and `label`), and `caption`
where stimuli/captions.tsv does not exist; `session`, `run`, `repetition` and `split` are kept.
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
from nibabel.spatialimages import SpatialImage

from mindllm.data.splits import split_stimuli
from mindllm.data.store_writer import conversations_from_captions
from mindllm.datasets.base import DatasetDescription, DatasetReader, drop_voxels
from mindllm.datasets.parallel import SessionReader
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


class BIDSReader(DatasetReader):
    """Reader of BIDS derivatives with single-trial betas.

    The fractions for test and validation (`val_fraction` of `prepare`) are of all stimuli, and are
    used where the trials tables have no column `split`.

    Parameters
    ----------
    root : str or Path
        Folder of the derivatives.
    subjects : sequence of str, optional
        Labels such as sub-01. Default: all that are there.
    mask : str, optional
        Pattern of the mask files within a subject's folder, in place of the usual names.
    nan : {"error", "drop"}
        What to do about voxels with NaN: raise an error, or leave them out.
    test_fraction : float
        Fraction of the stimuli for testing.
    """

    prepared_by = "bids"
    default_dtype = "float32"
    reader_columns = ("file",)

    def __init__(
        self,
        root: str | Path,
        *,
        subjects: Sequence[str] | None = None,
        mask: str | None = None,
        nan: Literal["error", "drop"] = "error",
        test_fraction: float = 0.0,
    ) -> None:
        super().__init__(root, subjects=subjects)
        if nan not in ("error", "drop"):
            raise InputError(f"nan={nan!r} is unknown; expected error or drop.")
        self.mask, self.nan, self.test_fraction = mask, nan, test_fraction

    def find_subjects(self) -> list[str]:
        subjects = sorted(path.name for path in self.root.glob("sub-*") if path.is_dir())
        if not subjects:
            raise InputError(
                f"{self.root} holds no folder sub-*: "
                f"expected BIDS derivatives with sub-XX/func/{BETAS}."
            )
        return subjects

    def read_trials(self, subject: str) -> pd.DataFrame:
        files = sorted((self.root / subject).rglob(BETAS))
        if not files:
            raise InputError(
                f"{self.root / subject} has no {BETAS}: "
                "expected one 4-D file of single-trial betas per session."
            )
        return pd.concat([read_trials(file, subject) for file in files], ignore_index=True)

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        fractions = {"val": val_fraction, "test": self.test_fraction}
        fractions = {split: fraction for split, fraction in fractions.items() if fraction}
        if not fractions:
            return dict(trials)
        if any("split" in table for table in trials.values()):
            logger.warning(
                "the trials tables have a column `split`; the fractions %s are not used", fractions
            )
            return dict(trials)
        stimuli = pd.concat(trials.values())["stimulus"].tolist()
        splits = split_stimuli(stimuli, fractions, seed)
        return {
            subject: table.assign(split=table["stimulus"].map(splits))
            for subject, table in trials.items()
        }

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        statmaps = [Path(file) for file in trials["file"].unique()]
        folder = self.root / subject
        atlas_files = [
            *sorted(self.root.glob("atlas-*_dseg.nii*")),
            *sorted(folder.rglob("*atlas-*_dseg.nii*")),
        ]
        mask_img = load_mask(folder, self.mask)
        masker = VoxelMasker.from_mask_img(mask_img, atlases_by_name(atlas_files), subject=subject)
        if "MNI" not in statmaps[0].name:
            logger.warning(
                "%s: %s names no MNI space; its coordinates are taken as they are, "
                "so voxels of different subjects may not correspond",
                subject,
                statmaps[0].name,
            )
        return drop_nan_voxels(masker, statmaps) if self.nan == "drop" else masker

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        return [
            SessionReader(
                f"{masker.subject}, {Path(str(file)).name}",
                rows.index.to_numpy(),
                bind(masker.transform, str(file), rows["volume"].tolist()),
            )
            for file, rows in trials.groupby("file", sort=False)
        ]

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        return read_captions(self.root / "stimuli" / "captions.tsv", trials)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        file = self.root / "dataset_description.json"
        content = read_json(file, "a BIDS dataset") if file.is_file() else {}
        return DatasetDescription(
            name=content.get("Name", self.root.name),
            source="; ".join(content.get("ReferencesAndLinks", [])) or str(self.root.name),
            license=content.get("License", "unknown"),
        )

    def options(self) -> dict[str, object]:
        return {"mask": self.mask, "nan": self.nan, "test_fraction": self.test_fraction}


def read_trials(statmap: Path, subject: str) -> pd.DataFrame:
    """Read the trials of one file of betas, one row per volume; `file` is the statmap.

    Trials are in the order of showing, on which what was shown before a trial depends.

    Raises
    ------
    InputError
        If the table lacks a column or a stimulus, or does not list each volume once.
    """
    file = trials_file(statmap)
    table = read_table(file, "the table of the trials in the statmap beside it")
    table = table.rename(columns=ALIASES)
    if not {"volume", "stimulus"} <= set(table.columns):
        raise InputError(
            f"{file} has the columns {list(table.columns)}; expected `volume` and `stimulus` "
            "(or `beta_index` and `label`)."
        )
    if table["stimulus"].isna().any():
        raise InputError(
            f"{file} has {table['stimulus'].isna().sum()} rows without a stimulus; "
            "expected one in each row."
        )
    img = load_img(statmap, f"betas of {subject}")
    n_volumes = img.shape[3] if img.ndim == 4 else 1
    if sorted(table["volume"]) != list(range(n_volumes)):
        raise InputError(
            f"{file} lists {len(table)} volumes ({table['volume'].min()} to "
            f"{table['volume'].max()}), but {statmap.name} has {n_volumes}. One row per volume, "
            "numbered from 0, is expected."
        )
    table = table.assign(file=str(statmap))
    if "session" not in table:
        session = re.search(r"_ses-([A-Za-z0-9]+)", statmap.name)
        table["session"] = session[1] if session else "1"
    return table.sort_values("volume")


def trials_file(statmap: Path) -> Path:
    """Name the trials table of a statmap: the same entities without `space`, `res` and `stat`."""
    stem = re.sub(r"_(space|res|stat)-[A-Za-z0-9]+", "", statmap.name.split(".nii")[0])
    return statmap.with_name(stem.replace("_statmap", "_trials") + ".tsv")


def load_mask(folder: Path, pattern: str | None) -> SpatialImage:
    """Load the mask in a subject's folder as zeros and ones.

    Raises
    ------
    InputError
        If there is none, or several.
    """
    patterns = [pattern] if pattern else list(MASKS)
    matches = {name: sorted(folder.rglob(name)) for name in patterns}
    name = next((name for name in patterns if matches[name]), None)
    if name is None:
        raise InputError(f"{folder} has no mask: expected {' or '.join(patterns)}.")
    if len(files := matches[name]) > 1:
        raise InputError(
            f"{folder.name} has {len(files)} masks that match {name}: "
            f"{', '.join(file.name for file in files[:3])}. Name one with --mask."
        )
    img = load_img(files[0], f"mask of {folder.name}", dimensions=3)
    in_mask = np.nan_to_num(get_data(img, f"mask of {folder.name}")) > 0
    mask_img = nib.Nifti1Image(in_mask.astype(np.uint8), img.affine)
    mask_img.file_map["image"].filename = img_filename(img)  # so that messages name the file
    return mask_img


def drop_nan_voxels(masker: VoxelMasker, statmaps: Sequence[Path]) -> VoxelMasker:
    """Leave out the voxels with NaN or infinity in some trial, with a warning."""
    finite = np.ones(len(masker), bool)
    for statmap in statmaps:
        for _, betas in masker.iter_transform(str(statmap), finite=False):
            finite &= np.isfinite(betas).all(0)
    return drop_voxels(
        masker,
        finite,
        "hold NaN or infinity in some trial",
        "Mend the scans or give another mask (--mask).",
    )


def read_captions(file: Path, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Read conversations about the stimuli from `file`, else from the trials' column `caption`."""
    shown = pd.concat(trials.values(), ignore_index=True)
    if file.is_file():
        table = read_table(file, "captions", ("stimulus", "caption"))
        table = table[table["stimulus"].isin(set(shown["stimulus"]))]
    elif "caption" in shown:
        table = shown[["stimulus", "caption"]]
    else:
        table = pd.DataFrame({"stimulus": [], "caption": []})
    table = table.dropna()
    without_caption = sorted(set(shown["stimulus"]) - set(table["stimulus"]))
    if without_caption:
        logger.warning(
            "%d of %d stimuli have no caption (first: %s): "
            "their trials can be decoded but not trained on",
            len(without_caption),
            shown["stimulus"].nunique(),
            without_caption[0],
        )
    return conversations_from_captions(table)
