"""Alternative texts of a report's figures: what is to be seen, with the main numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.results import ConfusionResult
from mindllm.fmri.masker import VoxelMasker
from mindllm.metrics.calibration import CalibrationResult, EvidenceCalibration

if TYPE_CHECKING:
    from mindllm.report.contribution_maps import SubjectContributions

COVERAGES = (25, 50, 100)  # percent of the trials, whose accuracy is said


def describe_intervals(table: pd.DataFrame) -> str:
    """Describe the figure of conditions.

    Parameters
    ----------
    table : DataFrame
        As `mindllm.report.figure_tables.interval_table` returns it.

    Returns
    -------
    str
    """
    pooled = table[table["subject"] == ALL_SUBJECTS]
    values = ", ".join(
        f"{CONDITIONS[condition].label} {value:.1f}"
        for condition, value in zip(pooled["condition"], pooled["percent"], strict=True)
    )
    chance = table["chance_level"].dropna()
    suffix = f"; chance {chance.iloc[0]:.3g}" if len(chance) else ""
    return f"A dot with an interval for each condition, in percent of trials: {values}{suffix}."


def describe_calibration(calibration: CalibrationResult) -> str:
    """Describe the reliability curves.

    Parameters
    ----------
    calibration : CalibrationResult

    Returns
    -------
    str
    """
    by_evidence = calibration.evidence is not None
    curve = calibration.evidence.probability if calibration.evidence else calibration.probability
    name = "the candidate with the most evidence" if by_evidence else "the most likely candidate"
    points = ", ".join(f"{100 * b.mean_score:.0f} → {100 * b.accuracy:.0f}" for b in curve.bins)
    return (
        "Left: percent of trials that is correct over the log-likelihood ratio. Right: percent "
        f"that is correct over the probability, beside the diagonal; of {name}: {points}."
    )


def describe_coverage(evidence: EvidenceCalibration) -> str:
    """Describe the curve of risk and coverage.

    Parameters
    ----------
    evidence : EvidenceCalibration

    Returns
    -------
    str
    """
    coverage, accuracy = (100 * np.array(v) for v in (evidence.coverage, evidence.accuracy))
    indices = dict.fromkeys(int(np.abs(coverage - c).argmin()) for c in COVERAGES)
    points = ", ".join(
        f"{accuracy[i]:.0f} % correct of the surest {coverage[i]:.0f} %" for i in indices
    )
    return f"A curve of the percent that is correct over the percent that is answered: {points}."


def describe_confusion(confusion: ConfusionResult) -> str:
    """Describe the confusion matrix.

    Parameters
    ----------
    confusion : ConfusionResult

    Returns
    -------
    str
    """
    return (
        f"A matrix of {len(confusion.categories)} categories; {100 * confusion.accuracy:.0f} % of "
        f"trials are on its diagonal, by chance {100 * confusion.chance_level:.0f} %."
    )


def describe_voxels(maskers: Sequence[VoxelMasker]) -> str:
    """Describe where voxels are.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.

    Returns
    -------
    str
    """
    coords_mm = np.concatenate([masker.coords_mm for masker in maskers])
    low, high = coords_mm.min(0), coords_mm.max(0)
    extent = ", ".join(
        f"{axis} {a:.0f} to {b:.0f}" for axis, a, b in zip("xyz", low, high, strict=True)
    )
    return f"Glass brains from four sides with the voxels, at MNI {extent} mm."


def describe_attention(
    maskers: Sequence[VoxelMasker], relative_attention: Sequence[np.ndarray]
) -> str:
    """Describe where the attention is largest.

    Parameters
    ----------
    maskers : sequence of VoxelMasker
        One per subject.
    relative_attention : sequence of ndarrays (n_voxels,)
        One per subject.

    Returns
    -------
    str
    """
    coords_mm = np.concatenate([masker.coords_mm for masker in maskers])
    values = np.concatenate(relative_attention)
    top = coords_mm[values.argmax()]
    point = ", ".join(f"{mm:.0f}" for mm in top)
    return (
        f"Axial slices of the MNI template in the colors of the attention; the largest is "
        f"{values.max():.1f}, at MNI {point} mm."
    )


def describe_contributions(parts: "Sequence[SubjectContributions]") -> str:
    """Describe where voxels contribute most beyond the control.

    Parameters
    ----------
    parts : sequence of SubjectContributions

    Returns
    -------
    str
    """
    coords_mm = np.concatenate([part.masker.coords_mm for part in parts])
    values = np.concatenate([part.difference for part in parts])
    point = ", ".join(f"{mm:.0f}" for mm in coords_mm[values.argmax()])
    return (
        "Axial slices of the MNI template; red where voxels speak for the target more than for the "
        f"text of a random trial, blue where less; most at MNI {point} mm."
    )
