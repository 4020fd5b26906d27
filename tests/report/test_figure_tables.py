"""The numbers beside a report's figures are those that are drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.report.alt_texts import (
    describe_calibration,
    describe_confusion,
    describe_coverage,
    describe_intervals,
)
from mindllm.report.figure_tables import brain_table, interval_table, result_tables, write_tables
from mindllm.report.figures import draw_result_figures
from tests.plotting.test_brain import masker_at
from tests.report.example import make_result


def test_every_figure_of_numbers_has_a_table() -> None:
    result = make_result()
    assert list(result_tables(result)) == list(draw_result_figures(result))
    bare = replace(result, confusion=None, calibration=replace(result.calibration, evidence=None))
    assert list(result_tables(bare)) == ["intervals-all", "calibration-all"]


def test_intervals_are_percent_of_every_condition_and_subject() -> None:
    result = make_result()
    table = interval_table(result).set_index(["condition", "subject"])
    assert table.index[0] == ("fmri", ALL_SUBJECTS)
    row = table.loc["fmri", ALL_SUBJECTS]
    assert row[["percent", "ci_low", "ci_high", "chance_level"]].tolist() == pytest.approx(
        [60, 55, 65, 10]
    )
    assert set(table.index.get_level_values("subject")) == {ALL_SUBJECTS, "sub-01", "sub-02"}
    assert "fMRI 60.0, " in describe_intervals(interval_table(result))


def test_curves_hold_every_point() -> None:
    result = make_result()
    tables = result_tables(result)
    curves = tables["calibration-all"].groupby("curve")
    assert curves.size().tolist() == [2] * 4
    assert tables["coverage-all"].to_numpy().tolist() == [[50, 90, 10], [100, 60, 40]]
    evidence = result.calibration.evidence
    assert evidence is not None
    assert "90 % correct of the surest 50 %, 60 % correct of the surest 100 %" in (
        describe_coverage(evidence)
    )
    assert "20 → 40, 90 → 80" in describe_calibration(result.calibration)


def test_confusion_counts_trials_of_both_categories() -> None:
    confusion = make_result().confusion
    assert confusion is not None
    table = result_tables(make_result())["confusion-all"]
    assert table["n_trials"].tolist() == [5, 1, 2, 4]
    by_target = table.groupby("target")["percent_of_target"].sum()
    np.testing.assert_allclose(by_target, 100)
    assert "75 % of trials are on its diagonal, by chance 50 %" in describe_confusion(confusion)


def test_brain_tables_hold_the_cells_with_voxels_also_where_the_value_is_zero() -> None:
    maskers = [masker_at("sub-01", [[0, 0, 0], [0.5, 0, 0], [20, 8, 4]])]
    table = brain_table(maskers, "value", [np.array([1.0, 3.0, 0.0])])
    assert table.to_numpy().tolist() == [[0, 0, 0, 2], [20, 8, 4, 0]]


def test_tables_are_tab_separated_and_say_what_is_missing(tmp_path: Path) -> None:
    write_tables({"a": pd.DataFrame({"x": [1.5, np.nan], "y": ["b", "c"]})}, tmp_path)
    assert (tmp_path / "a.tsv").read_bytes() == b"x\ty\n1.5\tb\nn/a\tc\n"
