"""Encoding model: it equals the Gaussian process, generalizes, is calibrated, and is saved."""

import numpy as np
import pytest
import torch

from mindllm.model.encoding_model import (
    EncodingModel,
    EncodingModelConfig,
    SubjectFeatures,
    center_embeddings,
    fit_closed_form,
    fit_encoding_model,
)
from mindllm.utils.errors import InputError

N_TEXTS, N_QUERIES, DIM = 30, 60, 12


class Simulation:
    """Subjects whose responses follow sentence embeddings linearly, with white noise."""

    def __init__(self, seed: int, noise: float = 1.0, signal: float = 1.0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.noise = noise
        self.embeddings = self.draw(N_TEXTS, DIM)
        weights = signal * self.draw(DIM, N_QUERIES) / DIM**0.5
        self.responses = self.embeddings @ weights + 0.3 * signal * self.draw(N_TEXTS, N_QUERIES)

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.rng, dtype=torch.float64)

    def subject(self, texts: range = range(N_TEXTS), repetitions: int = 4) -> SubjectFeatures:
        index = torch.tensor([*texts] * repetitions)
        noise = self.noise * self.draw(len(index), N_QUERIES)
        return SubjectFeatures(self.responses[index] + noise, index)

    def subjects(self, count: int, texts: range = range(N_TEXTS)) -> dict[str, SubjectFeatures]:
        return {f"sub-{i:02d}": self.subject(texts) for i in range(count)}


def accuracy(evidence: torch.Tensor, targets: torch.Tensor) -> float:
    return float((evidence.argmax(1) == targets).double().mean())


def test_prediction_equals_the_gaussian_process() -> None:
    simulation = Simulation(0)
    config = EncodingModelConfig(rank=10, semantic_rank=10, alignment_shrinkage=None)
    model = fit_closed_form(simulation.subjects(2, range(25)), simulation.embeddings, config)
    new = center_embeddings(simulation.embeddings, model.text_center)
    trained = center_embeddings(model.text_embeddings, model.text_center)
    semantic, specific = model.signal[:, 0]
    same = torch.eye(N_TEXTS, 25, dtype=torch.float64)
    kernel = semantic * trained @ trained.T + torch.diag(specific + 1 / model.text_counts)
    cross = semantic * new @ trained.T + specific * same
    mean = cross @ torch.linalg.solve(kernel, model.text_means)
    prior = semantic * (new * new).sum(1) + specific
    variance = prior - (cross * torch.linalg.solve(kernel, cross.T).T).sum(1) + 1
    predicted_mean, predicted_variance = model.predict(simulation.embeddings)
    torch.testing.assert_close(predicted_mean, mean)
    torch.testing.assert_close(predicted_variance, variance[:, None].expand(-1, 10))


def test_new_texts_of_a_new_subject_are_identified() -> None:
    simulation = Simulation(1)
    model = fit_encoding_model(simulation.subjects(3, range(20)), simulation.embeddings)
    new = simulation.subject(range(20, 30), repetitions=8)
    transform = model.subject_transform(new.values)
    evidence = model.evidence(new.values, transform, simulation.embeddings[20:])
    assert accuracy(evidence, new.texts - 20) > 0.4  # chance 0.1
    seen = simulation.subject(range(20))
    evidence = model.evidence(
        seen.values, model.subject_transform(seen.values), simulation.embeddings[:20]
    )
    assert accuracy(evidence, seen.texts) > 0.7  # chance 0.05


def test_evidence_is_positive_for_the_truth_and_negative_for_others() -> None:
    simulation = Simulation(2)
    model = fit_encoding_model(simulation.subjects(3), simulation.embeddings)
    test = simulation.subject()
    evidence = model.evidence(
        test.values, model.subject_transform(test.values), simulation.embeddings
    )
    truth = evidence[torch.arange(len(test.texts)), test.texts]
    assert truth.mean() > 0
    assert evidence.mean() < 0


def test_with_nothing_planted_the_target_has_no_advantage() -> None:
    ranks = []
    for seed in range(20):
        simulation = Simulation(seed, signal=0.0)
        model = fit_encoding_model(simulation.subjects(3), simulation.embeddings)
        test = simulation.subject(repetitions=2)
        evidence = model.evidence(
            test.values, model.subject_transform(test.values), simulation.embeddings
        )
        truth = evidence[torch.arange(len(test.texts)), test.texts]
        ranks.append(float((evidence < truth[:, None]).double().mean()))
        probability = evidence.softmax(1).max(1).values.mean()
        assert probability < 0.2  # it does not claim to know
    error = np.std(ranks) / len(ranks) ** 0.5
    assert abs(np.mean(ranks) - (N_TEXTS - 1) / N_TEXTS / 2) < 4 * error


def test_alignment_undoes_a_linear_distortion() -> None:
    simulation = Simulation(3)
    config = EncodingModelConfig(rank=20, alignment_shrinkage=0.0)
    model = fit_closed_form(simulation.subjects(3), simulation.embeddings, config)
    test = simulation.subject(repetitions=20)
    mixing = torch.eye(N_QUERIES, dtype=torch.float64)
    mixing += 0.1 * simulation.draw(N_QUERIES, N_QUERIES) @ torch.eye(N_QUERIES).double()
    distorted = test.values @ (mixing @ mixing.T)
    unaligned = model.subject_transform(distorted[:10])
    aligned = model.subject_transform(distorted)
    scores = [
        accuracy(model.evidence(distorted, t, simulation.embeddings), test.texts)
        for t in (unaligned, aligned)
    ]
    assert scores[1] > scores[0]


def test_temperature_softens_what_was_too_sure() -> None:
    simulation = Simulation(4, noise=3.0)
    model = fit_encoding_model(simulation.subjects(4), simulation.embeddings)
    assert 0.5 <= float(model.temperature) <= 5
    test = simulation.subject(repetitions=20)
    evidence = model.evidence(
        test.values, model.subject_transform(test.values), simulation.embeddings
    )
    confidence = float(evidence.softmax(1).max(1).values.mean())
    assert abs(confidence - accuracy(evidence, test.texts)) < 0.1


def test_state_dict_round_trip_and_a_part_is_refused() -> None:
    simulation = Simulation(5)
    model = fit_encoding_model(simulation.subjects(2), simulation.embeddings)
    state_dict = {f"e.{name}": tensor for name, tensor in model.state_dict().items()}
    loaded = EncodingModel.from_state_dict(state_dict, "e.")
    assert loaded is not None
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), loaded.buffers(), strict=True))
    assert EncodingModel.from_state_dict({}, "e.") is None
    del state_dict["e.basis"]
    with pytest.raises(InputError, match=r"without e\.basis"):
        EncodingModel.from_state_dict(state_dict, "e.")
    assert model.half().basis.dtype == torch.float64


def test_too_few_trials_are_refused() -> None:
    part = SubjectFeatures(torch.randn(3, 5), torch.arange(3))
    with pytest.raises(InputError, match="3 training trials of 3 texts cannot fit"):
        fit_encoding_model({"sub-01": part}, torch.randn(3, 4))
