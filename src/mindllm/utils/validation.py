"""Checks of options and arrays."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from mindllm.utils.errors import InputError

Model = TypeVar("Model", bound=BaseModel)


def checked(kind: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Content as a configuration; an unknown key or a value out of range is an InputError that names it."""
    try:
        return kind(**content)
    except ValidationError as error:
        places = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors())
        raise InputError(f"{where}: {places}. `mindllm config` prints every option of a training.") from error


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
