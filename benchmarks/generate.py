"""Write published layouts at full size with made-up numbers, without fetching the data sets.

python benchmarks/generate.py nsd|bids|official|mosaic|glmsingle|laion|vqa FOLDER
"""

import gzip
import json
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from scipy.io import savemat

from mindllm.datasets import laion_fmri as layout
from mindllm.fmri.grayordinates import GRAYORDINATES

NSD_SHAPE = (81, 104, 83)  # subj01


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file with the fastest compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.openers.Opener.default_compresslevel = 1
    nib.save(nib.Nifti1Image(values, affine), path)


def write_nsd_design(
    folder: Path, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write NSD's design of all subjects.

    Returns the images of each subject (8, 10,000), the order of the 30,000 trials, and the shared
    images (1,000), all counted from 1.
    """
    folder.mkdir(parents=True)
    shared = np.sort(rng.permutation(73000)[:1000]) + 1
    rest = np.setdiff1d(np.arange(1, 73001), shared)
    images = np.stack([np.r_[shared, np.sort(rng.permutation(rest)[:9000])] for _ in range(8)])
    order = np.concatenate([rng.permutation(10000) for _ in range(3)]) + 1
    pattern = np.zeros((40, 12, 75), np.uint8)
    for run in range(12):
        pattern[:, run, : 63 - run % 2] = 1
    savemat(
        folder / "nsd_expdesign.mat",
        {
            "masterordering": order[None],
            "subjectim": images,
            "sharedix": shared[None],
            "stimpattern": pattern,
            "basiccnt": np.zeros((3, 40)),
        },
    )
    return images, order, shared


def nsd(root: Path, sessions: int = 1, voxels: int = 15_724, nifti: bool = False) -> None:
    """Write NSD's subj01: design, ROIs, transform, noise ceilings, and sessions of 750 volumes.

    Betas are int16, in MATLAB's chunks.
    """
    rng, shape = np.random.default_rng(0), NSD_SHAPE
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    affine[:3, 3] = -1.8 * (np.array(shape) - 1) / 2
    folder = root / "nsddata" / "experiments" / "nsd"
    images, order, _ = write_nsd_design(folder, rng)
    trial = np.zeros(73000, int)
    trial[images[0, order[:10000] - 1] - 1] = np.arange(10000) + 1
    pd.DataFrame(
        {
            "cocoId": 100_000 + np.arange(73000) * 3,
            "nsdId": np.arange(73000),
            "subject1_rep0": trial,
        }
    ).to_csv(folder / "nsd_stim_info_merged.csv")
    voxel_indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    brain = (((voxel_indices - np.array(shape) / 2) / (np.array(shape) / 2)) ** 2).sum(-1) < 0.62
    mask_voxels = np.argsort(
        np.where(brain, ((voxel_indices - [40, 15, 40]) ** 2).sum(-1), np.inf), axis=None
    )[:voxels]
    mask = np.where(brain, 0, -1).astype(np.int16)
    mask.reshape(-1)[mask_voxels] = 1
    subject_dir = root / "nsddata" / "ppdata" / "subj01"
    save(subject_dir / "func1pt8mm" / "roi" / "nsdgeneral.nii.gz", mask, affine)
    save(
        subject_dir / "func1pt8mm" / "roi" / "streams.nii.gz",
        np.where(brain, rng.integers(0, 8, shape), -1).astype(np.int16),
        affine,
    )
    save(subject_dir / "func1pt8mm" / "brainmask.nii.gz", brain.astype(np.uint8), affine)
    mni_voxels = (
        np.array([91, 127, 73])
        + np.array([-1, 1, 1]) * 1.8 * (voxel_indices - np.array(shape) / 2)
        + 0.3
    )
    mni_voxels[~brain] = 9999
    save(
        subject_dir / "transforms" / "MNI-to-func1pt8.nii.gz", mni_voxels.astype(np.float32), affine
    )
    betas = (
        root / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
    )
    save(
        betas / "ncsnr.nii.gz",
        np.where(brain, rng.gamma(2, 0.2, shape), np.nan).astype(np.float32),
        affine,
    )
    values = rng.integers(-900, 900, (750, *shape[::-1]), dtype=np.int16)
    values[:, ~brain.T] = 0
    for session in range(1, sessions + 1):
        file = betas / f"betas_session{session:02d}"
        if nifti:
            save(file.with_suffix(".nii.gz"), values.T, affine)
        else:
            with h5py.File(file.with_suffix(".hdf5"), "w") as content:
                content.create_dataset("betas", data=values, chunks=(750, 1, 1, 1))


def mosaic(folder: Path, trials: int = 3000, name: str = "sub-01_NSD") -> Path:
    """Write one subject's HDF5 file of MOSAIC: 91,282 float64 numbers per trial.

    A third of the pictures is in the test split, each shown three times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng, file = np.random.default_rng(0), folder / f"{name}.hdf5"
    numbers, bad = (
        rng.normal(size=GRAYORDINATES + trials),
        np.sort(rng.permutation(GRAYORDINATES)[:2000]),
    )
    with h5py.File(file, "w") as content:
        content.attrs["subjectID"] = name
        ceilings = content.create_group("noiseceilings", track_order=True)
        ceilings[f"{name}_phase-test_n-1_noiseceiling"] = rng.uniform(0, 60, GRAYORDINATES)
        betas = content.create_group("betas", track_order=True)
        for trial in range(trials):
            picture, repeat, phase = (
                f"{trial // 3:012d}",
                trial % 3,
                "test" if trial // 3 < trials // 9 else "train",
            )
            values = numbers[trial : trial + GRAYORDINATES].copy()
            values[bad] = np.nan
            record = betas.create_dataset(
                f"{name}_stimulus-{picture}_phase-{phase}_rep-{repeat}",
                data=values,
                track_order=True,
            )
            record.attrs["nan_indices"], record.attrs["phase"], record.attrs["repetition"] = (
                bad,
                phase,
                repeat,
            )
            record.attrs["presented_stimulus_filename"] = f"{picture}.jpg"
    return file


def glmsingle(folder: Path, shape: tuple[int, int, int] = (81, 104, 83), trials: int = 750) -> Path:
    """Write a session of GLMsingle (Python, wanthdf5=1), a mask, and the design table."""
    rng, output = np.random.default_rng(0), folder / "sub-01" / "ses-1"
    output.mkdir(parents=True, exist_ok=True)
    slab = rng.normal(size=(shape[1], shape[2], trials)).astype(np.float32)
    with h5py.File(output / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as content:
        betas = content.create_dataset("betasmd", (*shape, trials), np.float32)
        for x in range(shape[0]):
            betas[x] = np.roll(slab, x, -1)
        content["R2"] = np.zeros(shape, np.float32)
        content["noisepool"] = h5py.Empty("f")
    nib.save(
        nib.Nifti1Image(ball(shape).astype(np.uint8), np.diag([1.8, 1.8, 1.8, 1])),
        folder / "sub-01_mask.nii.gz",
    )
    table = pd.DataFrame(
        {
            "subject": "sub-01",
            "session": "1",
            "file": "sub-01/ses-1",
            "mask": "sub-01_mask.nii.gz",
            "stimulus": [f"picture{n // 3}" for n in range(trials)],
        }
    )
    table.to_csv(folder / "design.tsv", sep="\t", index=False)
    return folder / "design.tsv"


def laion(folder: Path, trials: int = 1044, distinct: int = 12) -> Path:
    """Write one session of LAION-fMRI's sub-01: (143, 143, 143, trials) float32.

    `distinct` volumes take turns.
    """
    rng, files = np.random.default_rng(0), layout.LAIONSubjectFiles(folder, "sub-01")
    betas, table = files.session(1)
    betas.parent.mkdir(parents=True, exist_ok=True)
    brain = ball(layout.SHAPE, 0.55)
    affine = np.diag([-1.7778, 1.7778, 1.7778, 1])
    affine[:3, 3] = [127, -127, -110]
    image = nib.Nifti1Image(np.zeros(layout.SHAPE, np.float32), affine)
    header = image.header.copy()
    header.set_data_shape((*layout.SHAPE, trials))
    header["vox_offset"] = 352
    parts = []
    for _ in range(distinct):
        volume = np.zeros(layout.SHAPE, np.float32)
        volume[brain] = rng.normal(size=brain.sum())
        parts.append(gzip.compress(volume.tobytes("F"), 1))
    with betas.open("wb") as file:  # gzip files may be strung together
        file.write(gzip.compress(header.binaryblock + bytes(4)))
        for trial in range(trials):
            file.write(parts[trial % distinct])
    labels = [
        f"shared_4rep_NSD_{n}.jpg" if n % 3 else f"unique_sub-01_LAION_{n}.jpg"
        for n in np.arange(trials) // 2
    ]
    pd.DataFrame(
        {
            "session": "ses-01",
            "run": 1 + np.arange(trials) // 88,
            "beta_index": range(trials),
            "label": labels,
        }
    ).to_csv(table, sep="\t", index=False)
    stem = files.betas / "sub-01_task-images_space-T1w_"
    nib.save(
        nib.Nifti1Image(brain * np.float32(5), affine),
        f"{stem}stat-rsquare_desc-R2mean_statmap.nii.gz",
    )
    nib.save(
        nib.Nifti1Image(brain * np.float32(60), affine),
        f"{stem}desc-Noiseceiling12rep_statmap.nii.gz",
    )
    roi = files.rois / "laion" / "sub-01_space-T1w_res-1pt8_label-laion-general_mask.nii.gz"
    roi.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(ball(layout.SHAPE, 0.25).astype(np.uint8), affine), roi)
    files.transforms.mkdir(parents=True)
    (files.transforms / "talairach.xfm").write_text(
        "MNI Transform File\n\nTransform_Type = Linear;\nLinear_Transform =\n"
        "1 0 0 0\n0 1 0 0\n0 0 1 0;\n"
    )
    return folder


def bids(folder: Path, shape: tuple[int, int, int] = (97, 115, 97), trials: int = 400) -> Path:
    """Write one subject's betas as a BIDS derivative on the 2 mm MNI152NLin2009cAsym grid."""
    rng, func = np.random.default_rng(0), folder / "sub-01" / "func"
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = [-96, -132, -78]
    stem = func / "sub-01_task-x_space-MNI152NLin2009cAsym"
    brain = ball(shape)
    volumes = np.zeros((*shape, trials), np.float32)
    volumes[brain] = rng.normal(size=(int(brain.sum()), 1)) + np.arange(trials) % 7
    save(Path(f"{stem}_stat-effect_desc-SingletrialBetas_statmap.nii.gz"), volumes, affine)
    save(Path(f"{stem}_desc-brain_mask.nii.gz"), brain.astype(np.uint8), affine)
    table = pd.DataFrame(
        {
            "volume": range(trials),
            "stimulus": np.arange(trials) // 2,
            "caption": "a made-up caption",
        }
    )
    table.to_csv(func / "sub-01_task-x_desc-SingletrialBetas_trials.tsv", sep="\t", index=False)
    return folder


def official(folder: Path, trials: int = 3000, voxels: int = 15_724) -> Path:
    """Write the authors' prepared data of one subject (nsd0), a mask, one instruction file."""
    rng = np.random.default_rng(0)
    for name in ("nsd0", "roi/subj01", "cache"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = rng.normal(size=voxels + trials).astype(np.float32)
    with h5py.File(folder / "nsd0" / "subject_1.h5", "w") as content:
        for trial in range(trials):
            record = content.create_group(f"{'test' if trial % 10 == 0 else 'train'}/{trial}")
            record["visual_voxels"], record["coco_id"], record["prev_coco_id"] = (
                numbers[trial : trial + voxels],
                trial,
                trial - 1,
            )
    mask = np.zeros(NSD_SHAPE, np.int16)
    mask.reshape(-1)[:voxels] = 1
    save(folder / "roi" / "subj01" / "nsdgeneral.nii.gz", mask, np.diag([1.8, 1.8, 1.8, 1]))
    chat = [
        {"role": "user", "content": "<fMRI>\nWhat?"},
        {"role": "assistant", "content": "a made-up caption"},
    ]
    samples = [
        {"coco_id": n, "from": "coco-caption", "chat": chat, "answers": ["a made-up caption"]}
        for n in range(trials)
    ]
    (folder / "cache" / "coco-caption.json").write_text(json.dumps(samples))
    return folder


def vqa(folder: Path, questions: int = 443_757) -> Path:
    """Write VQA version 2's train split, ten answers a question, and COCO ids in images.txt."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    shown = rng.choice(rng.permutation(581_929)[:82_783] + 1, questions)
    np.savetxt(folder / "images.txt", shown, "%d")
    info = {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017}
    order = pd.Series(shown).groupby(shown).cumcount().to_numpy()
    words = ["red", "blue", "yes", "no", "2", "a dog on the left", "kitchen"]
    questions_asked, annotations = [], []
    for image, number in zip(shown.tolist(), order.tolist(), strict=True):
        key = {"image_id": image, "question_id": image * 1000 + number}
        answers_of_ten = [words[(number + n // 4) % len(words)] for n in range(10)]
        questions_asked.append(
            key | {"question": "What colour is the thing on the left of the picture?"}
        )
        ten = [
            {"answer": a, "answer_confidence": "yes", "answer_id": n}
            for n, a in enumerate(answers_of_ten, 1)
        ]
        annotations.append(
            key
            | {
                "question_type": "what color is the",
                "multiple_choice_answer": answers_of_ten[0],
                "answers": ten,
                "answer_type": "other",
            }
        )
    common = {"info": info, "data_subtype": "train2014", "data_type": "mscoco"}
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(
        json.dumps(common | {"questions": questions_asked})
    )
    (folder / "v2_mscoco_train2014_annotations.json").write_text(
        json.dumps(common | {"annotations": annotations})
    )
    return folder


def ball(shape: tuple[int, int, int], radius: float = 0.85) -> np.ndarray:
    """Make a ball in the middle of a grid, about as many voxels as a brain fills."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2


if __name__ == "__main__":
    {
        "nsd": nsd,
        "bids": bids,
        "official": official,
        "mosaic": mosaic,
        "glmsingle": glmsingle,
        "laion": laion,
        "vqa": vqa,
    }[sys.argv[1]](Path(sys.argv[2]))
