"""Coverage: how much of what a model was trained on a new subject's voxels can tell it."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import KDTree

from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError

RADIUS_MM = 12.0
BIN_MM = 4.0  # training voxels are counted once per cube of this edge
BRAIN_MM = np.array([[-100.0, 100.0], [-130.0, 100.0], [-90.0, 110.0]])  # MNI152, with a margin
MIN_COVERED, WARN_COVERED = 0.02, 0.5
MIN_EXTENT_MM = 5.0
MAX_OUTSIDE, WARN_OUTSIDE = 0.5, 0.05
LIMITS = (
    f"A model needs voxels within {RADIUS_MM:.0f} mm of at least {MIN_COVERED:.0%} of the places "
    f"that it was trained on, at least {1 - MAX_OUTSIDE:.0%} of the voxels in the brain, and not "
    f"all of them within {MIN_EXTENT_MM:.0f} mm."
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VoxelCoverage:
    """What a subject's voxels share with those that a model was trained on.

    Parameters
    ----------
    subject : str
    n_voxels : int
    covered : float or None
        Share of the places with training voxels that have a voxel within 12 mm; None: the model
        keeps no maskers of training subjects.
    outside : float
        Share of the voxels whose MNI coordinates are not in the brain.
    extent_mm : float
        Largest distance between two voxels along an axis.
    missing_atlases : tuple of str
        Atlases that the model knows and the masker lacks.
    """

    subject: str
    n_voxels: int
    covered: float | None
    outside: float
    extent_mm: float
    missing_atlases: tuple[str, ...]

    def describe(self) -> str:
        """Return the numbers in words."""
        parts = []
        if self.extent_mm < MIN_EXTENT_MM:
            parts.append(f"all voxels within {self.extent_mm:.2g} mm")
        if self.covered is not None:
            parts.append(
                f"voxels within {RADIUS_MM:.0f} mm of {self.covered:.0%} of the places that the "
                "model was trained on"
            )
        if self.outside:
            parts.append(f"{self.outside:.0%} of the voxels not in the brain")
        if self.missing_atlases:
            parts.append(f"no atlas {', '.join(self.missing_atlases)}, which the model knows")
        return "; ".join(parts)


def voxel_coverage(
    masker: VoxelMasker,
    training_maskers: Mapping[str, VoxelMasker],
    atlases: Iterable[str] = (),
    in_mni: bool = True,
) -> VoxelCoverage:
    """Compare a subject's voxels with those of the training subjects.

    Parameters
    ----------
    masker : VoxelMasker
    training_maskers : mapping of str to VoxelMasker
        `model.maskers`.
    atlases : iterable of str
        That the model knows.
    in_mni : bool
        Whether the model reads MNI coordinates. Otherwise atlases alone are compared.

    Returns
    -------
    VoxelCoverage

    Examples
    --------
    >>> import nibabel as nib
    >>> mask = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.diag([8.0, 8, 8, 1]))
    >>> masker = VoxelMasker.from_mask_img(mask, subject="sub-01")
    >>> voxel_coverage(masker, {"sub-01": masker}).covered
    1.0
    """
    coords = np.asarray(masker.coords_mm, float)
    covered, outside, extent = None, 0.0, float(np.ptp(coords, axis=0).max())
    if in_mni:
        outside = float(((coords < BRAIN_MM[:, 0]) | (coords > BRAIN_MM[:, 1])).any(1).mean())
    if in_mni and training_maskers:
        trained = np.concatenate([m.coords_mm for m in training_maskers.values()])
        trained = np.unique(np.round(trained / BIN_MM), axis=0) * BIN_MM
        distances, _ = KDTree(coords).query(trained)
        covered = float((distances <= RADIUS_MM).mean())
    missing = tuple(sorted(set(atlases) - set(masker.parcel_labels)))
    return VoxelCoverage(masker.subject, len(masker), covered, outside, extent, missing)


def check_coverage(coverage: VoxelCoverage) -> None:
    """Refuse voxels that cannot mean anything to a model; warn about those that mean little.

    Parameters
    ----------
    coverage : VoxelCoverage

    Raises
    ------
    InputError
        If fewer than 2 % of the places that the model was trained on have a voxel within 12 mm,
        more than half of the voxels are not in the brain, or all are within 5 mm.
    """
    covered = 1.0 if coverage.covered is None else coverage.covered
    where = f"{coverage.subject} ({coverage.n_voxels} voxels)"
    is_point = coverage.extent_mm < MIN_EXTENT_MM
    if is_point or covered < MIN_COVERED or coverage.outside > MAX_OUTSIDE:
        raise InputError(
            f"{where} has {coverage.describe()}. {LIMITS} Check that its coordinates are "
            "millimeters in MNI space and that its mask is of the region that the model reads."
        )
    if covered < WARN_COVERED or coverage.outside > WARN_OUTSIDE or coverage.missing_atlases:
        logger.warning("%s has %s; decoding suffers", where, coverage.describe())
