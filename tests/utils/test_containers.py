"""Files of arrays and tables: what cannot be is refused in a sentence, and nothing is run."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from mindllm.fmri.nifti import load_img
from mindllm.utils.arrays import load_array, load_arrays
from mindllm.utils.errors import InputError
from mindllm.utils.hdf5 import (
    get_dataset,
    list_names,
    open_hdf5,
    read_attribute,
    read_values,
    read_whole_number,
)
from mindllm.utils.matlab import load_mat
from mindllm.utils.pickles import load_pickled_array
from mindllm.utils.table_checks import read_checked_table

ANEW = "Make it anew."


def refused(message: str, read: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)


def test_a_data_set_holds_what_it_announces(tmp_path: Path) -> None:
    file = tmp_path / "x.hdf5"
    with h5py.File(file, "w") as content:
        content.create_dataset("late", (2**33,), "f8")
        content.create_dataset("chunked", (2**33,), "f8", chunks=(2**16,), compression="gzip")
        content["chunked"][:3] = 1
        content.create_dataset("zeros", data=np.zeros((1000, 1000)), compression="gzip")
        content.create_dataset("empty", data=np.zeros((0, 3)))
        content["nothing"] = h5py.Empty("f")
        content["one"], content["half"], content["word"] = [3.0], 0.5, "three"
    with open_hdf5(file) as content:
        for name in ("late", "chunked"):
            refused(
                r"announces the shape \(8589934592,\), 68719476736 bytes",
                get_dataset,
                content,
                name,
            )
        refused("nothing holds nothing", get_dataset, content, "nothing")
        assert not read_values(get_dataset(content, "zeros")).any()
        assert get_dataset(content, "empty").shape == (0, 3)
        assert read_whole_number(content, "one") == 3
        for name in ("half", "zeros", "word"):
            refused(f"{name} ", read_whole_number, content, name)


def test_a_group_has_the_members_that_it_announces(tmp_path: Path) -> None:
    file = tmp_path / "x.hdf5"
    with h5py.File(file, "w") as content:
        content.create_group("b", track_order=True)
        for name in ("z", "a"):
            content["b"][name] = 1.0
        content["b"].attrs["word"], content["b"].attrs["bytes"] = "dog", b"dog\xff"
    with open_hdf5(file) as content:
        assert list_names(content, "b") == ["z", "a"]
        assert read_attribute(content["b"], "word") == "dog"
        refused("the attribute bytes of /b", read_attribute, content["b"], "bytes")
        refused("the attribute none of /b", read_attribute, content["b"], "none")
        refused("b/z is a data set; expected a group", list_names, content, "b/z")
        refused("b/z/a lies in a data set", get_dataset, content, "b/z/a")
    data = bytearray(file.read_bytes())
    with h5py.File(file, "w") as content:
        content["x"] = 1.0
    data = bytearray(file.read_bytes())
    at = data.index(b"SNOD") + 6  # the number of members in a node
    data[at : at + 2] = b"\xff\xff"
    file.write_bytes(data)
    with open_hdf5(file) as content:
        refused("is damaged", list_names, content)


def test_no_file_is_opened_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.hdf5").write_bytes(b"text")

    def open_file(file: Path) -> None:
        with open_hdf5(file, "of MOSAIC"):
            pass

    refused("x.hdf5 is damaged, truncated or not of MOSAIC", open_file, tmp_path / "x.hdf5")
    refused("y.hdf5 is damaged, truncated or", open_file, tmp_path / "y.hdf5")


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (8589934592,), }"
OBJECTS = "{'descr': '|O', 'fortran_order': False, 'shape': (), }"


def test_arrays_of_other_things_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npy"
    np.save(file, np.arange(3))
    assert load_array(file).tolist() == [0, 1, 2]
    for content in (npy(HUGE), npy(OBJECTS, b"cos\nsystem\n."), npy("{(("), b""):
        file.write_bytes(content)
        refused("x.npy is missing, damaged or truncated", load_array, file)
    np.save(file, np.array(["a"]))
    refused("values of type <U1; expected real numbers", load_array, file)


def test_archives_of_other_things_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    np.savez_compressed(
        file, a=np.asfortranarray(np.ones((2, 3))), b=np.array(["é"]), c=np.array(1)
    )
    arrays = load_arrays(file)
    assert arrays["a"].tolist() == np.ones((2, 3)).tolist()
    assert (arrays["b"].tolist(), arrays["c"].tolist()) == (["é"], 1)
    refused("lacks the arrays d; it holds", load_arrays, file, ["d"])
    text = "{'descr': '<U1', 'fortran_order': False, 'shape': (1,), }"
    for content in (npy(HUGE), npy(OBJECTS), npy(HUGE, bytes(99)), npy(text, b"\xff" * 4)):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.npy", content)
        refused("x.npz is missing, damaged or truncated", load_arrays, file)


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_arrays(tmp_path: Path, compressed: bool) -> None:
    file = tmp_path / "x.mat"
    variables: dict[str, Any] = {
        "i": np.arange(6).reshape(2, 3),
        "abcde": np.arange(24.0).reshape(2, 3, 4),
        "b": np.array([[True, False]]),
        "u": np.array([[1, 2, 3]], np.uint8),
        "words": "text",
        "cells": np.array([{}], object),
        "complex": np.array([[1j]]),
        "nan": np.array([[np.nan]]),
    }
    savemat(file, variables, do_compression=compressed)
    numbers = load_mat(file, ["i", "abcde", "b", "u"], ANEW)
    for name, array in numbers.items():
        np.testing.assert_array_equal(array, variables[name])
    for name in ("words", "cells", "complex"):
        refused("x.mat is missing, damaged or truncated", load_mat, file, [name], ANEW)
    refused("nan holds NaN", load_mat, file, ["nan"], ANEW)
    refused("lacks y", load_mat, file, ["y"], ANEW)
    refused("there is no file", load_mat, tmp_path / "z.mat", ["y"], ANEW)
    data = file.read_bytes()
    file.write_bytes(data[:-3])
    refused("x.mat is missing, damaged or truncated", load_mat, file, ["i"], ANEW)


def test_big_endian_matlab_arrays(tmp_path: Path) -> None:
    part = np.array([14, 64, 6, 8, 6, 0, 5, 8, 1, 2, (1 << 16) + 1], ">u4").tobytes() + b"a\0\0\0"
    part += np.array([9, 16], ">u4").tobytes() + np.array([1.5, -2], ">f8").tobytes()
    (tmp_path / "x.mat").write_bytes(bytes(124) + b"\1\0MI" + part)
    assert load_mat(tmp_path / "x.mat", ["a"], ANEW)["a"].tolist() == [[1.5, -2]]


class Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickled_arrays(tmp_path: Path, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    import pickle

    file = tmp_path / "x.npy"
    arrays = {
        "c": np.arange(6, dtype=np.int16).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3).astype(">i4"),
        "none": np.empty((0, 2)),
        "list": [1, 2, 3],
        "scalar": np.float32(0.5),
    }

    def write(content: Any) -> None:
        header = io.BytesIO()
        np.save(header, np.array({}))
        length = 10 + int.from_bytes(header.getvalue()[8:10], "little")
        pickled = pickle.dumps(np.array(content), protocol)
        file.write_bytes(header.getvalue()[:length] + pickled)

    def read(name: str) -> np.ndarray:
        return load_pickled_array(file, name, "output of GLMsingle", ANEW)

    write(arrays | {"text": "x", "words": np.array(["x"]), "x": np.array([{}]), "nothing": None})
    for name, values in arrays.items():
        np.testing.assert_array_equal(read(name), values)
    for name in ("text", "words", "x", "nothing"):
        refused(rf"x\.npy(: {name}| is missing, damaged)", read, name)
    refused("has no y; it holds c, f,", read, "y")
    write(arrays | {"x": Bad()})
    refused("it names (builtins|__builtin__).print, which is neither", read, "c")
    write([1])
    refused("is damaged or no output of GLMsingle", read, "c")
    assert not capsys.readouterr().out


def test_parquet_tables(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    table = pd.DataFrame({"a": [1, 2], "b": [0.5, 1], "c": ["x", "y"]})
    table.to_parquet(file, write_page_checksum=True)
    pd.testing.assert_frame_equal(read_checked_table(file, ["a"], ANEW), table)
    refused("has no column `d`; its columns are a, b, c", read_checked_table, file, ["d"], ANEW)
    data = file.read_bytes()
    at = data.index(np.array([0.5, 1]).tobytes())
    file.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    refused("x.parquet is missing, damaged .*checksum", read_checked_table, file, [], ANEW)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_an_image_is_as_large_as_its_header_promises(tmp_path: Path, suffix: str) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape((2000, 2000, 2000))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    file = tmp_path / f"x{suffix}"
    content = header.binaryblock + bytes(100)
    with nib.openers.ImageOpener(str(file), "wb") as opened:
        opened.write(content)
    refused("its header promises shape .*32000000000 bytes, but", load_img, file, "mask")
