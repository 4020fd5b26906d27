"""Images as they should not be: without orientation, not binary, damaged, of colors."""

import gzip
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindllm.fmri.atlases import select_atlases
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import binarize_mask, load_img, read_mask
from mindllm.utils.errors import InputError

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])
SHAPE = (4, 4, 3)


def image(data: np.ndarray, affine: np.ndarray | None = AFFINE) -> nib.Nifti1Image:
    """Without an affine nibabel sets both codes to 0, as many programs leave them."""
    return nib.Nifti1Image(data, affine)


def without_orientation(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same affine, of which the file says that it means nothing."""
    img.set_qform(None, code=0)
    img.set_sform(img.affine, code=0)
    return img


def box() -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 1:3, 1:] = 1
    return mask


def test_masks_without_orientation_are_refused(tmp_path: Path) -> None:
    nib.save(image(box(), None), tmp_path / "mask.nii.gz")
    nib.save(nib.AnalyzeImage(box(), np.eye(4)), tmp_path / "mask.img")
    for name in ("mask.nii.gz", "mask.img"):
        with pytest.raises(InputError, match=rf"mask .*{name} has no orientation"):
            VoxelMasker.from_mask_img(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} has no orientation"):
            binarize_mask(tmp_path / name)
    _, voxels = read_mask(tmp_path / "mask.nii.gz", needs_orientation=False)
    assert len(voxels) == 8


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (4, 4)])
def test_one_code_is_enough(codes: tuple[int, int]) -> None:
    img = image(box())
    img.set_qform(AFFINE, code=codes[0])
    img.set_sform(AFFINE, code=codes[1])
    masker = VoxelMasker.from_mask_img(img)
    np.testing.assert_allclose(masker.coords_mm, 3 * masker.voxel_indices)


def test_scans_and_atlases_without_orientation_are_refused() -> None:
    masker = VoxelMasker.from_mask_img(image(box()))
    scan = without_orientation(image(np.zeros((*SHAPE, 2), np.float32)))
    with pytest.raises(InputError, match=r"scan .* has no orientation"):
        masker.transform(scan)
    atlas = without_orientation(image(box()))
    with pytest.raises(InputError, match=r"atlas x .* has no orientation"):
        VoxelMasker.from_mask_img(image(box()), {"x": atlas}, parcel_names={"x": {1: "V1"}})


def test_masks_that_are_not_binary_need_a_threshold(tmp_path: Path) -> None:
    smooth = box().astype(np.float32)
    smooth[0] = 1e-12
    nib.save(image(smooth), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=r"not binary: it has 2 .* from 1e-12 to 1, .*threshold"):
        VoxelMasker.from_mask_img(tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="not binary"):
        binarize_mask(tmp_path / "mask.nii.gz")
    assert len(VoxelMasker.from_mask_img(tmp_path / "mask.nii.gz", threshold=0.5)) == 8
    assert binarize_mask(tmp_path / "mask.nii.gz", 0.5).get_fdata().sum() == 8
    with pytest.raises(InputError, match="empty: no voxel is above 7"):
        VoxelMasker.from_mask_img(tmp_path / "mask.nii.gz", threshold=7)


@pytest.mark.parametrize("inside", [1, 255, -1, True, 0.25])
def test_one_value_inside_is_binary(inside: float) -> None:
    img = image(np.where(box() > 0, abs(inside), -1).astype(np.float32))
    assert len(VoxelMasker.from_mask_img(img)) == 8


def test_a_statmap_is_inside_above_0(tmp_path: Path) -> None:
    r2 = np.where(box() > 0, np.arange(48).reshape(SHAPE), np.nan).astype(np.float32)
    nib.save(image(r2), tmp_path / "sub-01_desc-R2mean_statmap.nii.gz")
    assert binarize_mask(tmp_path / "sub-01_desc-R2mean_statmap.nii.gz").get_fdata().sum() == 8


def test_an_roi_of_labels_is_inside_where_any_is() -> None:
    labels = np.arange(48).reshape(SHAPE) % 3 - 1
    with pytest.raises(InputError, match="not binary"):
        read_mask(image((labels * 2 + 3).astype(np.int16)))
    assert len(read_mask(image(labels.astype(np.int16)), is_roi=True)[1]) == 16
    with pytest.raises(InputError, match="not binary"):
        read_mask(image(labels / 3 + 0.1), is_roi=True)


def test_every_fault_that_gzip_finds_is_refused(tmp_path: Path) -> None:
    """300 single flipped bits: `gzip -t` and this reader agree about each."""
    rng = np.random.default_rng(0)
    masker = VoxelMasker.from_mask_img(image(box()))
    betas = rng.normal(size=(6, len(masker))).astype(np.float32)
    file = tmp_path / "scan.nii.gz"
    nib.save(masker.inverse_transform(betas), file)
    whole, n_accepted = file.read_bytes(), 0
    for n in range(300):
        content = bytearray(whole)
        position = int(rng.integers(10, len(content)))
        content[position] ^= 1 << int(rng.integers(8))
        damaged = tmp_path / f"{n}.nii.gz"
        damaged.write_bytes(content)
        check = subprocess.run(["gzip", "-tq", damaged], check=False, capture_output=True)
        is_sound = check.returncode == 0
        if is_sound:
            n_accepted += 1
            np.testing.assert_array_equal(masker.transform(damaged), betas)
        else:
            with pytest.raises(InputError, match="scan"):
                masker.transform(damaged)
    assert n_accepted < 20  # in the name that the header keeps
    file.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(InputError, match=r"CRC check failed"):
        masker.transform(file)


def test_values_must_be_numbers(tmp_path: Path) -> None:
    colors = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(image(colors), tmp_path / "mask.nii.gz")
    nib.save(image(np.ones(SHAPE, np.complex64)), tmp_path / "complex.nii")
    for name in ("mask.nii.gz", "complex.nii"):
        with pytest.raises(InputError, match="expected one real number per voxel"):
            VoxelMasker.from_mask_img(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", b"no image" * 50, gzip.compress(b"x" * 352, mtime=0)]
)
def test_what_is_no_image_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.nii.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"scan: .*x\.nii\.gz cannot be read as a NIfTI image"):
        load_img(tmp_path / "x.nii.gz", "scan")


def test_of_two_resolutions_of_an_atlas_the_one_on_the_grid_is_taken(tmp_path: Path) -> None:
    coarse, fine = tmp_path / "atlas-X_res-6_dseg.nii.gz", tmp_path / "atlas-X_res-3_dseg.nii.gz"
    nib.save(image(np.ones((2, 2, 2), np.int16), np.diag([6.0, 6, 6, 1])), coarse)
    nib.save(image(box().astype(np.int16)), fine)
    for files in ([coarse, fine], [fine, coarse]):
        assert select_atlases(files, image(box())) == {"X": fine}
    assert select_atlases([coarse], image(box())) == {"X": coarse}  # refused where it is read
    other = tmp_path / "sub-01_atlas-X_dseg.nii.gz"
    nib.save(nib.load(fine), other)
    with pytest.raises(InputError, match=r"atlas X has 2 files, of which 2 are on the grid"):
        select_atlases([fine, other], image(box()))
    with pytest.raises(InputError, match=r"atlas X has 2 files, of which 0 are on the grid"):
        select_atlases([coarse, fine], image(np.ones((5, 5, 5), np.uint8)))


@pytest.mark.parametrize("name", ["i", "k", "x_mm", "ncsnr", ""])
def test_an_atlas_cannot_be_called_as_a_column_of_the_voxels(name: str) -> None:
    with pytest.raises(InputError, match=f"an atlas cannot be called '{name}'"):
        VoxelMasker.from_mask_img(
            image(box()), {name: image(box())}, parcel_names={name: {1: "V1"}}
        )
