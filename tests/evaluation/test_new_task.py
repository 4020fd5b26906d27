"""A model is adapted to questions that it never met, and compared with a new one."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.datasets.bids import BIDSReader
from mindllm.evaluation.new_task import MODELS, both_configs, check_is_new, compare_models
from mindllm.evaluation.question_answering import CONDITIONS
from mindllm.instructions import attach_source
from mindllm.metrics.tasks import score
from mindllm.model.modeling import MindLLM
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.simulator import simulate
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError

SCENES = SimulateConfig(
    n_subjects=2,
    resolution_mm=10,
    train_stimuli=16,
    val_stimuli=2,
    test_stimuli=4,
    n_repetitions=1,
    n_fourier_features=40,
    with_questions=True,
)
SIZES = {"num_queries": 16, "hidden_size": 16, "embedding_dim": 8, "num_fmri_tokens": 3}
STEPS = {"max_steps": 2, "batch_size": 4, "subjects_per_batch": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("new-task")
    simulate(folder / "bids", SCENES)
    store = BIDSReader(folder / "bids").prepare(folder / "store")
    attach_source(store, "tdiuc", [folder / "bids" / "questions"], by_type=True)
    return Store(folder / "store")


@pytest.fixture(scope="module")
def options(tiny_llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("options") / "options.json"
    content = {"encoder": SIZES, "alignment": STEPS, "instruction_tuning": STEPS}
    path.write_text(json.dumps(content | {"language_model": str(tiny_llm_folder)}))
    return path


@pytest.fixture(scope="module")
def model(store: Store, options: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = TrainConfig(**json.loads(options.read_text()), encoding_model=None)
    captions = next(s for s in store.conversations["source"] if not s.startswith("tdiuc/"))
    weights = {captions: 1.0, "tdiuc/scene_recognition": 1.0}
    folder = tmp_path_factory.mktemp("model") / "model"
    train(store, folder, config.model_copy(update={"source_weights": weights}))
    return folder


def test_before_adapted_and_from_scratch_are_asked_the_same(
    store: Store, model: Path, options: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["new-task", str(model), str(store.path), "--source", "tdiuc/counting"]
    arguments += ["--out", str(out), "--config", str(options), "--test-subjects", "sub-02"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "new_task.tsv", sep="\t")
    assert [*zip(table["model"], table["condition"], strict=True)] == [
        (m, c) for m in MODELS for c in CONDITIONS
    ]
    assert (table["n_items"] == 4).all()
    adapted = MindLLM.from_pretrained(out / "adapted-model")
    scratch = MindLLM.from_pretrained(out / "scratch-model")
    assert "tdiuc/counting" in (adapted.model_card.sources or [])
    assert scratch.model_card.sources == ["tdiuc/counting"]
    assert set(adapted.model_card.sources or []) > {"tdiuc/scene_recognition"}
    before = (out / "answers-before" / "scores.json").stat().st_mtime_ns
    assert CliRunner().invoke(app, arguments).exit_code == 0  # nothing is made again
    assert (out / "answers-before" / "scores.json").stat().st_mtime_ns == before


def test_a_source_that_the_model_knows_is_refused(model: Path) -> None:
    loaded = MindLLM.from_pretrained(model)
    with pytest.raises(InputError, match=r"trained on tdiuc/scene_recognition \(its sources: "):
        check_is_new(loaded, "tdiuc/scene_recognition", "model")
    check_is_new(loaded, "tdiuc/counting", "model")
    loaded.model_card = type(loaded.model_card)(sources=["tdiuc"])
    with pytest.raises(InputError, match="was trained on tdiuc/counting"):
        check_is_new(loaded, "tdiuc/counting", "model")


def test_both_trainings_take_the_same_steps_on_the_same_questions() -> None:
    config = TrainConfig(instruction_tuning={"max_steps": 7}, encoder={"num_queries": 8})
    further, anew = both_configs(config, "vqa-v2", "model", None)
    assert further.instruction_tuning == anew.instruction_tuning
    assert further.source_weights == anew.source_weights == {"vqa-v2": 1.0}
    assert (further.init_from, further.alignment.max_steps, further.encoder) == ("model", 0, {})
    assert (anew.init_from, anew.alignment) == (None, config.alignment)


def test_differences_are_paired_by_question() -> None:
    keys = [f"sub-0{subject}/s{i}#{i}/0" for subject in (1, 2) for i in range(4)]
    references = {key: {"type": "t", "answer": "a"} for key in keys}
    right = dict.fromkeys(references, "a")
    half = {key: "a" if "/s0" in key or "/s1" in key else "b" for key in references}
    none = dict.fromkeys(references, "c")
    scores = {
        name: {
            "fmri": score(answers, references, "tdiuc"),
            "null_tokens": score(none, references, "tdiuc"),
        }
        for name, answers in zip(MODELS, (half, right, none), strict=True)
    }
    rows = {(row.model, row.condition): row for row in compare_models(scores)}
    assert rows["adapted", "fmri"].value == 100
    before = rows["before", "fmri"]
    assert (before.value, before.difference, before.n_items) == (50, 50, 8)
    assert before.difference_ci_low < 50 < before.difference_ci_high
    control = rows["adapted", "null_tokens"]
    assert (control.difference, control.difference_ci_low) == (100, 100)
