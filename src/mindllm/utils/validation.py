"""Checks of options, arrays and file formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from mindllm.utils.errors import InputError

StrictModel = TypeVar("StrictModel", bound=BaseModel)


def validate_model(kind: type[StrictModel], content: Mapping[str, Any], where: str) -> StrictModel:
    """Build a pydantic configuration from a mapping of options.

    Parameters
    ----------
    kind : type
        Subclass of `pydantic.BaseModel`.
    content : mapping
        Option -> value.
    where : str
        Where the options come from, for the message.

    Returns
    -------
    kind
        The configuration.

    Raises
    ------
    InputError
        For an unknown option or a value out of range; the message names the option.
    """
    try:
        return kind(**content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}"
            for e in error.errors()
        )
        raise InputError(
            f"{where}: {problems}. `mindllm config` prints every option of a training."
        ) from error


def check_values(values: np.ndarray, n_voxels: int, name: str) -> None:
    """Check that an array has one number per voxel.

    Parameters
    ----------
    values : ndarray of shape (n_voxels,) or (n_trials, n_voxels)
        Numbers per voxel, such as betas.
    n_voxels : int
        Number of voxels of the masker.
    name : str
        Whose values they are (a subject or a file), for the message.

    Raises
    ------
    InputError
        If the array has another shape.
    """
    if values.ndim not in (1, 2) or values.shape[-1] != n_voxels:
        raise InputError(
            f"values of {name} have shape {values.shape}; "
            f"expected ({n_voxels},) or (trials, {n_voxels}): "
            "one number per voxel, in the order of the masker's voxels."
        )


def check_finite(betas: np.ndarray, where: str) -> None:
    """Check that betas hold neither NaN nor infinity.

    Parameters
    ----------
    betas : ndarray of shape (n_trials, n_voxels)
        Betas of some trials.
    where : str
        Where they come from, for the message.

    Raises
    ------
    InputError
        If a beta is NaN or infinite; the message says in how many voxels and from which trial on.
    """
    if np.isfinite(betas.sum(dtype=np.float64)):  # quicker than to look at every number
        return
    invalid = ~np.isfinite(betas)
    if invalid.any():
        trials, voxels = np.flatnonzero(invalid.any(1)), np.flatnonzero(invalid.any(0))
        raise InputError(
            f"{where} holds NaN or infinite values in {len(voxels)} of {betas.shape[1]} voxels "
            f"of its mask (first trial concerned: {trials[0]}). Take these voxels out of the mask "
            "(where a `mindllm prepare` command has --nan drop, it does so), or mend the scan."
        )


def check_format(path: Path, what: str, stated: object, current: int, remedy: str) -> None:
    """Check the format number of a store, a model or a report.

    Parameters
    ----------
    path : Path
        Where it lies.
    what : str
        What it is: "store", "model", "report".
    stated : object
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
    if stated == current:
        return
    is_newer = isinstance(stated, int) and stated > current
    raise InputError(
        f"{path} has {what} format {stated}; this version of mindllm reads {current}. "
        f"{'Upgrade mindllm.' if is_newer else remedy}"
    )
