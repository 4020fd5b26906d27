"""Maskers: transform and inverse_transform, grids, labels, and reading in chunks."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindllm.fmri import masker as masker_module
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError
from tests.conftest import REGIONS, make_space


def grid(kind: str, seed: int) -> np.ndarray:
    """An affine: oblique (rotated), flipped, sheared."""
    rng = np.random.default_rng(seed)
    linear, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    linear = linear @ np.diag(
        rng.uniform(1, 4, 3) * ([-1, 1, -1] if kind == "flipped" else [1, 1, 1])
    )
    if kind == "sheared":
        linear = linear @ np.array([[1, 0.3, 0], [0, 1, 0.2], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, rng.uniform(-90, 90, 3)
    return affine


@given(kind=st.sampled_from(["oblique", "flipped", "sheared"]), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_inverse_transform_then_transform_is_identity(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    affine = grid(kind, seed)
    mask = rng.random((5, 6, 7)) < 0.3
    mask[2, 3, 4] = True
    masker = VoxelMasker.from_mask_img(nib.Nifti1Image(mask.astype(np.uint8), affine))
    values = rng.normal(size=(3, len(masker))).astype(np.float32)
    image = masker.inverse_transform(values)
    np.testing.assert_array_equal(masker.transform(image), values)
    assert (image.get_fdata()[~mask] == 0).all()
    np.testing.assert_allclose(
        masker.coords_mm, nib.affines.apply_affine(affine, np.argwhere(mask)), atol=1e-3
    )


@given(order=st.permutations(range(20)))
@settings(max_examples=20, deadline=None)
def test_labels_stay_with_their_voxels(order: list[int]) -> None:
    masker = make_space(voxels=20)
    chosen = masker.select_voxels(np.array(order))
    for p in REGIONS:
        np.testing.assert_array_equal(chosen.parcel_labels[p], masker.parcel_labels[p][order])
    np.testing.assert_array_equal(chosen.coords_mm, masker.coords_mm[order])


def test_transform_in_chunks_equals_transform_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masker = make_space()
    values = np.random.default_rng(0).normal(size=(11, len(masker))).astype(np.float32)
    nib.save(masker.inverse_transform(values), tmp_path / "scan.nii.gz")
    monkeypatch.setattr(
        masker_module, "CHUNK_BYTES", int(np.prod(masker.shape)) * 4 * 3
    )  # three volumes at a time
    np.testing.assert_array_equal(masker.transform(tmp_path / "scan.nii.gz"), values)
    np.testing.assert_array_equal(
        masker.transform(tmp_path / "scan.nii.gz", [7, 0, 7]), values[[7, 0, 7]]
    )
    assert max(len(v) for _, v in masker.iter_transform(tmp_path / "scan.nii.gz")) == 3


def test_slope_and_intercept_of_integer_data(tmp_path: Path) -> None:
    masker = make_space()
    image = nib.Nifti1Image(np.full((*masker.shape, 2), 1000, np.int16), masker.affine)
    image.header.set_slope_inter(0.5, 7)
    raw = nib.Nifti1Image(np.full((*masker.shape, 2), 1000.0), masker.affine, image.header)
    raw.header.set_data_dtype(np.int16)
    nib.save(raw, tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(masker.transform(tmp_path / "scan.nii.gz"), 1000, rtol=1e-3)


def test_repr_says_subject_voxels_grid_and_atlases() -> None:
    assert repr(make_space()) == (
        "VoxelMasker(subject='sub-01', n_voxels=60, shape=(12, 10, 8), "
        "voxel_size_mm=(8.0, 8.0, 8.0), atlases=['visual', 'lobes'])"
    )


def test_bad_masks_and_atlases(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    ones = np.ones((4, 4, 4), np.uint8)
    mask = nib.Nifti1Image(ones, affine)
    with pytest.raises(InputError, match="is empty: no voxel is above 0"):
        VoxelMasker.from_mask_img(nib.Nifti1Image(ones * 0, affine))
    with pytest.raises(InputError, match="holds NaN"):
        VoxelMasker.from_mask_img(nib.Nifti1Image(np.full((4, 4, 4), np.nan), affine))
    with pytest.raises(InputError, match=r"has shape \(4, 4\); expected 3 dimensions"):
        VoxelMasker.from_mask_img(nib.Nifti1Image(ones[0], affine))
    with pytest.raises(InputError, match="there is no file"):
        VoxelMasker.from_mask_img(tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="singular affine"):
        VoxelMasker.from_mask_img(nib.spatialimages.SpatialImage(ones, np.diag([2.0, 2, 0, 1])))
    with pytest.raises(
        InputError,
        match=r"atlas visual .* is on another grid than the mask: found 5 x 4 x 4 voxels of .*; "
        r"expected 4 x 4 x 4 voxels of .*resample_to_img",
    ):
        VoxelMasker.from_mask_img(
            mask,
            {"visual": nib.Nifti1Image(np.ones((5, 4, 4), np.int16), affine)},
            parcel_names=REGIONS,
        )
    with pytest.raises(InputError, match="not whole numbers"):
        VoxelMasker.from_mask_img(
            mask, {"visual": nib.Nifti1Image(ones * 0.5, affine)}, parcel_names=REGIONS
        )
    with pytest.raises(
        InputError, match=r"uses the parcel labels \[9\] that its lookup table does not name"
    ):
        VoxelMasker.from_mask_img(
            mask, {"visual": nib.Nifti1Image(ones * 9, affine)}, parcel_names=REGIONS
        )
    nib.save(nib.Nifti1Image(ones, affine), tmp_path / "atlas-visual_dseg.nii.gz")
    with pytest.raises(InputError, match="no lookup table with the parcel names beside"):
        VoxelMasker.from_mask_img(mask, {"visual": tmp_path / "atlas-visual_dseg.nii.gz"})
    (tmp_path / "atlas-visual_dseg.tsv").write_text("number\tname\n1\tV1\n")
    with pytest.raises(InputError, match="expected `index` and `name`"):
        VoxelMasker.from_mask_img(mask, {"visual": tmp_path / "atlas-visual_dseg.nii.gz"})


def test_bad_scans(tmp_path: Path) -> None:
    masker = make_space()
    values = np.random.default_rng(0).normal(size=(4, len(masker))).astype(np.float32)
    image = masker.inverse_transform(values)
    with pytest.raises(InputError, match="is on another grid than the mask"):
        masker.transform(nib.Nifti1Image(image.dataobj, image.affine @ np.diag([-1, 1, 1, 1])))
    with pytest.raises(InputError, match="has volumes 0 to 3"):
        masker.transform(image, [4])
    values[2, 5] = np.inf
    with pytest.raises(
        InputError, match=r"NaN or infinite values in 1 of 60 voxels .*\(first trial concerned: 2\)"
    ):
        masker.transform(masker.inverse_transform(values))
    with pytest.raises(InputError, match=r"shape \(4, 59\); expected \(60,\) or \(trials, 60\)"):
        masker.inverse_transform(values[:, 1:])
    nib.save(image, tmp_path / "whole.nii.gz")
    data = (tmp_path / "whole.nii.gz").read_bytes()
    (tmp_path / "half.nii.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "half.nii").write_bytes(gzip.decompress(data)[:5000])
    (tmp_path / "noise.nii.gz").write_bytes(b"this is no image")
    for name in ("half.nii.gz", "half.nii"):
        with pytest.raises(InputError, match="damaged or truncated: its header promises shape"):
            masker.transform(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read as a NIfTI image"):
        masker.transform(tmp_path / "noise.nii.gz")
