"""What simulated people share: space, parcellations, stimuli and the code."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, map_coordinates

from mindllm.fmri.templates import (
    grey_matter_probability,
    load_bundled_atlas,
    merge_hemispheres,
    sample_nearest_voxel,
)
from mindllm.simulate.configuration import SimulateConfig
from mindllm.simulate.random_fields import RandomFourierField, fwhm_to_sigma
from mindllm.simulate.scenes import ATTRIBUTES, TUNINGS, UNTUNED, Tuning, captions_of, draw_stimuli

PARCELLATIONS = ("HCPEx", "AAL3")


@dataclass(frozen=True)
class SimulatedExperiment:
    """What everybody shares: the grid, the atlases, the scenes and the code."""

    config: SimulateConfig
    affine: np.ndarray  # (4, 4) voxel -> mm; oblique, permuted and flipped
    labels: dict[str, np.ndarray]  # parcellation -> region numbers on the grid
    names: dict[str, dict[int, str]]  # parcellation -> number -> name
    voxel_indices: np.ndarray  # (G, 3) grey-matter voxels that a person may have
    visual: np.ndarray  # (G,) is the voxel in visual cortex?
    profiles: list[np.ndarray]  # per tuning, how much it holds at each point of a template grid
    profiles_affine: np.ndarray
    fields: RandomFourierField
    weights: np.ndarray  # (K, M) field of each of the K attribute values
    stimuli: pd.DataFrame  # stimulus, split, and one column per attribute
    captions: pd.DataFrame  # stimulus, caption: several rows per stimulus
    design: np.ndarray  # (S, K) 1 where the stimulus has the value

    @property
    def candidates(self) -> np.ndarray:
        """(C, K) design of the test stimuli, relative to the mean over all stimuli."""
        return (self.design - self.design.mean(0))[(self.stimuli["split"] == "test").to_numpy()]

    def profile(self, mm: np.ndarray) -> np.ndarray:
        """(V, 3) positions -> (tunings, V) weight of each tuning there."""
        at = apply_affine(np.linalg.inv(self.profiles_affine), mm).T
        return np.stack(
            [
                t.weight * map_coordinates(p, at, order=1)
                for t, p in zip(TUNINGS, self.profiles, strict=True)
            ]
        )

    def code(
        self, mm: np.ndarray, own: tuple[RandomFourierField, np.ndarray] | None = None
    ) -> np.ndarray:
        """(V, 3) positions -> (K, V) pattern of each value: the shared code, or one with `own` fields and no preference."""
        waves, weights = own or (self.fields, self.weights)
        field = weights @ waves.evaluate(mm)
        patterns = np.zeros_like(field)
        for tuning, profile in zip(TUNINGS, self.profile(mm), strict=True):
            rows = rows_of(tuning)
            patterns[rows] += profile * (field[rows] + (tuning.preference if own is None else 0))
        return (self.config.signal * patterns).astype(np.float32)


def build_experiment(config: SimulateConfig) -> SimulatedExperiment:
    """Everything that people share; it depends on the seed but not on how many people there are."""
    rng = np.random.default_rng([config.seed, 0])
    atlases = {name: load_bundled_atlas(name) for name in PARCELLATIONS}
    template, template_affine, regions = atlases["HCPEx"]
    numbers = {name: number for number, name in regions.items()}
    visual_numbers = merge_hemispheres(
        {region for t in TUNINGS for region in t.regions} | set(UNTUNED), numbers
    )

    # A grid like a scanner's: axes permuted, two of them flipped, all tilted by a few degrees; it just holds the cortex.
    x, y, z = np.deg2rad([4.0, -3.0, 5.0])
    tilt = (
        np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        @ [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
        @ [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    )
    axes = config.resolution_mm * tilt @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    inside = (
        apply_affine(template_affine, np.argwhere(template[::2, ::2, ::2] > 0) * 2)
        @ np.linalg.inv(axes).T
    )
    low = np.floor(inside.min(0)) - 1
    shape = (np.ceil(inside.max(0)) + 2 - low).astype(int)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, axes @ low

    ijk = np.argwhere(np.ones(shape, bool))
    mm = apply_affine(affine, ijk)
    labels = {
        name: sample_nearest_voxel(volume, to_mm, mm).reshape(shape)
        for name, (volume, to_mm, _) in atlases.items()
    }
    grey = (grey_matter_probability(mm) > 0.3) & (labels["HCPEx"].ravel() > 0)
    profiles, step = [], 2
    coarse = template[::step, ::step, ::step]
    blur = (
        fwhm_to_sigma(6.0) / step
    )  # mm; borders between regions are soft and differ between people
    cortex = gaussian_filter((coarse > 0).astype(np.float32), blur)
    for tuning in TUNINGS:
        held = gaussian_filter(
            np.isin(coarse, merge_hemispheres(tuning.regions, numbers)).astype(np.float32), blur
        )
        profiles.append(np.divide(held, cortex, out=np.zeros_like(held), where=cortex > 0.05))

    counts = {"train": config.train_stimuli, "val": config.val_stimuli, "test": config.test_stimuli}
    stimuli = draw_stimuli(rng, counts)
    said = [
        (scene["stimulus"], text)
        for scene in stimuli.to_dict("records")
        for text in captions_of(scene)
    ]
    captions = pd.DataFrame(said, columns=["stimulus", "caption"])
    assert captions["caption"].is_unique
    design = np.concatenate(
        [stimuli[a].to_numpy()[:, None] == np.array(list(v)) for a, v in ATTRIBUTES.items()], axis=1
    )
    waves = RandomFourierField.draw(rng, config.tuning_fwhm_mm, config.n_fourier_features)
    return SimulatedExperiment(
        config, affine, labels, {name: names for name, (_, _, names) in atlases.items()}, ijk[grey], np.isin(labels["HCPEx"].ravel()[grey], visual_numbers),
        profiles, template_affine @ np.diag([step, step, step, 1]), waves, rng.normal(size=(design.shape[1], config.n_fourier_features)), stimuli, captions, design.astype(np.float32),
    )  # fmt: skip


def rows_of(tuning: Tuning) -> list[int]:
    """Which of the K values, counted over all attributes in order, a tuning is about."""
    pairs = [(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]
    return [
        row
        for row, (a, v) in enumerate(pairs)
        if a == tuning.attribute and (not tuning.values or v in tuning.values)
    ]
