"""One simulated subject."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from mindllm.simulate.random_fields import RandomFourierField
from mindllm.simulate.world import SimulatedExperiment


@dataclass(frozen=True)
class SimulatedSubject:
    """One simulated subject with V voxels and T trials, and what was simulated.

    Attributes
    ----------
    subject : str
        Label, such as sub-01.
    voxel_indices : np.ndarray
        (V, 3) in the grid of the experiment.
    coords_mm : np.ndarray
        (V, 3) in MNI space.
    varies : np.ndarray
        (V,) False for the voxels that never vary.
    patterns : np.ndarray
        (K, V) response of this subject to each attribute value.
    noise : np.ndarray
        (R, V); correlated noise is normal weights times this, and voxel noise is added.
    trials : pd.DataFrame
        One row per trial.
    betas : np.ndarray
        (T, V) in percent signal change.
    noise_ceiling : np.ndarray
        (V,) percent of the variance of the mean over repetitions.
    """

    subject: str
    voxel_indices: np.ndarray
    coords_mm: np.ndarray
    varies: np.ndarray
    patterns: np.ndarray
    noise: np.ndarray
    trials: pd.DataFrame
    betas: np.ndarray
    noise_ceiling: np.ndarray


def simulate_subject(experiment: SimulatedExperiment, index: int) -> SimulatedSubject:
    """Simulate subject `index` (from 0), independently of how many others there are."""
    config = experiment.config
    rng = np.random.default_rng([config.seed, 1, index])
    kept = draw_voxels(experiment, rng)
    voxel_indices = experiment.voxel_indices[kept]
    coords_mm = apply_affine(experiment.affine, experiment.voxel_indices)[kept]
    n_constant = min(config.constant_voxels, len(coords_mm) // 2)
    varies = np.ones(len(coords_mm), bool)
    varies[rng.choice(len(coords_mm), n_constant, replace=False)] = False
    patterns = draw_patterns(experiment, coords_mm, rng) * varies
    trials, scenes = draw_trials(experiment, rng)
    smooth = draw_field(rng, config.smooth_noise_fwhm_mm, coords_mm, config.n_fourier_features)
    smooth = smooth * varies
    noise = np.concatenate([config.smooth_noise * smooth, config.response_noise * patterns])
    response = experiment.design @ patterns
    return SimulatedSubject(
        subject=f"sub-{index + 1:02d}",
        voxel_indices=voxel_indices,
        coords_mm=coords_mm,
        varies=varies,
        patterns=patterns,
        noise=noise,
        trials=trials,
        betas=draw_betas(experiment, trials, response[scenes], (noise, smooth, varies), rng),
        noise_ceiling=compute_noise_ceiling(experiment, response, noise, varies),
    )


def draw_field(
    rng: np.random.Generator, fwhm_mm: float, coords_mm: np.ndarray, count: int
) -> np.ndarray:
    """Draw a basis of random fields and evaluate it at the coordinates, (count, V)."""
    return RandomFourierField.draw(rng, fwhm_mm, count).evaluate(coords_mm)


def draw_voxels(experiment: SimulatedExperiment, rng: np.random.Generator) -> np.ndarray:
    """Draw which of the experiment's voxels (G,) a subject has, in patches."""
    config = experiment.config
    coords_mm = apply_affine(experiment.affine, experiment.voxel_indices)
    weights = rng.normal(size=config.n_fourier_features)
    patches = weights @ draw_field(rng, 20.0, coords_mm, config.n_fourier_features)
    fractions = (config.coverage * rng.uniform(0.9, 1.1), config.unmodelled_fraction)
    kept = np.zeros(len(coords_mm), bool)
    for group, fraction in zip((experiment.visual, ~experiment.visual), fractions, strict=True):
        kept[group] = patches[group] >= np.quantile(patches[group], 1 - min(fraction, 1))
    return kept


def draw_trials(
    experiment: SimulatedExperiment, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """Draw the order of the stimuli in each session.

    Returns
    -------
    trials : pd.DataFrame
        One row per trial.
    scenes : np.ndarray
        (T,) row of each trial's stimulus in `experiment.stimuli`.
    """
    config, stimuli = experiment.config, experiment.stimuli
    sessions = []
    for session in range(1, config.n_repetitions + 1):
        order = rng.permutation(len(stimuli))
        runs = np.arange(len(order)) * config.runs_per_session // len(order) + 1
        sessions.append(stimuli.iloc[order].assign(session=session, run=runs, repetition=session))
    table = pd.concat(sessions)
    scenes = table.index.to_numpy()
    first_captions = experiment.captions.drop_duplicates("stimulus").set_index("stimulus")
    table["caption"] = table["stimulus"].map(first_captions["caption"])
    table = table.reset_index(drop=True).reset_index(names="volume")
    columns = ["volume", "stimulus", "session", "run", "repetition", "split", "caption"]
    if config.with_questions:
        columns.append("coco_id")
    return table[[*columns, *config.attributes]], scenes


def draw_betas(
    experiment: SimulatedExperiment,
    trials: pd.DataFrame,
    response: np.ndarray,
    noise_parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the betas (T, V) around the responses (T, V).

    Parameters
    ----------
    experiment : SimulatedExperiment
    trials : pd.DataFrame
        One row per trial, with `session` and `run`.
    response : np.ndarray
        (T, V) betas without noise.
    noise_parts : tuple of np.ndarray
        `noise` (R, V), the smooth basis (M, V) and `varies` (V,) of the subject.
    rng : np.random.Generator
    """
    config, (noise, smooth, varies) = experiment.config, noise_parts
    betas = rng.normal(size=(len(trials), len(noise))).astype(np.float32) @ noise
    betas += config.voxel_noise * varies * rng.standard_normal(betas.shape, dtype=np.float32)
    run = (trials["session"] - 1) * config.runs_per_session + trials["run"] - 1
    n_runs = run.max() + 1
    offsets = config.run_offset * (
        rng.normal(size=(n_runs, 1)) + rng.normal(size=(n_runs, config.n_fourier_features)) @ smooth
    )
    return (response + betas + offsets[run] * varies).astype(np.float32)


def compute_noise_ceiling(
    experiment: SimulatedExperiment, response: np.ndarray, noise: np.ndarray, varies: np.ndarray
) -> np.ndarray:
    """Compute the noise ceilings (V,) in percent, for the mean over all repetitions.

    References
    ----------
    Allen et al. 2022, Nature Neuroscience 25:116.
    """
    config = experiment.config
    signal = response.var(0)
    spread = (noise**2).sum(0) + config.voxel_noise**2 * varies
    total = signal + spread / config.n_repetitions
    return 100 * np.divide(signal, total, out=np.zeros_like(signal), where=signal > 0)


def draw_patterns(
    experiment: SimulatedExperiment, coords_mm: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw a subject's response to each attribute value at coordinates (V, 3), (K, V).

    The shared patterns are displaced and scaled, and patterns of the subject's own are added.
    """
    config, n_features = experiment.config, experiment.config.n_fourier_features
    anatomy = draw_field(rng, config.subject_specific_fwhm_mm, coords_mm, n_features)
    shift_mm = config.shift_mm * (rng.normal(size=(3, n_features)) @ anatomy).T
    log_gain = config.gain_sd * (rng.normal(size=n_features) @ anatomy) - config.gain_sd**2 / 2
    fields = RandomFourierField.draw(rng, config.tuning_fwhm_mm, n_features)
    weights = rng.normal(size=experiment.weights.shape)
    specific = experiment.subject_patterns(coords_mm, fields, weights)
    shared = experiment.shared_patterns(coords_mm + shift_mm)
    gain = np.exp(log_gain)
    return (gain * (shared + config.subject_specific_scale * specific)).astype(np.float32)
