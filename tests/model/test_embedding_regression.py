"""Regression of embeddings on trials: it is ridge regression, and has the part that helps."""

import pytest
import torch
from sklearn.linear_model import Ridge

from mindllm.model.embedding_regression import (
    PENALTIES,
    LeftOutTrials,
    RegressionSums,
    choose_scale,
    ridge_weights,
)
from mindllm.model.encoding_fit import RegressionFolds, fit_encoding_model
from mindllm.model.encoding_model import center_embeddings
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


def left_out(seed: int, density: float, similarity: float) -> LeftOutTrials:
    """Trials whose true text is favoured so much by densities and by similarities."""
    n, n_texts = 400, 10
    targets = torch.arange(n) % n_texts
    true = torch.nn.functional.one_hot(targets, n_texts).double()
    ratios = density * true + draw(seed, n, n_texts)
    similarities = similarity * true + draw(seed + 1, n, n_texts)
    return LeftOutTrials(ratios, torch.stack([similarities] * len(PENALTIES)), targets)


def test_the_regression_has_the_part_that_it_deserves() -> None:
    scale = choose_scale([left_out(0, 1.0, 1.0), left_out(2, 1.0, 1.0)])
    assert scale.gain == pytest.approx(1.0, abs=0.2)
    assert scale.temperature == pytest.approx(1.0, abs=0.2)
    assert scale.similarity == pytest.approx(1.0, abs=0.1)
    assert choose_scale([left_out(4, 1.0, 0.0)]).gain < 0.2
    assert choose_scale([left_out(6, 1.0, -1.0)]).gain == 0
    assert choose_scale([left_out(8, 1.0, 3.0)]).gain > 2
    assert choose_scale([]) == choose_scale([]).__class__()


def test_a_penalty_is_chosen_by_the_loss() -> None:
    part = left_out(0, 0.5, 2.0)
    similarities = part.similarities.clone()
    similarities[torch.arange(len(PENALTIES)) != 2] = draw(9, *similarities.shape[1:])
    chosen = choose_scale([LeftOutTrials(part.density_ratios, similarities, part.targets)])
    assert chosen.penalty == PENALTIES[2]


def test_evidence_is_the_density_ratio_and_the_similarity() -> None:
    simulation = Simulation(1, noise=2.0)
    model = fit_encoding_model(simulation.subjects(3, range(20)), simulation.embeddings)
    assert model.regression_gain > 0
    new = simulation.subject(range(20, 30), repetitions=8)
    transform, embeddings = model.subject_transform(new.values), simulation.embeddings[20:]
    ratios = model.density_ratios(new.values, transform, embeddings)
    predicted = model.predict_embeddings(new.values, transform)
    similarity = predicted @ center_embeddings(embeddings, model.text_center).T
    regression = similarity - model.regression_similarity / 2
    evidence = model.evidence(new.values, transform, embeddings)
    expected = (ratios + model.regression_gain * regression) / model.temperature
    torch.testing.assert_close(evidence, expected)
    assert accuracy(similarity, new.stimuli - 20) > 0.3  # chance 0.1
    assert regression.gather(1, (new.stimuli - 20)[:, None]).mean() > 0 > regression.mean()


def test_a_left_out_subject_is_not_read() -> None:
    simulation = Simulation(3)
    subjects = simulation.subjects(3)
    texts = torch.arange(N_TEXTS)
    rows, embeddings = torch.arange(5), simulation.embeddings
    before = RegressionFolds(subjects, embeddings, texts)
    weights = before.weights([1.0], "sub-01")[0]
    subjects["sub-01"].stimuli.copy_(subjects["sub-01"].stimuli.flip(0))
    after = RegressionFolds(subjects, embeddings, texts)
    torch.testing.assert_close(after.weights([1.0], "sub-01")[0], weights)
    assert not torch.allclose(after.weights([1.0])[0], before.weights([1.0])[0])
    assert before.similarities("sub-01", rows, embeddings).shape == (len(PENALTIES), 5, N_TEXTS)
