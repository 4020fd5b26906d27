"""The best that any decoder could do, known because the code is planted."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from nibabel.affines import apply_affine
from scipy.linalg import cho_factor, cho_solve

from mindllm.simulate.subject import SimulatedSubject, draw_patterns
from mindllm.simulate.world import SimulatedExperiment


@dataclass(frozen=True)
class SubjectPrior:
    """What can be known of a person before meeting them: how responses are distributed over people, place by place."""

    carries: (
        np.ndarray
    )  # (G,) which of the world's voxels carry any of the code; the H voxels below
    mean: np.ndarray  # (K, H) mean over people of the response to each value
    between: np.ndarray  # (H, H) covariance between people of the response to a test stimulus
    spread: (
        np.ndarray
    )  # (H, H) mean over people of the covariance that unit noise in every value makes

    @classmethod
    def draw(cls, world: SimulatedExperiment, people: int = 40) -> Self:
        """Estimate it from `people` fresh people, none of whom is in the data set."""
        rng = np.random.default_rng([world.config.seed, 3])
        mm = apply_affine(world.affine, world.voxel_indices)
        carries = world.profile(mm).sum(0) > 0.05
        draws = np.stack(
            [draw_patterns(world, mm[carries], rng) for _ in range(people)]
        )  # (P, K, H)
        mean = draws.mean(0)
        size, axes = np.linalg.eigh(np.cov(world.candidates.T, bias=True))
        # Rows with the same covariance as the candidates, but fewer of them.
        contrasts = (axes * np.sqrt(size.clip(0))).T[size > 1e-6]
        apart = np.concatenate(contrasts.astype(np.float32) @ (draws - mean)) / np.float32(
            np.sqrt(people - 1)
        )
        rows = np.concatenate(draws)
        return cls(carries, mean, apart.T @ apart, rows.T @ rows / people)


def ideal_observer_accuracy(
    world: SimulatedExperiment, person: SimulatedSubject, population: SubjectPrior, draws: int = 100
) -> dict[str, float]:
    """How often the best observer names the right one of the test stimuli, from one trial and from the mean over repeats.

    `known_person`: the observer knows this person's true response to every candidate and the covariance of the noise;
    with Gaussian noise no decoder can do better. `unseen_person`: of this person it knows the measurement noise alone,
    and of people in general the mean and the covariance of their responses, one for all candidates (so it is linear).
    Both know the baselines of the runs, and read the voxels that carry any of the code.
    """
    config = world.config
    rng = np.random.default_rng([config.seed, 2, int(person.subject.removeprefix("sub-"))])
    order = np.full(world.labels["HCPEx"].shape, -1)
    order[tuple(world.voxel_indices[population.carries].T)] = np.arange(population.carries.sum())
    place = order[tuple(person.voxel_indices.T)]
    used = person.varies & (place >= 0)
    place = place[used]

    actual, shared = (
        world.candidates @ person.patterns[:, used],
        world.candidates @ population.mean[:, place],
    )  # (C, V)
    smooth, code = np.split(person.noise[:, used], [config.n_fourier_features])
    measurement = smooth.T @ smooth + config.voxel_noise**2 * np.eye(len(place), dtype=np.float32)
    noise, at = measurement + code.T @ code, np.ix_(place, place)
    supposed = measurement + config.response_noise**2 * population.spread[at]
    found = {}
    for name, trials in (("single_trial", 1), ("mean_over_repeats", config.n_repetitions)):
        for who, expected, covariance in (
            ("known_person", actual, noise / trials),
            ("unseen_person", shared, supposed / trials + population.between[at]),
        ):
            weights = cho_solve(cho_factor(covariance), expected.T)  # (V, C)
            clean = actual @ weights - (expected.T * weights).sum(0) / 2  # (C shown, C candidates)
            size, axes = np.linalg.eigh(weights.T @ noise @ weights / trials)
            scores = (
                clean + rng.normal(size=(draws, *clean.shape)) @ (axes * np.sqrt(size.clip(0))).T
            )
            found[f"{who}_{name}"] = float((scores.argmax(-1) == np.arange(len(clean))).mean())
    return found
