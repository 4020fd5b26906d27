"""Training: it learns from the data, is reproducible, resumes, and reports errors."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.model.checkpoint import FORMAT
from mindllm.model.modeling import MindLLM
from mindllm.training.configuration import StageConfig, TrainConfig
from mindllm.training.trainer import Trainer, train
from mindllm.training.trials import choose_trials
from mindllm.utils.errors import InputError
from mindllm.utils.manifest import find_manifests
from mindllm.utils.progress import make_progress
from tests.conftest import TEXTS, TINY_SIZES, make_space, update_manifests

SIZES = TINY_SIZES | {"embedding_dim": 8}


def options(llm: Path, align: int = 6, language: int = 4, **others: Any) -> TrainConfig:
    return TrainConfig(
        encoder=SIZES,
        language_model=str(llm),
        dtype="float32",
        alignment=StageConfig(max_steps=align, batch_size=24),
        instruction_tuning=StageConfig(max_steps=language, batch_size=8),
        **{"eval_steps": 5, "save_steps": 3} | others,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_store: Store, tiny_llm_folder: Path
) -> Path:
    """A model folder after ten steps."""
    out = tmp_path_factory.mktemp("trained") / "model"
    train(tiny_store, out, options(tiny_llm_folder))
    return out


# Learning.


def ranked_first(model: MindLLM, store: Store) -> float:
    """Fraction of training trials whose caption has the highest likelihood ratio; chance is 1/6.

    Ratios, because a random language model prefers some captions whatever the scan.
    """
    hits = []
    for subject in store.subjects:
        scores = model.score_candidates(
            model.encode(store.betas(subject, standardize=True), store.masker(subject)), TEXTS
        )
        scores = scores - scores.mean(0)
        right = store.trials(subject)["stimulus"].str.removeprefix("stim").astype(int).to_numpy()
        hits += (scores.argmax(1).numpy() == right).tolist()
    return float(np.mean(hits))


def test_a_tiny_model_learns_a_handful_of_trials(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    """With wrong labels, mixing or betas the right captions would come first at chance level."""
    calm = {"voxel_dropout": (0, 0.3), "query_noise_sd": 0.1, "embedding_noise_scale": 0.5}
    config = options(tiny_llm_folder, 150, 100, eval_steps=10, save_steps=1000, seed=1, **calm)
    config.encoder = SIZES | {"dropout": 0.0}
    config.alignment.learning_rate = config.instruction_tuning.learning_rate = 5e-3
    model = train(tiny_store, tmp_path / "model", config)
    assert ranked_first(model, tiny_store) > 0.5
    history = json.loads((tmp_path / "model" / "training.json").read_text())["history"]
    for stage, factor in (("alignment", 0.5), ("instruction_tuning", 0.9)):
        losses = [row["loss"] for row in history if row["stage"] == stage]
        assert losses[-1] < factor * losses[0], (stage, losses)
    assert model.model_card.subjects == tiny_store.subjects
    assert model.null_tokens.abs().max() > 0


# Reproducibility and resuming.


def test_one_seed_one_model(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, trained: Path
) -> None:
    train(tiny_store, tmp_path / "same", options(tiny_llm_folder))
    train(tiny_store, tmp_path / "other", options(tiny_llm_folder, seed=1))
    assert same(weights(trained), weights(tmp_path / "same"))
    assert not same(weights(trained), weights(tmp_path / "other"))
    assert not (trained / "training").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stop", [3, 6, 8, 9])
def test_stopped_anywhere_it_goes_on_to_the_same_weights(
    tmp_path: Path,
    tiny_store: Store,
    tiny_llm_folder: Path,
    trained: Path,
    stop: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six steps of the first stage and four of the second; checkpoints after 3, 6, 9 and 10."""
    draw_batch = Trainer.draw_batch

    def draw_until(self: Trainer, *args: Any) -> Any:
        if self.state.step == stop:
            raise Killed
        return draw_batch(self, *args)

    monkeypatch.setattr(Trainer, "draw_batch", draw_until)
    with pytest.raises(Killed):
        train(tiny_store, tmp_path / "model", options(tiny_llm_folder))
    monkeypatch.undo()
    assert not (tmp_path / "model" / "config.json").exists()
    train(tiny_store, tmp_path / "model", options(tiny_llm_folder), resume=True)
    assert same(weights(trained), weights(tmp_path / "model"))


def test_killed_in_the_middle_it_resumes(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    config = options(tiny_llm_folder, align=40, language=40, save_steps=7)
    (tmp_path / "options.json").write_text(config.model_dump_json())
    out, state = tmp_path / "model", tmp_path / "model" / "training" / "state.safetensors"
    program = [sys.executable, "-c", "from mindllm.cli import main; main()"]
    options_file = str(tmp_path / "options.json")
    arguments = ["train", str(tiny_store.path), "--out", str(out), "--config", options_file]
    command = [*program, *arguments, "--resume"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        _, stderr = process.communicate()
    assert state.exists(), stderr
    assert not (out / "config.json").exists(), "it ended before it was killed: take more steps"
    with pytest.raises(InputError, match=r"holds an unfinished training. Add --resume"):
        train(tiny_store, out, config)
    train(tiny_store, out, config, resume=True)
    train(tiny_store, tmp_path / "whole", config)
    assert same(weights(out), weights(tmp_path / "whole"))


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, tiny_store: Store
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .* Choose a folder you may write to"):
        train(
            tiny_store,
            tmp_path / "file" / "model",
            TrainConfig(language_model="nowhere/to/be/found"),
        )


def test_a_full_disk(tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path) -> None:
    (tmp_path / "options.json").write_text(options(tiny_llm_folder).model_dump_json())
    code = f"""
import resource
from pathlib import Path
from mindllm.training.configuration import read_config
from mindllm.data.store import Store
from mindllm.utils.errors import InputError
from mindllm.training.trainer import train
config = read_config(Path({str(tmp_path / "options.json")!r}), {{}})
store = Store({str(tiny_store.path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    train(store, {str(tmp_path / "model")!r}, config)
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        f"no room to write {tmp_path / 'model' / 'training' / 'state.safetensors'}" in done.stdout
    )
    assert not [p for p in tmp_path.rglob("*") if "state" in p.name]


# Errors.


def begin(store: Store, out: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished training: one checkpoint."""
    save = Trainer.save

    def once(self: Trainer, path: Path) -> None:
        save(self, path)
        raise Killed

    monkeypatch.setattr(Trainer, "save", once)
    with pytest.raises(Killed):
        train(store, out, config)
    monkeypatch.undo()


def test_resuming_with_other_options_or_a_damaged_checkpoint(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "model", options(tiny_llm_folder)
    begin(tiny_store, out, config, monkeypatch)
    with pytest.raises(
        InputError, match=r"begun with other options: query_noise_sd: 0.\d+ then, 0.9 now"
    ):
        train(tiny_store, out, options(tiny_llm_folder, query_noise_sd=0.9), resume=True)
    with pytest.raises(InputError, match="begun with other options: subjects:"):
        train(tiny_store, out, config, subjects=["sub-01"], resume=True)
    state = out / "training" / "state.safetensors"
    os.truncate(state, state.stat().st_size // 2)
    with pytest.raises(InputError, match=r"state.safetensors is damaged .*train anew"):
        train(tiny_store, out, config, resume=True)


def test_a_finished_folder(tiny_store: Store, tiny_llm_folder: Path, trained: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in trained.iterdir()}
    with pytest.raises(InputError, match="already holds a trained model"):
        train(tiny_store, trained, options(tiny_llm_folder))
    model = train(tiny_store, trained, options(tiny_llm_folder), resume=True)
    assert same(weights(trained), dict(model.state_dict()))
    assert {p.name: p.stat().st_mtime_ns for p in trained.iterdir()} == before


def test_a_conversation_that_is_too_long_is_refused_before_the_first_step(
    tmp_path: Path, tiny_llm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = conversations_from_captions(
        pd.DataFrame(
            {"stimulus": [f"stim{i}" for i in range(6)], "caption": [*TEXTS[:5], "x" * 300]}
        )
    )
    store = small_store(tmp_path / "store", {"sub-01": ["train"] * 6}, captions)
    monkeypatch.setattr(Trainer, "run", lambda *arguments: pytest.fail("it began"))
    with pytest.raises(InputError, match=r"has 3\d\d tokens, 3 of .* reads at most 256"):
        train(store, tmp_path / "model", options(tiny_llm_folder))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"seed": 7}, "seed: 0 then, 7 now"),
        ({"query_noise_sd": 0.9}, "query_noise_sd: 0.3 then, 0.9 now"),
        ({"align": 9}, "alignment: .*'max_steps': 6.* then, .*'max_steps': 9.* now"),
    ],
)
def test_a_finished_training_is_not_taken_for_another(
    tiny_store: Store, tiny_llm_folder: Path, trained: Path, others: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny_store, trained, options(tiny_llm_folder, **others), resume=True)


def test_a_finished_training_of_other_data_is_not_taken(
    tiny_store: Store, tiny_llm_folder: Path, trained: Path, tmp_path: Path
) -> None:
    config = options(tiny_llm_folder)
    with pytest.raises(InputError, match=r"subjects: .*'sub-03': .* then, .* now"):
        train(tiny_store, trained, config, subjects=["sub-01", "sub-02"], resume=True)
    other = small_store(tmp_path / "other", {"sub-01": ["train"] * 6})
    with pytest.raises(InputError, match="store: 'tiny' then, 'small' now"):
        train(other, trained, config, resume=True)
    folder = shutil.copytree(tiny_store.path, tmp_path / "changed")
    changed = Store(folder)
    betas = np.array(changed.betas("sub-02"))
    betas[0] *= 1.5
    np.save(folder / "subjects" / "sub-02" / "betas.npy", betas)
    update_manifests(folder)
    with pytest.raises(InputError, match=r"subjects: .*'sub-02'"):
        train(Store(folder), trained, config, resume=True)
    unknown = Path(shutil.copytree(trained, tmp_path / "unknown"))
    (unknown / "training.json").write_text("{}")
    with pytest.raises(InputError, match="does not say which training it comes from"):
        train(tiny_store, unknown, config, resume=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_model_whose_weights_are_not_finite_is_refused(
    trained: Path, tmp_path: Path, value: float
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    for name in ("projector.weight", "null_tokens", "encoder.queries"):
        broken = {n: tensor.clone() for n, tensor in tensors.items()}
        broken[name].view(-1)[3] = value
        save_file(broken, folder / "model.safetensors")
        update_manifests(folder)
        with pytest.raises(
            InputError, match=rf"model.safetensors: 1 of \d+ weights of {name} are NaN or infinite"
        ):
            MindLLM.from_pretrained(folder)


def test_a_model_whose_weights_are_not_finite_is_not_written(trained: Path, tmp_path: Path) -> None:
    model = MindLLM.from_pretrained(trained)
    with torch.no_grad():
        model.projector.bias[0] = torch.inf
    with pytest.raises(InputError, match=r"weights of projector.bias are NaN or infinite"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.rglob("config.json"))


def small_store(
    path: Path, split: dict[str, list[str]], conversations: pd.DataFrame | None = None
) -> Store:
    """Subjects who saw six stimuli twice, each with a split."""
    subjects = []
    for n, (name, kinds) in enumerate(split.items()):
        space = make_space(name, 30, seed=n)
        trials = pd.DataFrame({"stimulus": [f"stim{i}" for i in range(6)] * 2, "split": kinds * 2})
        subjects.append((space, np.random.default_rng(n).normal(size=(12, 30)), trials))
    captions = conversations_from_captions(
        pd.DataFrame({"stimulus": [f"stim{i}" for i in range(6)], "caption": TEXTS})
    )
    return write_store(
        path, subjects, captions if conversations is None else conversations, name="small"
    )


def test_an_empty_split(tmp_path: Path, tiny_llm_folder: Path) -> None:
    config = options(tiny_llm_folder)
    tested = small_store(tmp_path / "test", {"a": ["test"] * 6})
    with pytest.raises(InputError, match="no trial of the split 'train' with a conversation for a"):
        train(tested, tmp_path / "model", config)
    silent = conversations_from_captions(
        pd.DataFrame({"stimulus": ["other"], "caption": ["a dog"]})
    )
    with pytest.raises(
        InputError,
        match=r"no trial is left: .* Choose other subjects or sources, "
        r"or prepare the store with captions",
    ):
        train(
            small_store(tmp_path / "silent", {"a": ["train"] * 6}, silent),
            tmp_path / "model",
            config,
        )
    assert not (tmp_path / "model").exists()


def test_validation_subjects_are_not_trained_on(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    held = set()
    for seed in range(6):
        training, validation = choose_trials(
            tiny_store,
            tiny_store.subjects,
            options(tiny_llm_folder, num_validation_subjects=1, seed=seed),
        )
        assert validation is not None
        assert sorted([*training.subjects, *validation.subjects]) == tiny_store.subjects
        held |= set(validation.subjects)
    assert len(held) > 1
    with pytest.raises(InputError, match="num_validation_subjects=3 leaves none of 3 subjects"):
        choose_trials(
            tiny_store, tiny_store.subjects, options(tiny_llm_folder, num_validation_subjects=3)
        )
    model = train(
        tiny_store, tmp_path / "model", options(tiny_llm_folder, num_validation_subjects=1)
    )
    assert len(model.model_card.subjects) == 2
    assert (
        sorted(model.model_card.subjects + model.model_card.validation_subjects)
        == tiny_store.subjects
    )
    report = json.loads((tmp_path / "model" / "training.json").read_text())
    assert all(np.isfinite(row["val_loss"]) for row in report["history"])


def test_the_split_val_is_used_where_there_is_one_and_test_never(
    tmp_path: Path, tiny_llm_folder: Path
) -> None:
    kinds = ["train"] * 3 + ["val"] * 2 + ["test"]
    store = small_store(tmp_path / "store", {"a": kinds, "b": kinds})
    training, validation = choose_trials(
        store, store.subjects, options(tiny_llm_folder, num_validation_subjects=1)
    )
    assert validation is not None
    assert training.subjects == validation.subjects == ["a", "b"]
    assert set(training.table["stimulus"]) == {"stim0", "stim1", "stim2"}
    assert set(validation.table["stimulus"]) == {"stim3", "stim4"}
    model = train(store, tmp_path / "model", options(tiny_llm_folder))
    assert model.model_card.stimuli == ["stim0", "stim1", "stim2"]
    assert sorted(model.model_card.answers) == sorted(TEXTS[:3])


def test_a_training_that_diverges(tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path) -> None:
    config = options(tiny_llm_folder)
    config.alignment.learning_rate = float("inf")
    with pytest.raises(
        InputError,
        match=r"training diverged at step \d+ of the stage align.*Lower its learning_rate",
    ):
        train(tiny_store, tmp_path / "model", config)


# The model folder.


def test_a_model_folder_gives_the_same_tokens_and_text(
    trained: Path, tiny_store: Store, tmp_path: Path
) -> None:
    values, space = (
        tiny_store.betas("sub-02", range(4), standardize=True),
        tiny_store.masker("sub-02"),
    )
    model = MindLLM.from_pretrained(trained)
    model.save_pretrained(tmp_path / "copy")
    again = MindLLM.from_pretrained(tmp_path / "copy")
    assert torch.equal(model.encode(values, space), again.encode(values, space))
    assert torch.equal(model.null_tokens, again.null_tokens)
    assert model.decode(values, space, max_new_tokens=5) == again.decode(
        values, space, max_new_tokens=5
    )
    assert again.model_card == model.model_card
    assert not again.training


def changed(folder: Path, **content: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | content))


def smaller(folder: Path) -> None:
    tensors = weights(folder)
    tensors["projector.weight"] = tensors["projector.weight"][:, 1:].clone()
    del tensors["null_tokens"]
    save_file(tensors, folder / "model.safetensors")


MOVED = {"name": "/nowhere/llm", "fingerprint": "", "chat_template": None}
HARM: dict[str, tuple[Any, str]] = {
    "newer": (
        lambda folder: changed(folder, format=FORMAT + 1),
        rf"model format {FORMAT + 1}; this version of mindllm reads {FORMAT}. Upgrade",
    ),
    "encoder": (
        lambda folder: changed(folder, encoder={"layers": 3}),
        "config.json: encoder.layers: Extra inputs",
    ),
    "no llm named": (
        lambda folder: changed(folder, language_model=None),
        "config.json: language_model: Input should be an object",
    ),
    "json": (
        lambda folder: os.truncate(folder / "config.json", 40),
        "config.json is damaged and cannot be read as JSON",
    ),
    "truncated": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        "model.safetensors is missing or damaged",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "model.safetensors is missing; manifest.json lists it",
    ),
    "no regions": (
        lambda folder: (folder / "regions.json").unlink(),
        "regions.json is missing",
    ),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        r"is not a model \(made by `mindllm train` or `mindllm convert`\): it has no config",
    ),
    "shapes": (
        smaller,
        r"does not fit config.json: null_tokens: expected \(3, 8\), found None, "
        r"projector.weight: expected \(32, 8\), found \(32, 7\)",
    ),
    "llm moved": (
        lambda folder: changed(folder, language_model=MOVED),
        "there is no folder /nowhere/llm.*Expected a folder",
    ),
}


@pytest.mark.parametrize("kind", HARM)
def test_damaged_model_folders(trained: Path, tmp_path: Path, kind: str) -> None:
    harm, message = HARM[kind]
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    harm(folder)
    for manifest in find_manifests(folder):  # what is not damage but was written so
        if all((folder / name).exists() for name in manifest.content.files):
            manifest.update()
    with pytest.raises(InputError, match=message):
        MindLLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "regions.json"])
def test_a_changed_file_of_a_model_is_refused(trained: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is (not the file|damaged)"):
        MindLLM.from_pretrained(folder)


def test_another_language_model_is_warned_about(
    trained: Path, tiny_llm_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    with caplog.at_level(logging.WARNING):
        MindLLM.from_pretrained(trained, language_model=str(tmp_path / "llm"))
        assert "differs from the one" not in caplog.text
        tensors = load_file(tmp_path / "llm" / "model.safetensors")
        save_file(
            {n: 2 * t for n, t in tensors.items()},
            tmp_path / "llm" / "model.safetensors",
            {"format": "pt"},
        )
        MindLLM.from_pretrained(trained, language_model=str(tmp_path / "llm"))
    assert "differs from the one" in caplog.text


def test_a_language_model_that_is_not_to_be_had(
    tmp_path: Path, tiny_llm_folder: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        InputError, match=r"there is no folder .*Expected a folder .*a .gguf file, or a hub id"
    ):
        train(tiny_store, tmp_path / "model", options(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="there is no file"):
        train(tiny_store, tmp_path / "model", options(tmp_path / "nowhere.gguf"))
    shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    os.truncate(tmp_path / "llm" / "model.safetensors", 1000)
    with pytest.raises(
        InputError, match=r"could not be loaded .* give --llm a folder that holds the model"
    ):
        train(tiny_store, tmp_path / "model", options(tmp_path / "llm"))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("walkthrough", {}),
        (
            "paper",
            {
                "num_queries": 32,
                "hidden_size": 32,
                "key_dim": 16,
                "num_fmri_tokens": 4,
                "token_dim": 8,
            },
        ),
    ],
)
def test_every_preset_trains(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path, preset: str, sizes: dict[str, int]
) -> None:
    config = options(tiny_llm_folder, align=2, language=2).model_copy(
        update={"preset": preset, "encoder": sizes}
    )
    train(tiny_store, tmp_path / "model", config)
    model = MindLLM.from_pretrained(tmp_path / "model")
    space = tiny_store.masker("sub-02")
    texts = model.decode(
        tiny_store.betas("sub-02", [0, 1], standardize=True), space, max_new_tokens=4
    )
    assert model.encode(tiny_store.betas("sub-02", [0], standardize=True), space).shape == (
        1,
        config.encoder_config().num_fmri_tokens,
        config.encoder_config().token_dim,
    )
    assert len(texts) == 2


# The encoding model.


def test_a_trained_model_gives_evidence_and_keeps_it(
    trained: Path, tiny_store: Store, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    model = MindLLM.from_pretrained(trained)
    subject = tiny_store.subjects[0]
    betas, masker = tiny_store.betas(subject, standardize=True), tiny_store.masker(subject)
    texts = [*TEXTS[:5], "a bird sings"]  # the last one was never trained on
    evidence = model.evidence(betas, masker, texts, subject_betas=betas)
    assert evidence.shape == (len(betas), len(texts))
    assert evidence.isfinite().all()
    shown = tiny_store.trials(subject)["stimulus"].str.removeprefix("stim").astype(int).to_numpy()
    known = np.flatnonzero(shown < 5)
    right = evidence[:, :5].argmax(1).numpy()[known] == shown[known]
    assert right.mean() > 0.4  # these trials were trained on; chance 0.2
    model.save_pretrained(tmp_path / "copy")
    again = MindLLM.from_pretrained(tmp_path / "copy")
    assert torch.equal(again.evidence(betas, masker, texts, subject_betas=betas), evidence)
    content = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert content["sentence_encoder"] == model.sentence_encoder


def test_without_an_encoding_model_evidence_is_refused(
    tiny_store: Store, tiny_llm_folder: Path, tmp_path: Path
) -> None:
    model = train(tiny_store, tmp_path / "m", options(tiny_llm_folder, 1, 1, encoding_model=None))
    masker = tiny_store.masker(tiny_store.subjects[0])
    with pytest.raises(InputError, match="has no encoding model"):
        model.evidence(np.zeros((1, len(masker))), masker, ["a dog"])
    assert MindLLM.from_pretrained(tmp_path / "m").encoding_model is None


def test_training_further_does_not_keep_the_encoding_model_of_another_encoder(
    trained: Path, tiny_store: Store, tmp_path: Path
) -> None:
    config = TrainConfig(
        init_from=str(trained),
        instruction_tuning=StageConfig(max_steps=1, batch_size=8),
        encoding_model=None,
    )
    further = train(tiny_store, tmp_path / "further", config)
    assert MindLLM.from_pretrained(trained).encoding_model is not None
    assert further.encoding_model is None
    assert further.sentence_encoder is None


def test_what_comes_before_and_after_the_steps_is_shown(
    tmp_path: Path, tiny_store: Store, tiny_llm_folder: Path
) -> None:
    progress = make_progress(Console(file=io.StringIO()))
    with progress:
        train(tiny_store, tmp_path / "model", options(tiny_llm_folder, 1, 1), progress=progress)
    titles = [task.description.split(" (")[0] for task in progress.tasks]
    assert titles == [
        "loading the language model",
        "embedding texts",
        "training: alignment",
        "training: instruction_tuning",
        "encoding model: texts",
        "encoding model: trials",
        "encoding model: fit",
    ]
    assert all(task.finished for task in progress.tasks)
