"""Brain figures: voxels are averaged in one grid, and figures are PNG for light and dark pages."""

import nibabel as nib
import numpy as np
import pytest

from mindllm.fmri.masker import VoxelMasker
from mindllm.plotting.brain import (
    plot_attention,
    plot_signed_slices,
    plot_voxel_coverage,
    resample_to_common_grid,
    slice_heights,
)

PNG = b"\x89PNG"


def masker_at(subject: str, coords_mm: list[list[float]]) -> VoxelMasker:
    indices = np.arange(3 * len(coords_mm)).reshape(-1, 3)
    return VoxelMasker(
        subject, (99, 99, 99), np.eye(4), indices, np.array(coords_mm, np.float32), {}, {}
    )


@pytest.fixture
def maskers() -> list[VoxelMasker]:
    return [
        masker_at("sub-01", [[0, 0, 0], [0.5, 0, 0], [20, 8, 4]]),
        masker_at("sub-02", [[0, 0, 0], [-20, 8, 4]]),
    ]


def value_at(img: nib.Nifti1Image, coords_mm: list[float]) -> float:
    index = np.linalg.inv(img.affine) @ np.array([*coords_mm, 1.0])
    return float(np.asarray(img.dataobj)[tuple(np.rint(index[:3]).astype(int))])


def test_values_are_means_over_voxels_and_then_over_subjects(maskers: list[VoxelMasker]) -> None:
    img = resample_to_common_grid(maskers, [np.array([1.0, 3.0, 5.0]), np.array([8.0, 7.0])])
    assert value_at(img, [0, 0, 0]) == (2 + 8) / 2
    assert value_at(img, [20, 8, 4]) == 5, "a subject without voxels there does not count"
    assert value_at(img, [0, 8, 4]) == 0
    assert np.count_nonzero(np.asarray(img.dataobj)) == 3


def test_without_values_subjects_are_counted(maskers: list[VoxelMasker]) -> None:
    img = resample_to_common_grid(maskers)
    assert value_at(img, [0, 0, 0]) == 2
    assert value_at(img, [-20, 8, 4]) == 1


def test_figures_are_drawn_for_light_and_dark_pages(maskers: list[VoxelMasker]) -> None:
    attention = [np.ones(3), np.ones(2)]
    figures = [plot_voxel_coverage(maskers, dark) for dark in (False, True)]
    figures += [plot_attention(maskers, attention, dark) for dark in (False, True)]
    assert all(png.startswith(PNG) for png in figures)
    assert len(set(figures)) == 4


def test_slices_are_the_same_for_all_where_heights_are_given(maskers: list[VoxelMasker]) -> None:
    heights = slice_heights(maskers, 3)
    assert heights == sorted(set(heights))
    assert set(heights) <= {0.0, 2.0, 4.0}
    values = [np.array([1.0, -1.0, 2.0]), np.array([-2.0, 1.0])]
    light, dark = (plot_signed_slices(maskers, values, 2.0, heights, d) for d in (False, True))
    assert light.startswith(PNG)
    assert light != dark
    negative = plot_signed_slices(maskers, [-array for array in values], 2.0, heights)
    assert negative != light, "the sign is seen"
