"""Losses while a training goes: a table without gaps or repeated rows, and trackers by name."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import accelerate.accelerator
import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from mindllm.data.store import Store
from mindllm.training import loggers
from mindllm.training.callbacks import TrainerCallback
from mindllm.training.loggers import COLUMNS, read_rows
from mindllm.training.resume import HistoryEntry
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json
from tests.training.test_trainer import Killed, options, same, weights

ROOT = Path(__file__).resolve().parents[2]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_batch = Trainer.draw_batch

    def draw_until(self: Trainer, *args: Any) -> Any:
        if self.state.step == step:
            raise Killed
        return draw_batch(self, *args)

    monkeypatch.setattr(Trainer, "draw_batch", draw_until)


def test_the_table_has_every_step_once_also_after_an_interruption(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints after 3, 6, 9 and 10 steps; stopped after 8, with a row that was cut."""
    config = options(tiny_llm_folder, num_validation_subjects=1)
    train(tiny_store, tmp_path / "whole", config)
    stop_at(8, monkeypatch)
    table = tmp_path / "model" / "training.csv"
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "model", config)
    monkeypatch.undo()
    assert [row["step"] for row in read_rows(table)] == [str(n) for n in range(1, 9)]
    table.write_text(table.read_text() + "9,instr")
    train(tiny_store, tmp_path / "model", config, resume=True)
    assert table.read_bytes() == (tmp_path / "whole" / "training.csv").read_bytes()
    assert "training.csv" in read_json(tmp_path / "model" / "manifest.json", "")["files"]
    rows = read_rows(table)
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 11)]
    assert [row["stage"] for row in rows] == ["alignment"] * 6 + ["instruction_tuning"] * 4
    assert [row["step"] for row in rows if row["val_loss"]] == ["5", "6", "10"]
    history = json.loads((tmp_path / "model" / "training.json").read_text())["history"]
    for entry in history:
        assert float(rows[entry["step"] - 1]["val_loss"]) == entry["val_loss"]
    mean_loss = sum(float(row["loss"]) for row in rows[:5]) / 5
    assert mean_loss == pytest.approx(history[0]["loss"])
    assert all(float(row["grad_norm"]) > 0 for row in rows)


def test_stopped_before_its_first_checkpoint_it_begins_again(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(2, monkeypatch)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "model", options(tiny_llm_folder, 3, 2))
    monkeypatch.undo()
    train(tiny_store, tmp_path / "model", options(tiny_llm_folder, 3, 2))
    assert len(read_rows(tmp_path / "model" / "training.csv")) == 5


def test_another_table_of_that_name_is_left_alone(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    (tmp_path / "training.csv").write_text("subject,score\nsub-01,3\n")
    with pytest.raises(InputError, match=r"is no table of a training's losses; expected .*step"):
        train(tiny_store, tmp_path, options(tiny_llm_folder, 1, 1))
    assert (tmp_path / "training.csv").read_text() == "subject,score\nsub-01,3\n"


class Wakefulness(TrainerCallback):
    def on_validation_end(self, trainer: Trainer, entry: HistoryEntry) -> None:
        entry.scores["val_wakefulness"] = 0.5


def test_scores_of_callbacks_become_columns(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    config = options(tiny_llm_folder, 2, 2)
    train(tiny_store, tmp_path / "model", config, callbacks=[Wakefulness()])
    with (tmp_path / "model" / "training.csv").open() as file:
        assert next(csv.reader(file)) == [*COLUMNS, "val_wakefulness"]
    rows = read_rows(tmp_path / "model" / "training.csv")
    assert [row["val_wakefulness"] for row in rows] == ["", "0.5", "", "0.5"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_told_before_anything_is_loaded(
    tmp_path: Path, tiny_store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    config = options(tmp_path / "nowhere", loggers=["csv", name])
    with pytest.raises(InputError, match=rf"logger {name} needs the package {name}.*pip install"):
        train(tiny_store, tmp_path / "model", config)
    assert not (tmp_path / "model").exists()


class Recorder(GeneralTracker):
    """A tracker in the place of one that needs a package or a server."""

    name = "trackio"
    requires_logging_directory = False
    calls: list[tuple[str, Any]] = []  # noqa: RUF012

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.calls.append(("init", (run_name, options)))

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict) -> None:
        self.calls.append(("config", values))

    def log(self, values: dict, step: int | None = None, **options: Any) -> None:
        self.calls.append(("log", (step, values)))

    def finish(self) -> None:
        self.calls.append(("finish", None))


def test_a_tracker_is_told_what_the_table_holds_and_changes_nothing(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "calls", [])
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [LoggerType.TRACKIO])
    for module in (accelerate.tracking, accelerate.accelerator):
        monkeypatch.setitem(module.LOGGER_TYPE_TO_CLASS, "trackio", Recorder)
    train(tiny_store, tmp_path / "plain", options(tiny_llm_folder, 2, 2))
    assert not Recorder.calls
    config = options(tiny_llm_folder, 2, 2, loggers=["trackio"])
    train(tiny_store, tmp_path / "told", config)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "told"))
    names, values = zip(*Recorder.calls, strict=True)
    assert names == ("init", "config", *["log"] * 4, "finish")
    assert values[0] == ("mindllm", {"name": "told", "resume": "allow"})
    assert values[1]["alignment.max_steps"] == 2
    rows = read_rows(tmp_path / "told" / "training.csv")
    for row, (step, logged) in zip(rows, values[2:6], strict=True):
        assert int(row["step"]) == step
        measured = {n: v for n, v in row.items() if v and n not in ("step", "stage")}
        assert {f"{row['stage']}/{n}": float(v) for n, v in measured.items()} == logged
    # The loggers are no part of what a training depends on.
    train(tiny_store, tmp_path / "told", options(tiny_llm_folder, 2, 2), resume=True)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_writes_beside_the_model(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "model"
    train(tiny_store, out, options(tiny_llm_folder, 2, 2, loggers=["tensorboard"]))
    events = EventAccumulator(str(out / "tensorboard" / "mindllm")).Reload()
    losses = [event.value for event in events.Scalars("alignment/loss")]
    rows = read_rows(out / "training.csv")
    assert losses == pytest.approx([float(row["loss"]) for row in rows[:2]])


def test_no_tracker_is_imported_unless_it_is_named(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    config = options(tiny_llm_folder, 1, 1, encoding_model=None)
    (tmp_path / "options.json").write_text(config.model_dump_json())
    code = f"""
import sys
from pathlib import Path
from mindllm.data.store import Store
from mindllm.training.configuration import read_config
from mindllm.training.trainer import train
config = read_config(Path({str(tmp_path / "options.json")!r}), {{}})
train(Store({str(tiny_store.path)!r}), {str(tmp_path / "model")!r}, config)
print(sorted({{"wandb", "trackio", "tensorboard"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
