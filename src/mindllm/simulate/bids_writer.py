"""Simulated subjects are written as BIDS derivatives."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from mindllm.simulate.questions import write_question_files
from mindllm.simulate.subject import SimulatedSubject
from mindllm.simulate.world import SimulatedExperiment
from mindllm.utils.files import write_json

TASK = "scenes"
DESCRIPTION = {
    "Name": "Simulated scenes",
    "BIDSVersion": "1.10.0",
    "DatasetType": "derivative",
    "License": "CC0",
    "GeneratedBy": [
        {
            "Name": "mindllm.simulate.simulator",
            "Description": "No subject was scanned. truth.json says what was simulated.",
        }
    ],
}


def write_experiment(folder: Path, experiment: SimulatedExperiment) -> None:
    """Write the description, the atlases with their lookup tables, and scenes with captions."""
    write_json(folder / "dataset_description.json", DESCRIPTION)
    for atlas, volume in experiment.labels.items():
        file = folder / f"atlas-{atlas}_{space_entity(experiment)}_dseg.nii.gz"
        save_img(file, volume.astype(np.int16), experiment.affine)
        table = pd.DataFrame(experiment.names[atlas].items(), columns=["index", "name"])
        write_tsv(folder / f"atlas-{atlas}_dseg.tsv", table)
    (folder / "stimuli").mkdir()
    write_tsv(folder / "stimuli" / "stimuli.tsv", experiment.stimuli)
    write_tsv(folder / "stimuli" / "captions.tsv", experiment.captions)
    if experiment.config.with_questions:
        (folder / "questions").mkdir()
        seed = experiment.config.seed
        write_question_files(folder / "questions", experiment.stimuli, seed)


def write_subject(folder: Path, experiment: SimulatedExperiment, subject: SimulatedSubject) -> None:
    """Write a subject's betas (int16 with slope and intercept), mask, noise ceiling and trials."""
    func = folder / subject.subject / "func"
    func.mkdir(parents=True)
    stem = f"{subject.subject}_task-{TASK}"
    prefix = func / f"{stem}_{space_entity(experiment)}"
    shape, voxels = experiment.labels["HCPEx"].shape, tuple(subject.voxel_indices.T)
    low, high = float(subject.betas.min()), float(subject.betas.max())
    slope, intercept = (high - low) / 65000, (high + low) / 2
    betas = np.zeros((*shape, len(subject.betas)), np.int16)
    betas[voxels] = np.round((subject.betas.T - intercept) / slope)
    mask, ceiling = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    mask[voxels], ceiling[voxels] = 1, subject.noise_ceiling
    affine = experiment.affine
    statmap = Path(f"{prefix}_stat-effect_desc-SingletrialBetas_statmap.nii.gz")
    save_img(statmap, betas, affine, slope, intercept)
    save_img(Path(f"{prefix}_desc-brain_mask.nii.gz"), mask, affine)
    save_img(Path(f"{prefix}_desc-Noiseceiling_statmap.nii.gz"), ceiling, affine)
    write_tsv(func / f"{stem}_desc-SingletrialBetas_trials.tsv", subject.trials)


def space_entity(experiment: SimulatedExperiment) -> str:
    """Return the BIDS entities of the grid."""
    return f"space-MNI152_res-{experiment.config.resolution_mm:g}"


def save_img(
    path: Path, array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0
) -> None:
    """Save an array as it is, to be read as slope x value + intercept."""
    img = nib.Nifti1Image(array, affine)
    img.header.set_xyzt_units("mm")
    img.header.set_slope_inter(slope, intercept)
    img.set_sform(affine, "mni")
    img.to_filename(path)


def write_tsv(path: Path, table: pd.DataFrame) -> None:
    """Write a table with its column names in the first line and tabs between columns."""
    table.to_csv(path, sep="\t", index=False)
