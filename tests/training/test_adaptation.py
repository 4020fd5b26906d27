"""A model that is adapted to a subject gives other evidence for it, also after it was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.modeling import MindLLM
from mindllm.training.adaptation import adapt_to_subject
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from mindllm.utils.manifest import Manifest
from tests.evaluation.test_cross_validation import make_store
from tests.training.test_trainer import options


@pytest.fixture
def store(tmp_path: Path, space: VoxelMasker) -> Store:
    return make_store(tmp_path / "store", space, signal=2.0)


@pytest.fixture
def folder(tmp_path: Path, store: Store, tiny_llm_folder: Path) -> Path:
    """A model that was trained on two of three subjects."""
    out = tmp_path / "model"
    train(store, out, options(tiny_llm_folder), subjects=["sub-01", "sub-02"])
    return out


def test_evidence_is_that_of_the_adapted_model(folder: Path, store: Store, tmp_path: Path) -> None:
    model, masker = MindLLM.from_pretrained(folder), store.masker("sub-03")
    betas = store.betas("sub-03", standardize=True)
    texts = ["dogs at the sea", "a bus on a road"]
    before = model.evidence(betas, masker, texts)
    aligned = model.evidence(betas, masker, texts, subject_betas=betas)
    result = adapt_to_subject(model, store, "sub-03")
    assert (result.n_trials, result.n_labels) == (48, 0)
    torch.testing.assert_close(model.evidence(betas, masker, texts), aligned)
    assert not torch.allclose(before, aligned)
    adapt_to_subject(model, store, "sub-03", n_labels=20)
    labelled = model.evidence(betas, masker, texts)
    assert not torch.allclose(labelled, aligned)
    model.save_pretrained(tmp_path / "adapted")
    again = MindLLM.from_pretrained(tmp_path / "adapted")
    torch.testing.assert_close(again.evidence(betas, masker, texts), labelled)
    assert again.maskers["sub-03"].coords_mm.shape == masker.coords_mm.shape


def test_the_command_adapts(folder: Path, store: Store, tmp_path: Path) -> None:
    arguments = ["adapt", str(folder), str(store.path), "--subject", "sub-03"]
    out = ["--out", str(tmp_path / "adapted")]
    result = CliRunner().invoke(app, [*arguments, *out, "--n-labels", "10"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "adapted to sub-03 by 48 trials, 10 of them with their text" in text
    assert list(MindLLM.from_pretrained(tmp_path / "adapted").adaptations) == ["sub-03"]


def test_what_cannot_be_adapted_is_refused(folder: Path, store: Store) -> None:
    model, masker = MindLLM.from_pretrained(folder), store.masker("sub-03")
    betas = store.betas("sub-03", standardize=True)
    with pytest.raises(InputError, match="48 training trials with a text, 50 were asked for"):
        adapt_to_subject(model, store, "sub-03", n_labels=50)
    with pytest.raises(InputError, match="expected at least 40 trials, and a text or None"):
        model.adapt_subject(betas[:30], masker)
    with pytest.raises(InputError, match="48 trials and 2 texts"):
        model.adapt_subject(betas, masker, ["a", None])
    with pytest.raises(InputError, match="has no subject sub-09"):
        adapt_to_subject(model, Store(store.path), "sub-09")
    model.encoding_model = None
    with pytest.raises(InputError, match="no encoding model"):
        model.adapt_subject(np.asarray(betas), masker)


def damage(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of an adaptation, with one fault."""
    key = "sub-03/alignment"
    if name == "missing":
        return {k: t for k, t in tensors.items() if k != key}
    if name == "unknown":
        return tensors | {"sub-03/other": torch.ones(1)}
    if name == "shape":
        return tensors | {key: tensors[key][:3]}
    if name == "integers":
        return tensors | {key: tensors[key].long()}
    if name == "trials":
        return tensors | {
            "sub-03/response_map.trials": tensors["sub-03/response_map.trials"][:5].contiguous()
        }
    return tensors | {key: tensors[key] * torch.nan}


DAMAGE = {
    "missing": "lacks tensors, or has unknown ones: alignment",
    "unknown": "lacks tensors, or has unknown ones: other",
    "shape": "holds alignment of .* and shape",
    "integers": r"holds alignment of torch\.int64",
    "trials": "another number of trials than of targets",
    "not finite": "NaN|infinite",
    "truncated": "is missing or damaged",
    "garbage": "is missing or damaged",
    "empty": "is missing or damaged",
}


def test_damaged_adaptations_are_refused(folder: Path, store: Store, tmp_path: Path) -> None:
    model = MindLLM.from_pretrained(folder)
    adapt_to_subject(model, store, "sub-03")
    out = tmp_path / "adapted"
    model.save_pretrained(out)
    file = out / "adaptations.safetensors"
    content = file.read_bytes()
    written = {"truncated": content[:1000], "garbage": b"no tensors" * 100, "empty": b""}
    for name, message in DAMAGE.items():
        file.write_bytes(content)
        if name in written:
            file.write_bytes(written[name])
        else:
            tensors = damage(name, load_file(file))
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        Manifest.read(out, "a model", "").update()
        with pytest.raises(InputError, match=message) as caught:
            MindLLM.from_pretrained(out)
        assert "adaptations.safetensors" in str(caught.value), name
