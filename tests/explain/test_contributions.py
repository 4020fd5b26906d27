"""Contributions of voxels sum to the evidence of the model, whatever the evidence is for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mindllm.explain.contributions import contribute
from mindllm.explain.evidence_path import Question, integrate
from mindllm.explain.explainer import Explainer
from mindllm.model.subject_alignment import LabelledTrials
from tests.explain.conftest import DIM, Fitted


def model_evidence(fitted: Fitted, betas: np.ndarray, embeddings: torch.Tensor) -> np.ndarray:
    return fitted.model.evidence(betas, fitted.masker, embeddings, fitted.betas)[:, 0].numpy()


def test_contributions_to_a_known_text_sum_to_the_evidence_of_the_model(fitted: Fitted) -> None:
    question = fitted.question(3)
    result = contribute(fitted.explainer.features, question)
    assert not question.is_quadratic, "a known text is a mixture of its stimuli and a new one"
    expected = model_evidence(fitted, fitted.betas, fitted.embeddings[[3]])
    np.testing.assert_allclose(result.evidence, expected, atol=1e-6)
    np.testing.assert_allclose(result.voxels.sum(1) + result.at_zero, expected, atol=1e-6)
    assert result.error < 1e-6
    assert np.ptp(expected) > 1


def test_contributions_to_a_new_text_are_closed_form(fitted: Fitted) -> None:
    new = torch.nn.functional.normalize(torch.ones(1, fitted.embeddings.shape[1]).double(), dim=-1)
    assert fitted.model.encoding_model is not None
    question = Question.of_texts(fitted.model.encoding_model, new)
    features = fitted.explainer.features
    result = contribute(features, question)
    assert result.is_closed_form
    expected = model_evidence(fitted, fitted.betas, new)
    np.testing.assert_allclose(result.voxels.sum(1) + result.at_zero, expected, atol=1e-6)
    middle = ((features.values + features.at_zero) / 2).requires_grad_()
    (gradient,) = torch.autograd.grad(question.evidence(middle).sum(), middle)
    closed = features.to_voxels(gradient).numpy()
    np.testing.assert_allclose(result.voxels, closed, atol=1e-9)


def test_contributions_are_integrated_gradients_of_the_betas(fitted: Fitted) -> None:
    """The same as the integral over betas of the gradient by automatic differentiation."""
    features, question = fitted.explainer.features.select([5]), fitted.question(5, (1, 2))
    result = contribute(features, question)
    projection = features.trial_projection(0)
    betas = features.betas[0]
    nodes, weights = np.polynomial.legendre.leggauss(200)
    total = torch.zeros_like(betas)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        point = (float(node) * betas).requires_grad_()
        values = features.at_zero + (features.attention @ point) @ projection
        (gradient,) = torch.autograd.grad(question.evidence(values).sum(), point)
        total += weight * gradient
    np.testing.assert_allclose(result.voxels[0], (total * betas).numpy(), atol=1e-8)


@pytest.mark.parametrize("against", [(), (0,), (1, 2, 4, 5)])
def test_any_question_is_answered_exactly(fitted: Fitted, against: tuple[int, ...]) -> None:
    result = contribute(fitted.explainer.features, fitted.question(3, against))
    assert result.error < 1e-6
    np.testing.assert_allclose(result.voxels.sum(1), result.evidence - result.at_zero, atol=1e-6)


def test_a_sharp_mixture_is_refined_until_it_sums_up(fitted: Fitted) -> None:
    question, features = fitted.question(3), fitted.explainer.features
    far = integrate(question, 40 * features.values, features.at_zero)
    assert far.error <= 1e-9 * float(far.evidence.abs().max())


def test_a_trial_is_explained_by_the_map_of_the_other_trials(fitted: Fitted) -> None:
    """Of zero betas for another reason: features are those that the model itself computes."""
    explainer = fitted.explainer
    model = fitted.model.encoding_model
    assert model is not None
    outputs = fitted.model.query_outputs(fitted.betas, fitted.masker)
    subject = model.subject_transform(outputs)
    assert subject.response_map is not None
    expected = model.transform(outputs, subject)
    torch.testing.assert_close(explainer.features.values[:, : expected.shape[1]], expected)
    others = fitted.betas + np.random.default_rng(1).normal(size=fitted.betas.shape)
    new = type(explainer)(fitted.model, fitted.masker, others, fitted.betas).features
    outputs = fitted.model.query_outputs(others, fitted.masker)
    expected = model.transform(outputs, subject)
    torch.testing.assert_close(new.values[:, : expected.shape[1]], expected)


def test_no_voxel_no_contribution(fitted: Fitted) -> None:
    betas = fitted.betas.copy()
    betas[:, :10] = 0
    explainer = type(fitted.explainer)(fitted.model, fitted.masker, betas, fitted.betas)
    result = contribute(explainer.features, fitted.question(2))
    assert (result.voxels[:, :10] == 0).all()
    assert (result.voxels[:, 10:] != 0).any(0).all()


@pytest.mark.parametrize("against", [(), (0,), (1, 2)])
def test_the_regression_has_its_part_in_the_contributions(
    fitted: Fitted, against: tuple[int, ...]
) -> None:
    model = fitted.model.encoding_model
    assert model is not None
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(model.regression_weights.shape, generator=generator)
    model.regression_weights.copy_(0.1 * weights)
    model.regression_gain.fill_(3.0)
    model.regression_scale = 0.2 * torch.randn(DIM, 3, generator=generator).double()
    question, features = fitted.question(3, against), fitted.explainer.features
    assert features.values.shape[1] == len(model.group_covariance) + DIM
    result = contribute(features, question)
    assert result.error < 1e-6
    np.testing.assert_allclose(result.voxels.sum(1), result.evidence - result.at_zero, atol=1e-6)
    if not against:
        expected = model_evidence(fitted, fitted.betas, fitted.embeddings[[3]])
        np.testing.assert_allclose(result.evidence, expected, atol=1e-6)


def test_labelled_trials_have_their_part_in_the_contributions(fitted: Fitted) -> None:
    model = fitted.model.encoding_model
    assert model is not None
    generator = torch.Generator().manual_seed(0)
    model.regression_gain.fill_(3.0)
    outputs = fitted.model.query_outputs(fitted.betas, fitted.masker)
    transform = model.subject_transform(outputs)
    labelled = LabelledTrials(
        model.standardize(outputs, transform)[:5],
        torch.randn(outputs.shape[1], 5, generator=generator).double(),
        torch.randn(5, DIM, generator=generator).double(),
    )
    fitted.model.adaptations["sub-02"] = replace(transform, labelled=labelled)
    explainer = Explainer(fitted.model, fitted.masker, fitted.betas)
    result = contribute(explainer.features, fitted.question(3))
    expected = fitted.model.evidence(fitted.betas, fitted.masker, fitted.embeddings[[3]])[:, 0]
    without = model_evidence(fitted, fitted.betas, fitted.embeddings[[3]])
    assert np.abs(expected.numpy() - without).min() > 1e-3
    np.testing.assert_allclose(result.evidence, expected, atol=1e-6)
    np.testing.assert_allclose(result.voxels.sum(1) + result.at_zero, expected, atol=1e-6)
    few = contribute(explainer.features.select([7, 2]), fitted.question(3))
    np.testing.assert_allclose(few.voxels, result.voxels[[7, 2]], atol=1e-9)
