"""State of a training on disk: an interrupted one goes on to the same weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, NonNegativeInt, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mindllm.data.store import Store
from mindllm.training.configuration import TrainConfig
from mindllm.training.parallel import shard_like
from mindllm.utils.errors import InputError, describe_error
from mindllm.utils.files import atomic_write, read_json

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
METADATA_KEY = "trainer_state"
TensorDict = dict[str, Tensor]
HistoryRow = dict[str, float | int | str | None]


@dataclass
class HistoryEntry:
    """Losses and validation scores at one step.

    Parameters
    ----------
    step : int
        Steps taken, over both stages.
    stage : str
    loss : float
        Mean training loss since the entry before, in nats.
    val_loss : float, optional
        Mean loss of the validation trials, in nats.
    scores : dict of str to float
        Validation scores, with names that begin with `val_`.

    Examples
    --------
    >>> HistoryEntry(50, "alignment", 2.5, 2.75, {"val_retrieval_top1": 0.25}).to_row()
    {'step': 50, 'stage': 'alignment', 'loss': 2.5, 'val_loss': 2.75, 'val_retrieval_top1': 0.25}
    """

    step: int
    stage: str
    loss: float
    val_loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def to_row(self) -> HistoryRow:
        """One flat row, without what was not measured."""
        row: HistoryRow = {"step": self.step, "stage": self.stage, "loss": self.loss}
        if self.val_loss is not None:
            row["val_loss"] = self.val_loss
        return row | self.scores


@dataclass
class TrainerState:
    """How far a training has come.

    Parameters
    ----------
    step : int
        Steps taken, over both stages.
    history : list of HistoryEntry
    best_val_loss : dict of str to float
        Lowest validation loss of each stage.
    best_state_dict : dict of str to Tensor
        Weights with the lowest validation loss of the last validated stage; empty without
        validation trials.
    """

    step: int = 0
    history: list[HistoryEntry] = field(default_factory=list)
    best_val_loss: dict[str, float] = field(default_factory=dict)
    best_state_dict: TensorDict = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that an interrupted training goes on with.

    Parameters
    ----------
    state : TrainerState
    weights : dict of str to Tensor
        State dict of the loss module.
    optimizer_state : dict of str to Tensor
        "<moment>/<parameter name>" to the optimizer's moments.
    """

    state: TrainerState
    weights: TensorDict
    optimizer_state: TensorDict


def run_fingerprint(
    config: TrainConfig, store: Store, subjects: Sequence[str], language_model: str
) -> dict[str, object]:
    """Everything that must be the same for a training to be resumed.

    Parameters
    ----------
    config : TrainConfig
    store : Store
    subjects : sequence of str
        Training subjects.
    language_model : str
        Fingerprint of the language model's weights.

    Returns
    -------
    dict
        JSON values: the training options but for the loggers, store, split, subjects with
        the shapes and hashes of their data, conversations, and the language model's fingerprint.
    """
    return config.model_dump(mode="json", exclude={"loggers"}) | {
        "store": store.meta["name"],
        "split": store.split["name"],
        "subjects": {s: [*store.betas(s).shape, store.fingerprint(s)] for s in subjects},
        "conversations": store.manifest.content.files["conversations.parquet"].sha256[:12],
        "language_model_fingerprint": language_model,
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint, fingerprint: Mapping[str, object]) -> None:
    """Write a checkpoint, completely or not at all.

    Parameters
    ----------
    path : Path
        A .safetensors file.
    checkpoint : Checkpoint
    fingerprint : mapping
        Of the training; see `run_fingerprint`.

    Raises
    ------
    InputError
        If the disk is full or the folder cannot be written.
    """
    state = checkpoint.state
    tensors = {f"weights/{name}": tensor for name, tensor in checkpoint.weights.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best_state_dict.items()}
    tensors |= checkpoint.optimizer_state
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    content = {
        "step": state.step,
        "history": [entry.to_row() for entry in state.history],
        "best_val_loss": state.best_val_loss,
        "fingerprint": fingerprint,
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, {METADATA_KEY: json.dumps(content)})


class SavedState(BaseModel):
    """What a checkpoint says beside its tensors; see `TrainerState`."""

    step: NonNegativeInt
    history: list[HistoryEntry]
    best_val_loss: dict[str, float]
    fingerprint: dict[str, object]

    @field_validator("history", mode="before")
    @classmethod
    def parse_rows(cls, rows: Any) -> Any:
        """Make entries of rows, in which the scores stand beside the losses."""
        are_rows = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        known = HistoryEntry.__dataclass_fields__.keys() - {"scores"}
        return (
            [
                {name: row[name] for name in known & row.keys()}
                | {"scores": {name: row[name] for name in row.keys() - known}}
                for row in rows
            ]
            if are_rows
            else rows
        )


def load_checkpoint(path: Path, fingerprint: Mapping[str, object]) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : Path
    fingerprint : mapping
        Of the training that is to go on.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        If it is damaged, or was made with other options, subjects or data.
    """
    try:
        with safe_open(path, "pt") as file:
            saved = SavedState.model_validate_json((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
    except (SafetensorError, OSError, KeyError, ValidationError) as error:
        raise InputError(
            f"{path} is damaged ({describe_error(error)}). "
            f"Remove {path.parent.parent} and train anew."
        ) from error
    check_fingerprint(fingerprint, saved.fingerprint, path)
    parts: dict[str, TensorDict] = {"weights": {}, "best": {}}
    optimizer_state: TensorDict = {}
    for name, tensor in tensors.items():
        part, _, key = name.partition("/")
        if part in parts:
            parts[part][key] = tensor
        else:
            optimizer_state[name] = tensor
    state = TrainerState(saved.step, saved.history, saved.best_val_loss, parts["best"])
    return Checkpoint(state, parts["weights"], optimizer_state)


def check_fingerprint(
    current: Mapping[str, object], saved: Mapping[str, object], file: Path
) -> None:
    """Raise InputError if a training is resumed with other options than it was begun with."""
    keys = sorted(current.keys() | saved.keys())
    differences = [
        f"{key}: {saved.get(key)!r} then, {current.get(key)!r} now"
        for key in keys
        if saved.get(key) != current.get(key)
    ]
    if differences:
        raise InputError(
            f"{file}: this training was begun with other options: {'; '.join(differences)}. "
            "Repeat them, or train into another folder."
        )


def check_same_training(
    out: Path, config: TrainConfig, store: Store, subjects: Sequence[str]
) -> None:
    """Check that a finished training is the one that is asked for.

    Parameters
    ----------
    out : Path
        The model folder.
    config : TrainConfig
    store : Store
    subjects : sequence of str
        Training subjects.

    Raises
    ------
    InputError
        If an option, the store or the data differs; the message has both values.
    """
    saved = read_json(out / "training.json", "a trained model").get("fingerprint")
    if not isinstance(saved, dict):
        raise InputError(
            f"{out} does not say which training it comes from, so it cannot be resumed. "
            "Train into another folder."
        )
    # The language model is compared when it is loaded.
    language_model = str(saved.get("language_model_fingerprint"))
    check_fingerprint(run_fingerprint(config, store, subjects, language_model), saved, out)


def collect_optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> TensorDict:
    """The optimizer's moments as "<moment>/<parameter name>"."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        f"{moment}/{names[id(parameter)]}": state[moment]
        for parameter, state in optimizer.state.items()
        for moment in MOMENTS
    }


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Inverse of `collect_optimizer_state`; parameters without moments begin anew."""
    for name, parameter in parameters.items():
        if f"exp_avg/{name}" in tensors:
            moments = {m: tensors[f"{m}/{name}"] for m in MOMENTS}
            optimizer.state[parameter] = {
                m: shard_like(tensor, parameter) if tensor.ndim else tensor
                for m, tensor in moments.items()
            }
