"""Data sets in HDF5 files of any origin."""

import h5py

from mindllm.utils.errors import InputError


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
    KeyError
        If there is nothing of this name.
    InputError
        If it is a group, lies behind a link, is kept in another file, or holds other than real
        numbers.
    """
    where, part = f"{content.file.filename}: {name}", content
    for key in name.split("/"):
        if isinstance(part.get(key, getlink=True), h5py.SoftLink | h5py.ExternalLink):
            raise InputError(
                f"{where} is a link, which is not followed; expected a data set of numbers in the "
                "file itself. Copy the data into it."
            )
        part = part[key]
    if not isinstance(part, h5py.Dataset):
        raise InputError(f"{where} is a group; expected a data set of numbers. Make it anew.")
    if part.external or part.is_virtual:
        raise InputError(
            f"{where} is kept in other files, which are not read; expected its numbers in the file "
            "itself. Copy the data into it."
        )
    if part.dtype.kind not in "biuf":
        raise InputError(
            f"{where} holds values of type {part.dtype}; expected real numbers. Make it anew."
        )
    return part
