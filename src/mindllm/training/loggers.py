"""Losses as they are measured: a table beside the model, and trackers of Accelerate by name."""

import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator

from mindllm.training.configuration import TrainConfig
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, disk_errors

CSV_NAME = "training.csv"
COLUMNS = ["step", "stage", "loss", "learning_rate", "grad_norm", "val_loss", "val_retrieval_top1"]
PROJECT = "mindllm"
Row = dict[str, str]


def check_loggers(names: Sequence[str]) -> None:
    """Check that the packages of loggers are installed, before anything is loaded.

    Parameters
    ----------
    names : sequence of str

    Raises
    ------
    InputError
        If one is missing.
    """
    for name in trackers(names):
        if find_spec(name) is None:
            raise InputError(
                f"the logger {name} needs the package {name}, which is not installed: install it "
                f"with pip install 'mindllm[{name}]', or leave it out of `loggers`."
            )


def trackers(names: Sequence[str]) -> list[str]:
    """Those of the loggers that Accelerate has; the table is always written."""
    return [name for name in dict.fromkeys(names) if name != "csv"]


class TrainingLog:
    """The losses of each step in `training.csv`, and in the trackers that were asked for.

    Only the main process writes. Each row is on the disk before the next step begins.

    Parameters
    ----------
    accelerator : Accelerator
        With the trackers as its `log_with`.
    folder : Path
        The model folder.
    config : TrainConfig
        Which trackers are told.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, config: TrainConfig) -> None:
        self.accelerator, self.config = accelerator, config
        self.folder, self.path = folder, folder / CSV_NAME
        self.columns = list(COLUMNS)
        self.file: TextIO | None = None

    def begin(self, step: int) -> None:
        """Open the logs of a training that goes on after `step`; later rows are dropped.

        Raises
        ------
        InputError
            If there is another file of that name, or it cannot be written.
        """
        if not self.accelerator.is_main_process:
            return
        rows = read_rows(self.path) if self.path.exists() else []
        self.columns += [name for row in rows[:1] for name in row if name not in COLUMNS]
        self.rewrite([row for row in rows if int(row["step"]) <= step])
        if trackers(self.config.loggers):
            self.accelerator.init_trackers(
                PROJECT,
                flatten_options(self.config.model_dump(mode="json")),
                {
                    "tensorboard": {"purge_step": step + 1},
                    "wandb": {"name": self.folder.name, "dir": str(self.folder)},
                    "trackio": {"name": self.folder.name, "resume": "allow"},
                },
            )

    def write(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """Write the losses of a step.

        Parameters
        ----------
        step : int
            Steps taken, over both stages.
        stage : str
        values : mapping from str to float
        """
        if self.file is None:
            return
        new_columns = [name for name in values if name not in self.columns]
        if new_columns:
            self.close_table()
            self.columns += new_columns
            self.rewrite(read_rows(self.path))
        with disk_errors(self.path):
            row = {"step": step, "stage": stage, **values}
            csv.DictWriter(self.file, self.columns, lineterminator="\n").writerow(row)
            self.file.flush()
        named_values = {f"{stage}/{name}": value for name, value in values.items()}
        self.accelerator.log(named_values, step=step)

    def close(self) -> None:
        """Close the table and the trackers."""
        if self.file is not None:
            self.close_table()
            for tracker in self.accelerator.trackers:
                tracker.finish()

    def close_table(self) -> None:
        """Close the table."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Write the table with these rows, and open it for more."""
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with disk_errors(self.path):
            self.file = self.path.open("a", newline="", encoding="utf-8")


def read_rows(path: Path) -> list[Row]:
    """The complete rows of a table of losses; the last one may have been cut when it was written.

    Raises
    ------
    InputError
        If it is another table.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file, strict=False)
        if (reader.fieldnames or [])[: len(COLUMNS)] != COLUMNS:
            raise InputError(
                f"{path} is no table of a training's losses; expected the columns "
                f"{', '.join(COLUMNS)}. Move it, or train into another folder."
            )
        return [row for row in reader if None not in row.values() and row["step"].isdigit()]


def flatten_options(options: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Options as trackers take them: names with dots, and values that are no tables.

    Examples
    --------
    >>> flatten_options({"seed": 0, "alignment": {"max_steps": 50}, "lengths": [1, 2]})
    {'seed': 0, 'alignment.max_steps': 50, 'lengths': '[1, 2]'}
    """
    flat: dict[str, object] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= flatten_options(value, f"{prefix}{name}.")
        else:
            is_scalar = isinstance(value, bool | int | float | str)
            flat[prefix + name] = value if is_scalar else str(value)
    return flat
