"""Labelled trials of a subject: what they say of its other trials, beside the encoding model."""

import numpy as np
import pytest
import torch

from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model, score_with_labels
from mindllm.model.encoding_model import EncodingModel, EncodingModelConfig, center_embeddings
from mindllm.model.labelled_trials import (
    COVARIANCE_SHRINKAGE,
    LabelledScores,
    choose_label_gain,
    compare_with_labels,
    point_to_texts,
)
from mindllm.model.subject_alignment import SubjectTransform

N_TEXTS, N_QUERIES, DIM, RANK = 30, 60, 40, 10


class Subjects:
    """Responses that subjects share, in a few directions, and one's own, in the others."""

    def __init__(self, seed: int, of_subject: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.embeddings = torch.nn.functional.normalize(self.draw(N_TEXTS, DIM), dim=1)
        self.shared = 3 * self.draw(N_TEXTS, RANK) @ self.draw(RANK, N_QUERIES) / RANK**0.5
        self.of_subject = of_subject

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.normal(size=shape))

    def subject(self) -> SubjectFeatures:
        texts = torch.arange(N_TEXTS).repeat(2)
        responses = self.shared + self.of_subject * self.draw(N_TEXTS, N_QUERIES)
        return SubjectFeatures(responses[texts] + 3 * self.draw(len(texts), N_QUERIES), texts)

    def fit(self) -> EncodingModel:
        subjects = {f"sub-{i:02d}": self.subject() for i in range(5)}
        config = EncodingModelConfig(rank=RANK)
        return fit_encoding_model(subjects, self.embeddings, None, config)


def labels_of(subjects: Subjects, part: SubjectFeatures) -> dict[int, torch.Tensor]:
    """The first trial of every text has a label."""
    return {row: subjects.embeddings[part.stimuli[row]] for row in range(N_TEXTS)}


def loss(model: EncodingModel, part: SubjectFeatures, transform: SubjectTransform) -> float:
    """Of the second trials, in nats."""
    evidence = model.evidence(part.values[N_TEXTS:], transform, EMBEDDINGS)
    return float(torch.nn.functional.cross_entropy(evidence, part.stimuli[N_TEXTS:]))


SUBJECTS = Subjects(0, of_subject=2.0)
EMBEDDINGS = SUBJECTS.embeddings


@pytest.fixture(scope="module")
def model() -> EncodingModel:
    return SUBJECTS.fit()


def test_what_is_a_subjects_alone_is_learned_from_its_labels(model: EncodingModel) -> None:
    assert model.label_gain > 1
    assert 0.05 < model.label_correlation < 1
    without = EncodingModel({**model.state_dict(), "label_gain": torch.tensor(0.0)})
    gains = []
    for _ in range(10):
        part = SUBJECTS.subject()
        labels = labels_of(SUBJECTS, part)
        before, after = (m.subject_transform(part.values, labels) for m in (without, model))
        assert before.labelled is None
        gains.append(loss(model, part, before) - loss(model, part, after))
    assert np.mean(gains) > 3 * np.std(gains) / len(gains) ** 0.5
    assert np.mean(gains) > 0.03


def test_where_nothing_is_a_subjects_alone_labels_count_little() -> None:
    assert Subjects(1, of_subject=0.0).fit().label_gain < 0.3 * SUBJECTS.fit().label_gain


def test_similarity_is_the_product_in_the_metric_of_the_covariance() -> None:
    values = SUBJECTS.subject().values
    components = torch.linalg.qr(SUBJECTS.draw(N_QUERIES, RANK))[0]
    rows = torch.tensor([3, 7])
    labelled = compare_with_labels(values, rows, components)
    assert labelled is not None
    rest = values - values @ components @ components.T
    covariance = rest.T @ rest / len(rest)
    identity = torch.eye(N_QUERIES).double() * covariance.trace() / N_QUERIES
    metric = torch.linalg.inv(
        (1 - COVARIANCE_SHRINKAGE) * covariance + COVARIANCE_SHRINKAGE * identity
    )
    products = rest @ metric @ rest.T
    expected = products[:, rows] / products.diagonal().mean()
    expected[rows, [0, 1]] = 0  # a trial is not compared with itself
    torch.testing.assert_close(labelled.similarity(values), expected)
    assert compare_with_labels(values, rows, torch.eye(N_QUERIES).double()) is None


def test_directions_point_to_their_text_alone() -> None:
    part = SUBJECTS.subject()
    labelled = compare_with_labels(part.values, torch.arange(4), torch.zeros(N_QUERIES, 1).double())
    assert labelled is not None
    e = center_embeddings(EMBEDDINGS, EMBEDDINGS.mean(0))
    texts = torch.tensor([5, 5, 5, 2])
    products = point_to_texts(labelled, e[texts], e, correlation=0.5).directions @ e.T
    one, three = products[3, 2], products[0, 5]
    assert one > 0.7
    torch.testing.assert_close(three, one / 2, rtol=0.2, atol=0)
    others = products[3][torch.arange(N_TEXTS) != 2]
    assert others.abs().max() < 0.3 * one


def test_a_labelled_trial_does_not_confirm_itself(model: EncodingModel) -> None:
    part = SUBJECTS.subject()
    labels = labels_of(SUBJECTS, part)
    transform = model.subject_transform(part.values, labels)
    wrong = {**labels, 0: EMBEDDINGS[1]}
    other = model.subject_transform(part.values, wrong)
    predicted = [model.regression_features(part.values[:1], t) for t in (transform, other)]
    change = (predicted[0] - predicted[1]).norm() / predicted[0].norm()
    of_others = [model.regression_features(part.values[1:], t) for t in (transform, other)]
    assert change < 0.05 * (of_others[0] - of_others[1]).norm()


def test_tensors_are_saved_and_read(model: EncodingModel) -> None:
    part = SUBJECTS.subject()
    transform = model.subject_transform(part.values, labels_of(SUBJECTS, part))
    assert transform.labelled is not None
    rank = model.components.shape[1]
    again = SubjectTransform.from_tensors(transform.to_tensors(), N_QUERIES, rank)
    assert again.labelled is not None
    assert again.response_map is not None
    evidence = [model.evidence(part.values, t, EMBEDDINGS) for t in (transform, again)]
    torch.testing.assert_close(*evidence)


def test_a_subject_without_two_trials_of_a_text_has_scores() -> None:
    model, part = SUBJECTS.fit(), SUBJECTS.subject()
    rows = torch.arange(N_TEXTS)
    scores = score_with_labels(model, part.values, rows, EMBEDDINGS, part.stimuli[rows])
    assert scores is not None
    assert scores.correlation == 0
    assert score_with_labels(model, part.values, rows[:1], EMBEDDINGS, rows[:1]) is None


def test_gain_is_that_of_the_smallest_loss() -> None:
    torch.manual_seed(0)
    targets = torch.arange(20) % 5
    similarities = torch.nn.functional.one_hot(targets, 5) + torch.randn(20, 5)
    part = LabelledScores(torch.zeros(20, 5), similarities, targets, 0.1)
    gain = choose_label_gain([part], temperature=2.0)

    def loss_at(gain: float) -> float:
        return float(torch.nn.functional.cross_entropy(gain * similarities / 2, targets))

    assert loss_at(gain) < min(loss_at(0.8 * gain), loss_at(1.2 * gain))
    assert choose_label_gain([], 1.0) == 0
    opposite = LabelledScores(torch.zeros(20, 5), -similarities, targets, 0.1)
    assert choose_label_gain([opposite], 1.0) < 1e-3
