"""One simulated person."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from mindllm.simulate.random_fields import RandomFourierField
from mindllm.simulate.scenes import ATTRIBUTES
from mindllm.simulate.world import SimulatedExperiment


@dataclass(frozen=True)
class SimulatedSubject:
    """One simulated person with V voxels, T trials, and the truth about both."""

    subject: str
    voxel_indices: np.ndarray  # (V, 3)
    coords_mm: np.ndarray  # (V, 3)
    varies: np.ndarray  # (V,) False for the voxels that never vary
    patterns: np.ndarray  # (K, V) this person's response to each attribute value
    noise: (
        np.ndarray
    )  # (R, V) correlated noise is normal weights times this; voxel noise comes on top
    trials: pd.DataFrame
    betas: np.ndarray  # (T, V) percent signal change
    noise_ceiling: np.ndarray  # (V,) percent of the variance of the mean over repeats


def simulate_subject(world: SimulatedExperiment, index: int) -> SimulatedSubject:
    """Person `index` (from 0), who depends on the world and the index but not on how many others there are."""
    config = world.config
    rng = np.random.default_rng([config.seed, 1, index])
    mm = apply_affine(world.affine, world.voxel_indices)
    patchy = rng.normal(size=config.n_fourier_features) @ RandomFourierField.draw(
        rng, 20.0, config.n_fourier_features
    ).evaluate(mm)
    kept = np.zeros(len(mm), bool)
    for group, share in (
        (world.visual, config.coverage * rng.uniform(0.9, 1.1)),
        (~world.visual, config.unmodelled_fraction),
    ):
        kept[group] = patchy[group] >= np.quantile(patchy[group], 1 - min(share, 1))
    ijk, mm = world.voxel_indices[kept], mm[kept]
    varies = np.ones(len(mm), bool)
    varies[rng.choice(len(mm), min(config.constant_voxels, len(mm) // 2), replace=False)] = False

    patterns = draw_patterns(world, mm, rng) * varies

    trials = []
    for session in range(config.n_repetitions):
        order = rng.permutation(len(world.stimuli))
        runs = np.arange(len(order)) * config.runs_per_session // len(order) + 1
        trials.append(
            world.stimuli.iloc[order].assign(session=session + 1, run=runs, repetition=session + 1)
        )
    table = pd.concat(trials)
    scenes = table.index.to_numpy()
    table["caption"] = table["stimulus"].map(
        world.captions.drop_duplicates("stimulus").set_index("stimulus")["caption"]
    )
    table = table.reset_index(drop=True).reset_index(names="volume")
    table = table[
        ["volume", "stimulus", "session", "run", "repetition", "split", "caption", *ATTRIBUTES]
    ]

    smooth = (
        RandomFourierField.draw(
            rng, config.smooth_noise_fwhm_mm, config.n_fourier_features
        ).evaluate(mm)
        * varies
    )
    noise = np.concatenate([config.smooth_noise * smooth, config.response_noise * patterns])
    values = rng.normal(size=(len(table), len(noise))).astype(np.float32) @ noise
    values += config.voxel_noise * varies * rng.standard_normal(values.shape, dtype=np.float32)
    run = (table["session"] - 1) * config.runs_per_session + table["run"] - 1
    offsets = config.run_offset * (
        rng.normal(size=(run.max() + 1, 1))
        + rng.normal(size=(run.max() + 1, config.n_fourier_features)) @ smooth
    )
    response = world.design @ patterns
    values = (response[scenes] + values + offsets[run] * varies).astype(np.float32)

    # ncsnr and its ceiling for a mean over n repeats, as in NSD: Allen et al. 2022, Nature Neuroscience 25:116.
    signal, spread = response.var(0), (noise**2).sum(0) + config.voxel_noise**2 * varies
    ceiling = 100 * np.divide(
        signal, signal + spread / config.n_repetitions, out=np.zeros_like(signal), where=signal > 0
    )
    return SimulatedSubject(
        f"sub-{index + 1:02d}", ijk, mm, varies, patterns, noise, table, values, ceiling
    )


def draw_patterns(
    world: SimulatedExperiment, mm: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(V, 3) positions -> (K, V) one more person's response to each attribute value: displaced, scaled, and with patterns of their own."""
    config = world.config
    anatomy = RandomFourierField.draw(
        rng, config.subject_specific_fwhm_mm, config.n_fourier_features
    ).evaluate(mm)
    moved = mm + config.shift_mm * (rng.normal(size=(3, config.n_fourier_features)) @ anatomy).T
    gain = np.exp(
        config.gain_sd * (rng.normal(size=config.n_fourier_features) @ anatomy)
        - config.gain_sd**2 / 2
    )
    own = world.code(
        mm,
        (
            RandomFourierField.draw(rng, config.tuning_fwhm_mm, config.n_fourier_features),
            rng.normal(size=world.weights.shape),
        ),
    )
    return (gain * (world.code(moved) + config.subject_specific_scale * own)).astype(np.float32)
