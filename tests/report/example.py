"""A small result, made by hand, for the tests of the report."""

from dataclasses import replace
from typing import Any

import numpy as np

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.results import (
    AblationRow,
    ConfusionResult,
    EvaluationResult,
    MetricRow,
    ModelInfo,
    NoiseCeiling,
    ProtocolResult,
    RunInfo,
    StoreInfo,
    SubjectInfo,
    TrialRecord,
)
from mindllm.evaluation.text_scores import TEXT_METRICS
from mindllm.metrics.calibration import (
    CalibrationBin,
    CalibrationCurve,
    CalibrationResult,
    Estimate,
    EvidenceCalibration,
)
from mindllm.metrics.registry import METRICS

SKIPPED = {"shuffled_within_session": "every subject has one session"}
REPORT_FILES = [
    "candidate_evidence.npz",
    "candidate_log_likelihoods.npz",
    "figures",
    "manifest.json",
    "predictions.jsonl",
    "report.html",
    "report.md",
    "result.json",
]
CANDIDATES = tuple(f"scene {i}" for i in range(10))
HIGH, LOW, SURE, UNSURE = 0.6, 0.1, 1 / 2001, 0.4


def make_row(subject: str, condition: str, metric: str, **changes: Any) -> MetricRow:
    """fMRI is high and the others are low, with the smallest p-value."""
    value = HIGH if condition == "fmri" else LOW
    is_reference = CONDITIONS[condition].kind == "reference"
    row = MetricRow(
        subject=subject,
        condition=condition,
        metric=metric,
        value=value,
        ci_low=value - 0.05,
        ci_high=value + 0.05,
        chance_level=None if metric == "exact_match" else 0.1,
        n_trials=12,
        n_subjects=2 if subject == ALL_SUBJECTS else 1,
        p_value=None if is_reference else SURE,
        difference=HIGH - value,
        difference_ci_low=HIGH - value - 0.05,
        difference_ci_high=HIGH - value + 0.05,
    )
    return replace(row, **changes)


def make_rows(subjects: tuple[str, ...], metrics: tuple[str, ...]) -> list[MetricRow]:
    conditions = [
        name
        for name in CONDITIONS
        if name not in {*SKIPPED, "human", "other_model", "linear_discriminant"}
    ]
    return [make_row(s, c, m) for s in subjects for c in conditions for m in metrics]


def make_records(n: int = 12, text: str = "scene 1") -> list[TrialRecord]:
    return [
        TrialRecord(
            subject=f"sub-{1 + i % 2:02d}",
            trial_index=i,
            stimulus=f"s{i}",
            session="1",
            repetition=0,
            target="scene 1",
            references=("scene 1",),
            prediction=text,
            log_likelihood_ratio=1.5,
            exact_match=text == "scene 1",
            target_log_likelihood=-3.0,
            target_llr=float(i),
            rank=1.0,
            llr_rank=1.0,
            top_candidates=CANDIDATES[:5],
            top_candidate_llr=1.0,
            top_candidate_probability=0.5,
            target_evidence=2.0,
            evidence_rank=1.0,
            top_evidence_candidates=CANDIDATES[:5],
            top_evidence_probability=0.5,
            control_predictions={},
        )
        for i in range(n)
    ]


def make_calibration(ci_low: float = 0.6) -> CalibrationResult:
    bins = (CalibrationBin(0.2, 0.4, 6, 0.1, 0.7), CalibrationBin(0.9, 0.8, 6, 0.4, 0.9))
    curve = CalibrationCurve(Estimate(0.7, ci_low, 0.8), 0.6, bins)
    error = Estimate(0.05, 0.02, 0.09)
    evidence = EvidenceCalibration(curve, error, error, error, (0.5, 1.0), (0.9, 0.6))
    return CalibrationResult(curve, curve, replace(curve, auroc=None), 0.25, evidence)


def make_run_info(subjects: tuple[str, ...], **changes: Any) -> RunInfo:
    run = RunInfo(
        model=ModelInfo("my-model", "tiny", "f00", ("other",), "elsewhere", 1, {}, {}),
        data=StoreInfo("a store", "the tests", "MIT", "0.1.0", "default"),
        subjects=tuple(
            SubjectInfo(name, 6, 6, 50, "test", False, False, 0, "training trials")
            for name in subjects
        ),
        n_stimuli=12,
        n_stimuli_in_training=0,
        question="What?\n<fMRI>",
        question_source="of the data set",
        candidates=CANDIDATES,
        controls="default",
        null_tokens_text="nothing",
        question_only_text="nothing",
        zero_text="nothing",
        noise_text="nothing",
        most_frequent_text="scene 1",
        n_most_frequent=1,
        n_oracle_clusters=8,
        skipped_conditions=SKIPPED,
        text_scores_skipped=None,
        seed=0,
        n_resamples=2000,
        n_permutations=2000,
        batch_size=16,
        generate_options={},
        versions={"mindllm": "0.1.0"},
        started="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    return replace(run, **changes)


def make_result(n_subjects: int = 2, **changes: Any) -> EvaluationResult:
    subjects = tuple(f"sub-{i + 1:02d}" for i in range(n_subjects))
    rows = make_rows((*subjects, ALL_SUBJECTS), tuple(METRICS))
    text_rows = make_rows((ALL_SUBJECTS,), TEXT_METRICS)
    pooled = tuple(row for row in rows if row.subject == ALL_SUBJECTS)
    protocol = ProtocolResult(
        "single trials", "one trial at a time", n_subjects, 12, 12, 10, pooled, tuple(text_rows)
    )
    loss = Estimate(0.02, -0.01, 0.05)
    result = EvaluationResult(
        run_id="0",
        scores=rows,
        text_scores=text_rows,
        protocols=[protocol],
        predictions=make_records(),
        run_info=make_run_info(subjects),
        calibration=make_calibration(),
        confusion=ConfusionResult(("a", "b"), ((5, 1), (2, 4)), "a column", 0.75, 0.5),
        noise_ceilings=[NoiseCeiling("sub-01", 2.0, 0.3, 0.6, 0.4, 0.3, 0.5, 6)],
        ablation=[AblationRow("lobes", "Occipital_L", 0.2, 2, 12, loss, loss)],
        log_likelihoods={s: np.zeros((6, len(CANDIDATES)), np.float32) for s in subjects},
        null_log_likelihoods=np.zeros(len(CANDIDATES), np.float32),
        evidence={s: np.zeros((6, len(CANDIDATES)), np.float32) for s in subjects},
    )
    return replace(result, **changes)


def change_rows(result: EvaluationResult, condition: str, **changes: Any) -> EvaluationResult:
    """The same result with other scores of one condition."""

    def changed(rows: list[MetricRow]) -> list[MetricRow]:
        return [replace(r, **changes) if r.condition == condition else r for r in rows]

    scores, text_scores = changed(result.scores), changed(result.text_scores)
    return replace(result, scores=scores, text_scores=text_scores)
