"""Files at full size in the layouts that are read, with generated numbers."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
from scipy.io import savemat

NSD_SHAPE = (81, 104, 83)  # subj01


def save(path: Path, values: np.ndarray, affine: np.ndarray) -> None:
    """A NIfTI file, compressed as fast as can be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.openers.Opener.default_compresslevel = 1
    nib.save(nib.Nifti1Image(values, affine), path)


def nsd(root: Path, sessions: int = 1, voxels: int = 15_724, nifti: bool = False) -> None:
    """NSD's subj01: design, ROIs, transform, noise ceilings, and some sessions of 750 volumes, int16, in MATLAB's chunks."""
    rng, shape = np.random.default_rng(0), NSD_SHAPE
    affine = np.diag([1.8, 1.8, 1.8, 1.0])
    affine[:3, 3] = -1.8 * (np.array(shape) - 1) / 2
    folder = root / "nsddata" / "experiments" / "nsd"
    folder.mkdir(parents=True)
    shared = np.sort(rng.permutation(73000)[:1000]) + 1
    rest = np.setdiff1d(np.arange(1, 73001), shared)
    images = np.stack([np.r_[shared, np.sort(rng.permutation(rest)[:9000])] for _ in range(8)])
    order = np.concatenate([rng.permutation(10000) for _ in range(3)]) + 1
    pattern = np.zeros((40, 12, 75), np.uint8)
    for run in range(12):
        pattern[:, run, : 63 - run % 2] = 1
    savemat(folder / "nsd_expdesign.mat", {"masterordering": order[None], "subjectim": images, "sharedix": shared[None], "stimpattern": pattern, "basiccnt": np.zeros((3, 40))})  # fmt: skip
    trial = np.zeros(73000, int)
    trial[images[0, order[:10000] - 1] - 1] = np.arange(10000) + 1
    pd.DataFrame({"cocoId": 100_000 + np.arange(73000) * 3, "nsdId": np.arange(73000), "subject1_rep0": trial}).to_csv(
        folder / "nsd_stim_info_merged.csv"
    )
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    brain = (((ijk - np.array(shape) / 2) / (np.array(shape) / 2)) ** 2).sum(-1) < 0.62
    behind = np.argsort(np.where(brain, ((ijk - [40, 15, 40]) ** 2).sum(-1), np.inf), axis=None)[:voxels]
    mask = np.where(brain, 0, -1).astype(np.int16)
    mask.reshape(-1)[behind] = 1
    person = root / "nsddata" / "ppdata" / "subj01"
    save(person / "func1pt8mm" / "roi" / "nsdgeneral.nii.gz", mask, affine)
    save(person / "func1pt8mm" / "roi" / "streams.nii.gz", np.where(brain, rng.integers(0, 8, shape), -1).astype(np.int16), affine)  # fmt: skip
    save(person / "func1pt8mm" / "brainmask.nii.gz", brain.astype(np.uint8), affine)
    place = np.array([91, 127, 73]) + np.array([-1, 1, 1]) * 1.8 * (ijk - np.array(shape) / 2) + 0.3
    place[~brain] = 9999
    save(person / "transforms" / "MNI-to-func1pt8.nii.gz", place.astype(np.float32), affine)
    betas = root / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
    save(betas / "ncsnr.nii.gz", np.where(brain, rng.gamma(2, 0.2, shape), np.nan).astype(np.float32), affine)
    values = rng.integers(-900, 900, (750, *shape[::-1]), dtype=np.int16)
    values[:, ~brain.T] = 0
    for session in range(1, sessions + 1):
        file = betas / f"betas_session{session:02d}"
        if nifti:
            save(file.with_suffix(".nii.gz"), values.T, affine)
        else:
            with h5py.File(file.with_suffix(".hdf5"), "w") as content:
                content.create_dataset("betas", data=values, chunks=(750, 1, 1, 1))
