"""Coverage: voxels that cannot mean anything to a model are refused, others warned about."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.scaling import SessionScaler
from mindllm.model.coverage import voxel_coverage
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from tests.conftest import make_space

Change = Callable[[VoxelMasker], VoxelMasker]


@pytest.fixture
def trained(tiny_model: MindLLM) -> MindLLM:
    """A model with a training subject of 400 voxels."""
    tiny_model.maskers = {"sub-01": make_space("sub-01", 400)}
    return tiny_model


def test_the_training_subject_is_covered(trained: MindLLM) -> None:
    coverage = trained.coverage(trained.maskers["sub-01"])
    assert (coverage.covered, coverage.outside, coverage.missing_atlases) == (1.0, 0.0, ())


def scaled(factor: float) -> Change:
    return lambda masker: replace(masker, coords_mm=masker.coords_mm * np.float32(factor))


def one_voxel(masker: VoxelMasker) -> VoxelMasker:
    return masker.select_voxels(np.arange(len(masker)) == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled(1e-3), r"all voxels within 0.\d+ mm; voxels within 12 mm of \d% of the places"),
        (scaled(1e6), "of the voxels not in the brain"),
        (scaled(0), "all voxels within 0 mm"),
        (one_voxel, r"\(1 voxels\) has all voxels within 0 mm"),
    ],
)
def test_voxels_that_cannot_mean_anything_are_refused(
    trained: MindLLM, change: Change, message: str
) -> None:
    masker = change(make_space("sub-02", 300, seed=1))
    with pytest.raises(InputError, match=message) as error:
        trained.encode(np.zeros((1, len(masker)), np.float32), masker)
    assert "sub-02" in str(error.value)
    assert "millimeters in MNI space" in str(error.value)


def test_a_part_of_the_region_or_of_the_atlases_is_warned_about_once(
    trained: MindLLM, caplog: pytest.LogCaptureFixture
) -> None:
    masker = make_space("sub-02", 400, seed=1)
    part = masker.select_voxels(masker.coords_mm[:, 0] < np.percentile(masker.coords_mm[:, 0], 20))
    part = replace(part, parcel_labels={"lobes": part.parcel_labels["lobes"]})
    with caplog.at_level(logging.WARNING):
        trained.encode(np.zeros((1, len(part)), np.float32), part)
        trained.encode(np.zeros((1, len(part)), np.float32), part)
        trained.encode(np.zeros((1, 400), np.float32), masker)
    (record,) = caplog.records
    assert "sub-02 (80 voxels) has voxels within 12 mm of" in record.message
    assert "no atlas visual, which the model knows" in record.message


def test_other_coordinate_systems_are_not_compared() -> None:
    masker = scaled(1e6)(make_space("sub-02", 30))
    coverage = voxel_coverage(masker, {"sub-01": make_space("sub-01")}, in_mni=False)
    assert (coverage.covered, coverage.outside) == (None, 0.0)


@pytest.mark.parametrize("betas", [np.full((20, 5), 3.0), np.arange(20.0)[:, None]])
def test_betas_that_never_vary_are_refused(betas: np.ndarray) -> None:
    with pytest.raises(InputError, match=rf"20 trials of {betas.shape[1]} voxels, never vary"):
        SessionScaler.fit(betas, pd.DataFrame({"session": ["1"] * 20, "split": "train"}))
