"""Scan files in, text out: as through the store, whichever volumes, voxels and atlases."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from mindllm.data.store import Store
from mindllm.model.decode import DecodedVolume, decode
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError
from tests.conftest import REGIONS

SUBJECT = "sub-02"
SHORT: dict[str, Any] = {"max_new_tokens": 6}


@pytest.fixture
def model(tiny_model: MindLLM) -> MindLLM:
    """A random model whose text depends on the scan: its tokens are much larger than words."""
    with torch.no_grad():
        tiny_model.projector.weight.mul_(20)
    return tiny_model


@pytest.fixture
def files(tiny_store: Store, tmp_path: Path) -> dict[str, Any]:
    """Session 1 of a subject as NIfTI files: scan, mask, two atlases with their lookup tables."""
    space, trials = tiny_store.masker(SUBJECT), tiny_store.trials(SUBJECT)
    rows = np.flatnonzero((trials["session"] == "1").to_numpy())
    nib.save(
        space.inverse_transform(np.asarray(tiny_store.betas(SUBJECT)[rows])),
        tmp_path / "scan.nii.gz",
    )
    nib.save(space.inverse_transform(np.ones(len(space), np.uint8)), tmp_path / "mask.nii.gz")
    atlases = {}
    for name, names in REGIONS.items():
        atlases[name] = tmp_path / f"atlas-{name}_dseg.nii.gz"
        nib.save(space.inverse_transform(space.parcel_labels[name].astype(np.int16)), atlases[name])
        table = pd.DataFrame({"index": names.keys(), "name": names.values()})
        table.to_csv(tmp_path / f"atlas-{name}_dseg.tsv", sep="\t", index=False)
    return {
        "scan": tmp_path / "scan.nii.gz",
        "mask": tmp_path / "mask.nii.gz",
        "atlases": atlases,
        "rows": rows,
    }


def read(model: MindLLM, files: dict[str, Any], **options: Any) -> list[DecodedVolume]:
    given = (
        {"scan": files["scan"], "mask": files["mask"], "atlases": files["atlases"]}
        | SHORT
        | options
    )
    return decode(model, given.pop("scan"), given.pop("mask"), given.pop("atlases"), **given)


def test_the_same_text_as_through_the_store(
    model: MindLLM, tiny_store: Store, files: dict[str, Any]
) -> None:
    values, space = (
        tiny_store.betas(SUBJECT, files["rows"], standardize=True),
        tiny_store.masker(SUBJECT),
    )
    found = read(model, files)
    texts = model.decode(values, space, **SHORT)
    assert [d.text for d in found] == texts
    assert len(set(texts)) > 3, "these scans all say the same, so this test shows nothing"
    evidence = model.log_likelihood_ratio(
        model.encode(values, space), [model.build_conversation(None, text) for text in texts]
    )
    np.testing.assert_allclose(
        [d.log_likelihood_ratio for d in found], evidence, rtol=1e-3, atol=1e-3
    )


def test_the_asked_volumes_in_the_asked_order(model: MindLLM, files: dict[str, Any]) -> None:
    whole = read(model, files)
    assert [d.volume for d in whole] == list(range(12))
    done: list[int] = []
    some = read(model, files, volumes=[7, 2, 7, 0, 11], batch_size=2, on_volume=done.append)
    assert [d.volume for d in some] == [7, 2, 7, 0, 11]
    assert [d.text for d in some] == [whole[d.volume].text for d in some]
    np.testing.assert_allclose(
        [d.log_likelihood_ratio for d in some],
        [whole[d.volume].log_likelihood_ratio for d in some],
        atol=1e-3,
    )
    assert done == [2, 4, 5]
    heard: list[str] = []
    streamed = read(model, files, volumes=[4, 1], on_text=heard.append)
    assert [d.text for d in streamed] == [whole[4].text, whole[1].text]
    assert "".join(heard).replace(" ", "") == "".join(d.text for d in streamed).replace(" ", "")


def test_fewer_voxels_and_fewer_atlases_than_in_training(
    model: MindLLM, files: dict[str, Any]
) -> None:
    image = nib.load(files["mask"])
    inside = np.asarray(image.dataobj).copy()
    inside[tuple(np.argwhere(inside)[::3].T)] = 0
    assert len(read(model, files, mask=nib.Nifti1Image(inside, image.affine), volumes=[0])) == 1
    one = {"visual": files["atlases"]["visual"]}
    assert len(read(model, files, atlases=one)) == len(read(model, files, atlases=None)) == 12


def test_a_reference_scan_normalizes_a_short_one(
    model: MindLLM, files: dict[str, Any], tmp_path: Path
) -> None:
    whole, scan = read(model, files), nib.load(files["scan"])
    nib.save(scan.slicer[..., 3:5], tmp_path / "short.nii.gz")
    nib.save(scan.slicer[..., 9], tmp_path / "volume.nii.gz")
    with pytest.raises(
        InputError,
        match=r"2 trials are too few to standardize voxels with; at least 8 .*--standardize-with",
    ):
        read(model, files, scan=tmp_path / "short.nii.gz")
    short = read(model, files, scan=tmp_path / "short.nii.gz", standardize_with=files["scan"])
    assert [(d.volume, d.text) for d in short] == [(0, whole[3].text), (1, whole[4].text)]
    single = read(model, files, scan=tmp_path / "volume.nii.gz", standardize_with=files["scan"])
    assert [(d.volume, d.text) for d in single] == [(0, whole[9].text)]
    moved = nib.Nifti1Image(np.asarray(scan.dataobj), scan.affine @ np.diag([1, -1, 1, 1]))
    with pytest.raises(InputError, match="is on another grid than the mask"):
        read(model, files, standardize_with=moved)


def test_bad_input_is_told(model: MindLLM, files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"the model knows no atlas HCPEx; it knows visual, lobes. Give these names",
    ):
        read(model, files, atlases={"HCPEx": files["atlases"]["visual"]})
    with pytest.raises(InputError, match=r"has volumes 0 to 11; \[12\] were asked for"):
        read(model, files, volumes=[3, 12])
    with pytest.raises(InputError, match="scan: there is no file"):
        read(model, files, scan=tmp_path / "nowhere.nii.gz")
    image = nib.load(files["mask"])
    other = nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4, k=3))
    with pytest.raises(InputError, match="is on another grid than the mask"):
        read(model, files, mask=other, atlases=None)
    lookup = tmp_path / "atlas-visual_dseg.tsv"
    lookup.write_text(lookup.read_text().replace("FFA", "PPA"))
    with pytest.raises(
        InputError, match=r"has 1 parcel names that the model does not know: \['PPA'\]"
    ):
        read(model, files)
