"""Controls, baselines, protocols and statistics: against other computations, and under a null."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kstest, ttest_1samp
from sklearn.metrics import roc_auc_score

from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.evaluation.baselines import (
    AnswerEmbeddings,
    ConditionSkipped,
    TrainingTrials,
    cluster_oracle,
    most_frequent_baseline,
)
from mindllm.evaluation.compare import compare
from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.evaluation_set import EvaluationSet, build_evaluation_set
from mindllm.evaluation.noise_ceiling import noise_ceiling
from mindllm.evaluation.predictor import Predictor
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.evaluation.score import pool_subjects, score_predictions, summarize_scores
from mindllm.evaluation.text_scores import TEXT_METRICS, corpus_scores, measure, text_scores
from mindllm.fmri.masker import VoxelMasker
from mindllm.metrics.calibration import auroc, reliability
from mindllm.metrics.captions import caption_scores, tokenize
from mindllm.metrics.identification import n_way_weights, rank_scores
from mindllm.metrics.inference import bootstrap_interval, group_p_value, p_value, permutation_null
from mindllm.metrics.registry import METRICS
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.report.write import write_report
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from tests.conftest import TINY_SIZES, update_manifests
from tests.evaluation.test_evaluator import STIMULI, get_row, make_store, planted, quick


@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_n_way_is_the_mean_over_all_sets_of_distractors(n: int) -> None:
    scores = np.array([0.1, 0.9, 0.4, 0.4, -1.0, 0.4, 0.8])
    found = rank_scores(scores[None], n_way_weights(7, n))[0]
    for true in range(7):
        others = [c for c in range(7) if c != true]
        wins = []
        for some in itertools.combinations(others, n - 1):
            level = sum(scores[c] == scores[true] for c in some)
            wins.append((scores[list(some)] <= scores[true]).all() / (1 + level))
        assert found[true] == pytest.approx(np.mean(wins))
    assert n_way_weights(7, n).mean() == pytest.approx(1 / n), "chance_level"


def test_pairwise_is_how_many_others_are_less_likely() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 9))
    below = (scores[:, None, :] < scores[:, :, None]).sum(2) / 8
    np.testing.assert_allclose(rank_scores(scores, n_way_weights(9, 2)), below)


def test_people_are_drawn_too_and_count_alike() -> None:
    values = np.repeat([0.0, 1.0], [90, 10])
    people = np.repeat(["a", "b"], [90, 10])
    low, high = bootstrap_interval(values, np.arange(100), people)
    assert (low, high) == (0, 1), "with two people, both or one of them alone may be drawn"
    one = bootstrap_interval(values, np.arange(100))
    assert one[1] < 0.2


def test_the_interval_over_people_and_stimuli_covers_the_population() -> None:
    rng, inside, repeats = np.random.default_rng(4), 0, 200
    people, stimuli = np.repeat(np.arange(12), 30), np.tile(np.arange(30), 12)
    for seed in range(repeats):
        truth = 0.5 + 0.1 * rng.normal(size=12)[people] + 0.1 * rng.normal(size=30)[stimuli]
        low, high = bootstrap_interval(
            truth + 0.3 * rng.normal(size=360), stimuli, people, resamples=300, seed=seed
        )
        inside += low <= 0.5 <= high
    assert 0.89 <= inside / repeats <= 1


def test_people_at_large_is_students_test() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, (7, 3))
    np.testing.assert_allclose(
        group_p_value(differences), ttest_1samp(differences, 0, alternative="greater").pvalue
    )


def test_stand_ins_come_from_the_trials_own_group() -> None:
    credit = np.diag([1.0, 1, 0, 0])
    within = permutation_null(
        [(credit, np.arange(4))], (np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3]))
    )
    assert (within == 0.5).all(), "alone in its group, a trial stays in place"
    few = permutation_null(
        [(np.eye(2), np.array([0, 0, 1, 1]))], (np.zeros(2), np.zeros(4)), permutations=4000
    )
    assert few.mean() == pytest.approx(0.5, abs=0.02)


# The tests of a report, under the null and with a signal, on readings of known making.

CANDIDATES, PEOPLE = 20, 2


def made_up(seed: int, signal: float) -> tuple[EvaluationSet, list[SubjectPredictions]]:
    """Readings that prefer some answers whatever the scan, with a signal in the brain's alone."""
    rng = np.random.default_rng(seed)
    names = [f"s{i:02d}" for i in range(2 * CANDIDATES)]
    truth = np.arange(2 * CANDIDATES) % CANDIDATES
    answers = [f"answer {i}" for i in range(CANDIDATES)]
    rows = {f"p{n}": np.arange(len(names)) for n in range(PEOPLE)}
    task = EvaluationSet(
        rows,
        dict.fromkeys(rows, "test"),
        names,
        [[answers[t]] for t in truth],
        answers,
        truth,
        "",
        "",
    )
    liked = {
        c: 2 * rng.normal(size=CANDIDATES)
        for c in ("fmri", "trained_on_permuted_pairs", "ridge", "null_tokens", "most_frequent")
    }
    people = []
    for person in rows:
        brain, pairs, ridge = (
            liked[c] + rng.normal(size=(len(names), CANDIDATES))
            for c in ("fmri", "trained_on_permuted_pairs", "ridge")
        )
        brain[np.arange(len(names)), truth] += signal
        texts = [answers[i] for i in brain.argmax(1)]
        own = ConditionPredictions(brain, texts, liked["null_tokens"])
        said = {"fmri": own, "shuffled_trials": own.broadcast_to_trials(len(names))}
        said["shuffled_within_session"] = own.shared_within(
            np.arange(len(names)) % 4, np.arange(len(names)) % 4
        )
        said["null_tokens"] = ConditionPredictions(
            liked["null_tokens"][None], ["?"], liked["null_tokens"]
        ).broadcast_to_trials(len(names))
        said["most_frequent"] = ConditionPredictions(
            liked["most_frequent"][None], [answers[0]], liked["most_frequent"]
        ).broadcast_to_trials(len(names))
        said["trained_on_permuted_pairs"] = ConditionPredictions(
            pairs, [answers[i] for i in pairs.argmax(1)], liked["trained_on_permuted_pairs"]
        )
        said["ridge"] = ConditionPredictions(ridge, [answers[i] for i in ridge.argmax(1)])
        people.append(SubjectPredictions(person, np.array(names), said))
    return task, people


def p_values(seed: int, signal: float = 0.0) -> dict[tuple[str, str], float]:
    task, people = made_up(seed, signal)
    pooled = pool_subjects(
        [score_predictions(r, task, permutations=399, seed=[seed, n]) for n, r in enumerate(people)]
    )
    rows = summarize_scores(pooled, CANDIDATES, resamples=20, seed=seed)
    return {(r.condition, r.metric): r.p_value for r in rows if r.p_value is not None}


@pytest.fixture(scope="module")
def null() -> list[dict[tuple[str, str], float]]:
    return [p_values(seed) for seed in range(250)]


@pytest.mark.parametrize(
    "condition",
    [
        "shuffled_trials",
        "shuffled_within_session",
        "null_tokens",
        "most_frequent",
        "trained_on_permuted_pairs",
        "ridge",
    ],
)
def test_without_a_signal_p_values_are_uniform(
    null: list[dict[tuple[str, str], float]], condition: str
) -> None:
    values = np.array([found[condition, "identification_2way"] for found in null])
    assert kstest(values, "uniform").pvalue > 0.001
    for level in (0.05, 0.1, 0.25):
        assert (values < level).mean() == pytest.approx(
            level, abs=3.5 * np.sqrt(level * (1 - level) / len(null))
        )


def test_without_a_signal_no_score_is_above_any_control_too_often(
    null: list[dict[tuple[str, str], float]],
) -> None:
    for key in null[0]:
        share = np.mean([found[key] < 0.05 for found in null])
        assert share <= 0.05 + 3.5 * np.sqrt(0.05 * 0.95 / len(null)), key


def test_with_a_signal_every_control_is_beaten() -> None:
    for seed in range(5):
        assert (
            max(p for (_, metric), p in p_values(seed, 5.0).items() if "gain" not in metric) < 0.05
        )


def test_a_control_better_than_shuffled_scans_moves_the_null_up() -> None:
    task, people = made_up(0, 1.5)
    strong = people[0].conditions | {
        "most_frequent": ConditionPredictions(
            np.zeros((1, CANDIDATES)), [task.candidates[0]]
        ).broadcast_to_trials(2 * CANDIDATES)
    }
    easy = EvaluationSet(
        task.trial_indices,
        task.splits,
        task.stimuli,
        [[task.candidates[0], *some] for some in task.references],
        task.candidates,
        task.target_indices,
        "",
        "",
    )
    rows = summarize_scores(
        score_predictions(SubjectPredictions("p0", people[0].stimuli, strong), easy, seed=0),
        CANDIDATES,
    )
    row = get_row(rows, "exact_match", "most_frequent", "p0")
    assert row.value == 1
    assert row.p_value > 0.5


# Reading without a scan, and averaged.


def test_the_question_alone_has_no_place_for_a_scan(tiny_model: MindLLM, tiny_store: Store) -> None:
    task = build_evaluation_set(tiny_store, ModelCard(), ["sub-01"], None, None, "What?")
    reader = Predictor(tiny_model, task, generate_options={"max_new_tokens": 4})
    said = reader.predict_question_only()
    assert said.log_likelihoods is not None
    assert said.log_likelihoods.shape == (1, len(task.candidates))
    assert tiny_model.processor.num_fmri_tokens == tiny_model.encoder.config.num_fmri_tokens, (
        "the model itself is left as it was"
    )
    # The same by hand: tokenize the conversation without the placeholder.
    tokenizer, answer = tiny_model.language_model.tokenizer, task.candidates[2]
    turns = tiny_model.build_conversation(task.question, answer)
    turns[0]["content"] = turns[0]["content"].replace("<fMRI>", "")
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    start = text.index(answer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    with torch.no_grad():
        logits = tiny_model.language_model.model(ids).logits[0].log_softmax(-1)
    end = len(text.rstrip())
    counted = [i for i, (a, _) in enumerate(encoded["offset_mapping"]) if start <= a < end]
    expected = sum(logits[i - 1, ids[0, i]].item() for i in counted)
    assert said.log_likelihoods[0, 2] == pytest.approx(expected, abs=1e-3)


def test_repeats_are_averaged_before_they_are_read(tiny_store: Store) -> None:
    groups = [np.array([0, 6]), np.array([3]), np.array([1, 7, 13])]
    found = tiny_store.mean_betas("sub-02", groups)
    for row, group in zip(found, groups, strict=True):
        np.testing.assert_allclose(
            row, tiny_store.betas("sub-02", group, standardize=True).mean(0), rtol=1e-5, atol=1e-5
        )


# Baselines.


def test_training_on_shuffled_pairs_keeps_everything_but_the_pairs(tiny_store: Store) -> None:
    trials = TrialDataset(tiny_store, ["sub-01", "sub-02"])
    before = trials.table.copy()
    trials.permute_pairs(3)
    assert (before[["subject", "row"]] == trials.table[["subject", "row"]]).all().all()
    assert (before["stimulus"] != trials.table["stimulus"]).mean() > 0.5
    for subject in ("sub-01", "sub-02"):
        counts = [
            t[t["subject"] == subject]["stimulus"].value_counts().sort_index()
            for t in (before, trials.table)
        ]
        assert counts[0].equals(counts[1])


def test_ridge_reads_a_person_it_was_not_trained_on(tiny_model: MindLLM, tiny_store: Store) -> None:
    card = ModelCard(
        subjects=["sub-01", "sub-02"],
        store="tiny",
        answers=dict.fromkeys([answers[0] for answers in tiny_store.conversations["answers"]], 4),
    )
    training = TrainingTrials(tiny_store, card)
    task = build_evaluation_set(tiny_store, card, ["sub-03"], None, None, "What?")
    meanings = AnswerEmbeddings(tiny_model.language_model, card.answers, task.candidates)
    said = training.predict_ridge(meanings, "sub-03", [np.array([row]) for row in range(24)])
    _, true = task.columns(tiny_store.trials("sub-03")["stimulus"].to_numpy())
    assert said.log_likelihoods is not None
    assert (said.log_likelihoods.argmax(1) == true).mean() >= 0.4, "chance is one in six"
    with pytest.raises(ConditionSkipped, match="not on one grid"):
        training.predict_nearest_neighbor(task, "sub-03", [np.array([0])])


def test_nearest_pattern_reads_planted_voxels(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    store = make_store(tmp_path / "store", space, people=3)
    report = quick(
        planted(tiny_model, subjects=["sub-01", "sub-02"], store="planted"), store, ["sub-03"]
    )
    assert report.value("identification_top1", "nearest_neighbor") > 0.8
    assert report.value("exact_match", "nearest_neighbor") > 0.8
    assert report.value("identification_llr_top1", "nearest_neighbor") is None, (
        "it has no answer without a scan"
    )
    right = [p.control_predictions["nearest_neighbor"] == p.target for p in report.predictions]
    assert np.mean(right) == pytest.approx(report.value("exact_match", "nearest_neighbor"))


def test_a_model_of_another_store_has_no_baselines_and_the_report_says_why(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    report = quick(planted(tiny_model), make_store(tmp_path / "store", space))
    assert "not in this store" in report.run_info.skipped_conditions["ridge"]
    assert "--controls all" in report.run_info.skipped_conditions["trained_on_permuted_pairs"]


def test_the_oracle_knows_the_cluster_and_nothing_else(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    store = make_store(tmp_path / "store", space)
    task = build_evaluation_set(store, ModelCard(), ["sub-01"], None, None, "What?")
    meanings = AnswerEmbeddings(tiny_model.language_model, {"scene 3": 2}, task.candidates)
    said = cluster_oracle(task, task.stimuli, meanings, 4)
    assert said.log_likelihoods is not None
    sizes = said.log_likelihoods.sum(1)
    assert (said.log_likelihoods[np.arange(STIMULI), task.target_indices] == 1).all()
    assert sorted(set(said.texts)) == ["scene 3"], "it says training answers"
    assert (1 / sizes).sum() == pytest.approx(4), "each cluster is counted once"


def test_the_constant_answer_is_the_most_frequent_and_of_equals_the_most_central(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    task = build_evaluation_set(
        make_store(tmp_path / "store", space), ModelCard(), None, None, None, "What?"
    )
    answers = {"scene 1": 5, "scene 2": 5, "scene 3": 1}
    said = most_frequent_baseline(
        task, answers, AnswerEmbeddings(tiny_model.language_model, answers, task.candidates)
    )
    assert set(said.texts) == {"scene 1", "scene 2"}


# Text scores.


def test_text_scores_are_the_official_ones() -> None:
    said = ["a dog runs on the beach", "two people", "A cat, sleeping!", "pizza"]
    right = [
        ["a dog runs along a beach", "the dog"],
        ["two people eat pizza", "people"],
        ["a cat sleeps", "cat"],
        ["a red car", "car"],
    ]
    texts = sorted({*said, *(t for some in right for t in some)})
    lines = {text: found[0] for text, found in tokenize({text: [text] for text in texts}).items()}
    measured = measure([[text] for text in said], right, lines)
    official, _ = caption_scores(
        {str(i): t for i, t in enumerate(said)}, {str(i): r for i, r in enumerate(right)}
    )
    np.testing.assert_allclose(100 * measured.scores, [official[m] for m in TEXT_METRICS])
    own = corpus_scores(measured.table.sum(0)[None], np.array([4]))[0]
    keep = [i for i, m in enumerate(TEXT_METRICS) if m != "METEOR"]
    np.testing.assert_allclose(
        100 * own[keep], [official[TEXT_METRICS[i]] for i in keep], rtol=1e-6
    )


def test_text_scores_stand_beside_their_controls_and_a_human() -> None:
    task, people = made_up(0, 9.0)
    task = EvaluationSet(
        task.trial_indices,
        task.splits,
        task.stimuli,
        [[some[0], f"the {some[0]}", "an answer"] for some in task.references],
        task.candidates,
        task.target_indices,
        "",
        "",
    )
    rows = text_scores(people, task)
    brain, shuffled = get_row(rows, "BLEU-1"), get_row(rows, "BLEU-1", "shuffled_trials")
    assert brain.value > 0.95
    assert brain.ci_low <= brain.value <= brain.ci_high + 1e-9
    assert shuffled.difference_ci_low > 0
    assert get_row(rows, "BLEU-1", "human").value > shuffled.value
    assert {r.subject for r in rows} == {"p0", "p1", ALL_SUBJECTS}


# Calibration and ceiling.


def test_auroc_and_reliability() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    right = (rng.random(4000) < p).astype(float)
    found = auroc(p, right)
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(right, p))
    assert found.ci_low < found.value < found.ci_high
    assert auroc(p, np.ones(4000)) is None
    curve = reliability(p, right)
    assert sum(b.n_trials for b in curve) == 4000
    assert all(b.ci_low - 0.02 <= b.mean_score <= b.ci_high + 0.02 for b in curve)


def test_evidence_of_every_answer(tiny_model: MindLLM, tiny_store: Store) -> None:
    report = quick(tiny_model, tiny_store, ["sub-01"], max_new_tokens=4)
    assert all(np.isfinite(p.log_likelihood_ratio) for p in report.predictions)
    tokens = tiny_model.encode(
        tiny_store.betas("sub-01", [5], standardize=True), tiny_store.masker("sub-01")
    )
    again = tiny_model.log_likelihood_ratio(
        tokens,
        [tiny_model.build_conversation(report.run_info.question, report.predictions[5].prediction)],
    )
    assert report.predictions[5].log_likelihood_ratio == pytest.approx(float(again[0]), abs=1e-3)
    assert 0 <= report.calibration.expected_calibration_error <= 1


def test_the_noise_ceiling_of_planted_repeats(tmp_path: Path, space: VoxelMasker) -> None:
    clear, noise = (make_store(tmp_path / str(n), space, noise=n, people=1) for n in (0.05, 1e3))
    task = build_evaluation_set(clear, ModelCard(), None, None, None, "What?")
    found = noise_ceiling(clear, task, "sub-01")
    assert found is not None
    assert found.leave_one_repetition_out_top1 > 0.5
    assert found.reliable_voxel_fraction >= STIMULI / len(space)
    lost = noise_ceiling(noise, task, "sub-01")
    assert lost is not None
    assert lost.leave_one_repetition_out_top1 < 0.3


# Protocols, the full report, and two of them compared.


def test_protocols_are_rows_of_their_own(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    store = make_store(tmp_path / "store", space, noise=0.5)
    store.meta["stimulus_sets"] = {"half": [f"s{i:02d}" for i in range(6)]}
    report = quick(
        planted(tiny_model, subjects=["sub-01"], stimuli=["s00", "s01"]), store, ["sub-02"]
    )
    found = {part.name: part for part in report.protocols}
    assert list(found) == [
        "single trials",
        "single trials, half",
        "single trials, stimuli seen in training",
        "single trials, stimuli new",
        "averaged repetitions",
        "averaged repetitions, half",
        "averaged repetitions, stimuli seen in training",
        "averaged repetitions, stimuli new",
    ]
    assert (found["single trials"].n_trials, found["single trials"].n_candidates) == (24, 12)
    assert (
        found["averaged repetitions, half"].n_trials,
        found["averaged repetitions, half"].n_candidates,
    ) == (6, 6)
    values = {
        name: next(
            r.value for r in part.rows if (r.condition, r.metric) == ("fmri", "identification_top1")
        )
        for name, part in found.items()
    }
    assert values["single trials"] == report.value("identification_top1")
    assert values["averaged repetitions"] > values["single trials"]


def quick_training(tiny_llm_folder: Path) -> TrainConfig:
    return TrainConfig(
        language_model=str(tiny_llm_folder),
        encoder=TINY_SIZES | {"embedding_dim": 16},
        alignment={"max_steps": 40, "batch_size": 48},
        instruction_tuning={"max_steps": 4, "batch_size": 8},
    )


def test_the_full_report_trains_on_shuffled_pairs_once(
    tiny_llm_folder: Path, tiny_store: Store, tmp_path: Path
) -> None:
    model = train(
        tiny_store,
        tmp_path / "model",
        quick_training(tiny_llm_folder),
        subjects=["sub-01", "sub-02"],
    )
    with pytest.raises(InputError, match="give a folder"):
        quick(model, tiny_store, ["sub-03"], controls="all")
    out = tmp_path / "report"
    evaluate_all = partial(
        quick, model, tiny_store, ["sub-03"], controls="all", cache_dir=out, max_new_tokens=4
    )
    report = evaluate_all()
    assert report.value("identification_top1", "trained_on_permuted_pairs") is not None
    assert "trained_on_permuted_pairs" not in report.run_info.skipped_conditions
    other = MindLLM.from_pretrained(out / "permuted-pairs")
    assert other.model_card.config == model.model_card.config | {
        "permute_pairs": True,
        "language_model": model.language_model.name,
    }
    assert other.model_card.subjects == ["sub-01", "sub-02"]
    assert {(row.atlas, row.n_subjects) for row in report.ablation} <= {
        ("visual", 1),
        ("lobes", 1),
    }
    assert len(report.ablation) > 1
    written = (out / "permuted-pairs" / "model.safetensors").stat().st_mtime_ns
    again = evaluate_all()
    assert (out / "permuted-pairs" / "model.safetensors").stat().st_mtime_ns == written, (
        "trained once"
    )
    assert again.scores == report.scores
    write_report(report, out)
    assert "Without a parcel" in (out / "report.md").read_text()


def test_a_report_compared_with_itself_and_with_others(
    tiny_model: MindLLM, tmp_path: Path, space: VoxelMasker
) -> None:
    store = make_store(tmp_path / "store", space, noise=0.3)
    good, bad = planted(tiny_model), planted(tiny_model)
    bad.skill = 0.0
    quick(good, store, model_name="good").save(tmp_path / "good")
    quick(bad, store, model_name="bad").save(tmp_path / "bad")
    quick(good, store, ["sub-01"]).save(tmp_path / "less")
    same = compare(tmp_path / "good", tmp_path / "good")
    assert all(
        row.difference == row.difference_ci_low == row.difference_ci_high == 0 for row in same.rows
    )
    assert all(row.p_value == 1 for row in same.rows if row.p_value is not None)
    rows = {row.metric: row for row in compare(tmp_path / "good", tmp_path / "bad").rows}
    assert set(rows) == {*(m for m in METRICS if "evidence" not in m), *TEXT_METRICS}
    assert rows["identification_2way"].difference_ci_low > 0.2
    assert rows["identification_2way"].p_value < 0.01
    back = {row.metric: row for row in compare(tmp_path / "bad", tmp_path / "good").rows}
    assert back["identification_2way"].difference == -rows["identification_2way"].difference
    assert {m: row.p_value for m, row in back.items()} == {
        m: row.p_value for m, row in rows.items()
    }
    records = (tmp_path / "bad" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "bad" / "predictions.jsonl").write_text("".join(records[:-1]))
    with pytest.raises(InputError, match=r"predictions\.jsonl is not the file that was written"):
        compare(tmp_path / "good", tmp_path / "bad")
    update_manifests(tmp_path / "bad")
    with pytest.raises(
        InputError,
        match=r"predictions\.jsonl has the trials .*'sub-02': 23.*those of .*'sub-02': 24",
    ):
        compare(tmp_path / "good", tmp_path / "bad")
    with pytest.raises(InputError, match="not about the same trials: 24 of 48"):
        compare(tmp_path / "good", tmp_path / "less")
    with pytest.raises(InputError, match="a report"):
        compare(tmp_path / "good", tmp_path / "store")


def test_every_condition_has_words() -> None:
    for name, condition in CONDITIONS.items():
        assert all((condition.label, condition.words, condition.meaning)), name
    assert (p_value(0.5, np.zeros((9, 1))) == 0.1).all()
