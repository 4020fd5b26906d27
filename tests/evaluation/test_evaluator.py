"""The evaluation as a whole, on tiny models: a planted perfect, a silent and a random one."""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from mindllm.data.store import Store
from mindllm.data.store_writer import conversations_from_captions, write_store
from mindllm.evaluation.compare import compare
from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.evaluator import evaluate
from mindllm.evaluation.results import EvaluationResult, MetricRow, SubjectInfo
from mindllm.fmri.masker import VoxelMasker
from mindllm.metrics import captions
from mindllm.metrics.java import JavaError, java_problem
from mindllm.metrics.registry import METRICS
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.report.summary import summarize_findings
from mindllm.report.write import to_table, write_report
from mindllm.utils.errors import InputError
from tests.report.example import REPORT_FILES

# These models have no encoding model.
BY_LIKELIHOOD = [name for name in METRICS if "evidence" not in name]
STIMULI = 12


class Planted(MindLLM):
    """A model of known answers: voxel number s is the log-likelihood of answer s, times `skill`."""

    skill = 1.0
    wording = "scene {}"

    def encode(self, betas, masker):
        width = self.encoder.config.num_fmri_tokens * self.encoder.config.token_dim
        read = torch.as_tensor(betas)[:, :STIMULI] * self.skill
        return torch.nn.functional.pad(read, (0, width - STIMULI)).unflatten(
            1, (-1, self.encoder.config.token_dim)
        )

    def score_candidates(self, tokens, candidates, question="", rows=512):
        assert not self.training, "dropout must be off"
        if not tokens.shape[1]:  # the question alone
            return torch.zeros(len(tokens), len(candidates))
        return tokens.flatten(1)[:, [int(c.split()[1]) for c in candidates]]

    def generate(self, tokens, conversations, stream=None, **options):
        assert len(tokens) == len(conversations)
        assert "<fMRI>" in conversations[0][0]["content"]
        if not tokens.shape[1]:
            return ["nothing"]
        return [self.wording.format(int(n)) for n in tokens.flatten(1)[:, :STIMULI].argmax(1)]


def planted(tiny_model: MindLLM, **card: object) -> Planted:
    model = Planted(
        tiny_model.encoder.config, tiny_model.encoder.parcel_names, tiny_model.language_model
    )
    names = [f"s{i:02d}" for i in range(STIMULI)]
    known = ModelCard(
        subjects=["other"],
        stimuli=names,
        answers={f"scene {i}": 2 for i in range(STIMULI)},
        store="elsewhere",
        seed=1,
        versions={},
    )
    model.model_card = replace(known, **card)
    return model


def make_store(
    path: Path, space: VoxelMasker, *, noise: float = 0.1, split: str = "train", people: int = 2
) -> Store:
    """Everybody sees each stimulus twice; voxel s is high for stimulus s."""
    rng, shown, subjects = np.random.default_rng(0), np.tile(np.arange(STIMULI), 2), []
    for n in range(people):
        betas = noise * rng.normal(size=(len(shown), len(space)))
        betas[np.arange(len(shown)), shown] += 1
        trials = pd.DataFrame({"stimulus": [f"s{i:02d}" for i in shown], "split": split})
        own = replace(space, subject=f"sub-{n + 1:02d}")
        subjects.append((own, betas.astype(np.float32), trials))
    table = pd.DataFrame(
        {
            "stimulus": [f"s{i:02d}" for i in range(STIMULI)],
            "caption": [f"scene {i}" for i in range(STIMULI)],
        }
    )
    return write_store(
        path,
        subjects,
        conversations_from_captions(table),
        name="planted",
        source="made by the tests",
        license="MIT",
    )


@pytest.fixture
def store(tmp_path: Path, space: VoxelMasker) -> Store:
    return make_store(tmp_path / "store", space)


def quick(model: MindLLM, store: Store, *args: object, **options: object) -> EvaluationResult:
    return evaluate(model, store, *args, progress=False, **options)


def get_row(
    rows: Sequence[MetricRow],
    metric: str,
    condition: str = "fmri",
    subject: str = ALL_SUBJECTS,
) -> MetricRow:
    keys = (metric, condition, subject)
    return next(row for row in rows if (row.metric, row.condition, row.subject) == keys)


def test_a_planted_perfect_model_gets_everything_right(tiny_model: MindLLM, store: Store) -> None:
    report = quick(planted(tiny_model), store)
    for metric in BY_LIKELIHOOD:
        for subject in ("sub-01", "sub-02", ALL_SUBJECTS):
            row = get_row(report.scores, metric, subject=subject)
            assert row.value == row.ci_low == row.ci_high == 1
            assert row.p_value == pytest.approx(1 / 2001)
    assert report.value("identification_top1", "shuffled_trials") == pytest.approx(1 / STIMULI)
    assert get_row(report.scores, "identification_top1").mean_rank == 1
    assert "above its controls: shuffled trials" in summarize_findings(report)[0]
    assert "not above" not in summarize_findings(report)[0]


def test_a_model_that_says_nothing_stands_at_chance_and_the_verdict_says_so(
    tiny_model: MindLLM, store: Store
) -> None:
    model = planted(tiny_model)
    model.skill = 0.0
    report = quick(model, store)
    for row in report.scores:
        if CONDITIONS[row.condition].kind in ("reference", "baseline"):
            continue
        if row.metric != "exact_match":
            assert row.value == pytest.approx(row.chance_level, rel=1e-9), row
        elif row.condition != "question_only":
            assert row.value == pytest.approx(1 / STIMULI), row
    assert get_row(report.scores, "identification_top1").p_value == 1
    assert "not above its controls" in summarize_findings(report)[0]


def test_noise_alone_is_not_above_its_controls(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    report = quick(planted(tiny_model), make_store(tmp_path / "noise", space, noise=1e6))
    shuffled = get_row(report.scores, "identification_top1", "shuffled_trials")
    assert shuffled.value == pytest.approx(1 / STIMULI)
    assert (
        min(
            row.p_value
            for row in report.scores
            if row.subject == ALL_SUBJECTS and row.p_value is not None
        )
        > 0.01
    )
    assert get_row(report.scores, "identification_top1").p_value > 0.05
    assert "not above its controls" in summarize_findings(report)[0]


def test_constant_uses_training_frequencies(tiny_model: MindLLM, store: Store) -> None:
    report = quick(planted(tiny_model, answers={"scene 3": 50, "scene 4": 1}), store)
    assert report.value("exact_match", "most_frequent") == pytest.approx(1 / STIMULI)
    assert report.value("identification_top1", "most_frequent") == pytest.approx(1 / STIMULI)
    assert report.run_info.most_frequent_text == "scene 3"
    assert report.run_info.n_most_frequent == 1


def test_no_trial_is_dropped_and_shuffled_order_does_not_matter(
    tiny_model: MindLLM, store: Store
) -> None:
    report = quick(planted(tiny_model), store, batch_size=5)
    assert [(p.subject, p.trial_index) for p in report.predictions] == [
        (s, i) for s in store.subjects for i in range(24)
    ]
    assert {row.n_trials for row in report.scores if row.subject == ALL_SUBJECTS} == {48}
    assert report.scores == quick(planted(tiny_model), store, batch_size=16).scores


def test_only_unseen_trials_are_evaluated(
    tiny_model: MindLLM, store: Store, tmp_path: Path, space: VoxelMasker
) -> None:
    trained = planted(tiny_model, subjects=["sub-01"])
    with pytest.raises(
        InputError,
        match=r"no trial of the split test.*sub-01 \(the model was trained"
        r".*--subjects; possible here: sub-02",
    ):
        quick(trained, store)
    with pytest.raises(InputError, match="trained on these training trials"):
        quick(trained, store, ["sub-01"], split="train")
    report = quick(trained, store, ["sub-02"])
    assert report.run_info.subjects == (
        SubjectInfo(
            subject="sub-02",
            n_trials=24,
            n_stimuli=12,
            n_voxels=60,
            split="all (never trained on, no test split)",
            in_training=False,
            chose_checkpoint=False,
            n_stimuli_in_training=12,
            standardized_with="training trials of this subject, the evaluated ones among them, "
            "without labels",
        ),
    )
    assert "identification of seen stimuli in unseen subjects" in summarize_findings(report)[-1]
    tested = quick(
        planted(tiny_model, subjects=["sub-01"], stimuli=["x"]),
        make_store(tmp_path / "test", space, split="test"),
    )
    assert tested.run_info.subjects[0].split == "test"
    assert "none of the 12 evaluated stimuli was" in summarize_findings(tested)[-1]


def test_validation_people_are_no_clean_test(
    tiny_model: MindLLM, store: Store, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = quick(planted(tiny_model, validation_subjects=["sub-02"]), store)
    write_report(report, out)
    assert any(
        "Not a clean test: trials of sub-02 were validation data" in sentence
        for sentence in summarize_findings(report)
    )
    assert "chose the weights" in (out / "report.html").read_text()


def test_a_silent_card_is_unknown_not_guessed(
    tiny_model: MindLLM, store: Store, tmp_path: Path
) -> None:
    model = planted(tiny_model)
    model.model_card = ModelCard()
    report = quick(model, store)
    write_report(report, tmp_path / "out")
    assert report.run_info.model.trained_on_subjects is None
    assert report.run_info.subjects[0].in_training is None
    assert report.value("exact_match", "most_frequent") is None
    assert "unknown" in summarize_findings(report)[-1]
    assert "unknown" in (tmp_path / "out" / "report.md").read_text()


def test_trials_without_an_answer_are_an_error(tiny_model: MindLLM, store: Store) -> None:
    store.__dict__["conversations"] = store.conversations.iloc[:-2]
    with pytest.raises(InputError, match="8 of 48 trials show 2 stimuli without an answer"):
        quick(planted(tiny_model), store)


def test_a_diverged_model_is_an_error(tiny_model: MindLLM, store: Store) -> None:
    model = planted(tiny_model)
    model.skill = float("nan")
    with pytest.raises(InputError, match="NaN or infinite likelihoods"):
        quick(model, store)


def test_the_real_path_with_a_tiny_language_model(tiny_model: MindLLM, tiny_store: Store) -> None:
    tiny_model.train()
    report = quick(tiny_model, tiny_store, ["sub-01", "sub-03"], batch_size=7, max_new_tokens=4)
    assert tiny_model.training, "the caller's mode is kept"
    assert len(report.predictions) == 48
    assert report.log_likelihoods["sub-03"].shape == (24, 6)
    assert report.value("identification_top1", "shuffled_trials") == pytest.approx(1 / 6)
    assert report.value("identification_llr_top1", "null_tokens") == pytest.approx(1 / 6)


class Page(HTMLParser):
    """Collects what a page refers to, and checks that tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action")
        ]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_what_is_written(tiny_model: MindLLM, store: Store, tmp_path: Path) -> None:
    model = planted(tiny_model)
    model.wording = "scene {} <script>alert(1)</script>"
    report = quick(model, store, model_name="my-model")
    assert not (tmp_path / "out").exists(), "evaluate writes nothing"
    write_report(report, tmp_path / "out", model=model, store=store)
    Console(file=(screen := io.StringIO()), width=140).print(to_table(report))
    assert "above its controls" in " ".join(screen.getvalue().split())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == REPORT_FILES
    content = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {
        "subject",
        "condition",
        "metric",
        "value",
        "ci_low",
        "ci_high",
        "n_trials",
        "n_subjects",
        "p_value",
        "chance_level",
    } <= set(content["rows"][0])
    found = {(r["subject"], r["condition"], r["metric"]) for r in content["rows"]}
    measured = (
        set(CONDITIONS)
        - set(content["run_info"]["skipped_conditions"])
        - {"human", "other_model", "linear_discriminant"}
    )
    assert found == {
        (s, c, m)
        for s in ("sub-01", "sub-02", ALL_SUBJECTS)
        for c in measured
        for m in BY_LIKELIHOOD
    }
    assert len(content["rows"]) == len(found)
    assert all(
        r["ci_low"] - 1e-9 <= r["value"] <= r["ci_high"] + 1e-9
        for r in content["rows"]
        if r["value"] is not None
    )
    assert content["format"] == 5
    assert content["run_id"] == report.run_id
    assert content["run_info"]["model"]["name"] == "my-model"
    assert {"data", "seed", "versions", "started"} <= set(content["run_info"])
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 48
    html = (tmp_path / "out" / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert not page.open
    images = [link for link in page.links if link.startswith("data:image/png;base64,")]
    assert len(images) == 2 * 9
    numbers = sorted(set(page.links) - set(images))
    assert len(numbers) == 9
    assert all((tmp_path / "out" / name).suffix == ".tsv" for name in numbers)
    assert all((tmp_path / "out" / name).exists() for name in numbers)
    assert not re.search(r"<script|<link|@import|url\(", html), (
        "nothing runs and nothing is fetched"
    )
    with np.load(tmp_path / "out" / "candidate_log_likelihoods.npz", allow_pickle=False) as file:
        assert set(file.files) == {"candidates", "null_tokens", "sub-01", "sub-02"}


@pytest.mark.skipif(java_problem() is not None, reason="no Java that runs")
@pytest.mark.parametrize("program", ["meteor", "tokenize_lines"])
def test_a_report_is_kept_where_java_dies(
    tiny_model: MindLLM,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
) -> None:
    def die(*args: object) -> None:
        raise JavaError("the Java program died (exit code 1).")

    monkeypatch.setattr(captions, program, die)
    model = planted(tiny_model)
    result = quick(model, store)
    write_report(result, tmp_path / "out", model=model, store=store)
    page = (tmp_path / "out" / "report.html").read_text()
    text = (tmp_path / "out" / "result.json").read_text()
    assert "NaN" not in text
    if program == "meteor":
        assert get_row(result.text_scores, "METEOR").value is None
        assert get_row(result.text_scores, "BLEU-1").value == pytest.approx(1)
        assert result.run_info.text_scores_skipped is None
    else:
        assert result.text_scores == []
        assert result.run_info.text_scores_skipped == "the Java program died (exit code 1)."
        assert "Not measured: the Java program died (exit code 1)." in page
    assert EvaluationResult.load(tmp_path / "out").run_info == result.run_info
    rows = compare(tmp_path / "out", tmp_path / "out").rows
    assert ("BLEU-1" in {row.metric for row in rows}) == (program == "meteor")
