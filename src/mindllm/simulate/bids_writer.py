"""Simulated people as BIDS derivatives."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mindllm.simulate.subject import SimulatedSubject
from mindllm.simulate.world import SimulatedExperiment
from mindllm.utils.files import write_json

TASK = "scenes"


def write_experiment(folder: Path, world: SimulatedExperiment) -> None:
    """Write the description, the atlases with their lookup tables, and the scenes with all their captions."""
    write_json(folder / "dataset_description.json", {
        "Name": "Simulated scenes", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "License": "CC0",
        "GeneratedBy": [{"Name": "mindllm.simulate.simulator", "Description": "No person was scanned. truth.json says what was planted."}],
    })  # fmt: skip
    for name, volume in world.labels.items():
        save(
            folder / f"atlas-{name}_{space_entity(world)}_dseg.nii.gz",
            volume.astype(np.int16),
            world.affine,
        )
        write_tsv(
            folder / f"atlas-{name}_dseg.tsv",
            pd.DataFrame(world.names[name].items(), columns=["index", "name"]),
        )
    (folder / "stimuli").mkdir()
    write_tsv(folder / "stimuli" / "stimuli.tsv", world.stimuli)
    write_tsv(folder / "stimuli" / "captions.tsv", world.captions)


def write_subject(folder: Path, world: SimulatedExperiment, person: SimulatedSubject) -> None:
    """Write one person's betas (int16 with slope and intercept), mask, noise ceiling and trials."""
    func = folder / person.subject / "func"
    func.mkdir(parents=True)
    shape, at, stem = (
        world.labels["HCPEx"].shape,
        tuple(person.voxel_indices.T),
        f"{person.subject}_task-{TASK}",
    )
    low, high = float(person.betas.min()), float(person.betas.max())
    slope, intercept = (high - low) / 65000, (high + low) / 2
    betas = np.zeros((*shape, len(person.betas)), np.int16)
    betas[at] = np.round((person.betas.T - intercept) / slope)
    save(
        func / f"{stem}_{space_entity(world)}_stat-effect_desc-SingletrialBetas_statmap.nii.gz",
        betas,
        world.affine,
        slope,
        intercept,
    )
    mask, ceiling = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    mask[at], ceiling[at] = 1, person.noise_ceiling
    save(func / f"{stem}_{space_entity(world)}_desc-brain_mask.nii.gz", mask, world.affine)
    save(
        func / f"{stem}_{space_entity(world)}_desc-Noiseceiling_statmap.nii.gz",
        ceiling,
        world.affine,
    )
    write_tsv(func / f"{stem}_desc-SingletrialBetas_trials.tsv", person.trials)


def space_entity(world: SimulatedExperiment) -> str:
    """The BIDS entities of the grid."""
    return f"space-MNI152_res-{world.config.resolution_mm:g}"


def save(
    path: Path, array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0
) -> None:
    """Write `array` as it is, to be read as slope x value + intercept."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, intercept)
    image.set_sform(affine, "mni")
    image.to_filename(path)


def write_tsv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with its column names in the first line and tabs between columns."""
    table.to_csv(path, sep="\t", index=False)
