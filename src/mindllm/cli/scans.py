"""Options of a scan that several commands read: its files, its voxels, and its volumes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindllm.cli.options import parse_int_ranges
from mindllm.utils.errors import InputError
from mindllm.utils.text_files import check_regular_file

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage

    from mindllm.fmri.masker import VoxelMasker
    from mindllm.model.modeling import MindLLM

Scan = Annotated[Path, typer.Argument(help="A 3-D or 4-D NIfTI file, one volume per trial.")]
Mask = Annotated[Path | None, typer.Option(help="NIfTI mask of the voxels, on the scan's grid.")]
MaskerSubject = Annotated[
    str | None,
    typer.Option(help="Instead of --mask and --atlas: a subject whose masker the model holds."),
]
Atlases = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=FILE, an atlas on the scan's grid, lookup table beside it. Repeatable."
    ),
]
Volumes = Annotated[str | None, typer.Option(help="Which volumes, e.g. 0,3,5-9. Default: all.")]
StandardizeWith = Annotated[
    Path | None,
    typer.Option(
        help="Another scan of the same subject and grid to standardize with, "
        "of at least 8 volumes. Default: all volumes of SCAN."
    ),
]
Standardized = Annotated[
    bool, typer.Option("--standardized", help="SCAN holds standardized betas: take them as is.")
]


@dataclass(frozen=True, slots=True)
class ScanData:
    """The files of a scan, and how its betas are read; see `ScanOptions.open`."""

    scan: Path
    masker: "Path | SpatialImage | VoxelMasker | None"
    atlases: dict[str, str]
    volumes: list[int] | None
    standardize_with: Path | None
    standardized: bool

    @property
    def reading(self) -> Mapping[str, Any]:
        """What every function that decodes a scan takes by name."""
        names = ("atlases", "volumes", "standardize_with", "standardized")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """Options of a scan as they are given, and what is read of them.

    Parameters
    ----------
    scan, mask, standardize_with : Path
    mask_threshold : float or None
    subject : str or None
        Instead of a mask.
    atlas : list of str
        NAME=FILE.
    volumes : str or None
    standardized : bool
    """

    scan: Path
    mask: Path | None
    mask_threshold: float | None
    subject: str | None
    atlas: Sequence[str]
    volumes: str | None
    standardize_with: Path | None
    standardized: bool

    def check(self) -> None:
        """Refuse what does not go together, or is not there, before anything is loaded.

        Raises
        ------
        InputError
            If there is such an option.
        """
        check_masker(self.mask, self.subject)
        parse_int_ranges(self.volumes)
        check_files(self.scan, self.mask, parse_atlases(self.atlas), self.standardize_with)
        if self.mask_threshold is not None:
            check_mask_threshold(self.mask)

    def open(self, model: "MindLLM", folder: Path) -> ScanData:
        """The files, with the voxels that are to be read.

        Parameters
        ----------
        model : MindLLM
        folder : Path
            Of the model, for a message.

        Raises
        ------
        InputError
            If the mask is not binary at the threshold, or the model does not hold the subject.
        """
        from mindllm.fmri.nifti import binarize_mask

        masker: Path | SpatialImage | VoxelMasker | None = self.mask
        if self.mask is not None and self.mask_threshold is not None:
            masker = binarize_mask(self.mask, self.mask_threshold)
        if self.subject is not None:
            masker = get_masker(model, folder, self.subject)
        return ScanData(
            self.scan,
            masker,
            parse_atlases(self.atlas),
            parse_int_ranges(self.volumes),
            self.standardize_with,
            self.standardized,
        )


def check_masker(mask: Path | None, subject: str | None) -> None:
    """Refuse two masks, and none."""
    if (mask is None) == (subject is None):
        raise InputError(
            "give either --mask (and --atlas), or --subject for one whose masker the model holds."
        )


def check_mask_threshold(mask: Path | None) -> None:
    """Refuse a threshold without a mask."""
    if mask is None:
        raise InputError("--mask-threshold is for --mask: give one, or leave it out.")


def check_files(
    scan: Path, mask: Path | None, atlases: dict[str, str], standardize_with: Path | None
) -> None:
    """Refuse files that are not there, before anything is loaded."""
    if mask is not None:
        check_regular_file(mask, "the mask")
    for name, file in atlases.items():
        check_regular_file(Path(file), f"the atlas {name}")
    check_regular_file(scan, "the scan")
    if standardize_with is not None:
        check_regular_file(standardize_with, "the image of --standardize-with")


def get_masker(model: "MindLLM", folder: Path, subject: str) -> "VoxelMasker":
    """The masker of a training subject."""
    if subject not in model.maskers:
        raise InputError(
            f"{folder} holds no masker of {subject}; it holds {', '.join(model.maskers) or 'none'}."
        )
    return model.maskers[subject]


def parse_atlases(pairs: Sequence[str]) -> dict[str, str]:
    """Map name to file of options NAME=FILE.

    Examples
    --------
    >>> parse_atlases(["HCPEx=atlas-HCPEx_dseg.nii.gz"])
    {'HCPEx': 'atlas-HCPEx_dseg.nii.gz'}
    """
    files = {}
    for pair in pairs:
        name, separator, file = pair.partition("=")
        if not separator:
            raise InputError(
                f"--atlas {pair}: expected NAME=FILE, e.g. --atlas HCPEx=atlas-HCPEx_dseg.nii.gz"
            )
        files[name] = file
    return files
