"""Planted voxels are found, regions agree with the plan, and where nothing is planted nothing is.

Voxels at the simulator's default signal, from all trials of one subject, with seven training
subjects; regions and lesions at twice that signal, with four.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mindllm.explain.evidence_path import Question
from mindllm.explain.lesions import exceedance, lesion_trials, random_orders
from mindllm.explain.patterns import FWHM_PER_SD, map_pattern, smooth
from mindllm.explain.regions import NO_PARCEL, Region, list_parcels
from mindllm.explain.tables import tabulate_regions
from mindllm.explain.text_maps import (
    TrialTexts,
    WordContributions,
    map_attribute,
    map_texts,
    map_word,
    weigh_word,
)
from mindllm.simulate.scenes import ATTRIBUTES
from tests.explain.planted import CONFIG, VALUES, Planted, plan

MIN_VOXELS = 10
FWHM_MM = FWHM_PER_SD * (CONFIG.receptive_field_sd_mm or 0)


@pytest.fixture(scope="module")
def planted(tiny_llm_folder: Path) -> Planted:
    return plan(tiny_llm_folder, signal=2.0, n_subjects=5)


@pytest.fixture(scope="module")
def weak(tiny_llm_folder: Path) -> Planted:
    """At the default signal."""
    return plan(tiny_llm_folder, signal=1.0, n_subjects=8)


@pytest.fixture(scope="module")
def null(tiny_llm_folder: Path) -> Planted:
    return plan(tiny_llm_folder, signal=0.0, n_subjects=3)


def list_regions(world: Planted) -> list[Region]:
    return [r for r in list_parcels(world.masker, MIN_VOXELS) if r.name != NO_PARCEL]


def questions(world: Planted, texts: Sequence[int]) -> list[Question]:
    assert world.model.encoding_model is not None
    model = world.model.encoding_model
    return [Question.of_texts(model, world.embeddings[[text]]) for text in texts]


def weigh_values(world: Planted, attribute: str) -> list[WordContributions]:
    """Contributions to the words of an attribute, in all trials."""
    return [
        weigh_word(
            world.features,
            world.question_about_value(value),
            word,
            world.naming(value),
            list_regions(world),
        )
        for value, (name, word) in enumerate(VALUES)
        if name == attribute
    ]


def check_attribute(world: Planted, attribute: str) -> None:
    """The words of an attribute, averaged, find its voxels among all others, in both maps."""
    words, stimuli = weigh_values(world, attribute), world.stimuli.astype(str)
    options = (stimuli, list_regions(world), 1)
    result = map_attribute(attribute, words, *options)
    assert result.error < 1e-6
    pattern = map_pattern(
        attribute,
        world.features.betas.numpy(),
        np.stack([word.evidence for word in words], 1),
        np.stack([word.naming for word in words], 1),
        *options,
    )
    is_planted, coords = world.planted_voxels(attribute), world.masker.coords_mm
    for voxels in (result.voxels - result.control, pattern.voxels):
        assert roc_auc_score(is_planted, smooth(coords, voxels, FWHM_MM)) >= 0.9


def test_the_words_of_an_attribute_find_its_voxels_at_the_default_signal(weak: Planted) -> None:
    check_attribute(weak, "number")


@pytest.mark.slow
@pytest.mark.parametrize("attribute", list(ATTRIBUTES))
def test_the_words_of_every_attribute_find_its_voxels(weak: Planted, attribute: str) -> None:
    check_attribute(weak, attribute)


def networks(world: Planted) -> list[Region]:
    """The voxels that code each attribute, and those that code none."""
    regions = [Region("", name, world.planted_voxels(name)) for name in ATTRIBUTES]
    coded = np.any([region.voxels for region in regions], 0)
    return [*regions, Region("", "none", ~coded)]


def test_region_tables_agree_with_the_plan(planted: Planted) -> None:
    """A number is told by the voxels that code numbers, more than by those of other attributes."""
    value = VALUES.index(("number", "three"))
    word = weigh_word(
        planted.features,
        planted.question_about_value(value),
        "three",
        planted.naming(value),
        networks(planted),
    )
    result = map_word(word, planted.stimuli.astype(str), networks(planted), permutations=199)
    table = tabulate_regions([result.samples]).set_index("region")
    density = (table["mean"] - table["control"]) / table["n_voxels"]
    assert density.idxmax() == "number"
    assert table["q_value"]["number"] < 0.05
    assert table["ci_low"]["number"] > table["control"]["number"]
    assert table["voxel_fraction"]["number"] < 0.1


def test_lesions_agree_with_the_plan(planted: Planted) -> None:
    """Evidence for the number in the scene, against other numbers, needs the voxels that code it.

    The lesions have as many voxels in every network: those of one attribute, or that code none.
    """
    regions = networks(planted)
    size = min(int(region.voxels.sum()) for region in regions)
    rng = np.random.default_rng(0)
    for region in regions:
        voxels = rng.permutation(np.flatnonzero(region.voxels))
        region.voxels[voxels[size:]] = False
    rows = np.arange(0, len(planted.stimuli), 2)
    orders = random_orders(planted.masker, size, 99, "contiguous")
    values = [i for i, (attribute, _) in enumerate(VALUES) if attribute == "number"]
    shown = planted.experiment.design[planted.stimuli[rows]][:, values].argmax(1)
    codes = torch.eye(planted.embeddings.shape[1]).to(planted.embeddings)[values]
    assert planted.model.encoding_model is not None
    asked = [
        Question.of_texts(planted.model.encoding_model, codes[[i]], codes[torch.arange(4) != i])
        for i in range(len(values))
    ]
    features = planted.features.select(rows)
    lesions = lesion_trials(features, [asked[i] for i in shown], regions, orders)
    lost = dict(zip((region.name for region in regions), lesions.lost.mean(0), strict=True))
    assert max(lost, key=lambda name: lost[name]) == "number"
    assert lesions.p_values[0] <= 0.05
    assert lesions.p_values[-1] > 0.05


def test_with_nothing_planted_contributions_are_found_at_the_nominal_rate(null: Planted) -> None:
    rng, regions = np.random.default_rng(0), list_regions(null)
    n_trials, n_texts, p_values = 16, 6, []
    of_texts = questions(null, range(n_texts))
    for repeat in range(12):
        rows = rng.permutation(len(null.stimuli))[:n_trials]
        numbers = rng.integers(n_texts, size=n_trials)
        trials = TrialTexts(list("abcdef"), numbers, numbers, np.arange(n_trials).astype(str))
        features = null.features.select(rows)
        result = map_texts(features, of_texts, trials, regions, permutations=99, seed=repeat)
        p_values.append(exceedance(result.samples.values.mean(0), result.samples.null))
    check_uniform(np.array(p_values))


def test_with_nothing_planted_patterns_are_found_at_the_nominal_rate(null: Planted) -> None:
    rng, regions, p_values = np.random.default_rng(0), list_regions(null), []
    betas, stimuli = null.features.betas.numpy(), null.stimuli.astype(str)
    evidence = [
        null.question_about_value(value).evidence(null.features.values).numpy()
        for value in range(3)
    ]
    for repeat in range(12):
        naming = rng.random((len(betas), len(evidence))) < 0.2
        columns = np.stack(evidence, 1)
        result = map_pattern("", betas, columns, naming, stimuli, regions, 99, seed=repeat)
        p_values.append(exceedance(result.samples.values.mean(0), result.samples.null))
    check_uniform(np.array(p_values))


def test_with_nothing_planted_lesions_are_found_at_the_nominal_rate(null: Planted) -> None:
    rng, regions, p_values = np.random.default_rng(0), list_regions(null), []
    of_texts = questions(null, range(6))
    largest = max(int(region.voxels.sum()) for region in regions)
    for repeat in range(8):
        rows = rng.permutation(len(null.stimuli))[:16]
        asked = [of_texts[number] for number in rng.integers(6, size=16)]
        orders = random_orders(null.masker, largest, 99, "contiguous", seed=repeat)
        lesions = lesion_trials(null.features.select(rows), asked, regions, orders)
        p_values.append(lesions.p_values)
    check_uniform(np.array(p_values))


def check_uniform(p_values: np.ndarray) -> None:
    """Mean, and rate of small ones, within four standard errors over the repeats (n, m)."""
    rates = [p_values.mean(1) - 0.5, (p_values <= 0.05).mean(1) - 0.05]
    for difference in rates:
        error = difference.std(ddof=1) / len(difference) ** 0.5
        assert difference.mean() < 4 * error
    assert (p_values <= 0.05).mean() < 0.1
    assert p_values.mean() == pytest.approx(0.5, abs=0.1)
