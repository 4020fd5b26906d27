"""forward(), log_likelihood and the face of a model that behaves as every other torch model."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mindllm import InputError, MindLLM
from mindllm.fmri.inputs import FMRIInputs
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.processing import IGNORE_INDEX
from tests.conftest import REGIONS, make_space

TEXTS = ["a dog runs", "a dog", "two women sing a song"]


@pytest.fixture
def masker() -> VoxelMasker:
    return make_space("sub-01")


@pytest.fixture
def betas(masker: VoxelMasker) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, len(masker))).astype(np.float32)


def batch_of(model: MindLLM, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    prompts = [model.processor(model.build_conversation(None, text)) for text in texts]
    return dict(model.processor.pad(prompts))


def test_log_likelihood_is_that_of_the_logits_of_forward(
    tiny_model: MindLLM, masker: VoxelMasker, betas: np.ndarray
) -> None:
    scores = tiny_model.log_likelihood(betas, masker, TEXTS)
    assert scores.shape == (3, 3)
    batch = batch_of(tiny_model, TEXTS)
    for trial, row in enumerate(betas):
        fmri = FMRIInputs((masker,), (torch.from_numpy(np.stack([row] * 3)),))
        with torch.no_grad():
            logits = tiny_model(**batch, fmri=fmri).logits
        log_probs = F.log_softmax(logits[:, :-1].float(), -1)
        labels = batch["labels"][:, 1:]
        picked = log_probs.gather(2, labels.clamp(min=0)[..., None])[..., 0]
        expected = (picked * (labels != IGNORE_INDEX)).sum(1)
        np.testing.assert_allclose(scores[trial], expected, atol=1e-3)


def test_loss_is_the_mean_over_labels(
    tiny_model: MindLLM, masker: VoxelMasker, betas: np.ndarray
) -> None:
    batch = batch_of(tiny_model, TEXTS)
    out = tiny_model(**batch, fmri=(betas, masker))
    counts = (batch["labels"] != IGNORE_INDEX).sum()
    diagonal = tiny_model.log_likelihood(betas, masker, TEXTS).diagonal()
    assert out.loss.item() == pytest.approx(-float(diagonal.sum()) / int(counts), abs=1e-4)
    assert out.logits.shape[:2] == batch["input_ids"].shape
    assert tiny_model(batch["input_ids"], batch["attention_mask"], (betas, masker)).loss is None


def test_an_ordinary_training_loop_lowers_the_loss(
    tiny_model: MindLLM, masker: VoxelMasker, betas: np.ndarray
) -> None:
    batch, frozen = batch_of(tiny_model, TEXTS), tiny_model.language_model.state_dict()
    before = {name: tensor.clone() for name, tensor in frozen.items()}
    trained = [p for p in tiny_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    tiny_model.train()
    losses = []
    for _ in range(30):
        loss = tiny_model(**batch, fmri=(betas, masker)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    assert tiny_model.encoder.queries.grad is None
    for name, tensor in tiny_model.language_model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the language model stays as it was"


def test_subjects_and_mixes_in_one_batch(tiny_model: MindLLM, betas: np.ndarray) -> None:
    maskers = make_space("sub-01"), make_space("sub-02", voxels=40, seed=3)
    other = np.random.default_rng(1).normal(size=(2, 40)).astype(np.float32)
    groups = tuple(map(torch.from_numpy, (betas, other)))
    together = tiny_model.encode_inputs(FMRIInputs(maskers, groups))
    alone = torch.cat([tiny_model.encode(b, m) for b, m in zip(groups, maskers, strict=True)])
    torch.testing.assert_close(together, alone)
    order = torch.eye(5)[[4, 0, 2]]
    mixed = FMRIInputs(maskers, groups, order)
    assert len(mixed) == 3
    torch.testing.assert_close(tiny_model.encode_inputs(mixed), alone[[4, 0, 2]])
    assert all(b.dtype == torch.float64 for b in mixed.to(torch.float64).betas)


def test_features_are_the_projected_tokens(
    tiny_model: MindLLM, masker: VoxelMasker, betas: np.ndarray
) -> None:
    features = tiny_model.get_fmri_features(betas, masker)
    assert features.shape == (3, 3, tiny_model.language_model.hidden_size)
    expected = tiny_model.projector(tiny_model.encode(betas, masker))
    torch.testing.assert_close(features, expected)


def test_placeholders_must_agree(
    tiny_model: MindLLM, masker: VoxelMasker, betas: np.ndarray
) -> None:
    batch = batch_of(tiny_model, TEXTS)
    ids = batch["input_ids"].clone()
    ids[0][ids[0] == tiny_model.processor.fmri_token_id] = 5
    with pytest.raises(InputError, match="hold 0 to 3 placeholders"):
        tiny_model(ids, fmri=(betas, masker))
    with pytest.raises(InputError, match="places for fMRI tokens"):
        tiny_model(batch["input_ids"])
    plain = torch.arange(5)[None] + 10
    reference = tiny_model.language_model.model(input_ids=plain).logits
    torch.testing.assert_close(tiny_model(plain).logits, reference)


def test_to_half_and_train_reach_the_language_model(
    tiny_model: MindLLM, masker: VoxelMasker, betas: np.ndarray
) -> None:
    words = tiny_model.language_model.model.get_input_embeddings()
    tiny_model.train()
    assert tiny_model.language_model.model.training
    tiny_model.eval()
    assert not tiny_model.language_model.model.training
    whole = tiny_model.get_fmri_features(betas, masker)
    tiny_model.half()
    assert words.weight.dtype == torch.float16
    halved = tiny_model.get_fmri_features(betas, masker)
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), whole, atol=0.05, rtol=0.05)
    tiny_model.to("meta")
    assert words.weight.device.type == tiny_model.device.type == "meta"


def test_the_state_holds_what_the_project_owns(
    tiny_config: MindLLMConfig, tiny_model: MindLLM, tiny_llm: FrozenLanguageModel
) -> None:
    state = tiny_model.state_dict()
    assert state
    assert not [name for name in state if "language_model" in name]
    wrapped = torch.nn.ModuleDict({"model": tiny_model})
    assert {f"model.{name}" for name in state} == set(wrapped.state_dict())
    torch.manual_seed(9)
    parcels = {atlas: list(names.values()) for atlas, names in REGIONS.items()}
    other = torch.nn.ModuleDict({"model": MindLLM(tiny_config, parcels, tiny_llm)})
    other.load_state_dict(wrapped.state_dict())
    for name, tensor in other["model"].state_dict().items():
        assert torch.equal(tensor, state[name])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})
