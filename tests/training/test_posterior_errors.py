"""Errors of expected embeddings are those of left-out trials."""

import pytest
import torch

from mindllm.model.embedding_regression import PENALTIES, EvidenceScale
from mindllm.model.encoding_fit import (
    RegressionFolds,
    SubjectFeatures,
    fit_closed_form,
    fit_encoding_model,
)
from mindllm.model.encoding_model import EncodingModelConfig
from mindllm.model.text_reader import expected_embeddings
from mindllm.training.posterior_errors import (
    TrainingTrials,
    find_penalty,
    measure_errors,
    read_left_out,
)
from mindllm.utils.errors import InputError

N_TEXTS, SIZE, WIDTH = 24, 6, 16
CONFIG = EncodingModelConfig(rank=12)


def make_trials(signal: float, n_subjects: int = 3) -> TrainingTrials:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(N_TEXTS, SIZE).double(), dim=1)
    weights = signal * torch.randn(SIZE, WIDTH).double()
    texts = torch.arange(N_TEXTS).repeat(3)
    subjects = {
        f"sub-0{n + 1}": SubjectFeatures(
            embeddings[texts] @ weights + torch.randn(len(texts), WIDTH), texts
        )
        for n in range(n_subjects)
    }
    return TrainingTrials(subjects, embeddings, torch.arange(N_TEXTS), CONFIG)


def test_a_signal_is_told_from_noise() -> None:
    explained = []
    for signal in (0.0, 3.0):
        trials, done = make_trials(signal), []
        model = fit_encoding_model(
            trials.subjects, trials.embeddings, trials.stimulus_texts, CONFIG
        )
        errors = measure_errors(trials, model, n_folds=4, advance=done.append)
        assert len(errors.residuals) == len(errors.texts) == 3 * 72
        assert sum(done) == 3
        assert sorted(errors.texts.tolist()) == sorted(list(range(N_TEXTS)) * 9)
        explained.append(errors.explained)
        means = torch.randn(5, SIZE).double()
        rows = torch.arange(5)
        torch.testing.assert_close(errors.disturb(means, rows, 0.0), errors.gain * means)
        torch.testing.assert_close(
            errors.disturb(means, rows), errors.gain * means + errors.residuals[:5]
        )
    assert explained[0] < 0.1
    assert explained[1] > 0.3


def test_neither_the_subject_nor_the_texts_are_fitted_to() -> None:
    trials = make_trials(2.0)
    model = fit_encoding_model(trials.subjects, trials.embeddings, trials.stimulus_texts, CONFIG)
    fold = torch.arange(6)
    kept = trials.without("sub-01", fold)
    assert list(kept.subjects) == ["sub-02", "sub-03"]
    assert not any(torch.isin(part.stimuli, fold).any() for part in kept.subjects.values())
    before = read_left_out(trials, model, 1.0, "sub-01", fold)
    # Other trials of these texts, and of the other texts in this subject, change nothing but the
    # subject's own scale, which is made of its trials alone.
    other = make_trials(2.0).subjects["sub-02"]
    rows = torch.isin(other.stimuli, fold)
    other.values[rows] = 100.0
    changed = TrainingTrials(
        trials.subjects | {"sub-02": other},
        trials.embeddings,
        trials.stimulus_texts,
        CONFIG,
    )
    after = read_left_out(changed, model, 1.0, "sub-01", fold)
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one, two)


def test_the_penalty_of_the_fit_is_found() -> None:
    trials = make_trials(2.0)
    model = fit_encoding_model(trials.subjects, trials.embeddings, trials.stimulus_texts, CONFIG)
    folds = RegressionFolds(trials.subjects, trials.embeddings, trials.stimulus_texts)
    folds.add_to(model, EvidenceScale(gain=1.0, penalty=PENALTIES.index(10.0)))
    assert find_penalty(trials, model) == 10.0


def test_left_out_trials_are_read_with_the_whole_regression() -> None:
    trials = make_trials(2.0)
    model = fit_encoding_model(trials.subjects, trials.embeddings, trials.stimulus_texts, CONFIG)
    folds = RegressionFolds(trials.subjects, trials.embeddings, trials.stimulus_texts)
    folds.add_to(model, EvidenceScale(gain=1.0, penalty=0))
    fold = torch.arange(6)
    expected, _, _ = read_left_out(trials, model, PENALTIES[0], "sub-01", fold)
    others = trials.without("sub-01", fold)
    parts = others.subjects, others.embeddings, others.stimulus_texts
    fitted = fit_closed_form(*parts, CONFIG, len(model.group_covariance))
    RegressionFolds(*parts).add_to(fitted, EvidenceScale(gain=1.0, penalty=0))
    assert fitted.regression_scale.any()
    fitted.temperature.copy_(model.temperature)
    part = trials.subjects["sub-01"]
    rows = torch.isin(part.stimuli, fold)
    transform = fitted.subject_transform(part.values)
    torch.testing.assert_close(expected, expected_embeddings(fitted, part.values[rows], transform))


def test_too_few_subjects_are_told() -> None:
    trials = make_trials(1.0, n_subjects=2)
    model = fit_encoding_model(trials.subjects, trials.embeddings, trials.stimulus_texts, CONFIG)
    with pytest.raises(InputError, match="2 training subjects and 24 texts: errors of left-out"):
        measure_errors(trials, model)
