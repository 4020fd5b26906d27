"""Scans that are damaged, huge, hostile, or expire: refused in a sentence that names no path."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from mindllm.serve.scan_reader import ScanLimits, read_or_refuse, read_scan
from mindllm.utils.errors import InputError
from tests.serve.serving import ALICE, RunningServer, ask, running, scan_files


def header_of(data: bytes, **fields: object) -> bytes:
    """The file with other fields in its header."""
    header = nib.Nifti1Header.from_fileobj(io.BytesIO(data), check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + data[348:]


def bomb(size: int) -> bytes:
    """A few KiB that are decompressed to `size` bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [packer.compress(b"\0" * 2**20) for _ in range(size // 2**20)]
    return b"".join([*pieces, packer.flush()])


def grid_of(data: bytes, scale: float) -> bytes:
    img = nib.Nifti1Image.from_bytes(data)
    return nib.Nifti1Image(np.asanyarray(img.dataobj), img.affine * scale).to_bytes()


def with_values(data: bytes, value: float) -> bytes:
    img = nib.Nifti1Image.from_bytes(data)
    return nib.Nifti1Image(np.full(img.shape, value, np.float32), img.affine).to_bytes()


LIMITS = ScanLimits(
    image_bytes=2**22,
    grid_length=512,
    volumes=4096,
    voxels=500_000,
    memory_bytes=2**32,
    seconds=60,
    standardized=False,
    parcel_names={},
)
HUGE = [4, 512, 512, 512, 4000, 1, 1, 1]
HOSTILE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty": ("volume", lambda data: b"", "no NIfTI image"),
    "text": ("volume", lambda data: b"hello" * 100, "no NIfTI image"),
    "truncated": ("volume", lambda data: data[:700], "truncated"),
    "header alone": ("volume", lambda data: data[:348], "truncated|no NIfTI|cannot be read"),
    "gzip truncated": ("volume", lambda data: gzip.compress(data)[:-20], "damaged or truncated"),
    "gzip damaged": (
        "volume", lambda data: gzip.compress(data)[:-8] + b"\0" * 8, "damaged or truncated",
    ),
    "bomb": ("volume", lambda data: bomb(2**28), "too large"),
    "bomb as mask": ("mask", lambda data: bomb(2**28), "too large"),
    "bomb in a bomb": ("volume", lambda data: gzip.compress(bomb(2**28)), "no NIfTI image"),
    "header claims": ("volume", lambda data: header_of(data, dim=HUGE), "truncated|volumes"),
    "negative dimension": (
        "volume", lambda data: header_of(data, dim=[4, -5, 10, 8, 10, 1, 1, 1]), ".",
    ),
    "long grid": (
        "mask", lambda data: header_of(data, dim=[3, 32767, 1, 1, 1, 1, 1, 1]), "truncated|most",
    ),
    "NaN affine": ("mask", lambda data: header_of(data, srow_x=[np.nan] * 4), "affine"),
    "NaN affine of the volume": (
        "volume", lambda data: header_of(data, srow_x=[np.nan] * 4), "grid|affine",
    ),
    "infinite affine": ("mask", lambda data: header_of(data, srow_y=[np.inf] * 4), "affine"),
    "NaN slope and NaN data": ("volume", lambda data: with_values(data, np.nan), "NaN"),
    "offset behind the file": (
        "volume", lambda data: header_of(data, vox_offset=1e30), "truncated|cannot be read|damaged",
    ),
    "colors": ("volume", lambda data: header_of(data, datatype=128, bitpix=24), "."),
    "unknown type": ("volume", lambda data: header_of(data, datatype=9999), "cannot be read|."),
    "empty mask": ("mask", lambda data: with_values(data, 0), "is empty"),
    "mask on another grid": ("mask", lambda data: grid_of(data, 2), "another grid"),
    "mask outside the brain": ("mask", lambda data: grid_of(data, 1000), "grid|brain"),
    "mask that is a scan": ("mask", lambda data: b"", "no NIfTI image"),
}  # fmt: skip


LEAKS = ("Traceback", "/tmp", "site-packages", ".py", "mindllm-serve", "plain/")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_the_reader(
    tmp_path: Path, tiny_store: Store, name: str
) -> None:
    part, change, message = HOSTILE[name]
    for file, (_, content) in scan_files(tiny_store.masker("sub-01")).items():
        (tmp_path / file).write_bytes(change(content) if file == part else content)
    read_or_refuse(tmp_path, LIMITS)
    refused = json.loads((tmp_path / "refused.json").read_text())["message"]
    assert re.search(message, refused), refused
    assert not [leak for leak in (*LEAKS, str(tmp_path)) if leak in refused], refused
    assert not (tmp_path / "voxels.npz").exists()
    assert sum(p.stat().st_size for p in (tmp_path / "plain").rglob("*")) <= 2 * 2**22


@pytest.mark.parametrize("name", ["bomb", "header claims", "NaN affine"])
def test_hostile_files_are_refused_by_the_server(
    server: RunningServer, tiny_store: Store, name: str, real_reader: None
) -> None:
    part, change, message = HOSTILE[name]
    files = scan_files(tiny_store.masker("sub-01"))
    files[part] = (files[part][0], change(files[part][1]))
    with server.http() as http:
        before = http.get("/v1/scans").json()
        answer = http.post("/v1/scans", files=files)
        assert http.get("/v1/scans").json() == before
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid_scan"
    assert re.search(message, answer.json()["error"]["message"])
    assert not [leak for leak in LEAKS if leak in answer.text]


def test_few_volumes_must_be_standardized(server: RunningServer, tiny_store: Store) -> None:
    files = scan_files(tiny_store.masker("sub-01"), 1)
    with server.http() as http:
        refused = http.post("/v1/scans", files=files)
        taken = http.post("/v1/scans", files=files, data={"standardized": "true"})
        assert "8 or more" in refused.json()["error"]["message"]
        assert taken.json()["n_volumes"] == 1
        scan = taken.json()["id"]
        behind = http.post("/v1/chat/completions", json=ask({"scan": scan, "volume": 1}))
        assert behind.json()["error"]["code"] == "volume_not_found"
        http.delete(f"/v1/scans/{scan}")


def test_atlases_come_with_their_tables(server: RunningServer, tiny_store: Store) -> None:
    masker = tiny_store.masker("sub-01")
    labels = masker.inverse_transform(masker.parcel_labels["visual"].astype(np.int16))
    names = masker.parcel_names["visual"]
    table = "index\tname\n" + "".join(f"{number}\t{name}\n" for number, name in names.items())
    atlas = [
        ("atlases", ("sub-01_atlas-visual_dseg.nii.gz", gzip.compress(labels.to_bytes()))),
        ("atlases", ("atlas-visual_dseg.tsv", table.encode())),
    ]
    files = [*scan_files(masker).items(), *atlas]
    with server.http() as http:
        scan = http.post("/v1/scans", files=files)
        assert scan.status_code == 201, scan.text
        regions = {region["parcel"]: region["n_voxels"] for region in scan.json()["regions"]}
        assert regions["V1"] == int((masker.parcel_labels["visual"] == 1).sum())
        assert "lobes" in scan.json()["warnings"][0]
        http.delete(f"/v1/scans/{scan.json()['id']}")
        bad = [*scan_files(masker).items(), ("atlases", ("../../atlas-x.nii", b""))]
        assert http.post("/v1/scans", files=bad).json()["error"]["code"] == "invalid_atlas_name"
        unknown = [*scan_files(masker).items(), ("atlases", ("atlas-visual_dseg.nii", b""))]
        assert http.post("/v1/scans", files=unknown).json()["error"]["code"] == "invalid_scan"


def test_a_user_keeps_a_bounded_number_of_scans(
    token_server: RunningServer, tiny_store: Store
) -> None:
    files = scan_files(tiny_store.masker("sub-01"))
    with token_server.http(ALICE) as http:
        answers = [http.post("/v1/scans", files=files) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429]
        assert int(answers[2].headers["retry-after"]) > 0
        for answer in answers[:2]:
            http.delete(f"/v1/scans/{answer.json()['id']}")


def test_scans_expire_and_nothing_is_left_on_disk(served_model: MindLLM, tiny_store: Store) -> None:
    files = scan_files(tiny_store.masker("sub-01"))
    with running(served_model, None, {"scan_seconds": 1.0}) as server, server.http() as http:
        scan = http.post("/v1/scans", files=files).json()
        folder = server.app.state.services.scans.folder
        kept = sorted(path.name for path in folder.rglob("*") if path.is_file())
        assert kept == ["betas.npy", "voxels.npz"]
        assert folder.stat().st_mode & 0o077 == 0
        while http.get(f"/v1/scans/{scan['id']}").status_code == 200:
            pass
        assert http.post(
            "/v1/chat/completions", json=ask({"scan": scan["id"]})
        ).status_code == 404  # fmt: skip
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_a_reader_that_takes_too_long_or_too_much_is_ended(
    served_model: MindLLM,
    tiny_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    real_reader: None,
) -> None:
    files = scan_files(tiny_store.masker("sub-01"))
    monkeypatch.setattr("mindllm.serve.scans.GRACE_SECONDS", 0.0)
    for options in ({"read_seconds": 0.01}, {"read_memory_bytes": 2**26}):
        with running(served_model, None, options) as server, server.http() as http:
            answer = http.post("/v1/scans", files=files)
            assert answer.status_code == 400
            assert re.search("limits of time|more memory", answer.json()["error"]["message"])
            assert list(server.app.state.services.scans.folder.iterdir()) == []


def test_limits_of_grid_volumes_and_voxels(tmp_path: Path, tiny_store: Store) -> None:
    for file, (_, content) in scan_files(tiny_store.masker("sub-01")).items():
        (tmp_path / file).write_bytes(content)
    for limits, message in (
        (replace(LIMITS, volumes=9), "at most 9"),
        (replace(LIMITS, voxels=40), "at most 40"),
        (replace(LIMITS, grid_length=11), "at most 11"),
    ):
        with pytest.raises(InputError, match=message):
            read_scan(tmp_path, limits)
