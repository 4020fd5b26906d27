"""The walk-through: its steps are those of the code, and the page in the docs has their numbers."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mindllm.model.configuration import PRESETS
from mindllm.report.walkthrough import Walkthrough, compute_walkthrough, voxel_features
from mindllm.report.walkthrough_page import (
    FIGURES,
    PAGE,
    plan_figures,
    shapes_table,
    write_text,
    write_walkthrough,
)
from mindllm.utils.errors import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@pytest.fixture(scope="module")
def steps() -> Walkthrough:
    return compute_walkthrough()


def test_shapes_are_those_of_the_method(steps: Walkthrough) -> None:
    config = PRESETS["walkthrough"]
    assert config.num_queries == config.num_fmri_tokens == 16
    for subject, n_voxels in zip(steps.subjects, (12_000, 15_000), strict=True):
        assert len(subject.masker) == len(np.unique(subject.masker.voxel_indices, axis=0))
        assert subject.features.shape == (n_voxels, 24 + 3 + 8)
        assert subject.keys.shape == (n_voxels, 64)
        assert subject.attention.shape == (16, n_voxels)
        assert subject.query_outputs.shape == (8, 16)
        assert subject.tokens.shape == (8, 16, 128)
    assert ("query outputs", "8 × 16", "trials × queries") in shapes_table(steps)


def test_tokens_are_those_of_the_encoder(steps: Walkthrough) -> None:
    groups = [
        (steps.encoder.prepare_voxels(subject.masker), torch.from_numpy(subject.betas))
        for subject in steps.subjects
    ]
    with torch.no_grad():
        tokens = steps.encoder(groups).numpy()
    expected = np.concatenate([subject.tokens for subject in steps.subjects])
    np.testing.assert_allclose(tokens, expected, atol=1e-6)


def test_other_words_for_a_step_give_the_same(steps: Walkthrough) -> None:
    for subject in steps.subjects:
        assert max(subject.key_error, subject.value_error, subject.attention_error) < 1e-5
        np.testing.assert_allclose(subject.attention.sum(1), 1, atol=1e-5)
    assert steps.common_key_error < 1e-5
    assert steps.same_stimulus > 0.5 > 0.2 > steps.other_stimulus


def test_coordinates_twice_add_no_information(steps: Walkthrough) -> None:
    slip = steps.coordinate_slip
    assert (slip.n_features, slip.rank) == (38, 35)
    assert slip.key_error < 1e-5
    assert slip.step_ratio == pytest.approx(2, abs=1e-4)
    assert "12000x38" in slip.message
    assert slip.n_weights_twice - slip.n_weights == 3 * 64


def test_regions_made_anew_are_not_learned(steps: Walkthrough) -> None:
    slip = steps.region_slip
    assert slip.kept_change == 0
    np.testing.assert_array_equal(*slip.kept_passes)
    assert slip.new_change > 0.5
    assert slip.attention_moved > 0.1
    assert abs(slip.cosine) < 0.1
    first = steps.subjects[0]
    with torch.no_grad():
        features = voxel_features(steps.encoder, steps.encoder.prepare_voxels(first.masker))
    np.testing.assert_array_equal(features.numpy(), first.features)


def test_the_page_in_the_docs_is_the_one_of_the_code(steps: Walkthrough) -> None:
    page, text = (DOCS / PAGE).read_text(encoding="utf-8"), write_text(steps)
    assert NUMBER.sub("#", page) == NUMBER.sub("#", text), "make it anew: mindllm walkthrough"
    pairs = zip(NUMBER.findall(page), NUMBER.findall(text), strict=True)
    for shown, computed in ([float(n.replace(",", "")) for n in pair] for pair in pairs):
        assert shown == pytest.approx(computed, rel=0.02, abs=0.011)  # another machine rounds
    figures = {path.stem for path in (DOCS / FIGURES).glob("*.png")}
    assert figures == set(plan_figures(steps))
    assert figures == set(re.findall(r"!\[[^\]]{20,}\]\([\w/]+/([\w-]+)\.png\)", page))
    assert sum(path.stat().st_size for path in (DOCS / FIGURES).iterdir()) < 1_500_000


def test_figures_of_numbers_are_drawn(steps: Walkthrough) -> None:
    figures = plan_figures(steps)
    for name in ("fourier", "keys", "query-outputs", "tokens", "region-slip"):
        assert figures[name]().startswith(b"\x89PNG"), name


def test_a_page_is_written_once(
    steps: Walkthrough, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"tokens": plan_figures(steps)["tokens"]}
    monkeypatch.setattr("mindllm.report.walkthrough_page.plan_figures", lambda _: names)
    write_walkthrough(steps, tmp_path / "page")
    assert (tmp_path / "page" / PAGE).read_text(encoding="utf-8") == write_text(steps)
    assert (tmp_path / "page" / FIGURES / "tokens.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="already"):
        write_walkthrough(steps, tmp_path / "page")
