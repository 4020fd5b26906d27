"""Reader of BIDS derivatives with single-trial betas: statmaps, masks, atlases, trials tables.

    sub-XX[/ses-YY]/func/
        *_desc-SingletrialBetas_statmap.nii.gz   one volume per trial
        *_desc-SingletrialBetas_trials.tsv       one row per volume, the same entities
    sub-XX/**/*_desc-brain_mask.nii.gz           (or *_desc-R2mean_statmap.nii.gz: where above 0)
    atlas-<NAME>_*_dseg.nii.gz, atlas-<NAME>_dseg.tsv    at the root or beside the subject's files
    stimuli/captions.tsv                         `stimulus`, `caption`, one row each (optional)

The trials table has `volume` and `stimulus` (LAION-fMRI: `beta_index` and `label`), and `caption`
where stimuli/captions.tsv does not exist; `session`, `run`, `repetition` and `split` are kept.
Without `session` and `run` the entities `ses` and `run` of the file name say them.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial as bind
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from nibabel.spatialimages import SpatialImage
from pydantic import BaseModel, ValidationError

from mindllm.data.store_writer import TRIAL_COLUMNS, check_captions, conversations_from_captions
from mindllm.datasets.base import DatasetDescription, DatasetReader, assign_fractions, drop_voxels
from mindllm.datasets.parallel import SessionReader
from mindllm.fmri.atlases import select_atlases
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import binarize_mask, check_orientation, load_img
from mindllm.utils.errors import InputError, shorten
from mindllm.utils.files import read_json
from mindllm.utils.sorting import natural_key, natural_sorted
from mindllm.utils.tables import read_table, require_values

BETAS = "*_desc-SingletrialBetas_statmap.nii*"
MASKS = ("*_desc-brain_mask.nii*", "*_desc-R2mean_statmap.nii*")
ALIASES = {"beta_index": "volume", "label": "stimulus"}
logger = logging.getLogger(__name__)


class BIDSDescription(BaseModel):
    """What is read of dataset_description.json, with BIDS's names."""

    Name: str = ""
    ReferencesAndLinks: list[str] = []
    License: str = "unknown"


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
    betas : str, optional
        Pattern of the files of betas within a subject's folder, in place of BETAS; it chooses
        where there are several for one table of trials, such as an effect map and a t map.
    mask : str, optional
        Pattern of the mask files within a subject's folder, in place of the usual names.
    mask_threshold : float, optional
        For masks that are not binary: voxels above it are inside. Default: 0 for a statmap; any
        other mask must be binary.
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
        betas: str | None = None,
        mask: str | None = None,
        mask_threshold: float | None = None,
        nan: Literal["error", "drop"] = "error",
        test_fraction: float = 0.0,
    ) -> None:
        super().__init__(root, subjects=subjects)
        if nan not in ("error", "drop"):
            raise InputError(f"nan={nan!r} is unknown; expected error or drop.")
        self.betas, self.mask, self.mask_threshold = betas, mask, mask_threshold
        self.nan, self.test_fraction = nan, test_fraction

    def find_subjects(self) -> list[str]:
        subjects = natural_sorted(p.name for p in self.root.glob("sub-*") if p.is_dir())
        if not subjects:
            raise InputError(
                f"{self.root} holds no folder sub-*: "
                f"expected BIDS derivatives with sub-XX/func/{BETAS}."
            )
        return subjects

    def read_trials(self, subject: str) -> pd.DataFrame:
        files = find_statmaps(self.root / subject, self.betas or BETAS)
        return pd.concat([read_trials(file, subject) for file in files], ignore_index=True)

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        fractions = {"val": val_fraction, "test": self.test_fraction}
        return assign_fractions(trials, fractions, seed, "the trials tables")

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        statmaps = [Path(file) for file in trials["file"].unique()]
        folder = self.root / subject
        atlas_files = [
            *sorted(self.root.glob("atlas-*_dseg.nii*")),
            *sorted(folder.rglob("*atlas-*_dseg.nii*")),
        ]
        mask_img = load_mask(folder, self.mask, self.mask_threshold)
        atlases = select_atlases(atlas_files, mask_img)
        masker = VoxelMasker.from_mask_img(mask_img, atlases, subject=subject)
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
                (Path(str(file)),),
            )
            for file, rows in trials.groupby("file", sort=False)
        ]

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        return read_captions(self.root / "stimuli" / "captions.tsv", trials)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        file = self.root / "dataset_description.json"
        content = read_json(file, "a BIDS dataset") if file.is_file() else {}
        try:
            description = BIDSDescription.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the content"
            raise InputError(
                f"{file}: {field}: {first['msg']}, found {shorten(repr(first['input']), 80)}. "
                "Expected `Name` and `License` as text and `ReferencesAndLinks` as a list of texts."
            ) from error
        return DatasetDescription(
            name=description.Name or self.root.name,
            source="; ".join(description.ReferencesAndLinks) or str(self.root.name),
            license=description.License,
        )

    def options(self) -> dict[str, object]:
        return {
            "betas": self.betas,
            "mask": self.mask,
            "mask_threshold": self.mask_threshold,
            "nan": self.nan,
            "test_fraction": self.test_fraction,
        }


def find_statmaps(folder: Path, pattern: str) -> list[Path]:
    """Find the files of betas in a subject's folder, in the order of sessions and runs.

    Raises
    ------
    InputError
        If there is none, or two have one table of trials.
    """
    files = sorted(folder.rglob(pattern), key=lambda file: natural_key(str(file)))
    if not files:
        raise InputError(
            f"{folder} has no {pattern}: expected one 4-D file of single-trial betas per session."
        )
    by_table: dict[Path, Path] = {}
    for file in files:
        first = by_table.setdefault(trials_file(file), file)
        if first != file:
            raise InputError(
                f"{first} and {file.name} both have the trials of {trials_file(file).name}, which "
                "would count twice. Choose between them with --betas, e.g. "
                f"--betas '{distinguish(file, first)}'."
            )
    return files


def distinguish(file: Path, other: Path) -> str:
    """Return a pattern of statmaps that the file matches, and as a rule the other one does not."""
    entities = [part for part in file.name.split("_")[:-1] if part not in other.name.split("_")]
    return f"*_{entities[0]}_*_statmap.nii*" if entities else f"*_statmap.{file.name[-6:]}"


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
    aliases = {name: new for name, new in ALIASES.items() if new not in table}
    table = table.rename(columns=aliases).dropna(axis="columns", how="all")
    if not {"volume", "stimulus"} <= set(table.columns):
        raise InputError(
            f"{file} has the columns {list(table.columns)}; expected `volume` and `stimulus` "
            "(or `beta_index` and `label`)."
        )
    require_values(table, ("volume", *TRIAL_COLUMNS), file)
    if "caption" in table:
        check_captions(table.dropna(subset="caption"), file)
    img = load_img(statmap, f"betas of {subject}")
    check_orientation(img, f"betas of {subject}")
    n_volumes = img.shape[3] if img.ndim == 4 else 1
    if sorted(table["volume"]) != list(range(n_volumes)):
        raise InputError(
            f"{file} lists {len(table)} volumes ({table['volume'].min()} to "
            f"{table['volume'].max()}), but {statmap.name} has {n_volumes}. One row per volume, "
            "numbered from 0, is expected."
        )
    table = table.assign(file=str(statmap))
    for column, entity in (("session", "ses"), ("run", "run")):
        if column not in table:
            match = re.search(rf"_{entity}-([A-Za-z0-9]+)", statmap.name)
            table[column] = match[1] if match else "1"
    return table.sort_values("volume")


def trials_file(statmap: Path) -> Path:
    """Name the trials table of a statmap: the same entities without `space`, `res` and `stat`."""
    stem = re.sub(r"_(space|res|stat)-[A-Za-z0-9]+", "", statmap.name.split(".nii")[0])
    return statmap.with_name(stem.replace("_statmap", "_trials") + ".tsv")


def load_mask(folder: Path, pattern: str | None, threshold: float | None) -> SpatialImage:
    """Load the mask in a subject's folder as zeros and ones.

    Raises
    ------
    InputError
        If there is none, there are several, or it is not binary and there is no threshold.
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
    return binarize_mask(files[0], threshold, what=f"mask of {folder.name}")


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
        table = table[table["stimulus"].isin(set(shown["stimulus"]))].dropna(
            subset=["stimulus", "caption"]
        )
        check_captions(table, file)
    elif "caption" in shown:
        table = shown.dropna(subset=["caption"])
    else:
        table = pd.DataFrame({"stimulus": [], "caption": []})
    without_caption = natural_sorted(set(shown["stimulus"]) - set(table["stimulus"]))
    if without_caption:
        logger.warning(
            "%d of %d stimuli have no caption (first: %s): "
            "their trials can be decoded but not trained on",
            len(without_caption),
            shown["stimulus"].nunique(),
            without_caption[0],
        )
    return conversations_from_captions(table)
