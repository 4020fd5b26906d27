"""Attention of queries and tokens sums to one, and images in MNI space show it where it is."""

import numpy as np
import pytest
import torch

from mindllm.explain.attention import (
    MNIGrid,
    attention_of_queries,
    attention_of_tokens,
    token_sensitivity,
)
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import PRESETS
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.modeling import MindLLM
from tests.conftest import REGIONS


@pytest.fixture
def betas(space: VoxelMasker) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, len(space))).astype(np.float32)


def test_attention_sums_to_one(tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray) -> None:
    queries = attention_of_queries(tiny_model, space)
    tokens = attention_of_tokens(tiny_model, space, betas)
    assert queries.shape == (16, len(space))
    assert tokens.shape == (3, len(space))
    np.testing.assert_allclose(queries.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(tokens.sum(1), 1, rtol=1e-5)
    outputs = tiny_model.query_outputs(betas, space).numpy()
    np.testing.assert_allclose(outputs, betas @ queries.T, atol=1e-4)


def test_sensitivity_is_the_derivative_of_the_token(
    tiny_model: MindLLM, space: VoxelMasker, betas: np.ndarray
) -> None:
    outputs = tiny_model.query_outputs(betas[:1], space)
    head = tiny_model.encoder.head
    jacobian = torch.autograd.functional.jacobian(lambda z: head.tokens(head.embed(z)), outputs)
    expected = jacobian[0, :, :, 0].square().sum(1).sqrt()
    torch.testing.assert_close(token_sensitivity(tiny_model, outputs), expected)


def test_a_token_of_one_query_has_its_attention(
    tiny_llm: FrozenLanguageModel, space: VoxelMasker, betas: np.ndarray
) -> None:
    names = {p: list(names.values()) for p, names in REGIONS.items()}
    model = MindLLM(PRESETS["walkthrough"], names, tiny_llm).eval()
    queries = attention_of_queries(model, space)
    np.testing.assert_allclose(attention_of_tokens(model, space, betas), queries, atol=1e-7)


def test_an_image_in_mni_space_has_each_voxel_where_it_is(space: VoxelMasker) -> None:
    grid = MNIGrid(space)
    values = np.arange(1.0, len(space) + 1)
    img = grid.to_img(np.stack([values, -values]))
    data = img.get_fdata()
    assert data.shape == (*grid.shape, 2)
    points = np.linalg.inv(grid.affine) @ np.c_[space.coords_mm, np.ones(len(space))].T
    last = np.array(grid.shape) - 1
    inside = ((points[:3].T >= 0) & (last >= points[:3].T)).all(1)
    at = data[tuple(np.rint(points[:3]).astype(int)[:, inside])]
    np.testing.assert_array_equal(at[:, 0], values[inside])
    np.testing.assert_array_equal(at[:, 1], -values[inside])
