"""Decode a new subject: another mask, any voxels, with or without the model's atlases.

Run `make demo` first: it leaves a model and simulated subjects in runs/demo.
"""

from pathlib import Path

import numpy as np

from mindllm import MindLLM, VoxelMasker, standardize_betas

DEMO = Path("runs/demo")
subject = sorted((DEMO / "bids").glob("sub-*"))[-1]
mask = next(subject.rglob("*_desc-brain_mask.nii.gz"))
scan = next(subject.rglob("*_desc-SingletrialBetas_statmap.nii.gz"))

model = MindLLM.from_pretrained(DEMO / "model")
masker = VoxelMasker.from_mask_img(mask, subject=subject.name)  # no atlas: position is enough
masker = masker.select_voxels(np.arange(0, len(masker), 2))  # every second voxel
betas = standardize_betas(masker.transform(scan))  # (n_trials, n_voxels)
print(masker)
print(model.decode(betas[:3], masker))
