"""Names from data never become paths unchecked; nothing outside an output is removed."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.resplit import create_split
from mindllm.data.store import Store
from mindllm.datasets.glmsingle import GLMsingleReader
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name
from mindllm.utils.folders import remove_folder

BAD = [
    "../../../escaped",
    "./thesis",
    ".",
    "..",
    "",
    "/etc",
    "a/b",
    "a\\b",
    ".hidden",
    "a\n",
    "a\0",
    "a ",
    "a.",
    "x.partial",
    "s" * 151,
]
MASK = np.ones((2, 2, 2), np.uint8)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
    }


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A GLMsingle output of four trials, its mask, and a folder `thesis` that must survive."""
    folder = tmp_path / "in"
    folder.mkdir()
    nib.save(nib.Nifti1Image(MASK, np.eye(4)), folder / "mask.nii.gz")
    with h5py.File(folder / "TYPED_FITHRF_GLMDENOISE_RR.hdf5", "w") as file:
        file["betasmd"] = np.random.default_rng(0).normal(size=(2, 2, 2, 4)).astype(np.float32)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    return folder


def design(folder: Path, subjects: list[str]) -> Path:
    file = folder / "design.tsv"
    rows = {
        "subject": subjects,
        "stimulus": list("abcd"),
        "file": "TYPED_FITHRF_GLMDENOISE_RR.hdf5",
        "mask": "mask.nii.gz",
    }
    pd.DataFrame(rows).to_csv(file, sep="\t", index=False)
    return file


@pytest.mark.parametrize("name", [bad for bad in BAD if bad and bad == bad.strip("\n\0 ")])
def test_a_subject_of_a_design_table_is_refused_by_its_row(outputs: Path, name: str) -> None:
    before = snapshot(outputs.parent) | {"in/design.tsv": b""}
    file = design(outputs, ["sub-01", name, name, name])
    with pytest.raises(InputError, match=r"design\.tsv, line 3: .* cannot name a subject"):
        GLMsingleReader(outputs, design=file, test_fraction=0.5).prepare(outputs.parent / "store")
    assert snapshot(outputs.parent) | {"in/design.tsv": b""} == before


def test_the_command_says_one_sentence_and_touches_nothing(outputs: Path) -> None:
    file = design(outputs, ["./thesis"] * 4)
    before = snapshot(outputs.parent)
    words = [
        "prepare",
        "glmsingle",
        str(outputs),
        "--design",
        str(file),
        "--out",
        str(outputs.parent / "store"),
    ]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, InputError)
    assert "'./thesis' cannot name a subject" in str(result.exception)
    assert snapshot(outputs.parent) == before


@pytest.mark.parametrize("name", BAD)
def test_python_callers_cannot_name_a_subject_so(name: str) -> None:
    with pytest.raises(InputError, match="cannot name a subject"):
        VoxelMasker.from_mask_img(nib.Nifti1Image(MASK, np.eye(4)), subject=name)


@pytest.mark.parametrize(
    "name", ["sub-01", "subj01", "S1_b", "Jürgen", "sub-01_NSD", "subject 1", "a.b", "x"]
)
def test_ordinary_names_are_taken(name: str) -> None:
    assert check_name(name, "subject") == name


def test_splits_are_checked_in_the_same_way(tiny_store: Store) -> None:
    for name in BAD:
        with pytest.raises(InputError, match="cannot name a split"):
            create_split(tiny_store, name, "stimulus", fractions={"test": 0.5})


def test_only_what_lies_inside_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out" / "part").mkdir(parents=True)
    for outside in (tmp_path, tmp_path / "out", tmp_path / "out" / ".." / "other"):
        with pytest.raises(AssertionError):
            remove_folder(outside, within=tmp_path / "out")
    remove_folder(tmp_path / "out" / "part", within=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
