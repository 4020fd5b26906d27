"""Checks of options, arrays, file formats and what JSON files hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter, ValidationError

from mindllm.utils.errors import InputError

StrictModel = TypeVar("StrictModel", bound=BaseModel)
Content = TypeVar("Content")
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


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


def validate_content(
    kind: TypeAdapter[Content], content: object, where: str, remedy: str
) -> Content:
    """Check what a JSON file holds: names, types and ranges of its values.

    Parameters
    ----------
    kind : TypeAdapter
        What is expected; nothing is converted, such as "3" to a number.
    content : object
        Parsed JSON, or its text as bytes.
    where : str
        The file, for the message.
    remedy : str
        What to do, for the message.

    Returns
    -------
    object
        Of the expected type.

    Raises
    ------
    InputError
        If a value is missing, unknown or another than expected; the message names the first.

    Examples
    --------
    >>> validate_content(TypeAdapter(list[int]), [1, 2], "counts.json", "Count again.")
    [1, 2]
    """
    text = content if isinstance(content, bytes) else json.dumps(content)
    try:
        return kind.validate_json(text, strict=True)
    except ValidationError as error:
        first, count = error.errors()[0], error.error_count()
        key = ".".join(map(str, first["loc"]))
        more = f" ({count - 1} more)" if count > 1 else ""
        shown = "" if first["type"] == "missing" else f", found {_SHORT.repr(first['input'])}"
        raise InputError(
            f"{where}: {key + ': ' if key else ''}{first['msg']}{shown}{more}. {remedy}"
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
        f"{path} has {what} format {stated!r}; this version of mindllm reads {current}. "
        f"{'Upgrade mindllm.' if is_newer else remedy}"
    )
