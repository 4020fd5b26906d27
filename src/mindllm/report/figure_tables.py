"""The numbers of a report's figures, as tables that are written beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.results import ConfusionResult, EvaluationResult
from mindllm.fmri.masker import VoxelMasker
from mindllm.metrics.calibration import CalibrationBin, CalibrationResult, EvidenceCalibration
from mindllm.plotting.brain import resample_to_common_grid
from mindllm.report.summary import main_metric
from mindllm.utils.files import atomic_write

DIGITS = "%.6g"


def result_tables(result: EvaluationResult) -> dict[str, pd.DataFrame]:
    """Return the numbers of the figures that need nothing but the result.

    Parameters
    ----------
    result : EvaluationResult

    Returns
    -------
    dict of str to DataFrame
        Name of the figure -> its numbers.
    """
    tables = {
        "intervals-all": interval_table(result),
        "calibration-all": calibration_table(result.calibration),
    }
    if result.calibration.evidence is not None:
        tables["coverage-all"] = coverage_table(result.calibration.evidence)
    if result.confusion is not None:
        tables["confusion-all"] = confusion_table(result.confusion)
    return tables


def interval_table(result: EvaluationResult) -> pd.DataFrame:
    """Return the metric of the headline by condition and subject, in percent."""
    metric = main_metric(result)
    rows = [row for row in result.scores if row.metric == metric and row.value is not None]
    pooled = {row.condition for row in rows if row.subject == ALL_SUBJECTS}
    order = [*CONDITIONS]
    rows = sorted(
        (row for row in rows if row.condition in pooled),
        key=lambda row: (order.index(row.condition), row.subject != ALL_SUBJECTS),
    )
    return pd.DataFrame(
        {
            "condition": [row.condition for row in rows],
            "subject": [row.subject for row in rows],
            "metric": metric,
            "percent": [percent(row.value) for row in rows],
            "ci_low": [percent(row.ci_low) for row in rows],
            "ci_high": [percent(row.ci_high) for row in rows],
            "chance_level": [percent(row.chance_level) for row in rows],
            "n_trials": [row.n_trials for row in rows],
        }
    )


def percent(fraction: float | None) -> float:
    """Return a fraction in percent; None is not a number."""
    return float("nan") if fraction is None else 100 * fraction


def calibration_table(calibration: CalibrationResult) -> pd.DataFrame:
    """Return every bin of the reliability curves: mean score, and percent that is correct."""
    curves: dict[str, tuple[Sequence[CalibrationBin], str]] = {
        "prediction, log-likelihood ratio": (calibration.prediction.bins, "nats"),
        "most likely candidate, log-likelihood ratio": (calibration.top_candidate.bins, "nats"),
        "most likely candidate, probability": (calibration.probability.bins, "fraction"),
    }
    if calibration.evidence is not None:
        bins = calibration.evidence.probability.bins
        curves["candidate with the most evidence, probability"] = (bins, "fraction")
    rows = [
        (curve, unit, b.mean_score, 100 * b.accuracy, 100 * b.ci_low, 100 * b.ci_high, b.n_trials)
        for curve, (bins, unit) in curves.items()
        for b in bins
    ]
    columns = ["curve", "unit", "mean_score", "percent_correct", "ci_low", "ci_high", "n_trials"]
    return pd.DataFrame(rows, columns=columns)


def coverage_table(evidence: EvidenceCalibration) -> pd.DataFrame:
    """Return the curve of risk and coverage, in percent."""
    accuracy = 100 * np.array(evidence.accuracy)
    return pd.DataFrame(
        {
            "coverage": 100 * np.array(evidence.coverage),
            "percent_correct": accuracy,
            "risk": 100 - accuracy,
        }
    )


def confusion_table(confusion: ConfusionResult) -> pd.DataFrame:
    """Return trials by category of the target and of the most likely candidate."""
    counts = np.array(confusion.counts)
    totals = np.maximum(counts.sum(1), 1)
    rows = [
        (target, predicted, counts[i, j], 100 * counts[i, j] / totals[i])
        for i, target in enumerate(confusion.categories)
        for j, predicted in enumerate(confusion.categories)
    ]
    return pd.DataFrame(rows, columns=["target", "predicted", "n_trials", "percent_of_target"])


def brain_table(
    maskers: Sequence[VoxelMasker], column: str, values: Sequence[np.ndarray] | None = None
) -> pd.DataFrame:
    """Return the numbers of a brain picture: the cells of its grid that hold voxels.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    column : str
        Name of the column of the values.
    values : sequence of ndarrays (n_voxels,), optional
        As for `mindllm.plotting.brain.resample_to_common_grid`; without them, the number of
        subjects with voxels in a cell.

    Returns
    -------
    DataFrame
        `x_mm`, `y_mm`, `z_mm` of the center of a cell in MNI space, and the value.
    """
    occupied = resample_to_common_grid(maskers)
    cells = np.argwhere(np.asarray(occupied.dataobj) > 0)
    img = occupied if values is None else resample_to_common_grid(maskers, values)
    table = pd.DataFrame(apply_affine(img.affine, cells), columns=["x_mm", "y_mm", "z_mm"])
    return table.assign(**{column: np.asarray(img.dataobj)[tuple(cells.T)]})


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write the tables beside the figures, as tab-separated values.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Name of the figure -> its numbers.
    folder : Path
        The folder of the figures; what is not a number is n/a, as in BIDS.
    """
    for name, table in tables.items():
        with atomic_write(folder / f"{name}.tsv") as path:
            table.to_csv(
                path, sep="\t", index=False, na_rep="n/a", float_format=DIGITS, lineterminator="\n"
            )
