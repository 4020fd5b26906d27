"""Checks of options and arrays."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from mindllm.utils.errors import InputError

StrictModel = TypeVar("StrictModel", bound=BaseModel)


def validate_model(kind: type[StrictModel], content: Mapping[str, Any], where: str) -> StrictModel:
    """Content as a configuration; an unknown key or a value out of range is an InputError that names it."""
    try:
        return kind(**content)
    except ValidationError as error:
        places = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        )
        raise InputError(
            f"{where}: {places}. `mindllm config` prints every option of a training."
        ) from error


def check_values(values: np.ndarray, count: int, name: str) -> None:
    """Raise InputError unless the last dimension of `values` is the `count` voxels of `name`."""
    if values.ndim not in (1, 2) or values.shape[-1] != count:
        raise InputError(
            f"values of {name} have shape {values.shape}; expected ({count},) or (trials, {count}): one number per voxel, in the order of the voxel space."
        )


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise InputError if values (B, V) hold NaN or infinity, saying how many and in which trials."""
    bad = ~np.isfinite(values)
    if bad.any():
        trials, voxels = np.flatnonzero(bad.any(1)), np.flatnonzero(bad.any(0))
        raise InputError(
            f"{where} holds NaN or infinite values in {len(voxels)} of {values.shape[1]} voxels of its mask (first trial concerned: {trials[0]}). Take these voxels out of the mask (where a `mindllm prepare` command has --nan drop, it does so), or mend the scan."
        )


def check_format(path: Path, what: str, found: object, current: int, remedy: str) -> None:
    """Raise InputError unless what lies at `path` has the current format.

    Parameters
    ----------
    path : Path
        Where it lies.
    what : str
        What it is: "store", "model", "report".
    found : object
        The format number that it states.
    current : int
        The format that this version reads and writes.
    remedy : str
        What to do about an older one, such as "Prepare it again."

    Raises
    ------
    InputError
        For an older or newer format, or none.
    """
    if found == current:
        return
    newer = isinstance(found, int) and found > current
    raise InputError(
        f"{path} has {what} format {found}; this version of mindllm reads {current}. "
        f"{'Upgrade mindllm.' if newer else remedy}"
    )
