"""Regression of embeddings on trials: it is ridge regression, and has the part that helps."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.distributions import MultivariateNormal

from mindllm.model.embedding_regression import (
    DIRECTIONS,
    PENALTIES,
    EvidenceScale,
    LeftOutTrials,
    PredictionSums,
    RegressionSums,
    choose_scale,
    ridge_weights,
)
from mindllm.model.encoding_fit import RegressionFolds, fit_encoding_model
from tests.model.test_encoding_model import N_TEXTS, Simulation, accuracy


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_weights_are_those_of_ridge_regression() -> None:
    x, y = draw(0, 50, 8), draw(1, 50, 3)
    alpha = 2.0 * float((x**2).sum()) / 8
    expected = Ridge(alpha=alpha, fit_intercept=False).fit(x.numpy(), y.numpy()).coef_.T
    torch.testing.assert_close(ridge_weights(x, y, [2.0])[0], torch.from_numpy(expected))


def test_fewer_trials_than_queries_give_the_same_weights() -> None:
    x, y = draw(0, 20, 30), draw(1, 20, 3)
    of_sums = RegressionSums.of_trials(x, y).weights([0.5, 2.0])
    for weights, expected in zip(ridge_weights(x, y, [0.5, 2.0]), of_sums, strict=True):
        torch.testing.assert_close(weights, expected)


def test_a_subject_is_left_out_by_subtraction() -> None:
    parts = [RegressionSums.of_trials(draw(i, 20, 6), draw(10 + i, 20, 2)) for i in range(3)]
    without = parts[0] + parts[1] + parts[2] - parts[1]
    expected = parts[0] + parts[2]
    assert without.n_trials == expected.n_trials == 40
    torch.testing.assert_close(without.weights([1.0])[0], expected.weights([1.0])[0])


N_AXES = 10


def left_out(seed: int, density: float, slope: float, n: int = 2000) -> LeftOutTrials:
    """Trials whose true text is favoured so much by densities and by predicted embeddings."""
    texts = draw(100, N_AXES, N_AXES)
    targets = torch.arange(n) % N_AXES
    true = torch.nn.functional.one_hot(targets, N_AXES).double()
    ratios = density * true + draw(seed, n, N_AXES)
    predicted = slope * texts[targets] + draw(seed + 1, n, N_AXES)
    return summed(LeftOutTrials(ratios, torch.stack([predicted] * 4), texts, targets, []))


def summed(part: LeftOutTrials) -> LeftOutTrials:
    """Trials with their sums."""
    true = part.texts[part.targets]
    return replace(part, sums=[PredictionSums.of_trials(p, true, 1000) for p in part.predicted])


def test_the_regression_has_the_part_that_it_deserves() -> None:
    scale = choose_scale([left_out(0, 1.0, 0.3), left_out(2, 1.0, 0.3)])
    assert scale.gain == pytest.approx(1.0, abs=0.2)  # errors are Gaussian, and of these trials
    assert scale.temperature == pytest.approx(1.0, abs=0.2)
    assert choose_scale([left_out(4, 1.0, 0.3), left_out(6, 1.0, -0.3)]).gain == 0
    assert choose_scale([]) == EvidenceScale()


def test_a_penalty_is_chosen_by_the_loss() -> None:
    part = left_out(0, 0.5, 0.3)
    predicted = part.predicted.clone()
    predicted[torch.arange(len(PENALTIES)) != 2] = draw(9, *predicted.shape[1:])
    assert choose_scale([summed(replace(part, predicted=predicted))]).penalty == 2


def test_a_readout_knows_slopes_and_errors() -> None:
    n, n_texts = 20_000, 500
    texts, slopes = draw(0, n_texts, 4), torch.eye(4).double() + 0.2 * draw(1, 4, 4)
    mixing = torch.eye(4).double() + 0.1 * draw(2, 4, 4)
    true = texts[torch.arange(n) % n_texts]
    predicted = true @ slopes + draw(3, n, 4) @ mixing
    half = n // 2
    parts = [
        PredictionSums.of_trials(predicted[rows], true[rows], n_texts)
        for rows in (slice(half), slice(half, n))
    ]
    readout = (parts[0] + parts[1]).readout(4)
    torch.testing.assert_close(readout.slopes, slopes, atol=0.05, rtol=0)
    covariance = torch.linalg.inv(readout.whitening @ readout.whitening)
    torch.testing.assert_close(covariance, mixing.T @ mixing, atol=0.06, rtol=0)
    normal = MultivariateNormal(torch.zeros(4).double(), covariance)
    expected = normal.log_prob(predicted[:5, None] - texts[:3] @ readout.slopes)
    expected = expected - normal.log_prob(predicted[:5])[:, None]
    torch.testing.assert_close(readout.log_ratios(predicted[:5], texts[:3]), expected)


def test_fewer_texts_leave_slopes_nearer_to_their_diagonal() -> None:
    true, slopes = draw(0, 400, 4), torch.eye(4).double() + 0.5
    of_many, of_few = (
        PredictionSums.of_trials(true @ slopes, true, n_texts).readout(4).slopes
        for n_texts in (10_000, 8)
    )
    assert (of_few - of_few.diag().diag()).norm() < 0.7 * (of_many - of_many.diag().diag()).norm()


def test_evidence_is_the_density_ratio_and_the_similarity() -> None:
    simulation = Simulation(1, noise=2.0)
    model = fit_encoding_model(simulation.subjects(3, range(20)), simulation.embeddings)
    assert model.regression_gain > 0
    new = simulation.subject(range(20, 30), repetitions=8)
    transform, embeddings = model.subject_transform(new.values), simulation.embeddings[20:]
    ratios = model.density_ratios(new.values, transform, embeddings)
    regression = model.regression_ratios(new.values, transform, embeddings)
    evidence = model.evidence(new.values, transform, embeddings)
    expected = (ratios + model.regression_gain * regression) / model.temperature
    torch.testing.assert_close(evidence, expected)
    assert accuracy(regression, new.stimuli - 20) > 0.3  # chance 0.1
    assert regression.gather(1, (new.stimuli - 20)[:, None]).mean() > 0 > regression.mean()


def test_a_left_out_subject_is_not_read() -> None:
    simulation = Simulation(3)
    subjects = simulation.subjects(3)
    texts = torch.arange(N_TEXTS)
    embeddings = simulation.embeddings
    before = RegressionFolds(subjects, embeddings, texts)
    weights = before.weights([1.0], "sub-01")[0]
    subjects["sub-01"].stimuli.copy_(subjects["sub-01"].stimuli.flip(0))
    after = RegressionFolds(subjects, embeddings, texts)
    torch.testing.assert_close(after.weights([1.0], "sub-01")[0], weights)
    assert not torch.allclose(after.weights([1.0])[0], before.weights([1.0])[0])
    n_trials, n_axes = len(subjects["sub-01"].values), before.axes.shape[1]
    assert n_axes <= min(max(DIRECTIONS), N_TEXTS)
    assert before.predict_left_out("sub-01").shape == (len(PENALTIES), n_trials, n_axes)
    assert before.sums_left_out["sub-01"][0].n_trials == n_trials
