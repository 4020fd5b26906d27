"""The step of a training against one without short cuts: the benchmark's reference, and options."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks import training
from mindllm.model import candidates, length_groups
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.length_groups import group_by_length
from mindllm.model.logits import PrefixCache, forward_logits
from mindllm.model.token_log_probs import token_log_probs
from tests.conftest import TINY_SIZES

SIZES = training.Sizes(
    batch_size=6,
    n_voxels=50,
    preset="default",
    encoder=tuple({**TINY_SIZES, "embedding_dim": 8, "token_head_norm": "layer"}.items()),
)
SHORT = [(question, answer[:40]) for question, answer in training.CONVERSATIONS]


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of similar length for a tiny model too, whose tokens cost nothing."""
    monkeypatch.setattr(length_groups, "BATCH_OVERHEAD_CPU", 0)
    monkeypatch.setattr(length_groups, "WEIGHTS_OVERHEAD_TOKENS", 4)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("encoder_too", [False, True])
def test_gradients_are_those_of_the_reference(
    tiny_llm: FrozenLanguageModel, lora: bool, encoder_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    read_prompts = candidates.read_prompts

    def count_groups(*arguments: object) -> object:
        groups.append(len(arguments[2]))
        assert arguments[3] > 0  # tokens of a beginning that is read once
        return read_prompts(*arguments)

    monkeypatch.setattr(candidates, "read_prompts", count_groups)
    loss_fn = training.make_loss(tiny_llm, training.make_config(SIZES, lora, encoder_too))
    batch = training.make_batch(loss_fn.model, SIZES, SHORT)
    difference = training.compare_gradients(loss_fn, batch)
    assert difference.in_double <= 1e-12
    assert difference.ours < 1e-4
    assert difference.reference < 1e-4
    assert len(groups) > 1
    assert sum(groups) == 2 * SIZES.batch_size  # in single and in double precision
    expected = training.gradients(loss_fn, training.reference_loss(loss_fn.model, batch))
    assert any(".lora_A" in name for name in expected) == lora
    assert any(".queries" in name for name in expected) == encoder_too
    assert all(gradient.norm() > 0 for gradient in expected.values())


def test_the_benchmark_prints_ratios(
    tiny_llm_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = training.Sizes(2, 2, 20, SIZES.preset, SIZES.encoder)
    short = SHORT[:2]
    model = load_language_model(tiny_llm_folder)
    loss_fn = training.make_loss(model, training.make_config(sizes, lora=False))
    batch = training.make_batch(loss_fn.model, sizes, short)
    row = training.compare("a step", loss_fn, batch, batch, repeats=1, target=1.8)
    assert row.reference > 0
    assert row.ours > 0
    printed = capsys.readouterr().out
    assert "| a step | " in printed
    assert "a step: gradients differ by " in printed


@pytest.mark.parametrize("wrong", [1 + 1e-5, 1 + 1e-3])
def test_other_gradients_are_refused(
    tiny_llm: FrozenLanguageModel, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    loss_fn = training.make_loss(tiny_llm, training.make_config(SIZES, lora=False))
    batch = training.make_batch(loss_fn.model, SIZES, SHORT)
    reference_loss = training.reference_loss
    monkeypatch.setattr(training, "reference_loss", lambda *args: wrong * reference_loss(*args))
    with pytest.raises(AssertionError, match="in double precision"):
        training.compare("a step", loss_fn, batch, batch, repeats=1, target=None)


@pytest.mark.usefixtures("grouped")
def test_a_beginning_is_read_once_in_a_training(
    tiny_llm: FrozenLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_fn = training.make_loss(tiny_llm, training.make_config(SIZES, lora=False))
    batch = training.make_batch(loss_fn.model, SIZES, SHORT)
    first = loss_fn(batch)
    assert loss_fn.prefixes is not None
    (key,) = loss_fn.prefixes.caches
    assert loss_fn.prefixes.caches[key].get_seq_length() == len(key[0]) > 0
    monkeypatch.setattr("mindllm.model.logits.read_beginning", None)  # not called again
    torch.testing.assert_close(loss_fn(batch), first)
    assert training.make_loss(tiny_llm, training.make_config(SIZES, lora=True)).prefixes is None


def test_beginnings_that_were_not_used_for_longest_are_dropped(
    tiny_llm: FrozenLanguageModel,
) -> None:
    prefixes = PrefixCache(max_prefixes=2)
    first = prefixes.read(tiny_llm.model, [3, 4])
    prefixes.read(tiny_llm.model, [3, 5])
    assert prefixes.read(tiny_llm.model, [3, 4]) is first
    prefixes.read(tiny_llm.model, [3, 6])
    assert [key[0] for key in prefixes.caches] == [(3, 4), (3, 6)]


def test_logits_at_single_positions(tiny_llm: FrozenLanguageModel) -> None:
    ids = torch.arange(12).view(2, 6)
    selected = torch.zeros(2, 6, dtype=torch.bool)
    selected[0, 2] = selected[1, 4] = selected[1, 5] = True
    logits = candidates.selected_logits(tiny_llm.model, selected, input_ids=ids)
    expected, _ = forward_logits(tiny_llm.model, torch.arange(6), input_ids=ids)
    torch.testing.assert_close(logits, expected[selected])
    assert not tiny_llm.model.get_output_embeddings()._forward_pre_hooks
    with pytest.raises(ValueError, match="the output layer reads"):
        candidates.selected_logits(tiny_llm.model, selected[:, :3], input_ids=ids)
    assert not tiny_llm.model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_log_probabilities_and_their_gradient(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindllm.model.token_log_probs.CHUNK_SIZE", 21)  # three rows at a time
    torch.manual_seed(0)
    logits = (5 * torch.randn(10, 7)).to(dtype).requires_grad_()
    ids, weights = torch.arange(10) % 7, torch.randn(10)
    (token_log_probs(logits, ids) * weights).sum().backward()
    expected = logits.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    log_probs = -F.cross_entropy(expected, ids, reduction="none")
    (log_probs * weights).sum().backward()
    torch.testing.assert_close(token_log_probs(logits, ids), log_probs)
    assert logits.grad is not None
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    gradient = logits.grad.to(expected.dtype)
    torch.testing.assert_close(gradient, expected.grad, atol=tolerance, rtol=tolerance)
    assert token_log_probs(logits[:0], ids[:0]).shape == (0,)


def test_groups_are_the_cheapest() -> None:
    """Against every way to cut the sorted lengths."""
    lengths = [9, 3, 3, 8, 30, 5, 29]
    ordered = sorted(lengths)
    for overhead in (0.5, 6, 50, 1000):
        groups = group_by_length(lengths, overhead)
        assert sorted(row for group in groups for row in group) == list(range(len(lengths)))

        def cost(parts: list[list[int]], overhead: float = overhead) -> float:
            return sum(overhead + len(part) * max(part) for part in parts)

        cheapest = min(
            cost([ordered[a:b] for a, b in pairwise(cuts)])
            for mask in range(2 ** (len(lengths) - 1))
            for cuts in [[0, *[i + 1 for i in range(6) if mask >> i & 1], len(lengths)]]
        )
        assert cost([[lengths[row] for row in group] for group in groups]) == cheapest
    limited = group_by_length(lengths, 1000, max_tokens=32)
    assert all(len(g) == 1 or len(g) * max(lengths[r] for r in g) <= 32 for g in limited)
    assert sorted(row for group in limited for row in group) == list(range(len(lengths)))
    assert group_by_length([], 1) == []
