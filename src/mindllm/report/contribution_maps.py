"""What every voxel contributes to the evidence of the evaluated trials, beside its control."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mindllm.data.store import Store
from mindllm.evaluation.results import TrialRecord
from mindllm.explain.evidence_path import Question, integrate
from mindllm.explain.features import AffineFeatures, trial_features
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.modeling import MindLLM
from mindllm.plotting.brain import plot_signed_slices, slice_heights, top_of_scale
from mindllm.report.figure_tables import brain_table

FIGURE = "contributions-all"
MAX_TRIALS = 120  # of a subject, at equal steps
CHUNK_TRIALS = 40  # whose voxels are in memory at once
N_SLICES = 7
MIN_LIMIT = 1e-9  # nats, of a color scale


@dataclass(frozen=True, slots=True)
class SubjectContributions:
    """Mean contributions of one subject's voxels, in nats.

    Parameters
    ----------
    masker : VoxelMasker
    trials : list of int
        Trials that are averaged.
    target : ndarray of shape (n_voxels,)
        To the evidence of each trial's target.
    control : ndarray of shape (n_voxels,)
        To the evidence of the targets of all these trials, mean over them.
    evidence, control_evidence : float
        Mean evidence of the targets, and of the targets of all trials.
    at_zero, control_at_zero : float
        Evidence of zero betas for the same, which no voxel contributes.
    """

    masker: VoxelMasker
    trials: list[int]
    target: np.ndarray
    control: np.ndarray
    evidence: float
    control_evidence: float
    at_zero: float
    control_at_zero: float

    @property
    def difference(self) -> np.ndarray:
        """What voxels contribute to the target beyond its control, (n_voxels,)."""
        return self.target - self.control


def map_contributions(
    model: MindLLM, store: Store, records: Sequence[TrialRecord]
) -> list[SubjectContributions]:
    """Compute what voxels contribute to the evidence of the evaluated trials for their targets.

    Parameters
    ----------
    model : MindLLM
        The evaluated model.
    store : Store
        Holds the trials.
    records : sequence of TrialRecord
        The evaluated trials; of each subject, up to 120 at equal steps.

    Returns
    -------
    list of SubjectContributions
        One per subject, in the order of the records; empty if the model has no encoding model.
    """
    if model.encoding_model is None:
        return []
    subjects = dict.fromkeys(record.subject for record in records)
    return [
        contribute_subject(model, store, [r for r in records if r.subject == subject])
        for subject in subjects
    ]


@torch.no_grad()
def contribute_subject(
    model: MindLLM, store: Store, records: Sequence[TrialRecord]
) -> SubjectContributions:
    """Compute the contributions of one subject's voxels; the subject is aligned as evaluated."""
    subject, n_drawn = records[0].subject, min(MAX_TRIALS, len(records))
    drawn = [records[i] for i in np.linspace(0, len(records) - 1, n_drawn).astype(int)]
    masker, trials = store.masker(subject), [record.trial_index for record in drawn]
    all_trials = np.arange(len(store.trials(subject)))
    aligned_by = None
    if subject not in model.adaptations:
        aligned_by = store.betas(subject, all_trials, standardize=True)
    betas = store.betas(subject, np.array(trials), standardize=True)
    features = trial_features(model, masker, betas, aligned_by)
    texts = sorted({record.target for record in drawn})
    numbers = torch.tensor([texts.index(record.target) for record in drawn])
    assert model.encoding_model is not None
    questions = [
        Question.of_texts(model.encoding_model, embedding[None])
        for embedding in model.embed_texts(texts)
    ]
    sums = [
        sum_chunk(features.select(rows.tolist()), questions, numbers[rows], numbers)
        for rows in torch.arange(len(drawn)).split(CHUNK_TRIALS)
    ]
    voxels = torch.stack([chunk[0] for chunk in sums]).sum(0) / len(drawn)
    totals = torch.stack([chunk[1] for chunk in sums]).sum(0) / len(drawn)
    evidence, control_evidence, at_zero, control_at_zero = totals.tolist()
    return SubjectContributions(
        masker=masker,
        trials=trials,
        target=voxels[0].numpy(),
        control=voxels[1].numpy(),
        evidence=evidence,
        control_evidence=control_evidence,
        at_zero=at_zero,
        control_at_zero=control_at_zero,
    )


def sum_chunk(
    features: AffineFeatures,
    questions: Sequence[Question],
    numbers: torch.Tensor,
    pool: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over some trials: contributions (2, n_voxels) to target and control, and evidence (4,).

    Parameters
    ----------
    features : AffineFeatures
        Of the trials.
    questions : sequence of Question
        One per text.
    numbers : Tensor of int, shape (n_trials,)
        Text of each trial.
    pool : Tensor of int, shape (n_pool,)
        Texts of all trials, over which the control is the mean.
    """
    weights = torch.bincount(pool, minlength=len(questions)).double() / len(pool)
    gradients = torch.zeros(2, *features.values.shape, dtype=torch.float64)
    totals = torch.zeros(4, dtype=torch.float64)
    for number, (question, weight) in enumerate(zip(questions, weights, strict=True)):
        path, is_target = integrate(question, features.values, features.at_zero), numbers == number
        gradients[0, is_target] = path.gradients[is_target]
        gradients[1] += weight * path.gradients
        totals += torch.stack(
            [
                path.evidence[is_target].sum(),
                weight * path.evidence.sum(),
                path.at_zero[is_target].sum(),
                weight * path.at_zero.sum(),
            ]
        )
    return torch.stack([features.to_voxels(part).sum(0) for part in gradients]), totals


def draw_contributions(parts: Sequence[SubjectContributions], dark: bool = False) -> bytes:
    """Draw what voxels contribute beyond the control, mean over subjects.

    Parameters
    ----------
    parts : sequence of SubjectContributions
    dark : bool
        Whether the figure is for a dark page.

    Returns
    -------
    bytes
        PNG.
    """
    maskers, values = [part.masker for part in parts], [part.difference for part in parts]
    limit = top_of_scale([np.abs(array) for array in values], MIN_LIMIT)
    heights = slice_heights(maskers, N_SLICES)
    return plot_signed_slices(maskers, values, limit, heights, dark)


def contribution_table(parts: Sequence[SubjectContributions]) -> pd.DataFrame:
    """Return the numbers of the picture, per cell of its grid, with those of the control.

    Parameters
    ----------
    parts : sequence of SubjectContributions

    Returns
    -------
    DataFrame
        `x_mm`, `y_mm`, `z_mm`, and in nats per voxel `target`, `control` and `difference`.
    """
    maskers = [part.masker for part in parts]
    table = brain_table(maskers, "target", [part.target for part in parts])
    control = brain_table(maskers, "control", [part.control for part in parts])
    table = table.assign(control=control["control"])
    return table.assign(difference=table["target"] - table["control"])
