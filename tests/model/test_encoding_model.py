"""Encoding model: it equals the Gaussian process, generalizes, is calibrated, and is saved."""

import numpy as np
import pytest
import torch

from mindllm.model.encoding_fit import SubjectFeatures, fit_closed_form, fit_encoding_model
from mindllm.model.encoding_model import EncodingModel, EncodingModelConfig, center_embeddings
from mindllm.model.subject_alignment import ResponseMap, fit_response_map
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
    config = EncodingModelConfig(rank=10, alignment_shrinkage=None, alignment_ridge=None)
    stimulus_texts = torch.arange(N_TEXTS) // 2  # two stimuli per text
    embeddings = simulation.draw(20, DIM)  # 15 texts that are trained on, five new ones
    model = fit_closed_form(simulation.subjects(2), embeddings, stimulus_texts, config)
    e = center_embeddings(embeddings, model.text_center)
    trained = center_embeddings(model.text_embeddings, model.text_center)[model.stimulus_texts]
    responses = model.predict(embeddings)
    of_new = e[responses.texts[N_TEXTS:]]
    of_known = e[responses.texts[:N_TEXTS]]
    rows = torch.cat([of_known, of_new])
    same_text = (rows @ trained.T > 1 - 1e-9).double()
    same_stimulus = torch.zeros(len(rows), N_TEXTS, dtype=torch.float64)
    same_stimulus[:N_TEXTS] = torch.eye(N_TEXTS)
    for dimension in range(10):
        semantic, of_text, of_stimulus = model.signal[:, dimension]
        cross = semantic * rows @ trained.T + of_text * same_text + of_stimulus * same_stimulus
        kernel = cross[:N_TEXTS] + torch.diag(1 / model.stimulus_counts)
        solved = torch.linalg.solve(kernel, cross.T)
        prior = semantic + of_text + of_stimulus
        mean = solved.T @ model.stimulus_means[:, dimension]
        variance = prior - (cross * solved.T).sum(1) + 1
        torch.testing.assert_close(responses.mean[:, dimension], mean)
        torch.testing.assert_close(responses.variance[:, dimension], variance)


def test_shares_of_variance_are_learned() -> None:
    semantic = Simulation(6)
    specific = Simulation(6)
    specific.responses = specific.draw(N_TEXTS, N_QUERIES)  # no relation to the embeddings
    shares = []
    for simulation in (semantic, specific):
        model = fit_encoding_model(simulation.subjects(2), simulation.embeddings)
        leading = model.signal[:, :8].sum(1)
        shares.append(float(leading[0] / leading.sum()))
    assert shares[0] > 0.6
    assert shares[1] < 0.3


def test_stimuli_of_one_text_are_told_apart() -> None:
    """Two stimuli with one text and different responses: a trial of either is of that text."""
    simulation = Simulation(7)
    stimulus_texts = torch.arange(N_TEXTS) // 2
    embeddings = simulation.draw(N_TEXTS // 2, DIM)
    simulation.responses = simulation.draw(N_TEXTS, N_QUERIES)
    model = fit_encoding_model(simulation.subjects(3), embeddings, stimulus_texts)
    test = simulation.subject()
    evidence = model.evidence(test.values, model.subject_transform(test.values), embeddings)
    assert accuracy(evidence, stimulus_texts[test.stimuli]) > 0.8


def test_trials_of_stimuli_shown_once_are_pooled_by_text() -> None:
    simulation = Simulation(8)
    trials = simulation.subject(repetitions=8)
    once = SubjectFeatures(trials.values, torch.arange(len(trials.stimuli)))
    model = fit_encoding_model({"sub-01": once}, simulation.embeddings, trials.stimuli)
    assert len(model.stimulus_means) == N_TEXTS
    test = simulation.subject()
    evidence = model.evidence(
        test.values, model.subject_transform(test.values), simulation.embeddings
    )
    assert accuracy(evidence, test.stimuli) > 0.6


def test_new_texts_of_a_new_subject_are_identified() -> None:
    simulation = Simulation(1)
    model = fit_encoding_model(simulation.subjects(3, range(20)), simulation.embeddings)
    new = simulation.subject(range(20, 30), repetitions=8)
    transform = model.subject_transform(new.values)
    evidence = model.evidence(new.values, transform, simulation.embeddings[20:])
    assert accuracy(evidence, new.stimuli - 20) > 0.4  # chance 0.1
    seen = simulation.subject(range(20))
    evidence = model.evidence(
        seen.values, model.subject_transform(seen.values), simulation.embeddings[:20]
    )
    assert accuracy(evidence, seen.stimuli) > 0.7  # chance 0.05


def test_evidence_is_positive_for_the_truth_and_negative_for_others() -> None:
    simulation = Simulation(2)
    model = fit_encoding_model(simulation.subjects(3), simulation.embeddings)
    test = simulation.subject()
    evidence = model.evidence(
        test.values, model.subject_transform(test.values), simulation.embeddings
    )
    truth = evidence[torch.arange(len(test.stimuli)), test.stimuli]
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
        truth = evidence[torch.arange(len(test.stimuli)), test.stimuli]
        ranks.append(float((evidence < truth[:, None]).double().mean()))
        probability = evidence.softmax(1).max(1).values.mean()
        assert probability < 0.2  # it does not claim to know
    error = np.std(ranks) / len(ranks) ** 0.5
    assert abs(np.mean(ranks) - (N_TEXTS - 1) / N_TEXTS / 2) < 4 * error


@pytest.mark.parametrize(
    "config",
    [
        EncodingModelConfig(rank=20, alignment_shrinkage=0.0, alignment_ridge=None),
        EncodingModelConfig(rank=20, alignment_shrinkage=None, alignment_ridge=4.0),
    ],
)
def test_alignment_undoes_a_linear_distortion(config: EncodingModelConfig) -> None:
    simulation = Simulation(3)
    stimulus_texts = torch.arange(N_TEXTS)
    model = fit_closed_form(simulation.subjects(3), simulation.embeddings, stimulus_texts, config)
    test = simulation.subject(repetitions=20)
    mixing = torch.eye(N_QUERIES, dtype=torch.float64)
    mixing += 0.1 * simulation.draw(N_QUERIES, N_QUERIES) @ torch.eye(N_QUERIES).double()
    distorted = test.values @ (mixing @ mixing.T)
    unaligned = model.subject_transform(distorted[:10])
    aligned = model.subject_transform(distorted)
    scores = [
        accuracy(model.evidence(distorted, t, simulation.embeddings), test.stimuli)
        for t in (unaligned, aligned)
    ]
    assert scores[1] > scores[0]


def test_a_trial_is_mapped_by_the_other_trials_alone() -> None:
    simulation = Simulation(9)
    model = fit_encoding_model(simulation.subjects(3), simulation.embeddings)
    test = simulation.subject(repetitions=2)
    features = model.transform(test.values, model.subject_transform(test.values[:0]))
    expected = model.expected_responses(features)
    whole = fit_response_map(features, expected, 16.0)
    others = torch.arange(len(features)) > 0
    # The ridge and the gains are of all trials; made equal, leaving the trial out is exact.
    assert whole is not None
    inverse = torch.linalg.inv(torch.linalg.inv(whole.inverse) - features[:1].T @ features[:1])
    without = ResponseMap(features[others], whole.targets[others], inverse, whole.scale)
    torch.testing.assert_close(whole(features[:1]), without(features[:1]))


def test_temperature_softens_what_was_too_sure() -> None:
    simulation = Simulation(4, noise=3.0)
    model = fit_encoding_model(simulation.subjects(4), simulation.embeddings)
    assert 0.5 <= float(model.temperature) <= 5
    test = simulation.subject(repetitions=20)
    evidence = model.evidence(
        test.values, model.subject_transform(test.values), simulation.embeddings
    )
    confidence = float(evidence.softmax(1).max(1).values.mean())
    assert abs(confidence - accuracy(evidence, test.stimuli)) < 0.1


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
