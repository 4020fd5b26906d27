"""Training curves: one column per stage, scores below losses."""

from pathlib import Path

import pandas as pd
import pytest

from mindllm.plotting.curves import (
    HistoryEntry,
    draw_training_curve,
    plot_counts,
    plot_training_curve,
)

PNG = b"\x89PNG"
HISTORY: list[HistoryEntry] = [
    *(
        {"step": i, "stage": 1, "loss": 3 - i / 10, "val_loss": 3.0, "val_retrieval_top1": i / 20}
        for i in range(5)
    ),
    *({"step": i, "stage": 2, "loss": 2 - i / 10} for i in range(5)),
]  # fmt: skip


@pytest.mark.parametrize("history", [HISTORY, HISTORY[5:], []], ids=["two", "one", "none"])
def test_training_curve_is_a_png(tmp_path: Path, history: list[HistoryEntry]) -> None:
    plot_training_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


def test_stages_are_columns_and_scores_have_one_scale() -> None:
    axes = draw_training_curve(HISTORY, ["val_retrieval_top1"]).axes
    assert [a.get_title() for a in axes] == ["stage 1", "stage 2", "", ""]
    assert [a.get_ylabel() for a in axes] == ["loss"] * 2 + ["validation score"] * 2
    assert axes[2].get_ylim() == axes[3].get_ylim() == (0, 1.08 * 0.2)
    assert [len(a.lines) for a in axes] == [2, 1, 1, 0]


def test_counts_are_bars_with_a_part_per_column() -> None:
    table = pd.DataFrame({"train": [3, 4], "val": [0, 0]}, index=["sub-01", "sub-02"])
    assert plot_counts(table).startswith(PNG)
