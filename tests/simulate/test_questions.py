"""Questions and boxes of simulated scenes: true to the scenes, and readable as public files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mindllm.data.store import Store
from mindllm.datasets.bids import BIDSReader
from mindllm.instructions import attach_source
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.questions import BOXES_FILE, position_box, write_questions
from mindllm.simulate.scenes import ATTRIBUTES, POSITION_TUNING, POSITIONS
from mindllm.simulate.simulator import simulate
from mindllm.simulate.subject import simulate_subject
from mindllm.simulate.world import build_experiment
from mindllm.utils.errors import InputError

PLAIN = SimulateConfig(
    n_subjects=2,
    resolution_mm=8,
    train_stimuli=24,
    val_stimuli=4,
    test_stimuli=8,
    n_fourier_features=80,
)
WITH_QUESTIONS = PLAIN.model_copy(update={"with_questions": True})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("scenes") / "bids", WITH_QUESTIONS)


def test_scenes_and_their_patterns_are_the_same_without_questions() -> None:
    plain, other = build_experiment(PLAIN), build_experiment(WITH_QUESTIONS)
    columns = list(plain.stimuli.columns)
    pd.testing.assert_frame_equal(plain.stimuli, other.stimuli[columns])
    assert np.array_equal(plain.weights, other.weights[: len(plain.weights)])
    assert len(other.weights) - len(plain.weights) == len(POSITIONS["position"])
    counts = other.stimuli.groupby("split")["position"].value_counts().unstack()
    assert (counts.max(1) - counts.min(1) <= 1).all()


def test_early_visual_voxels_alone_respond_to_the_position() -> None:
    config = WITH_QUESTIONS.model_copy(update={"response_noise": 0.0})
    subject = simulate_subject(replace(build_experiment(config), config=config), 0)
    strength = (subject.patterns[-len(POSITIONS["position"]) :] ** 2).sum(0)
    experiment = build_experiment(config)
    labels = experiment.labels["HCPEx"][tuple(subject.voxel_indices.T)]
    names = experiment.names["HCPEx"]
    tuned = [any(p in names.get(label, "") for p in POSITION_TUNING.parcels) for label in labels]
    inside, outside = strength[np.array(tuned)].mean(), strength[~np.array(tuned)].mean()
    assert inside > 10 * outside > 0  # borders are soft


def test_questions_are_answered_by_the_scene() -> None:
    scene = {name: next(iter(values)) for name, values in (ATTRIBUTES | POSITIONS).items()}
    rng = np.random.default_rng(0)
    presence = set()
    for _ in range(20):
        items = {item.question_type: item for item in write_questions(scene, rng)}
        asked = items["object_presence"]
        assert asked.answer == ("yes" if f" {scene['agent']}?" in asked.question else "no")
        presence.add(asked.answer)
    assert presence == {"yes", "no"}
    assert items["counting"].answer == scene["number"]
    assert items["positional_reasoning"].answer == "upper left"


def test_boxes_do_not_overlap_and_fill_the_image() -> None:
    boxes = [position_box(position) for position in POSITIONS["position"]]
    covered = np.zeros((448, 448), int)
    for x1, y1, x2, y2 in boxes:
        covered[y1:y2, x1:x2] += 1
    assert (covered == 1).all()


def test_files_become_sources_of_a_store(folder: Path, tmp_path: Path) -> None:
    store = BIDSReader(folder).prepare(tmp_path / "store")
    attach_source(store, "tdiuc", [folder / "questions"], by_type=True)
    attach_source(store, "refcoco", [folder / "questions" / BOXES_FILE])
    store = Store(tmp_path / "store")
    sources = set(store.conversations["source"])
    assert {"tdiuc/counting", "tdiuc/positional_reasoning", "refcoco"} < sources
    table = store.conversations.set_index("source")
    scenes = pd.read_csv(folder / "stimuli" / "stimuli.tsv", sep="\t").set_index("stimulus")
    for row in table.loc["tdiuc/counting"].itertuples():
        assert list(row.answers) == [scenes.at[row.stimulus, "number"], "counting"]
    for row in table.loc["refcoco"].itertuples():
        box = [value / 448 for value in position_box(scenes.at[row.stimulus, "position"])]
        assert json.loads(row.answers[0]) == box
        assert row.turns[0]["content"].startswith(f"the {scenes.at[row.stimulus, 'agent']}\n")
    with pytest.raises(InputError, match="questions of refcoco have no types; those of tdiuc do"):
        attach_source(store, "refcoco", [folder / "questions"], by_type=True)
