"""The parts of a training: schedule, optimizer, augmentation, state on disk, callbacks."""

import json
import math
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mindllm.data.store import Store
from mindllm.model.encoder import SCALE_MM, VoxelFeatures
from mindllm.model.modeling import MindLLM
from mindllm.training.augmentation import (
    add_embedding_noise,
    add_query_noise,
    jitter_coordinates,
)
from mindllm.training.callbacks import TrainerCallback
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.optimization import cosine_schedule_with_warmup, create_optimizer
from mindllm.training.resume import (
    Checkpoint,
    HistoryEntry,
    TrainerState,
    load_checkpoint,
    save_checkpoint,
)
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from mindllm.utils.progress import make_progress
from tests.training.test_trainer import options


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    factors = [cosine_schedule_with_warmup(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert all(np.diff(factors[10:]) < 0)
    assert 0 < factors[-1] < 1e-3
    assert cosine_schedule_with_warmup(55, 100, 0.1) == pytest.approx(0.5)
    assert cosine_schedule_with_warmup(0, 1, 0.0) == 1.0


def test_weight_decay_is_for_the_token_head_and_the_projector(tiny_model: MindLLM) -> None:
    parameters = {f"model.{name}": p for name, p in tiny_model.named_parameters()}
    optimizer = create_optimizer(parameters, StageConfig(max_steps=1, batch_size=1))
    decayed, others, of_language_model = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert of_language_model["weight_decay"] == 0.0
    names = {id(p): name for name, p in parameters.items()}
    for parameter in decayed["params"]:
        assert ".head." in names[id(parameter)] or ".projector." in names[id(parameter)]
    assert "model.encoder.queries" in {names[id(p)] for p in others["params"]}
    assert all(".language_model." in names[id(p)] for p in of_language_model["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


def test_jitter_moves_all_voxels_by_one_affine_map() -> None:
    torch.manual_seed(0)
    coords = torch.randn(50, 3)
    voxels = VoxelFeatures(coords, torch.randint(0, 4, (50, 2)))
    shifted = jitter_coordinates(voxels, 2.0, 0.0)
    shift = shifted.coords - coords
    assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-6)
    assert 0 < shift[0].norm() < 10 / SCALE_MM
    assert torch.equal(shifted.parcel_ids, voxels.parcel_ids)
    mapped = jitter_coordinates(voxels, 2.0, 0.02).coords
    affine = torch.linalg.lstsq(torch.cat([coords, torch.ones(50, 1)], 1), mapped).solution
    assert (affine[:3] - torch.eye(3)).abs().max() < 0.1
    predicted = torch.cat([coords, torch.ones(50, 1)], 1) @ affine
    assert torch.allclose(predicted, mapped, atol=1e-5)


def test_noise_has_the_stated_size_and_stays_among_the_directions_of_texts() -> None:
    torch.manual_seed(0)
    query_outputs = 3 * torch.randn(200, 40)
    noise = add_query_noise(query_outputs, 0.5) - query_outputs
    assert noise.std() == pytest.approx(0.5 * query_outputs.std().item(), rel=0.05)
    embeddings = torch.randn(200, 6)
    text_embeddings = torch.eye(6)[:4]
    noise = add_embedding_noise(embeddings, text_embeddings, 0.5) - embeddings
    assert noise[:, 4:].abs().max() == 0
    ratio = noise.norm(dim=1) / embeddings.norm(dim=1)
    assert ratio.max() <= 0.5 + 1e-6
    assert ratio.mean() == pytest.approx(0.25, abs=0.04)


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    entries = [
        HistoryEntry(3, "alignment", 2.0, 1.5, {"val_retrieval_top1": 0.5}),
        HistoryEntry(6, "instruction_tuning", 1.0),
    ]
    state = TrainerState(6, entries, {"alignment": 1.5}, {"queries": torch.ones(2)})
    weights = {"queries": torch.arange(2.0)}
    checkpoint = Checkpoint(state, weights, {"exp_avg/queries": torch.full((2,), 3.0)})
    save_checkpoint(tmp_path / "state.safetensors", checkpoint, {"seed": 0, "split": "default"})
    path, fingerprint = tmp_path / "state.safetensors", {"seed": 0, "split": "default"}
    loaded = load_checkpoint(path, fingerprint)
    assert (loaded.state.step, loaded.state.history) == (6, entries)
    assert loaded.state.best_val_loss == {"alignment": 1.5}
    for part in ("weights", "optimizer_state"):
        tensors = getattr(checkpoint, part)
        assert getattr(loaded, part).keys() == tensors.keys()
        assert all(torch.equal(getattr(loaded, part)[n], t) for n, t in tensors.items())
    assert torch.equal(loaded.state.best_state_dict["queries"], torch.ones(2))
    with pytest.raises(InputError, match=r"other options: seed: 0 then, 1 now; size: None then, 2"):
        load_checkpoint(path, fingerprint | {"seed": 1, "size": 2})


class StepCounter(TrainerCallback):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.entries: list[HistoryEntry] = []
        self.steps: list[int] = []

    def on_step_end(self, trainer: Trainer, loss: float) -> None:
        self.losses.append(loss)
        self.steps.append(trainer.state.step)

    def on_validation_end(self, trainer: Trainer, entry: HistoryEntry) -> None:
        entry.scores["val_constant"] = 0.5
        self.entries.append(entry)


def test_callbacks_history_and_validation_scores(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    """Six steps of alignment and four of instruction tuning, validations after 5, 6 and 10."""
    counter = StepCounter()
    config = options(tiny_llm_folder, num_validation_subjects=1)
    console = Console(file=StringIO())
    with make_progress(console) as progress:
        model = train(
            tiny_store, tmp_path / "model", config, progress=progress, callbacks=[counter]
        )
    bars = [
        (task.description.split(" (")[0], task.total, task.completed) for task in progress.tasks
    ]
    # Before them the language model and the texts, after them the encoding model.
    assert bars[2:4] == [("training: alignment", 6, 6), ("training: instruction_tuning", 4, 4)]
    assert counter.steps == list(range(1, 11))
    assert [entry.step for entry in counter.entries] == [5, 6, 10]
    means = [np.mean(counter.losses[:5]), counter.losses[5], np.mean(counter.losses[6:])]
    assert [entry.loss for entry in counter.entries] == pytest.approx(means)
    content = json.loads((tmp_path / "model" / "training.json").read_text())
    history = content["history"]
    assert [row["stage"] for row in history] == ["alignment", "alignment", "instruction_tuning"]
    assert ["val_retrieval_top1" in row for row in history] == [True, True, False]
    assert all(0 <= row["val_retrieval_top1"] <= 1 for row in history[:2])
    assert {row["val_constant"] for row in history} == {0.5}
    assert content["best"]["alignment"] == min(row["val_loss"] for row in history[:2])
    assert math.isfinite(content["best"]["instruction_tuning"])
    assert model.model_card.steps == 10


def test_the_model_holds_the_maskers_of_its_training_subjects(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    config = options(tiny_llm_folder, align=1, language=1)
    model = train(tiny_store, tmp_path / "first", config, subjects=["sub-01", "sub-02"])
    assert sorted(model.maskers) == ["sub-01", "sub-02"]
    further = TrainConfig(
        language_model=str(tiny_llm_folder),
        dtype="float32",
        init_from=str(tmp_path / "first"),
        instruction_tuning={"max_steps": 1, "batch_size": 4},
    )
    train(tiny_store, tmp_path / "second", further, subjects=["sub-03"])
    loaded = MindLLM.from_pretrained(tmp_path / "second")
    assert sorted(loaded.maskers) == tiny_store.subjects
    for subject, masker in loaded.maskers.items():
        betas = tiny_store.betas(subject, [0, 1], standardize=True)
        expected = loaded.encode(betas, tiny_store.masker(subject))
        assert torch.equal(loaded.encode(betas, masker), expected)
