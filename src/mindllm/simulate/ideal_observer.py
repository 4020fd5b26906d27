"""Accuracy of an ideal observer: the best that any decoder could do on simulated subjects."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from nibabel.affines import apply_affine
from scipy.linalg import cho_factor, cho_solve

from mindllm.simulate.subject import SimulatedSubject, draw_patterns
from mindllm.simulate.world import SimulatedExperiment


@dataclass(frozen=True)
class SubjectPrior:
    """Distribution of responses over subjects, at the H voxels that carry any pattern.

    Attributes
    ----------
    carries : np.ndarray
        (G,) which of the experiment's voxels carry any pattern.
    mean : np.ndarray
        (K, H) mean over subjects of the response to each attribute value.
    between : np.ndarray
        (H, H) covariance between subjects of the response to a test stimulus.
    spread : np.ndarray
        (H, H) mean over subjects of the covariance that unit noise in every value makes.
    """

    carries: np.ndarray
    mean: np.ndarray
    between: np.ndarray
    spread: np.ndarray

    @classmethod
    def draw(cls, experiment: SimulatedExperiment, n_subjects: int = 40) -> Self:
        """Estimate the prior from new subjects, none of whom is in the data set."""
        rng = np.random.default_rng([experiment.config.seed, 3])
        coords_mm = apply_affine(experiment.affine, experiment.voxel_indices)
        carries = experiment.tuning_weights(coords_mm).sum(0) > 0.05
        patterns = np.stack(
            [draw_patterns(experiment, coords_mm[carries], rng) for _ in range(n_subjects)]
        )  # (n_subjects, K, H)
        mean = patterns.mean(0)
        size, axes = np.linalg.eigh(np.cov(experiment.candidates.T, bias=True))
        # Rows with the same covariance as the candidates, but fewer of them.
        contrasts = (axes * np.sqrt(size.clip(0))).T[size > 1e-6].astype(np.float32)
        scale = np.float32(np.sqrt(n_subjects - 1))
        deviations = np.concatenate(contrasts @ (patterns - mean)) / scale
        rows = np.concatenate(patterns)
        return cls(carries, mean, deviations.T @ deviations, rows.T @ rows / n_subjects)


def ideal_observer_accuracy(
    experiment: SimulatedExperiment,
    subject: SimulatedSubject,
    prior: SubjectPrior,
    n_draws: int = 100,
) -> dict[str, float]:
    """Estimate how often an ideal observer identifies the test stimulus that was shown.

    `known_subject`: the observer knows this subject's response to every candidate and the
    covariance of the noise; with Gaussian noise no decoder can do better. `unseen_subject`: of this
    subject it knows the measurement noise alone, and of subjects in general the mean and the
    covariance of their responses, one for all candidates (so it is linear). Both know the baselines
    of the runs, and read the voxels that carry any pattern.

    Parameters
    ----------
    experiment : SimulatedExperiment
    subject : SimulatedSubject
    prior : SubjectPrior
    n_draws : int
        Noise drawn per stimulus.

    Returns
    -------
    dict of str to float
        Top-1 accuracy of each observer from one trial (`_single_trial`) and from the mean over
        repetitions (`_mean_over_repetitions`).
    """
    config = experiment.config
    number = int(subject.subject.removeprefix("sub-"))
    rng = np.random.default_rng([config.seed, 2, number])
    columns, used = match_voxels(experiment, subject, prior)
    known = experiment.candidates @ subject.patterns[:, used]  # (C, V)
    expected = experiment.candidates @ prior.mean[:, columns]
    smooth, response = np.split(subject.noise[:, used], [config.n_fourier_features])
    voxel_noise = config.voxel_noise**2 * np.eye(len(columns), dtype=np.float32)
    measurement = smooth.T @ smooth + voxel_noise
    noise, pairs = measurement + response.T @ response, np.ix_(columns, columns)
    assumed_noise = measurement + config.response_noise**2 * prior.spread[pairs]
    accuracy = {}
    for name, n_trials in (("single_trial", 1), ("mean_over_repetitions", config.n_repetitions)):
        assumed = assumed_noise / n_trials + prior.between[pairs]
        accuracy[f"known_subject_{name}"] = identification_accuracy(
            known, known, (noise, noise / n_trials), n_trials, n_draws, rng
        )
        accuracy[f"unseen_subject_{name}"] = identification_accuracy(
            known, expected, (noise, assumed), n_trials, n_draws, rng
        )
    return accuracy


def match_voxels(
    experiment: SimulatedExperiment, subject: SimulatedSubject, prior: SubjectPrior
) -> tuple[np.ndarray, np.ndarray]:
    """Match a subject's voxels to those of the prior: the columns there, and which have any."""
    order = np.full(experiment.labels["HCPEx"].shape, -1)
    order[tuple(experiment.voxel_indices[prior.carries].T)] = np.arange(prior.carries.sum())
    columns = order[tuple(subject.voxel_indices.T)]
    used = subject.varies & (columns >= 0)
    return columns[used], used


def identification_accuracy(
    responses: np.ndarray,
    expected: np.ndarray,
    noise: tuple[np.ndarray, np.ndarray],
    n_trials: int,
    n_draws: int,
    rng: np.random.Generator,
) -> float:
    """Estimate the accuracy of a linear observer of the mean over trials.

    Parameters
    ----------
    responses : np.ndarray
        (C, V) responses to the candidates.
    expected : np.ndarray
        (C, V) responses that the observer expects.
    noise : tuple of np.ndarray
        (V, V) covariance of one trial's noise, and the one that the observer assumes of the mean.
    n_trials : int
        Trials in the mean.
    n_draws : int
        Noise drawn per candidate.
    rng : np.random.Generator

    Returns
    -------
    float
        Fraction of draws in which the shown candidate has the highest score.
    """
    weights = cho_solve(cho_factor(noise[1]), expected.T)  # (V, C)
    clean = responses @ weights - (expected.T * weights).sum(0) / 2  # (C shown, C candidates)
    size, axes = np.linalg.eigh(weights.T @ noise[0] @ weights / n_trials)
    drawn = rng.normal(size=(n_draws, *clean.shape)) @ (axes * np.sqrt(size.clip(0))).T
    return float(((clean + drawn).argmax(-1) == np.arange(len(clean))).mean())
