"""Lesions cost what the model itself says without the voxels; random sets have as many voxels."""

import numpy as np
import pytest

from mindllm.explain.lesions import answer_without, lesion_trials, random_orders
from mindllm.explain.regions import NO_PARCEL, Region, find_region, list_parcels, sum_by_region
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError
from tests.explain.conftest import Fitted


def test_a_lesion_costs_the_difference_of_the_evidence(fitted: Fitted) -> None:
    """By zeroing betas and asking the model again, the subject's alignment being as it was."""
    explainer = fitted.explainer
    features = explainer.features.select([0, 1])
    regions = list_parcels(fitted.masker)
    orders = random_orders(fitted.masker, 40, 7, "scattered")
    questions = [fitted.question(0), fitted.question(1)]
    lesions = lesion_trials(features, questions, regions, orders)
    assert lesions.lost.shape == (2, len(regions))
    assert lesions.random.shape == (2, 7, len(regions))
    for trial, question in enumerate(questions):
        full = question.evidence(features.values[[trial]])
        for number, region in enumerate(regions):
            keep = ~region.voxels
            rest = features.at_zero[[trial]] + features.voxel_features(trial)[keep].sum(0)
            expected = float(full - question.evidence(rest))
            assert lesions.lost[trial, number] == pytest.approx(expected, abs=1e-8)


def test_a_lesion_of_the_order_itself_costs_as_much(fitted: Fitted) -> None:
    orders = random_orders(fitted.masker, 20, 3, "contiguous")
    regions = []
    for order in orders:
        voxels = np.zeros(len(fitted.masker), bool)
        voxels[order] = True
        regions.append(Region("", "patch", voxels))
    features = fitted.explainer.features.select([4])
    lesions = lesion_trials(features, [fitted.question(4)], regions, orders)
    np.testing.assert_allclose(np.diag(lesions.random[0]), lesions.lost[0], atol=1e-9)


def test_random_sets_are_patches_or_scattered(space: VoxelMasker) -> None:
    contiguous = random_orders(space, 10, 5, "contiguous")
    scattered = random_orders(space, 10, 5, "scattered")
    for orders in (contiguous, scattered):
        assert orders.shape == (5, 10)
        assert all(len(set(order)) == 10 for order in orders.tolist())
    for order in contiguous:
        distances = np.linalg.norm(space.coords_mm - space.coords_mm[order[0]], axis=1)
        assert distances[order].max() <= np.sort(distances)[9] + 1e-4
    assert random_orders(space, 10**6, 2, "scattered").shape == (2, len(space))


def test_a_region_is_found_by_its_name(space: VoxelMasker) -> None:
    labels = space.parcel_labels["visual"]
    np.testing.assert_array_equal(find_region(space, ["V1"]).voxels, labels == 1)
    both = find_region(space, ["visual:V?"], "early")
    assert both.name == "early"
    np.testing.assert_array_equal(both.voxels, (labels == 1) | (labels == 2))
    with pytest.raises(InputError, match="no voxel in a parcel named 'V9'; it has voxels in vis"):
        find_region(space, ["V1", "V9"])


def test_sums_over_parcels_leave_nothing_out(space: VoxelMasker) -> None:
    values = np.random.default_rng(0).normal(size=(3, len(space)))
    regions = list_parcels(space)
    sums = sum_by_region(values, regions)
    for atlas in space.parcel_labels:
        chosen = [i for i, region in enumerate(regions) if region.atlas == atlas]
        np.testing.assert_allclose(sums[:, chosen].sum(1), values.sum(1))
    assert {region.name for region in regions} >= {NO_PARCEL, "V1", "occipital"}


def test_an_answer_loses_its_likelihood_without_voxels(fitted: Fitted) -> None:
    model, masker = fitted.model.float(), fitted.masker
    betas = 3 * fitted.betas[0].astype(np.float32)
    masks = np.stack([np.zeros(len(masker), bool), np.ones(len(masker), bool)])
    lost = answer_without(model, masker, betas, "a dog runs", masks)
    zero = model.log_likelihood(0 * betas, masker, ["a dog runs"])
    full = model.log_likelihood(betas, masker, ["a dog runs"])
    assert lost[0] == pytest.approx(0, abs=1e-4)
    assert lost[1] == pytest.approx(float(full - zero), abs=1e-3)
