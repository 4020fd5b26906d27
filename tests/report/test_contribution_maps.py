"""Contributions of voxels in a report: they sum to the evidence, and the control stands beside."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mindllm.explain.explainer import Explainer
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.modeling import MindLLM
from mindllm.report import contribution_maps
from mindllm.report.contribution_maps import (
    FIGURE,
    SubjectContributions,
    contribution_table,
    draw_contributions,
    map_contributions,
)
from mindllm.report.sections import build_sections
from tests.explain.conftest import Fitted, fitted  # noqa: F401
from tests.report.example import make_records, make_result


class Trials:
    """Stands in for a store with the trials of one subject."""

    def __init__(self, masker: VoxelMasker, betas: np.ndarray) -> None:
        self._masker, self._betas = masker, betas

    def masker(self, subject: str) -> VoxelMasker:
        assert subject == self._masker.subject
        return self._masker

    def trials(self, subject: str) -> pd.DataFrame:
        return pd.DataFrame({"stimulus": np.arange(len(self._betas))})

    def betas(self, subject: str, trials: np.ndarray, standardize: bool) -> np.ndarray:
        assert standardize
        return self._betas[trials]


@pytest.fixture
def parts(
    fitted: Fitted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> list[SubjectContributions]:
    monkeypatch.setattr(contribution_maps, "MAX_TRIALS", 30)
    monkeypatch.setattr(contribution_maps, "CHUNK_TRIALS", 13)
    monkeypatch.setattr(
        MindLLM, "embed_texts", lambda _, texts: fitted.embeddings[[int(text) for text in texts]]
    )
    records = [
        replace(
            make_records(1)[0],
            subject=fitted.masker.subject,
            trial_index=trial,
            target=f"{fitted.texts[trial]:02d}",
        )
        for trial in range(len(fitted.betas))
    ]
    store = Trials(fitted.masker, fitted.betas)
    return map_contributions(fitted.model, store, records)  # type: ignore[arg-type]


def test_contributions_are_those_of_the_explainer(
    parts: list[SubjectContributions],
    fitted: Fitted,  # noqa: F811
) -> None:
    (part,) = parts
    assert len(part.trials) == 30
    assert {part.trials[0], part.trials[-1]} == {0, len(fitted.betas) - 1}
    explainer: Explainer = fitted.explainer
    texts = [f"{fitted.texts[trial]:02d}" for trial in part.trials]
    by_text = {text: explainer.contributions(text, part.trials) for text in set(texts)}
    target = np.mean([by_text[text].voxels[i] for i, text in enumerate(texts)], axis=0)
    control = np.mean([by_text[text].mean for text in texts], axis=0)
    np.testing.assert_allclose(part.target, target, atol=1e-9)
    np.testing.assert_allclose(part.control, control, atol=1e-9)


def test_voxels_sum_to_the_evidence_and_speak_for_the_target(
    parts: list[SubjectContributions],
) -> None:
    (part,) = parts
    assert part.target.sum() + part.at_zero == pytest.approx(part.evidence, abs=1e-6)
    control = part.control.sum() + part.control_at_zero
    assert control == pytest.approx(part.control_evidence, abs=1e-6)
    assert part.evidence > part.control_evidence


def test_picture_table_and_section_say_the_same(parts: list[SubjectContributions]) -> None:
    (part,) = parts
    table = contribution_table(parts)
    assert list(table) == ["x_mm", "y_mm", "z_mm", "target", "control", "difference"]
    np.testing.assert_allclose(table["difference"], table["target"] - table["control"])
    assert draw_contributions(parts) != draw_contributions(parts, dark=True)
    sections = build_sections(make_result(), contributions=parts)
    (section,) = (s for s in sections if s.title == "Contributions to the evidence")
    assert [figure.name for figure in section.figures] == [FIGURE]
    cells = [cell.text for cell in section.tables[0].groups[0][0].cells]
    assert cells[:3] == [part.masker.subject, "30", f"{part.evidence:.2f}"]


def test_without_an_encoding_model_there_are_none() -> None:
    model = SimpleNamespace(encoding_model=None)
    assert map_contributions(model, None, make_records()) == []  # type: ignore[arg-type]
