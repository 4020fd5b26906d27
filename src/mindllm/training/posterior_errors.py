"""Errors of expected embeddings, measured by leaving out training subjects and their texts.

A text reader is taught on text with these errors as noise. They are those of a new text in a new
subject: each trial is read by a model that was fitted without its subject and without its text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mindllm.model.embedding_regression import PENALTIES, EvidenceScale
from mindllm.model.encoding_fit import (
    MAX_LEFT_OUT,
    RegressionFolds,
    SubjectFeatures,
    fit_closed_form,
)
from mindllm.model.encoding_model import EncodingModel, EncodingModelConfig, center_embeddings
from mindllm.model.subject_alignment import evenly_spaced
from mindllm.model.text_reader import expected_embeddings, mean_expected_embeddings
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

MIN_SUBJECTS = 3  # two are left to fit to when one is left out


@dataclass(frozen=True)
class PosteriorErrors:
    """Expected embeddings of left-out trials: what their text makes of them, and a residual.

    Parameters
    ----------
    gain : float
        Of expected embeddings over the mean that the encoding model has for their text.
    means : Tensor of shape (n_trials, embedding_dim)
        That mean, by the model that the trial is left out of.
    residuals : Tensor of shape (n_trials, embedding_dim)
        Expected embeddings minus `gain` times that mean.
    explained : float
        Fraction of the sum of squares of expected embeddings that the mean explains.
    texts : Tensor of int64, shape (n_trials,)
        Number of the true text of each trial.
    """

    gain: float
    means: Tensor
    residuals: Tensor
    explained: float
    texts: Tensor

    def disturb(self, means: Tensor, trials: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Expected embeddings of texts, as if they had the errors of trials.

        Parameters
        ----------
        means : Tensor of shape (n, embedding_dim)
            `mean_expected_embeddings` of the texts.
        trials : Tensor of int64, shape (n,)
            Trials whose residuals are taken.
        scale : float or Tensor of shape (n, 1)
            What residuals are multiplied by.

        Returns
        -------
        Tensor of shape (n, embedding_dim)
        """
        return self.gain * means + scale * self.residuals[trials]


@dataclass(frozen=True)
class TrainingTrials:
    """What an encoding model was fitted to; see `fit_encoding_model`.

    Parameters
    ----------
    subjects : mapping from str to SubjectFeatures
    embeddings : Tensor of shape (n_texts, embedding_dim)
    stimulus_texts : Tensor of int64, shape (n_stimuli,)
    config : EncodingModelConfig
    """

    subjects: Mapping[str, SubjectFeatures]
    embeddings: Tensor
    stimulus_texts: Tensor
    config: EncodingModelConfig

    def without(self, subject: str, texts: Tensor) -> "TrainingTrials":
        """Leave out a subject, and the trials of some texts in the others."""
        kept = {}
        for name, part in self.subjects.items():
            rows = ~torch.isin(self.stimulus_texts[part.stimuli], texts)
            if name != subject and rows.any():
                kept[name] = SubjectFeatures(part.values[rows], part.stimuli[rows])
        return replace(self, subjects=kept)


def measure_errors(
    trials: TrainingTrials,
    model: EncodingModel,
    n_folds: int = 6,
    seed: int = 0,
    advance: Advance | None = None,
) -> PosteriorErrors:
    """Measure the errors of expected embeddings of trials that a model was not fitted to.

    Parameters
    ----------
    trials : TrainingTrials
    model : EncodingModel
        Fitted to them; its rank and its scales are taken.
    n_folds : int
        Folds of texts, each of which is left out with each subject (20 at most).
    seed : int
        Of the folds.
    advance : Advance, optional
        Called with 1 for each subject.

    Returns
    -------
    PosteriorErrors

    Raises
    ------
    InputError
        If there are fewer than three subjects or four texts.
    """
    used = torch.unique(
        trials.stimulus_texts[torch.cat([part.stimuli for part in trials.subjects.values()])]
    )
    if len(trials.subjects) < MIN_SUBJECTS or len(used) < 4:
        raise InputError(
            f"{len(trials.subjects)} training subjects and {len(used)} texts: errors of left-out "
            f"subjects and texts need at least {MIN_SUBJECTS} subjects and four texts."
        )
    order = np.random.default_rng(seed).permutation(used.numpy())
    folds = [torch.from_numpy(order[i::n_folds]) for i in range(min(n_folds, len(order) // 2))]
    penalty = find_penalty(trials, model)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    names = list(trials.subjects)
    for name in (names[i] for i in evenly_spaced(len(names), MAX_LEFT_OUT)):
        for fold in folds:
            parts.append(read_left_out(trials, model, penalty, name, fold))
        if advance:
            advance(1)
    e, m, texts = (torch.cat(values) for values in zip(*parts, strict=True))
    gain = float((e * m).sum() / m.square().sum().clamp_min(torch.finfo(m.dtype).tiny))
    residuals = e - gain * m
    explained = 1 - float(residuals.square().sum() / e.square().sum())
    return PosteriorErrors(gain, m, residuals, explained, texts)


def read_left_out(
    trials: TrainingTrials, model: EncodingModel, penalty: float, subject: str, fold: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Expected embeddings of a left-out subject's trials of left-out texts, their means, texts."""
    left_out, others = trials.subjects[subject], trials.without(subject, fold)
    of_trial = trials.stimulus_texts[left_out.stimuli]
    rows = torch.isin(of_trial, fold)
    rank = len(model.group_covariance)
    parts = others.subjects, trials.embeddings, trials.stimulus_texts
    fitted = fit_closed_form(*parts, trials.config, rank)
    if model.regression_weights.any():
        n_axes, gain = model.regression_scale.shape[1], float(model.regression_gain)
        scale = EvidenceScale(gain=gain, penalty=PENALTIES.index(penalty), n_axes=n_axes)
        RegressionFolds(*parts).add_to(fitted, scale)
    fitted.temperature.copy_(model.temperature)
    transform = fitted.subject_transform(left_out.values)
    expected = expected_embeddings(fitted, left_out.values[rows], transform)
    texts = of_trial[rows]
    true = center_embeddings(trials.embeddings[texts].double(), fitted.text_center)
    return expected, mean_expected_embeddings(fitted, true), texts


def find_penalty(trials: TrainingTrials, model: EncodingModel) -> float:
    """Penalty of the ridge regression that a model was fitted with, which is not saved."""
    folds = RegressionFolds(trials.subjects, trials.embeddings, trials.stimulus_texts)
    n_axes = model.regression_scale.shape[1]
    distances = [
        float((folds.combine(number, n_axes)[0] - model.regression_weights).norm())
        for number in range(len(PENALTIES))
    ]
    return PENALTIES[int(np.argmin(distances))]
