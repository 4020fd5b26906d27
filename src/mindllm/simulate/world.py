"""What simulated subjects share: grid, atlases, stimuli and the patterns of attribute values."""

from collections.abc import Sequence
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
from mindllm.simulate.scenes import (
    UNTUNED,
    Tuning,
    draw_positions,
    draw_stimuli,
    write_captions,
)

ATLASES = ("HCPEx", "AAL3")
TILT_DEGREES = (4.0, -3.0, 5.0)  # of the grid, around x, y and z
PROFILE_STEP = 2  # voxels of the template from one point of the profiles to the next
PROFILE_FWHM_MM = 6.0  # borders between parcels are soft and differ between subjects


@dataclass(frozen=True)
class SimulatedExperiment:
    """What all simulated subjects share, with G voxels, K attribute values and S stimuli.

    Attributes
    ----------
    config : SimulateConfig
        What to simulate.
    affine : np.ndarray
        (4, 4) voxel indices to MNI mm; oblique, permuted and flipped.
    labels : dict of str to np.ndarray
        Atlas -> parcel labels on the grid.
    names : dict of str to dict
        Atlas -> parcel label -> name.
    voxel_indices : np.ndarray
        (G, 3) gray-matter voxels that a subject may have.
    visual : np.ndarray
        (G,) whether the voxel is in visual cortex.
    profiles : list of np.ndarray
        For each tuning, the fraction of its parcels at each point of a template grid.
    profiles_affine : np.ndarray
        (4, 4) of the template grid.
    fields : RandomFourierField
        Basis of the shared patterns.
    weights : np.ndarray
        (K, M) weights of the basis for each attribute value.
    stimuli : pd.DataFrame
        `stimulus`, `split`, and one column per attribute.
    captions : pd.DataFrame
        `stimulus`, `caption`; several rows per stimulus.
    design : np.ndarray
        (S, K) 1 where the stimulus has the value.
    """

    config: SimulateConfig
    affine: np.ndarray
    labels: dict[str, np.ndarray]
    names: dict[str, dict[int, str]]
    voxel_indices: np.ndarray
    visual: np.ndarray
    profiles: list[np.ndarray]
    profiles_affine: np.ndarray
    fields: RandomFourierField
    weights: np.ndarray
    stimuli: pd.DataFrame
    captions: pd.DataFrame
    design: np.ndarray

    @property
    def candidates(self) -> np.ndarray:
        """(C, K) design of the test stimuli, relative to the mean over all stimuli."""
        return (self.design - self.design.mean(0))[(self.stimuli["split"] == "test").to_numpy()]

    def tuning_weights(self, coords_mm: np.ndarray) -> np.ndarray:
        """Return the weight of each tuning at coordinates (V, 3) in mm, (n_tunings, V)."""
        points = apply_affine(np.linalg.inv(self.profiles_affine), coords_mm).T
        return np.stack(
            [
                tuning.weight * map_coordinates(profile, points, order=1)
                for tuning, profile in zip(self.config.tunings, self.profiles, strict=True)
            ]
        )

    def shared_patterns(self, coords_mm: np.ndarray) -> np.ndarray:
        """Return the shared pattern of each attribute value at coordinates (V, 3), (K, V)."""
        field = self.weights @ self.fields.evaluate(coords_mm)
        return self._weigh(field, coords_mm, [tuning.preference for tuning in self.config.tunings])

    def subject_patterns(
        self, coords_mm: np.ndarray, fields: RandomFourierField, weights: np.ndarray
    ) -> np.ndarray:
        """Return the patterns (K, V) of fields of a subject's own, without preferences."""
        return self._weigh(
            weights @ fields.evaluate(coords_mm), coords_mm, [0.0] * len(self.profiles)
        )

    def _weigh(
        self, field: np.ndarray, coords_mm: np.ndarray, preferences: Sequence[float]
    ) -> np.ndarray:
        """Add up the tunings of random fields (K, V)."""
        patterns = np.zeros_like(field)
        profiles = self.tuning_weights(coords_mm)
        for tuning, profile, preference in zip(
            self.config.tunings, profiles, preferences, strict=True
        ):
            rows = value_rows(tuning, self.config)
            patterns[rows] += profile * (field[rows] + preference)
        return (self.config.signal * patterns).astype(np.float32)


def build_experiment(config: SimulateConfig) -> SimulatedExperiment:
    """Build what subjects share; it depends on the seed but not on the number of subjects.

    Raises
    ------
    InputError
        If the atlases are missing or not as expected.
    """
    rng = np.random.default_rng([config.seed, 0])
    atlases = {name: load_bundled_atlas(name) for name in ATLASES}
    template, template_affine, names = atlases["HCPEx"]
    label_of = {name: label for label, name in names.items()}
    tuned = {parcel for tuning in config.tunings for parcel in tuning.parcels}
    visual_labels = merge_hemispheres(tuned | set(UNTUNED), label_of)
    affine, shape = build_grid(template, template_affine, config.resolution_mm)
    voxel_indices = np.argwhere(np.ones(shape, bool))
    coords_mm = apply_affine(affine, voxel_indices)
    labels = {
        name: sample_nearest_voxel(volume, volume_affine, coords_mm).reshape(shape)
        for name, (volume, volume_affine, _) in atlases.items()
    }
    flat_labels = labels["HCPEx"].ravel()
    gray = (grey_matter_probability(coords_mm) > 0.3) & (flat_labels > 0)
    stimuli, captions, design = draw_scenes(config, rng)
    fields = RandomFourierField.draw(rng, config.tuning_fwhm_mm, config.n_fourier_features)
    return SimulatedExperiment(
        config=config,
        affine=affine,
        labels=labels,
        names={name: parcel_names for name, (_, _, parcel_names) in atlases.items()},
        voxel_indices=voxel_indices[gray],
        visual=np.isin(flat_labels[gray], visual_labels),
        profiles=build_profiles(template, label_of, config.tunings),
        profiles_affine=template_affine @ np.diag([PROFILE_STEP] * 3 + [1]),
        fields=fields,
        weights=rng.normal(size=(design.shape[1], config.n_fourier_features)),
        stimuli=stimuli,
        captions=captions,
        design=design.astype(np.float32),
    )


def build_grid(
    template: np.ndarray, template_affine: np.ndarray, resolution_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Build a grid like a scanner's that just holds the cortex.

    Its axes are permuted, two of them flipped, all tilted by a few degrees.

    Returns
    -------
    affine : np.ndarray
        (4, 4) voxel indices to mm.
    shape : np.ndarray
        (3,) number of voxels along each axis.
    """
    x, y, z = np.deg2rad(TILT_DEGREES)
    tilt = (
        np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        @ [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
        @ [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    )
    axes = resolution_mm * tilt @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    cortex_mm = apply_affine(template_affine, np.argwhere(template[::2, ::2, ::2] > 0) * 2)
    cortex_voxels = cortex_mm @ np.linalg.inv(axes).T
    low = np.floor(cortex_voxels.min(0)) - 1
    shape = (np.ceil(cortex_voxels.max(0)) + 2 - low).astype(int)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, axes @ low
    return affine, shape


def build_profiles(
    template: np.ndarray, label_of: dict[str, int], tunings: Sequence[Tuning]
) -> list[np.ndarray]:
    """Build for each tuning the fraction of its parcels in the cortex around each point."""
    coarse = template[::PROFILE_STEP, ::PROFILE_STEP, ::PROFILE_STEP]
    sigma = fwhm_to_sigma(PROFILE_FWHM_MM) / PROFILE_STEP
    cortex = gaussian_filter((coarse > 0).astype(np.float32), sigma)
    profiles = []
    for tuning in tunings:
        in_parcels = np.isin(coarse, merge_hemispheres(tuning.parcels, label_of))
        density = gaussian_filter(in_parcels.astype(np.float32), sigma)
        profiles.append(np.divide(density, cortex, out=np.zeros_like(density), where=cortex > 0.05))
    return profiles


def draw_scenes(
    config: SimulateConfig, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Draw the stimuli (S rows), their captions, and the design (S, K)."""
    counts = {"train": config.train_stimuli, "val": config.val_stimuli, "test": config.test_stimuli}
    stimuli = draw_stimuli(rng, counts)
    if config.with_questions:
        stimuli["position"] = draw_positions(np.random.default_rng([config.seed, 4]), stimuli)
        stimuli["coco_id"] = np.arange(1, len(stimuli) + 1)
    rows = [
        (scene["stimulus"], caption)
        for scene in stimuli.to_dict("records")
        for caption in write_captions(scene)
    ]
    captions = pd.DataFrame(rows, columns=["stimulus", "caption"])
    assert captions["caption"].is_unique
    columns = [
        stimuli[attribute].to_numpy()[:, None] == np.array(list(values))
        for attribute, values in config.attributes.items()
    ]
    return stimuli, captions, np.concatenate(columns, axis=1)


def value_rows(tuning: Tuning, config: SimulateConfig) -> list[int]:
    """List the rows of a tuning's values among the K values of all attributes in order."""
    pairs = [
        (attribute, value) for attribute, values in config.attributes.items() for value in values
    ]
    return [
        row
        for row, (attribute, value) in enumerate(pairs)
        if attribute == tuning.attribute and (not tuning.values or value in tuning.values)
    ]
