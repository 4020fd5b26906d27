"""One simulated person."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from mindllm.simulate.random_fields import Waves
from mindllm.simulate.scenes import ATTRIBUTES
from mindllm.simulate.world import World


@dataclass(frozen=True)
class Person:
    """One simulated person with V voxels, T trials, and the truth about both."""

    name: str
    ijk: np.ndarray  # (V, 3)
    mm: np.ndarray  # (V, 3)
    varies: np.ndarray  # (V,) False for the voxels that never vary
    patterns: np.ndarray  # (K, V) this person's response to each attribute value
    noise: np.ndarray  # (R, V) correlated noise is normal weights times this; voxel noise comes on top
    trials: pd.DataFrame
    values: np.ndarray  # (T, V) percent signal change
    noise_ceiling: np.ndarray  # (V,) percent of the variance of the mean over repeats


def simulate_person(world: World, index: int) -> Person:
    """Person `index` (from 0), who depends on the world and the index but not on how many others there are."""
    config = world.config
    rng = np.random.default_rng([config.seed, 1, index])
    mm = apply_affine(world.affine, world.ijk)
    patchy = rng.normal(size=config.waves) @ Waves.draw(rng, 20.0, config.waves).at(mm)
    kept = np.zeros(len(mm), bool)
    for group, share in ((world.visual, config.coverage * rng.uniform(0.9, 1.1)), (~world.visual, config.other_share)):
        kept[group] = patchy[group] >= np.quantile(patchy[group], 1 - min(share, 1))
    ijk, mm = world.ijk[kept], mm[kept]
    varies = np.ones(len(mm), bool)
    varies[rng.choice(len(mm), min(config.constant_voxels, len(mm) // 2), replace=False)] = False

    patterns = draw_patterns(world, mm, rng) * varies

    trials = []
    for session in range(config.repeats):
        order = rng.permutation(len(world.stimuli))
        runs = np.arange(len(order)) * config.runs_per_session // len(order) + 1
        trials.append(world.stimuli.iloc[order].assign(session=session + 1, run=runs, repeat=session + 1))
    table = pd.concat(trials)
    scenes = table.index.to_numpy()
    table["caption"] = table["stimulus"].map(
        world.captions.drop_duplicates("stimulus").set_index("stimulus")["caption"]
    )
    table = table.reset_index(drop=True).reset_index(names="volume")
    table = table[["volume", "stimulus", "session", "run", "repeat", "split", "caption", *ATTRIBUTES]]

    smooth = Waves.draw(rng, config.smooth_noise_fwhm_mm, config.waves).at(mm) * varies
    noise = np.concatenate([config.smooth_noise * smooth, config.code_noise * patterns])
    values = rng.normal(size=(len(table), len(noise))).astype(np.float32) @ noise
    values += config.voxel_noise * varies * rng.standard_normal(values.shape, dtype=np.float32)
    run = (table["session"] - 1) * config.runs_per_session + table["run"] - 1
    offsets = config.run_offset * (
        rng.normal(size=(run.max() + 1, 1)) + rng.normal(size=(run.max() + 1, config.waves)) @ smooth
    )
    response = world.design @ patterns
    values = (response[scenes] + values + offsets[run] * varies).astype(np.float32)

    # ncsnr and its ceiling for a mean over n repeats, as in NSD: Allen et al. 2022, Nature Neuroscience 25:116.
    signal, spread = response.var(0), (noise**2).sum(0) + config.voxel_noise**2 * varies
    ceiling = 100 * np.divide(signal, signal + spread / config.repeats, out=np.zeros_like(signal), where=signal > 0)
    return Person(f"sub-{index + 1:02d}", ijk, mm, varies, patterns, noise, table, values, ceiling)


def draw_patterns(world: World, mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(V, 3) positions -> (K, V) one more person's response to each attribute value: displaced, scaled, and with patterns of their own."""
    config = world.config
    anatomy = Waves.draw(rng, config.person_fwhm_mm, config.waves).at(mm)
    moved = mm + config.shift_mm * (rng.normal(size=(3, config.waves)) @ anatomy).T
    gain = np.exp(config.gain_sd * (rng.normal(size=config.waves) @ anatomy) - config.gain_sd**2 / 2)
    own = world.code(mm, (Waves.draw(rng, config.tuning_fwhm_mm, config.waves), rng.normal(size=world.weights.shape)))
    return (gain * (world.code(moved) + config.idiosyncrasy * own)).astype(np.float32)
