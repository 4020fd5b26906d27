"""Maps are drawn as PNG, and interactive ones need nothing from the network."""

import re

import nibabel as nib
import numpy as np
import pytest

from mindllm.plotting.maps import (
    color_scale,
    interactive_map,
    load_surfaces,
    plot_cortex_map,
    plot_flat_map,
    plot_glass_brain_map,
    plot_slices_map,
    signed_top,
)


@pytest.fixture(scope="module")
def img() -> nib.Nifti1Image:
    """Positive in the left hemisphere, negative in the right, none in front."""
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = [-78, -110, -60]
    x, y, _ = nib.affines.apply_affine(affine, np.indices((27, 33, 24)).reshape(3, -1).T).T
    data = np.where(y < 0, -np.sign(x) * (1 + np.abs(x) / 50), 0).reshape(27, 33, 24)
    return nib.Nifti1Image(data.astype(np.float32), affine)


@pytest.mark.parametrize(
    "draw", [plot_glass_brain_map, plot_slices_map, plot_cortex_map, plot_flat_map]
)
def test_a_map_is_drawn(img: nib.Nifti1Image, draw: object) -> None:
    png = draw(img, "nats")  # type: ignore[operator]
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000


def test_vertices_have_the_values_of_their_voxels(img: nib.Nifti1Image) -> None:
    _, values, sulci = load_surfaces(img)
    assert len(values["left"]) == len(sulci["left"]) == 10242
    assert np.nanmin(values["left"]) > 0 > np.nanmax(values["right"])
    assert np.isnan(values["left"]).any(), "no voxel in front"


def test_a_color_scale_is_symmetric_about_0(img: nib.Nifti1Image) -> None:
    scale = color_scale(img, signed=True)
    assert scale.vmin == -scale.vmax == -signed_top(img)
    assert color_scale(img, signed=False).vmin == 0
    assert signed_top(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))) == 1


def test_an_interactive_map_is_a_page_of_its_own(img: nib.Nifti1Image) -> None:
    page = interactive_map(img, "A title")
    assert "A title" in page
    assert not re.search(r"(src|href)=.?https?:", page)
