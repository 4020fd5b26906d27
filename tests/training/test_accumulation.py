"""Accumulated gradients: those of a larger batch, with draws that depend on seed and step alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mindllm.data.sampler import SubjectBatch, TrialBatch, split_batch
from mindllm.data.store import Store
from mindllm.training.configuration import Stage, StageConfig, TrainConfig
from mindllm.training.trainer import Trainer, train
from mindllm.utils.errors import InputError
from tests.training.test_trainer import SIZES, Killed, same, weights

CALM = {
    "coord_jitter_mm": 0,
    "affine_jitter_sd": 0,
    "query_noise_sd": 0,
    "embedding_noise_scale": 0,
}
STAGES: list[Stage] = ["alignment", "instruction_tuning"]


def options(
    llm: Path, sizes: tuple[int, int], num_parts: int = 1, norm: str = "layer", **others: Any
) -> TrainConfig:
    align, tune = (
        StageConfig(max_steps=4, batch_size=size, gradient_accumulation_steps=num_parts)
        for size in sizes
    )
    return TrainConfig(
        encoder=SIZES | {"dropout": 0.0, "token_head_norm": norm},
        language_model=str(llm),
        dtype="float32",
        alignment=align,
        instruction_tuning=tune,
        **{"eval_steps": 5, "save_steps": 3, "encoding_model": None} | others,
    )


def gradients_of_a_step(
    store: Store, config: TrainConfig, stage: Stage
) -> tuple[float, dict[str, torch.Tensor]]:
    trainer = Trainer(store, store.subjects, config)
    loss_module, optimizer = trainer.prepare_stage(stage)
    gradients: dict[str, torch.Tensor] = {}

    def keep_gradients(*args: Any) -> torch.Tensor:
        gradients.update(
            (name, p.grad.clone())
            for name, p in trainer.loss_fn.named_parameters()
            if p.grad is not None
        )
        return torch.ones(())

    trainer.accelerator.clip_grad_norm_ = keep_gradients
    return trainer.take_step(stage, loss_module, optimizer).loss, gradients


@pytest.mark.parametrize("stage", STAGES)
def test_accumulated_gradients_are_those_of_a_larger_batch(
    tiny_store: Store, tiny_llm_folder: Path, stage: Stage
) -> None:
    """Answers of other lengths in the micro batches, and sizes that do not divide."""
    loss, expected = gradients_of_a_step(
        tiny_store, options(tiny_llm_folder, (21, 21), **CALM), stage
    )
    accumulated, gradients = gradients_of_a_step(
        tiny_store, options(tiny_llm_folder, (7, 7), 3, **CALM), stage
    )
    assert accumulated == pytest.approx(loss, abs=1e-5)
    assert gradients.keys() == expected.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-6, rtol=1e-4)


def test_the_negatives_of_a_micro_batch_are_its_own_where_texts_are_many(
    tiny_store: Store, tiny_llm_folder: Path
) -> None:
    config = options(tiny_llm_folder, (2, 2), 3, **CALM, max_negatives=1)
    trainer = Trainer(tiny_store, tiny_store.subjects, config)
    parts = trainer.draw_batch("alignment")
    batches = [trainer.batches.build_micro_batch(part) for part in parts]
    assert [len(set(part.trials.stimuli)) for part in parts] == [
        len(batch.candidates) for batch in batches
    ]


def test_running_statistics_are_the_mean_of_those_of_the_micro_batches(
    tiny_store: Store, tiny_llm_folder: Path
) -> None:
    """Whatever the order, and so whichever process reads which."""
    config = options(tiny_llm_folder, (8, 4), 3, "batch")
    statistics = []
    for order in ([0, 1, 2], [2, 0, 1]):
        trainer = Trainer(tiny_store, tiny_store.subjects, config)
        loss_module, _ = trainer.prepare_stage("alignment")
        parts = trainer.draw_batch("alignment")
        trainer.add_up_gradients(loss_module, [parts[index] for index in order])
        statistics.append(trainer.model.encoder.head.input_block[0].running_var)
    torch.testing.assert_close(*statistics)
    assert not torch.allclose(statistics[0], torch.ones(()))


@pytest.mark.parametrize("stage", STAGES)
def test_single_samples_cannot_be_normalized_over_the_batch(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, stage: Stage
) -> None:
    config = options(tiny_llm_folder, (2, 2), 3, "batch")
    config.stage(stage).batch_size = 1
    with pytest.raises(InputError, match=rf"{stage} has batch_size 1, but the batch normal"):
        train(tiny_store, tmp_path / "model", config)
    train(tiny_store, tmp_path / "model", options(tiny_llm_folder, (1, 1), 3))


def test_it_resumes_to_the_same_weights_and_draws_anew_in_each_micro_batch(
    tmp_path: Path,
    tiny_store: Store,
    tiny_llm_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = options(tiny_llm_folder, (8, 4), 2, "batch")
    train(tiny_store, tmp_path / "whole", config)
    seeds: list[int] = []
    seed_draws, draw_batch = Trainer.seed_draws, Trainer.draw_batch

    def record(self: Trainer, index: int) -> None:
        seed_draws(self, index)
        seeds.append(torch.initial_seed())

    def draw_until(self: Trainer, stage: Stage) -> Any:
        if self.state.step == 7:
            raise Killed
        return draw_batch(self, stage)

    monkeypatch.setattr(Trainer, "seed_draws", record)
    monkeypatch.setattr(Trainer, "draw_batch", draw_until)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "model", config)
    monkeypatch.undo()
    assert len(set(seeds)) == len(seeds) == 14
    train(tiny_store, tmp_path / "model", config, resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "model"))


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 12))
def test_a_split_batch_has_every_sample_once(seed: int, num_samples: int, num_parts: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, size=3)
    subjects = [
        SubjectBatch(f"sub-{n}", rng.permutation(20)[:size], np.arange(n + 1))
        for n, size in enumerate(sizes)
    ]
    dense = rng.random((num_samples, sizes.sum()))
    mixing = torch.from_numpy(dense * (rng.random(dense.shape) < 0.5))
    stimuli = [str(n) for n in range(num_samples)]
    keys = [("sub-0", n) for n in range(num_samples)]
    batch = TrialBatch(subjects, mixing, stimuli, list(keys))
    betas = rng.random((3, 20))  # one value per subject and trial

    def mix(part: TrialBatch) -> torch.Tensor:
        read: Callable[[SubjectBatch], np.ndarray] = lambda s: betas[  # noqa: E731
            int(s.subject[-1]), s.trial_indices
        ]
        return part.mixing_weights @ torch.from_numpy(
            np.concatenate([read(s) for s in part.subjects] or [np.zeros(0)])
        )

    parts = split_batch(batch, num_parts)
    lengths = [len(part.stimuli) for part in parts]
    assert len(parts) == min(num_parts, num_samples)
    assert max(lengths) - min(lengths) <= 1
    assert [s for part in parts for s in part.stimuli] == stimuli
    assert [key for part in parts for key in part.source_trials] == keys
    torch.testing.assert_close(torch.cat([mix(part) for part in parts]), mix(batch))
