"""Options of a scan: what its mask must be, and what is refused before a model is loaded."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindllm.cli.scans import ScanOptions
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError


@pytest.fixture
def options(tmp_path: Path) -> ScanOptions:
    for name in ("scan", "mask", "atlas"):
        image = nib.Nifti1Image(np.array([[[0.2, 0.8]]]), np.eye(4))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    atlas = [f"HCPEx={tmp_path / 'atlas.nii.gz'}"]
    return ScanOptions(
        tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz", 0.5, None, atlas, "0,2-3", None, False
    )


def test_a_scan_is_opened_as_its_options_say(options: ScanOptions, tiny_model: MindLLM) -> None:
    options.check()
    data = options.open(tiny_model, Path("model"))
    assert data.masker.get_fdata().tolist() == [[[0, 1]]]  # type: ignore[union-attr]
    assert data.reading == {
        "atlases": {"HCPEx": options.atlas[0].removeprefix("HCPEx=")},
        "volumes": [0, 2, 3],
        "standardize_with": None,
        "standardized": False,
    }
    assert replace(options, mask_threshold=None).open(tiny_model, Path()).masker == options.mask
    with pytest.raises(InputError, match="model holds no masker of sub-09"):
        replace(options, mask=None, mask_threshold=None, subject="sub-09").open(
            tiny_model, Path("model")
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "give either --mask"),
        ({"subject": "sub-01"}, "give either --mask"),
        ({"mask": None, "subject": "sub-01"}, "--mask-threshold is for --mask"),
        ({"mask": Path("none.nii.gz")}, "the mask"),
        ({"scan": Path("none.nii.gz")}, "the scan"),
        ({"standardize_with": Path("none.nii.gz")}, "--standardize-with"),
        ({"atlas": ["HCPEx=none.nii.gz"]}, "the atlas HCPEx"),
        ({"atlas": ["HCPEx"]}, "expected NAME=FILE"),
        ({"volumes": "a"}, "a"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    options: ScanOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        replace(options, **change).check()  # type: ignore[arg-type]
