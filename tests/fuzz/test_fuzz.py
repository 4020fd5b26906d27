"""Damaged files of every format are read or refused: in a sentence, seconds and bounded memory."""

import io
import zipfile
import zlib
from collections.abc import Callable
from gzip import decompress
from pathlib import Path
from random import Random
from struct import unpack

import h5py
import pyarrow.parquet as pq
import pytest

from mindllm.utils.errors import InputError
from tests.fuzz import faults
from tests.fuzz.cases import CASES
from tests.fuzz.engine import FAULT, READ, REFUSED, Outcome, run

SHORT, LONG = 6, 40  # mutations of each of the cases


def check(outcomes: list[Outcome], count: int) -> None:
    faults = [
        f"{outcome.case}, mutation {outcome.number}: {outcome.detail}"
        for outcome in outcomes
        if outcome.kind == FAULT
    ]
    assert not faults, "\n".join(faults)
    assert len(outcomes) == count * len(CASES)
    kinds = [outcome.kind for outcome in outcomes]
    assert min(kinds.count(READ), kinds.count(REFUSED)) > len(kinds) / 10


def test_some_hundred_mutations(tmp_path: Path) -> None:
    check(run("tests.fuzz.cases", SHORT, seed=0, folder=tmp_path), SHORT)


@pytest.mark.slow
def test_some_thousand_mutations(tmp_path: Path) -> None:
    check(run("tests.fuzz.cases", LONG, seed=1, folder=tmp_path), LONG)


def test_every_kind_of_fault_is_noticed(tmp_path: Path) -> None:
    """An error, a death, a hang, too much memory, and a message that tells too little."""
    outcomes = run("tests.fuzz.faults", 4, seed=0, folder=tmp_path, seconds=4)
    noticed = {(outcome.case, outcome.number) for outcome in outcomes if outcome.kind == FAULT}
    assert noticed == {(name, 2) for name in faults.CASES}
    assert len(outcomes) == 4 * len(faults.CASES)


# Single bits of what a checksum covers: where they are in a file.


def is_gzip_damaged(data: bytes) -> bool:
    try:
        decompress(data)
    except (OSError, EOFError, zlib.error):
        return True
    return False


def is_zip_damaged(data: bytes) -> bool:
    try:
        return zipfile.ZipFile(io.BytesIO(data)).testzip() is not None
    except Exception:
        return True


def is_mat_damaged(data: bytes) -> bool:
    at = 128
    while at < len(data):
        kind, size = unpack("<II", data[at : at + 8])
        try:
            if kind == 15:
                zlib.decompress(data[at + 8 : at + 8 + size])
        except zlib.error:
            return True
        at += 8 + size
    return False


def list_hdf5_places(data: bytes) -> list[range]:
    places: list[range] = []

    def visit(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and (item.fletcher32 or item.compression):
            chunks = [item.id.get_chunk_info(n) for n in range(item.id.get_num_chunks())]
            places.extend(range(c.byte_offset, c.byte_offset + c.size) for c in chunks)

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(visit)
    return places


def is_hdf5_damaged(data: bytes) -> bool:
    """Whether a chunk is no zlib stream any more: its last bits may be of no meaning."""
    try:
        for place in list_hdf5_places(data):
            zlib.decompress(data[place.start : place.stop])
    except zlib.error:
        return True
    return False


def list_parquet_places(data: bytes) -> list[range]:
    """The ends of the columns, behind the headers of their pages."""
    group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
    ends = [start + c.total_compressed_size for start, c in zip(starts, columns, strict=True)]
    return [range(end - 4, end) for end in ends]


def list_all(data: bytes) -> list[range]:
    return [range(len(data))]


def always(data: bytes) -> bool:
    return True


@pytest.mark.parametrize(
    ("name", "list_places", "is_damaged"),
    [
        ("nifti mask .nii.gz", list_all, is_gzip_damaged),
        ("nifti betas .nii.gz", list_all, is_gzip_damaged),
        ("atlas image", list_all, is_gzip_damaged),
        ("laion sub-01_*Noiseceiling12rep*", list_all, is_gzip_damaged),
        ("scaler", list_all, is_zip_damaged),
        ("published checkpoint", list_all, is_zip_damaged),
        ("nsd design", list_all, is_mat_damaged),
        ("glmsingle .hdf5", list_hdf5_places, always),
        ("glmsingle .mat", list_hdf5_places, is_hdf5_damaged),
        ("voxels parquet", list_parquet_places, always),
        ("voxels mask", list_all, is_gzip_damaged),
    ],
)
def test_what_a_checksum_tells_is_refused(
    name: str,
    list_places: Callable[[bytes], list[range]],
    is_damaged: Callable[[bytes], bool],
    tmp_path: Path,
) -> None:
    case, rng = CASES[name], Random(name)
    file = case.write(tmp_path)
    data = file.read_bytes()
    places, n_damaged = list_places(data), 0
    for _ in range(60):
        at = rng.choice(rng.choice(places))
        mutant = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        if not is_damaged(mutant):
            continue  # such as the time of writing, which no checksum covers
        n_damaged += 1
        file.write_bytes(mutant)
        with pytest.raises(InputError):
            case.read(tmp_path)
    assert n_damaged >= 30
