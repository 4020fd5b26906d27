"""The command decode: what its mask must be."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindllm.cli.decode import threshold_mask
from mindllm.utils.errors import InputError


def test_a_mask_that_is_not_binary_is_thresholded(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.array([[[0.2, 0.8]]]), np.eye(4)), tmp_path / "mask.nii.gz")
    assert threshold_mask(tmp_path / "mask.nii.gz", 0.5).get_fdata().tolist() == [[[0, 1]]]
    with pytest.raises(InputError, match="--mask-threshold is for --mask"):
        threshold_mask(None, 0.5)
