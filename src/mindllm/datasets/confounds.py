"""Confounds of fMRIPrep, by nilearn's strategies."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindllm.datasets.fmriprep_files import PreprocessedRun
from mindllm.utils.errors import InputError
from mindllm.utils.tables import read_table

OPTIONS = {
    "none": (),
    "simple": ("motion", "wm_csf", "global_signal"),
    "scrubbing": (
        "motion",
        "wm_csf",
        "global_signal",
        "scrub",
        "fd_threshold",
        "std_dvars_threshold",
    ),
    "compcor": ("motion", "global_signal", "compcor", "n_compcor"),
    "ica_aroma": ("wm_csf", "global_signal"),
}
NUMBERS = ("scrub", "fd_threshold", "std_dvars_threshold", "n_compcor")


@dataclass(frozen=True)
class RunConfounds:
    """Confounds of a run.

    Attributes
    ----------
    names : list of str
        Names of the regressors.
    regressors : np.ndarray
        (n_volumes, n_regressors).
    kept : np.ndarray
        (n_kept,) volumes that are neither of the non-steady state nor scrubbed.
    """

    names: list[str]
    regressors: np.ndarray
    kept: np.ndarray


def parse_confounds_options(strategy: str, options: Mapping[str, str]) -> dict[str, str | float]:
    """Check the options of a strategy, and convert those that are numbers.

    Parameters
    ----------
    strategy : str
        none, or one of nilearn's `load_confounds_strategy`.
    options : mapping of str to str
        nilearn's name of the option -> value.

    Returns
    -------
    dict of str to (str or float)

    Raises
    ------
    InputError
        If the strategy, or an option of it, is unknown.

    Examples
    --------
    >>> parse_confounds_options("scrubbing", {"fd_threshold": "0.3"})
    {'fd_threshold': 0.3}
    """
    if strategy not in OPTIONS:
        raise InputError(f"confounds={strategy!r} is unknown; expected {', '.join(OPTIONS)}.")
    parsed: dict[str, str | float] = {}
    for name, value in options.items():
        if name not in OPTIONS[strategy]:
            raise InputError(
                f"the confound strategy {strategy} has no option {name}; expected "
                f"{', '.join(OPTIONS[strategy]) or 'none'}."
            )
        parsed[name] = value
        if name in NUMBERS and value != "all":
            try:
                number = float(value)
            except ValueError as error:
                raise InputError(f"{name}={value!r} is no number; expected one.") from error
            parsed[name] = int(number) if name in ("scrub", "n_compcor") else number
    return parsed


def load_confounds(
    run: PreprocessedRun, n_volumes: int, strategy: str, options: Mapping[str, str | float]
) -> RunConfounds:
    """Load the confounds of a run with nilearn, without fMRIPrep's own drift model.

    Parameters
    ----------
    run : PreprocessedRun
    n_volumes : int
        Volumes of the run.
    strategy : str
        none, or one of nilearn's `load_confounds_strategy`.
    options : mapping
        As `parse_confounds_options` returns them.

    Returns
    -------
    RunConfounds

    Raises
    ------
    InputError
        If the table is missing, lacks columns of the strategy, or has another number of rows.
    """
    if strategy == "none":
        return RunConfounds([], np.zeros((n_volumes, 0)), find_steady_state(run, n_volumes))
    from nilearn.interfaces.fmriprep import load_confounds_strategy  # slow to import

    file = run.confounds_file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about columns that the strategy does not take
            table, kept = load_confounds_strategy(str(run.file), strategy, **options)
    except Exception as error:  # nilearn raises ValueError, KeyError and an error of its own
        raise InputError(
            f"{file} cannot be used with --confounds {strategy}: {describe(error)}. Take another "
            "strategy (--confounds), other options of it (--confounds-option), or run fMRIPrep "
            "anew."
        ) from error
    check_rows(file, len(table), n_volumes)
    table = table[[name for name in table if not str(name).startswith("cosine")]]
    regressors = table.to_numpy(float)
    if not np.isfinite(regressors).all():
        name = table.columns[~np.isfinite(regressors).all(0)][0]
        raise InputError(f"{file}: the confound {name} is n/a in some volumes; expected numbers.")
    return RunConfounds(
        names=[str(name) for name in table],
        regressors=regressors,
        kept=np.arange(n_volumes) if kept is None else np.asarray(kept),
    )


def find_steady_state(run: PreprocessedRun, n_volumes: int) -> np.ndarray:
    """Find the volumes of the steady state; all where there is no table of confounds."""
    if not run.has_confounds:
        return np.arange(n_volumes)
    file = run.confounds_file
    table = read_table(file, "a table of confounds")
    check_rows(file, len(table), n_volumes)
    outliers = table[[name for name in table if str(name).startswith("non_steady_state")]]
    return np.flatnonzero((outliers == 0).all(axis=1).to_numpy())


def describe(error: Exception) -> str:
    """Say in one line what nilearn found wrong."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def check_rows(file: Path, n_rows: int, n_volumes: int) -> None:
    """Check that there is a row of confounds per volume."""
    if n_rows != n_volumes:
        raise InputError(
            f"{file} has {n_rows} rows, but the run has {n_volumes} volumes; expected one row per "
            "volume. Fetch both files of one run of fMRIPrep."
        )
