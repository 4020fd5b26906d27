"""HDF5 files of any origin: opened, listed and read within bounds; no link is followed.

A damaged file may announce more numbers, or more members of a group, than it holds. What is read is
first compared with the size of the file, so that memory and time stay in proportion to it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mindllm.utils.errors import InputError, describe_error

MAX_DEFLATE_RATIO = 1032  # of zlib, whose documentation says why
BOUNDED_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_LZF,
}
REMEDY = "Fetch or make the file again."


@contextmanager
def open_hdf5(file: Path, expected: str = "HDF5", remedy: str = REMEDY) -> Iterator[h5py.File]:
    """Open a file; damage that only shows inside the block is for the other functions to find.

    Parameters
    ----------
    file : Path
        The file.
    expected : str
        What it should be, for the message ("an output of GLMsingle").
    remedy : str
        What to do about a damaged file, for the message.

    Yields
    ------
    h5py.File
        The opened file.

    Raises
    ------
    InputError
        If it is missing, damaged, truncated or no HDF5 file.
    """
    try:
        content = h5py.File(file, "r")
    except Exception as error:  # h5py has many errors for a damaged file
        raise InputError(
            f"{file} is damaged, truncated or not {expected} ({describe_error(error)}). {remedy}"
        ) from error
    with content:
        yield content


@contextmanager
def describe_damage(item: h5py.HLObject, name: str) -> Iterator[None]:
    """Describe the errors of one call of h5py, of which it has many for a damaged file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{item.file.filename} is damaged or truncated at {name} ({describe_error(error)}). "
            f"{REMEDY}"
        ) from error


def list_names(content: h5py.Group, name: str = "/") -> list[str]:
    """List the names in a group.

    Parameters
    ----------
    content : h5py.File or h5py.Group
        The opened file, or a group of it.
    name : str
        Path of the group in it.

    Returns
    -------
    list of str
        Names of what is in it, in the order of the file.

    Raises
    ------
    InputError
        If there is no such group, it lies behind a link, or it is damaged.
    """
    group = content if name == "/" else get_member(content, name)
    if not isinstance(group, h5py.Group):
        raise InputError(f"{content.file.filename}: {name} is a data set; expected a group.")
    names: list[str] = []

    def take(key: bytes) -> bool | None:
        names.append(key.decode())
        return True if len(names) > n_members else None  # True ends the iteration

    with describe_damage(content, name):
        n_members = len(group)
        if n_members <= content.file.id.get_filesize():  # a name has at least one byte
            group.id.links.iterate(
                take,
                idx_type=h5py.h5.INDEX_CRT_ORDER if is_ordered(group) else h5py.h5.INDEX_NAME,
            )
    if len(names) != n_members or len(set(names)) != len(names):
        raise InputError(
            f"{content.file.filename} is damaged at {name}, which announces {n_members} members "
            f"and has {len(set(names))}. {REMEDY}"
        )
    return names


def is_ordered(group: h5py.Group) -> bool:
    """Return whether a group keeps the order in which its members were made."""
    order = group.id.get_create_plist().get_link_creation_order()
    return bool(order & h5py.h5p.CRT_ORDER_TRACKED)


def get_member(content: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return a group or data set; links are not followed.

    Parameters
    ----------
    content : h5py.File or h5py.Group
        The opened file, or a group of it.
    name : str
        Path in it, its parts separated by /.

    Returns
    -------
    h5py.Group or h5py.Dataset

    Raises
    ------
    InputError
        If there is nothing of this name, or it lies behind a link.
    """
    where, part = f"{content.file.filename}: {name}", content
    for key in name.split("/"):
        if not isinstance(part, h5py.Group):
            raise InputError(f"{where} lies in a data set; expected a group. Make the file anew.")
        with describe_damage(content, name):
            link = part.get(key, getlink=True) if part.id.links.exists(key.encode()) else None
        if link is None:
            present = ", ".join(list_names(part)[:8]) or "nothing"
            raise InputError(f"{where} is missing; there is {present}. {REMEDY}")
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            raise InputError(
                f"{where} is a link, which is not followed; expected a data set of numbers in the "
                "file itself. Copy the data into it."
            )
        with describe_damage(content, name):
            part = part[key]
    return part


def get_dataset(content: h5py.Group, name: str) -> h5py.Dataset:
    """Return a data set of numbers; links to other places are not followed.

    Parameters
    ----------
    content : h5py.File or h5py.Group
        The opened file, or a group of it.
    name : str
        Path of the data set in it, its parts separated by /.

    Returns
    -------
    h5py.Dataset
        The data set, of which nothing has been read.

    Raises
    ------
    InputError
        If there is nothing of this name, it is a group, lies behind a link, is kept in another
        file, holds other than real numbers, or announces more of them than the file holds.
    """
    where, part = f"{content.file.filename}: {name}", get_member(content, name)
    with describe_damage(content, name):
        if not isinstance(part, h5py.Dataset):
            raise InputError(f"{where} is a group; expected a data set of numbers. Make it anew.")
        if part.external or part.is_virtual:
            raise InputError(
                f"{where} is kept in other files, which are not read; expected its numbers in the "
                "file itself. Copy the data into it."
            )
        if part.shape is None or part.dtype.kind not in "biuf":
            kind = "nothing" if part.shape is None else f"values of type {part.dtype}"
            raise InputError(f"{where} holds {kind}; expected real numbers. Make it anew.")
        announced, held = math.prod(part.shape) * part.dtype.itemsize, count_held_bytes(part)
    if announced > held:
        raise InputError(
            f"{where} announces the shape {part.shape}, {announced} bytes, of which the file holds "
            f"at most {held}: it is damaged, or was not written to its end. {REMEDY}"
        )
    return part


def count_held_bytes(dataset: h5py.Dataset) -> int:
    """Count the bytes that a data set can have at most, by its storage and the file's size."""
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if dataset.chunks is None:
        return stored
    held = dataset.id.get_num_chunks() * math.prod(dataset.chunks) * dataset.dtype.itemsize
    plist = dataset.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    ratio = MAX_DEFLATE_RATIO if filters else 1
    return min(held, stored * ratio) if filters <= BOUNDED_FILTERS else held


def read_values(dataset: h5py.Dataset, selection: Any = ()) -> np.ndarray:
    """Read numbers of a data set.

    Parameters
    ----------
    dataset : h5py.Dataset
        The data set, of `get_dataset`.
    selection : slice, int or tuple of them
        What to read, as numpy indexes; () for all of it.

    Returns
    -------
    ndarray
        The numbers.

    Raises
    ------
    InputError
        If they are damaged, which a checksum in the file tells.
    """
    with describe_damage(dataset, dataset.name):
        return np.asarray(dataset[selection])


def read_whole_number(content: h5py.Group, name: str) -> int:
    """Read a data set of one whole number.

    Parameters
    ----------
    content : h5py.File or h5py.Group
        The opened file, or a group of it.
    name : str
        Path of the data set in it.

    Returns
    -------
    int
        The number.

    Raises
    ------
    InputError
        As `get_dataset`, and if it is not one whole number.
    """
    dataset = get_dataset(content, name)
    if math.prod(dataset.shape) == 1:
        (value,) = read_values(dataset).ravel().tolist()
        if float(value).is_integer():
            return int(value)
    raise InputError(
        f"{content.file.filename}: {name} has shape {dataset.shape}; expected one whole number. "
        f"{REMEDY}"
    )


def read_attribute(item: h5py.HLObject, name: str) -> Any:
    """Read an attribute: text, a number, or an array of numbers.

    Parameters
    ----------
    item : h5py.Group or h5py.Dataset
        What has the attribute.
    name : str
        Name of the attribute.

    Returns
    -------
    str, number or ndarray
        Its value; bytes are text in UTF-8.

    Raises
    ------
    InputError
        If there is none, or it is damaged.
    """
    with describe_damage(item, f"the attribute {name} of {item.name}"):
        attribute = item.attrs.get_id(name)
        announced = math.prod(attribute.shape) * attribute.dtype.itemsize
        if announced > item.file.id.get_filesize():
            raise ValueError(f"it announces {announced} bytes")
        value = item.attrs[name]
        if isinstance(value, str):
            value = value.encode(errors="surrogateescape")  # how h5py keeps bytes that are no text
        return value.decode() if isinstance(value, bytes) else value
