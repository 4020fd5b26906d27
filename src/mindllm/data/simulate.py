"""A simulator with planted truth: people with real anatomy who look at scenes whose every word is known.

Scenes are combinations of five attributes ("two women running on a beach with a ball"). Each value of an attribute
has one smooth pattern in MNI space, the same in everybody, in the regions that the literature names for it. A person
sees that code through their own anatomy (a smooth displacement and gain), adds patterns of their own, and noise.
Because all of this is known, so is the best that any decoder could do: see `noise_ceiling_identification`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.linalg import cho_factor, cho_solve
from scipy.ndimage import gaussian_filter, map_coordinates

from mindllm.data.anatomy import bilateral, grey_matter, load_parcellation, nearest
from mindllm.data.scenes import ATTRIBUTES, TUNINGS, UNTUNED, Tuning, captions_of, draw_stimuli
from mindllm.files import read_json, refuse_existing, whole_folder, write_json

PARCELLATIONS = ("HCPEx", "AAL3")
TASK = "scenes"


class SimulateConfig(BaseModel):
    """What to simulate. Response amplitudes are in percent signal change; the defaults suit a demo of a few minutes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(default=0, ge=0)
    people: int = Field(default=8, ge=1)
    resolution_mm: float = Field(default=4.0, ge=2, le=10)
    train_stimuli: int = Field(default=200, ge=8)
    val_stimuli: int = Field(default=20, ge=1)
    test_stimuli: int = Field(default=60, ge=2)
    repeats: int = Field(default=2, ge=1, description="showings of each stimulus, each in a session of its own")
    runs_per_session: int = Field(default=4, ge=1)
    signal: float = Field(
        default=1.0, ge=0, description="size of everything that depends on the stimulus; 0 = null data"
    )
    tuning_fwhm_mm: float = Field(default=20.0, gt=0, description="smoothness of the shared code")
    shift_mm: float = Field(
        default=2.5, ge=0, description="sd, along each axis, of a person's displacement from the shared code"
    )
    gain_sd: float = Field(default=0.25, ge=0, description="sd of the logarithm of a person's local gain")
    idiosyncrasy: float = Field(
        default=0.4, ge=0, description="size of a person's own patterns relative to the shared code"
    )
    person_fwhm_mm: float = Field(default=40.0, gt=0, description="smoothness of a person's displacement and gain")
    code_noise: float = Field(
        default=0.4,
        ge=0,
        description="sd of each value's strength from trial to trial; no number of voxels averages it away",
    )
    smooth_noise: float = Field(default=1.0, ge=0)
    smooth_noise_fwhm_mm: float = Field(default=12.0, gt=0)
    voxel_noise: float = Field(default=2.0, gt=0)
    run_offset: float = Field(
        default=0.5, ge=0, description="sd of each run's baseline, as a whole and as a smooth map"
    )
    coverage: float = Field(
        default=0.7, gt=0, le=1, description="share of the visual voxels that a person has, within 10 percent"
    )
    other_share: float = Field(
        default=0.1, ge=0, le=1, description="share of the remaining grey matter that a person has"
    )
    constant_voxels: int = Field(default=5, ge=0, description="voxels of each person that never vary, as real data has")
    waves: int = Field(default=400, ge=10, description="plane waves per random field")

    @model_validator(mode="after")
    def enough_scenes(self) -> Self:
        wanted = self.train_stimuli + self.val_stimuli + self.test_stimuli
        possible = int(np.prod([len(values) for values in ATTRIBUTES.values()]))
        if wanted > possible // 2:
            raise ValueError(
                f"{wanted} stimuli asked for, but only {possible} scenes exist and half of them may be used; ask for at most {possible // 2}."
            )
        return self


@dataclass(frozen=True)
class Waves:
    """A basis of Gaussian random fields as smooth as white noise after a Gaussian filter, at any point of space."""

    frequencies: np.ndarray  # (3, M) radians per mm
    phases: np.ndarray  # (M,)

    @classmethod
    def draw(cls, rng: np.random.Generator, fwhm_mm: float, count: int) -> Self:
        """Random Fourier features (Rahimi & Recht 2007) of the covariance exp(-d^2 / 4 s^2), s = fwhm / sqrt(8 ln 2)."""
        return cls(rng.normal(0, 1 / (np.sqrt(2) * sigma(fwhm_mm)), (3, count)), rng.uniform(0, 2 * np.pi, count))

    def at(self, mm: np.ndarray) -> np.ndarray:
        """(V, 3) positions -> (M, V) basis B: normal weights times B is a field of unit variance."""
        frequencies, phases = self.frequencies.astype(np.float32), self.phases.astype(np.float32)
        angles = frequencies.T @ mm.T.astype(np.float32) + phases[:, None]
        return np.float32(np.sqrt(2 / len(self.phases))) * np.cos(angles)


@dataclass(frozen=True)
class World:
    """What everybody shares: the grid, the atlases, the scenes and the code."""

    config: SimulateConfig
    affine: np.ndarray  # (4, 4) voxel -> mm; oblique, permuted and flipped
    labels: dict[str, np.ndarray]  # parcellation -> region numbers on the grid
    names: dict[str, dict[int, str]]  # parcellation -> number -> name
    ijk: np.ndarray  # (G, 3) grey-matter voxels that a person may have
    visual: np.ndarray  # (G,) is the voxel in visual cortex?
    profiles: list[np.ndarray]  # per tuning, how much it holds at each point of a template grid
    profiles_affine: np.ndarray
    waves: Waves
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
            [t.weight * map_coordinates(p, at, order=1) for t, p in zip(TUNINGS, self.profiles, strict=True)]
        )

    def code(self, mm: np.ndarray, own: tuple[Waves, np.ndarray] | None = None) -> np.ndarray:
        """(V, 3) positions -> (K, V) pattern of each value: the shared code, or one with `own` fields and no preference."""
        waves, weights = own or (self.waves, self.weights)
        field = weights @ waves.at(mm)
        patterns = np.zeros_like(field)
        for tuning, profile in zip(TUNINGS, self.profile(mm), strict=True):
            rows = rows_of(tuning)
            patterns[rows] += profile * (field[rows] + (tuning.preference if own is None else 0))
        return (self.config.signal * patterns).astype(np.float32)


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


def simulate(out: Path, config: SimulateConfig | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Write a simulated data set as BIDS derivatives to the new folder `out`; `progress` hears one line per step.

    Raises InputError if `out` already holds something, or if the atlases are missing or not as expected.
    """
    config, tell = config or SimulateConfig(), progress or (lambda line: None)
    refuse_existing(out)
    tell("laying out the anatomy, the scenes and the code")
    world = build_world(config)
    with whole_folder(out) as folder:
        write_world(folder, world)
        population, truth = Population.draw(world), {}
        for index in range(config.people):
            person = simulate_person(world, index)
            write_person(folder, world, person)
            truth[person.name] = {"voxels": len(person.ijk), "constant_voxels": int((~person.varies).sum()),
                                  "noise_ceiling_90th_percentile": float(np.percentile(person.noise_ceiling, 90)),
                                  "identification": noise_ceiling_identification(world, person, population)}  # fmt: skip
            tell(f"{person.name}: {len(person.ijk)} voxels, {len(person.values)} trials")
        write_tsv(
            folder / "participants.tsv",
            pd.DataFrame({"participant_id": list(truth), "n_voxels": [t["voxels"] for t in truth.values()]}),
        )
        ceilings = pd.DataFrame([t["identification"] for t in truth.values()]).mean().to_dict()
        write_json(folder / "truth.json", {
            "seed": config.seed, "config": config.model_dump(), "stimuli": world.stimuli["split"].value_counts().to_dict(),
            "attributes": {name: list(values) for name, values in ATTRIBUTES.items()}, "tunings": [t._asdict() for t in TUNINGS],
            "chance": 1 / config.test_stimuli, "identification": ceilings, "people": truth,
        })  # fmt: skip
    return out


def summary(folder: Path) -> str:
    """One line about a simulated data set, for people."""
    truth = read_json(folder / "truth.json", "a simulated data set")
    voxels, best = [p["voxels"] for p in truth["people"].values()], truth["identification"]
    return (
        f"{len(voxels)} simulated people, {min(voxels):,}-{max(voxels):,} voxels, {sum(truth['stimuli'].values())} scenes ({truth['stimuli']['test']} for the test). "
        f"One trial can name its scene {best['known_person_single_trial']:.0%} of the time at best, {best['unseen_person_single_trial']:.0%} in a person never seen before (chance {truth['chance']:.1%})."
    )


def build_world(config: SimulateConfig) -> World:
    """Everything that people share; it depends on the seed but not on how many people there are."""
    rng = np.random.default_rng([config.seed, 0])
    atlases = {name: load_parcellation(name) for name in PARCELLATIONS}
    template, template_affine, regions = atlases["HCPEx"]
    numbers = {name: number for number, name in regions.items()}
    visual_numbers = bilateral({region for t in TUNINGS for region in t.regions} | set(UNTUNED), numbers)

    # A grid like a scanner's: axes permuted, two of them flipped, all tilted by a few degrees; it just holds the cortex.
    x, y, z = np.deg2rad([4.0, -3.0, 5.0])
    tilt = (
        np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        @ [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
        @ [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    )
    axes = config.resolution_mm * tilt @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    inside = apply_affine(template_affine, np.argwhere(template[::2, ::2, ::2] > 0) * 2) @ np.linalg.inv(axes).T
    low = np.floor(inside.min(0)) - 1
    shape = (np.ceil(inside.max(0)) + 2 - low).astype(int)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, axes @ low

    ijk = np.argwhere(np.ones(shape, bool))
    mm = apply_affine(affine, ijk)
    labels = {name: nearest(volume, to_mm, mm).reshape(shape) for name, (volume, to_mm, _) in atlases.items()}
    grey = (grey_matter(mm) > 0.3) & (labels["HCPEx"].ravel() > 0)
    profiles, step = [], 2
    coarse = template[::step, ::step, ::step]
    blur = sigma(6.0) / step  # mm; borders between regions are soft and differ between people
    cortex = gaussian_filter((coarse > 0).astype(np.float32), blur)
    for tuning in TUNINGS:
        held = gaussian_filter(np.isin(coarse, bilateral(tuning.regions, numbers)).astype(np.float32), blur)
        profiles.append(np.divide(held, cortex, out=np.zeros_like(held), where=cortex > 0.05))

    counts = {"train": config.train_stimuli, "val": config.val_stimuli, "test": config.test_stimuli}
    stimuli = draw_stimuli(rng, counts)
    said = [(scene["stimulus"], text) for scene in stimuli.to_dict("records") for text in captions_of(scene)]
    captions = pd.DataFrame(said, columns=["stimulus", "caption"])
    assert captions["caption"].is_unique
    design = np.concatenate(
        [stimuli[a].to_numpy()[:, None] == np.array(list(v)) for a, v in ATTRIBUTES.items()], axis=1
    )
    waves = Waves.draw(rng, config.tuning_fwhm_mm, config.waves)
    return World(
        config, affine, labels, {name: names for name, (_, _, names) in atlases.items()}, ijk[grey], np.isin(labels["HCPEx"].ravel()[grey], visual_numbers),
        profiles, template_affine @ np.diag([step, step, step, 1]), waves, rng.normal(size=(design.shape[1], config.waves)), stimuli, captions, design.astype(np.float32),
    )  # fmt: skip


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


@dataclass(frozen=True)
class Population:
    """What can be known of a person before meeting them: how responses are distributed over people, place by place."""

    carries: np.ndarray  # (G,) which of the world's voxels carry any of the code; the H voxels below
    mean: np.ndarray  # (K, H) mean over people of the response to each value
    between: np.ndarray  # (H, H) covariance between people of the response to a test stimulus
    spread: np.ndarray  # (H, H) mean over people of the covariance that unit noise in every value makes

    @classmethod
    def draw(cls, world: World, people: int = 40) -> Self:
        """Estimate it from `people` fresh people, none of whom is in the data set."""
        rng = np.random.default_rng([world.config.seed, 3])
        mm = apply_affine(world.affine, world.ijk)
        carries = world.profile(mm).sum(0) > 0.05
        draws = np.stack([draw_patterns(world, mm[carries], rng) for _ in range(people)])  # (P, K, H)
        mean = draws.mean(0)
        size, axes = np.linalg.eigh(np.cov(world.candidates.T, bias=True))
        # Rows with the same covariance as the candidates, but fewer of them.
        contrasts = (axes * np.sqrt(size.clip(0))).T[size > 1e-6]
        apart = np.concatenate(contrasts.astype(np.float32) @ (draws - mean)) / np.float32(np.sqrt(people - 1))
        rows = np.concatenate(draws)
        return cls(carries, mean, apart.T @ apart, rows.T @ rows / people)


def noise_ceiling_identification(
    world: World, person: Person, population: Population, draws: int = 100
) -> dict[str, float]:
    """How often the best observer names the right one of the test stimuli, from one trial and from the mean over repeats.

    `known_person`: the observer knows this person's true response to every candidate and the covariance of the noise;
    with Gaussian noise no decoder can do better. `unseen_person`: of this person it knows the measurement noise alone,
    and of people in general the mean and the covariance of their responses, one for all candidates (so it is linear).
    Both know the baselines of the runs, and read the voxels that carry any of the code.
    """
    config = world.config
    rng = np.random.default_rng([config.seed, 2, int(person.name.removeprefix("sub-"))])
    order = np.full(world.labels["HCPEx"].shape, -1)
    order[tuple(world.ijk[population.carries].T)] = np.arange(population.carries.sum())
    place = order[tuple(person.ijk.T)]
    used = person.varies & (place >= 0)
    place = place[used]

    actual, shared = world.candidates @ person.patterns[:, used], world.candidates @ population.mean[:, place]  # (C, V)
    smooth, code = np.split(person.noise[:, used], [config.waves])
    measurement = smooth.T @ smooth + config.voxel_noise**2 * np.eye(len(place), dtype=np.float32)
    noise, at = measurement + code.T @ code, np.ix_(place, place)
    supposed = measurement + config.code_noise**2 * population.spread[at]
    found = {}
    for name, trials in (("single_trial", 1), ("mean_over_repeats", config.repeats)):
        for who, expected, covariance in (
            ("known_person", actual, noise / trials),
            ("unseen_person", shared, supposed / trials + population.between[at]),
        ):
            weights = cho_solve(cho_factor(covariance), expected.T)  # (V, C)
            clean = actual @ weights - (expected.T * weights).sum(0) / 2  # (C shown, C candidates)
            size, axes = np.linalg.eigh(weights.T @ noise @ weights / trials)
            scores = clean + rng.normal(size=(draws, *clean.shape)) @ (axes * np.sqrt(size.clip(0))).T
            found[f"{who}_{name}"] = float((scores.argmax(-1) == np.arange(len(clean))).mean())
    return found


def write_world(folder: Path, world: World) -> None:
    """Write the description, the atlases with their lookup tables, and the scenes with all their captions."""
    write_json(folder / "dataset_description.json", {
        "Name": "Simulated scenes", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "License": "CC0",
        "GeneratedBy": [{"Name": "mindllm.data.simulate", "Description": "No person was scanned. truth.json says what was planted."}],
    })  # fmt: skip
    for name, volume in world.labels.items():
        save(folder / f"atlas-{name}_{space(world)}_dseg.nii.gz", volume.astype(np.int16), world.affine)
        write_tsv(folder / f"atlas-{name}_dseg.tsv", pd.DataFrame(world.names[name].items(), columns=["index", "name"]))
    (folder / "stimuli").mkdir()
    write_tsv(folder / "stimuli" / "stimuli.tsv", world.stimuli)
    write_tsv(folder / "stimuli" / "captions.tsv", world.captions)


def write_person(folder: Path, world: World, person: Person) -> None:
    """Write one person's betas (int16 with slope and intercept), mask, noise ceiling and trials."""
    func = folder / person.name / "func"
    func.mkdir(parents=True)
    shape, at, stem = world.labels["HCPEx"].shape, tuple(person.ijk.T), f"{person.name}_task-{TASK}"
    low, high = float(person.values.min()), float(person.values.max())
    slope, intercept = (high - low) / 65000, (high + low) / 2
    betas = np.zeros((*shape, len(person.values)), np.int16)
    betas[at] = np.round((person.values.T - intercept) / slope)
    save(
        func / f"{stem}_{space(world)}_stat-effect_desc-SingletrialBetas_statmap.nii.gz",
        betas,
        world.affine,
        slope,
        intercept,
    )
    mask, ceiling = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    mask[at], ceiling[at] = 1, person.noise_ceiling
    save(func / f"{stem}_{space(world)}_desc-brain_mask.nii.gz", mask, world.affine)
    save(func / f"{stem}_{space(world)}_desc-Noiseceiling_statmap.nii.gz", ceiling, world.affine)
    write_tsv(func / f"{stem}_desc-SingletrialBetas_trials.tsv", person.trials)


def space(world: World) -> str:
    """The BIDS entities of the grid."""
    return f"space-MNI152_res-{world.config.resolution_mm:g}"


def save(path: Path, array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> None:
    """Write `array` as it is, to be read as slope x value + intercept."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    image.set_sform(affine, "mni")
    image.to_filename(path)


def write_tsv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with its column names in the first line and tabs between columns."""
    table.to_csv(path, sep="\t", index=False)


def rows_of(tuning: Tuning) -> list[int]:
    """Which of the K values, counted over all attributes in order, a tuning is about."""
    pairs = [(attribute, value) for attribute, values in ATTRIBUTES.items() for value in values]
    return [
        row for row, (a, v) in enumerate(pairs) if a == tuning.attribute and (not tuning.values or v in tuning.values)
    ]


def sigma(fwhm_mm: float) -> float:
    """Standard deviation of a Gaussian of that full width at half maximum."""
    return fwhm_mm / np.sqrt(8 * np.log(2))
