"""Attention as a map of the brain and as a table of parcels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.attention_maps import (
    COLUMNS,
    NO_PARCEL,
    attention_by_parcel,
    attention_map,
    attention_mass,
)
from mindllm.model.modeling import MindLLM


def test_the_mean_of_an_attention_map_is_one(
    tiny_model: MindLLM, space: VoxelMasker, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = attention_map(tiny_model, space)
    values = image.get_fdata()[tuple(space.voxel_indices.T)]
    assert image.shape == space.shape
    assert values.mean() == pytest.approx(1, rel=1e-5)
    assert (values > 0).all()
    encoder = tiny_model.encoder
    with torch.inference_mode():
        mean = encoder.attention_weights(encoder.prepare_voxels(space)).mean(0).numpy()
    np.testing.assert_allclose(values, mean * len(space), rtol=1e-4)
    monkeypatch.setattr("mindllm.model.attention_maps.CHUNK_BYTES", 4 * len(space) * 3)
    np.testing.assert_allclose(attention_mass(tiny_model, space), mean, rtol=1e-4)


def test_attention_by_parcel_leaves_nothing_out(tiny_model: MindLLM, space: VoxelMasker) -> None:
    table = attention_by_parcel(tiny_model, space)
    assert tuple(table.columns) == COLUMNS
    assert set(table["atlas"]) == set(space.parcel_labels)
    np.testing.assert_allclose(table.groupby("atlas")[["attention", "voxel_fraction"]].sum(), 1)
    assert table.groupby("atlas")["n_voxels"].sum().eq(len(space)).all()
    relative = table["attention"] / table["voxel_fraction"]
    np.testing.assert_allclose(table["relative_attention"], relative)


def test_a_parcel_has_the_attention_of_its_voxels(tiny_model: MindLLM, space: VoxelMasker) -> None:
    table, mass = attention_by_parcel(tiny_model, space), attention_mass(tiny_model, space)
    rows = table[table["atlas"] == "visual"].set_index("parcel")["attention"]
    labels = space.parcel_labels["visual"]
    assert rows.is_monotonic_decreasing
    assert rows[NO_PARCEL] == pytest.approx(mass[labels == 0].sum())
    assert rows["V2"] == pytest.approx(mass[labels == 2].sum())


def test_no_atlas_no_rows(tiny_model: MindLLM, space: VoxelMasker) -> None:
    table = attention_by_parcel(tiny_model, replace(space, parcel_labels={}, parcel_names={}))
    assert table.empty
    assert tuple(table.columns) == COLUMNS
