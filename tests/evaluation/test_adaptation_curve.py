"""The adaptation curve: tiers without labels, labels, ridge; nothing of a tested half is read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.evaluation.adaptation_curve import (
    ANATOMY,
    LABELLED,
    RIDGE,
    SCRATCH,
    UNLABELLED,
    AdaptationCurve,
    TestedSubject,
    divide,
)
from mindllm.evaluation.cross_validation import CrossValidation
from mindllm.evaluation.left_out_subject import LeftOutSubject
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError
from tests.evaluation.test_cross_validation import OPTIONS, make_store


def test_halves_share_the_repetitions_of_every_answer() -> None:
    answers = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    halves = divide(answers)
    assert [int((halves[answers == a] == 0).sum()) for a in range(2)] == [1, 1]
    assert 1 <= (halves[answers == 2] == 0).sum() <= 2
    assert abs((halves == 0).sum() - 4) <= 1


def test_every_tier_is_scored_in_every_subject(tmp_path: Path, space: VoxelMasker) -> None:
    store = make_store(tmp_path / "store", space, signal=2.0)
    steps: list[int] = []
    curve = AdaptationCurve(CrossValidation(store, None, OPTIONS), [24, 12, 0, 12])
    rows = curve.run(lambda count, _=None: steps.append(count))
    assert sum(steps) == curve.n_steps == 3
    tiers = [(ANATOMY, 0), (UNLABELLED, 0), (RIDGE, 0)]
    tiers += [(tier, n) for n in (12, 24) for tier in (LABELLED, RIDGE, SCRATCH)]
    for subject in ("sub-01", "sub-02", "sub-03", "all"):
        assert [(r.tier, r.n_labels) for r in rows if r.subject == subject] == tiers
    by_tier = {(r.tier, r.n_labels): r for r in rows if r.subject == "all"}
    assert by_tier[ANATOMY, 0].gain == 0
    assert by_tier[LABELLED, 24].n_trials == 3 * 48
    assert by_tier[LABELLED, 24].top1 >= by_tier[ANATOMY, 0].top1 > 2 / 24
    assert by_tier[SCRATCH, 12].top1 < by_tier[LABELLED, 12].top1
    for row in rows:
        assert row.top1_ci_low <= row.top1 <= row.top1_ci_high
        assert row.two_way_ci_low <= row.two_way <= row.two_way_ci_high


def test_labels_of_the_tested_half_are_never_read(tmp_path: Path, space: VoxelMasker) -> None:
    """With the answers of all tested trials changed, predictions stay as they were."""
    store = make_store(tmp_path / "store", space, signal=2.0)
    v = CrossValidation(store, None, OPTIONS)
    tested = TestedSubject(
        LeftOutSubject(store, "sub-02", v.folds, v.embeddings, v.fit_options, v.cache)
    )
    labelled = np.flatnonzero(tested.halves == 1)[:12]
    before = tested.predict(labelled)
    tested.answers = tested.answers.copy()
    tested.answers[tested.halves == 0] = 0
    after = tested.predict(labelled)
    for tier, scores in before.items():
        assert torch.equal(scores, after[tier]), tier


def test_too_many_labels_are_refused(tmp_path: Path, space: VoxelMasker) -> None:
    store = make_store(tmp_path / "store", space, signal=1.0)
    with pytest.raises(
        InputError, match=r"30 labelled trials: sub-0\d has 24 in half of its trials"
    ):
        AdaptationCurve(CrossValidation(store, None, OPTIONS), [30])


def test_the_command_writes_table_and_figure(tmp_path: Path, space: VoxelMasker) -> None:
    make_store(tmp_path / "store", space, signal=2.0)
    arguments = ["cross-validate", str(tmp_path / "store"), "--out", str(tmp_path / "cv")]
    arguments += ["--folds", "2", "--left-out", "sub-01,sub-02", "--n-labels", "12"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "Adaptation to a left-out subject" in result.output
    table = pd.read_csv(tmp_path / "cv" / "adaptation.tsv", sep="\t")
    assert set(table["subject"]) == {"sub-01", "sub-02", "all"}
    text = (tmp_path / "cv" / "cross_validation.md").read_text(encoding="utf-8")
    assert "## Adaptation to a left-out subject" in text
    assert (tmp_path / "cv" / "adaptation.png").stat().st_size > 5000
