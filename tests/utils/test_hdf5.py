"""HDF5 files that hold other than numbers where numbers are expected."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from mindllm.utils.errors import InputError
from mindllm.utils.hdf5 import get_dataset


def test_numbers_are_found_at_any_depth(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["a/b/c"] = np.arange(3)
        assert get_dataset(file, "a/b/c")[()].tolist() == [0, 1, 2]
        assert get_dataset(file["a"], "b/c").shape == (3,)
        with pytest.raises(InputError, match="a/nothing is missing"):
            get_dataset(file, "a/nothing")


def test_what_is_no_data_set_of_numbers_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other["betas"] = np.ones(3)
    layout = h5py.VirtualLayout(shape=(3,), dtype=float)
    layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "betas", shape=(3,))
    (tmp_path / "raw").write_bytes(bytes(24))
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_group("group")
        file["text"] = "three"
        file["compound"] = np.zeros(2, [("a", int), ("b", float)])
        file["link"] = h5py.SoftLink("/text")
        file["dangling"] = h5py.SoftLink("/nothing")
        file["outside"] = h5py.ExternalLink("other.hdf5", "/")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("raw", (3,), float, external=[(str(tmp_path / "raw"), 0, 24)])
        for name, message in {
            "group": r"x\.hdf5: group is a group",
            "text": "text holds values of type object",
            "compound": "compound holds values of type",
            "link": "link is a link, which is not followed",
            "dangling": "dangling is a link",
            "outside/betas": "outside/betas is a link",
            "virtual": "virtual is kept in other files",
            "raw": "raw is kept in other files",
        }.items():
            with pytest.raises(InputError, match=message):
                get_dataset(file, name)
