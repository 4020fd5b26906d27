"""Typed results as the dictionaries that the report still reads. Goes when the report is typed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group

from mindllm.data.store import Store
from mindllm.evaluation.results import (
    AblationRow,
    EvaluationResult,
    MetricRow,
    RunInfo,
    TrialRecord,
)
from mindllm.evaluation.text_scores import TEXT_METRICS, percent_factor
from mindllm.metrics.calibration import CalibrationCurve
from mindllm.model.modeling import MindLLM
from mindllm.report.render import as_html, as_markdown, as_table
from mindllm.report.summary import summarize_findings
from mindllm.utils.files import atomic_write

UNKNOWN = "unknown"


def write_report(
    result: EvaluationResult,
    out: Path,
    *,
    model: MindLLM | None = None,
    store: Store | None = None,
) -> None:
    """Write the result and its report; brain figures where model and store are given."""
    result.save(out)
    content = report_content(result)
    figures: dict[str, bytes] = {}
    if model is not None and store is not None:
        from mindllm.report.brain_figures import draw_figures  # slow to import

        maskers = [store.masker(info.subject) for info in result.run_info.subjects]
        figures, parcels = draw_figures(model, maskers, content)
        content["meta"]["attention_by_region"] = parcels
    for name, figure in figures.items():
        kind, subject, theme = name.split("|")
        if theme == "light":
            with atomic_write(out / "figures" / f"{kind}-{subject}.png") as path:
                path.write_bytes(figure)
    predictions = [record_content(record) for record in result.predictions]
    with atomic_write(out / "report.md") as path:
        path.write_text(as_markdown(content, predictions, figures), encoding="utf-8")
    with atomic_write(out / "report.html") as path:
        path.write_text(as_html(content, predictions, figures), encoding="utf-8")


def terminal_table(result: EvaluationResult) -> Group:
    """Return the summary and scores, to print with rich."""
    return as_table(report_content(result), [record_content(r) for r in result.predictions])


def report_content(result: EvaluationResult) -> Any:
    """Return the former content of report.json."""
    rows = [row_content(row) for row in result.scores]
    texts = [row_content(row) for row in result.text_scores]
    meta = run_content(result.run_info) | {
        "noise_ceiling": {
            c.subject: {
                "repeats": c.n_repetitions,
                "explainable_median": c.median_explainable_variance,
                "reliable_voxels": c.reliable_voxel_fraction,
                "own_repeats_top1": c.leave_one_repetition_out_top1,
                "ci_low": c.ci_low,
                "ci_high": c.ci_high,
                "stimuli": c.n_stimuli,
            }
            for c in result.noise_ceilings
        },
        "calibration": {
            "decoded": curve_content(result.calibration.prediction),
            "likeliest": curve_content(result.calibration.top_candidate),
            "probability": curve_content(result.calibration.probability)
            | {"expected_calibration_error": result.calibration.expected_calibration_error},
        },
        "ablation": None
        if result.ablation is None
        else [ablation_content(row) for row in result.ablation],
        "confusion": None
        if result.confusion is None
        else {
            "categories": list(result.confusion.categories),
            "counts": [list(row) for row in result.confusion.counts],
            "origin": result.confusion.source,
            "right": result.confusion.accuracy,
            "chance_level": result.confusion.chance_level,
        },
    }
    protocols = [
        {
            "name": p.name,
            "meaning": p.description,
            "people": p.n_subjects,
            "stimuli": p.n_stimuli,
            "trials": p.n_trials,
            "candidates": p.n_candidates,
            "rows": [row_content(row) for row in p.rows],
            "texts": [row_content(row) for row in p.text_rows],
        }
        for p in result.protocols
    ]
    return {
        "verdict": summarize_findings(rows, texts, meta),
        "rows": rows,
        "texts": texts,
        "protocols": protocols,
        "meta": meta,
    }


def row_content(row: MetricRow) -> Any:
    """Return a row with percent for text scores, and without what is not defined."""
    factor = percent_factor(row.metric) if row.metric in TEXT_METRICS else 1
    content = {k: v for k, v in asdict(row).items() if v is not None}
    for name in ("value", "ci_low", "ci_high"):
        content.setdefault(name, None)
    content.setdefault("chance_level", None)
    for name in content:
        if name in ("value", "ci_low", "ci_high") or name.startswith("difference"):
            content[name] = None if content[name] is None else factor * content[name]
    return content | {"n": row.n_trials}


def record_content(record: TrialRecord) -> Any:
    """Return a record with its former keys."""
    content = asdict(record)
    renamed = {
        "truth": "target", "accepted": "references", "decoded": "prediction",
        "evidence": "log_likelihood_ratio", "log_likelihood": "target_log_likelihood",
        "gain": "target_llr", "gain_rank": "llr_rank", "likeliest": "top_candidates",
        "likeliest_gain": "top_candidate_llr", "others": "control_predictions",
        "likeliest_probability": "top_candidate_probability",
    }  # fmt: skip
    return content | {old: content[new] for old, new in renamed.items()}


def curve_content(curve: CalibrationCurve) -> Any:
    """Return a curve with its former keys."""
    return {
        "auroc": None if curve.auroc is None else asdict(curve.auroc),
        "right": curve.accuracy,
        "curve": [
            {
                "mean": b.mean_score,
                "right": b.accuracy,
                "n": b.n_trials,
                "ci_low": b.ci_low,
                "ci_high": b.ci_high,
            }
            for b in curve.bins
        ],
    }


def ablation_content(row: AblationRow) -> Any:
    """Return a row of the ablation with its former keys."""
    losses = {
        f"{name}_{part}": value
        for name, loss in (("top1", row.top1_loss), ("2way", row.two_way_loss))
        for part, value in (("loss", loss.value), ("low", loss.ci_low), ("high", loss.ci_high))
    }
    return losses | {
        "parcellation": row.atlas,
        "region": row.parcel,
        "voxel_share": row.voxel_fraction,
        "people": row.n_subjects,
        "trials": row.n_trials,
    }


def known(value: object) -> Any:
    """Return a value, or 'unknown' for None."""
    return UNKNOWN if value is None else value


def run_content(run: RunInfo) -> Any:
    """Return how it was measured, with its former keys."""
    model = {k: known(v) for k, v in asdict(run.model).items()}
    return {
        "model": model
        | {
            "llm": run.model.language_model,
            "llm_fingerprint": run.model.language_model_fingerprint,
        },
        "data": {k: known(v) for k, v in asdict(run.data).items()},
        "subjects": {
            s.subject: {
                "trials": s.n_trials,
                "stimuli": s.n_stimuli,
                "split": s.split,
                "voxels": s.n_voxels,
                "in_training": known(s.in_training),
                "chose_checkpoint": s.chose_checkpoint,
                "stimuli_seen_in_training": known(s.n_stimuli_in_training),
                "normalized_with": s.standardized_with,
            }
            for s in run.subjects
        },
        "stimuli": run.n_stimuli,
        "stimuli_seen_in_training": known(run.n_stimuli_in_training),
        "question": run.question,
        "question_origin": run.question_source,
        "candidates": list(run.candidates),
        "null_tokens_text": run.null_tokens_text,
        "question_only_text": run.question_only_text,
        "zero_text": run.zero_text,
        "noise_text": run.noise_text,
        "constant_text": known(run.most_frequent_text),
        "constant_ties": run.n_most_frequent,
        "seed": run.seed,
        "bootstrap_resamples": run.n_resamples,
        "permutations": run.n_permutations,
        "batch_size": run.batch_size,
        "generate_options": run.generate_options,
        "versions": run.versions,
        "oracle_clusters": run.n_oracle_clusters,
        "missing": run.skipped_conditions,
        "no_text_scores": run.text_scores_skipped,
        "controls": run.controls,
        "time": run.started,
        "seconds": run.seconds,
    }
