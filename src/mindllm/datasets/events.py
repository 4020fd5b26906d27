"""Tables of events of a raw BIDS data set: which events are trials, and of which stimuli."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from mindllm.fmri.single_trial import ScanTimes
from mindllm.utils.errors import InputError
from mindllm.utils.tables import read_table, require_values

DEFAULT_COLUMNS = ("stim_file", "trial_type")  # of stimuli, in this order
TOLERANCE_SECONDS = 1e-3
NO_STIMULUS = "no_stimulus"  # regressor of the events without a stimulus


@dataclass(frozen=True, slots=True)
class EventOptions:
    """Which events are trials.

    Attributes
    ----------
    stimulus_column : str, optional
        Column that names the stimulus. Default: `stim_file`, else `trial_type`.
    trial_types : tuple of str, optional
        Values of `trial_type` that are trials; other events are regressors of no interest, one per
        value. Default: all are trials.
    missing : {"error", "nuisance"}
        What to do about events without a stimulus: raise an error, or make them one regressor of
        no interest.
    duration_seconds : float, optional
        Duration of all trials, in place of the column `duration`.
    """

    stimulus_column: str | None = None
    trial_types: tuple[str, ...] | None = None
    missing: Literal["error", "nuisance"] = "error"
    duration_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.missing not in ("error", "nuisance"):
            raise InputError(f"missing={self.missing!r} is unknown; expected error or nuisance.")
        if self.duration_seconds is not None and not self.duration_seconds >= 0:
            raise InputError(f"a trial lasts {self.duration_seconds} s; expected 0 or more.")


def read_events(file: Path, options: EventOptions) -> pd.DataFrame:
    """Read the events of a run, in the order of their onsets.

    Parameters
    ----------
    file : Path
        Table of events.
    options : EventOptions
        Which of them are trials.

    Returns
    -------
    pd.DataFrame
        The table's columns, with `onset` and `duration` in seconds, and `nuisance`: the name of
        the regressor of no interest, None for trials. These have `stimulus`. The index is the line
        in the file.

    Raises
    ------
    InputError
        If a column or a value is missing, no number, or out of range, or no event is a trial.
    """
    text = (*DEFAULT_COLUMNS, *filter(None, [options.stimulus_column]))
    table = read_table(file, "a table of events", ("onset", "duration"), text)
    table = table.dropna(axis="columns", how="all")
    if options.duration_seconds is not None and "duration" not in table:
        table["duration"] = np.nan  # to be filled in for the trials
    column = select_stimulus_column(table, file, options.stimulus_column)
    table = table.assign(stimulus=table[column], nuisance=None).astype({"nuisance": object})
    table.attrs["stimulus_column"] = column
    if options.trial_types is not None:
        mark_other_types(table, file, options.trial_types)
    mark_missing_stimuli(table, file, column, options.missing)
    is_trial = table["nuisance"].isna()
    if not is_trial.any():
        raise InputError(
            f"{file} has no trial: none of its {len(table)} events has a stimulus in `{column}`"
            f"{' and one of the trial types chosen' if options.trial_types else ''}. Leave the run "
            "out, or choose with --stimulus-column and --trial-types."
        )
    if options.duration_seconds is not None:
        table.loc[is_trial, "duration"] = options.duration_seconds
    check_times(table, file)
    return table.sort_values("onset", kind="stable")


def select_stimulus_column(table: pd.DataFrame, file: Path, chosen: str | None) -> str:
    """Select the column that names the stimulus; one without any value does not count."""
    candidates = (chosen,) if chosen else DEFAULT_COLUMNS
    column = next((name for name in candidates if name in table), None)
    if column is None:
        columns = ", ".join(map(str, table))
        raise InputError(
            f"{file} names no stimulus: its columns with values are {columns}; expected "
            f"{' or '.join(candidates)}. Choose one with --stimulus-column."
        )
    return column


def mark_other_types(table: pd.DataFrame, file: Path, trial_types: Sequence[str]) -> None:
    """Mark the events of other types as regressors of no interest."""
    if "trial_type" not in table:
        raise InputError(
            f"{file} has no column `trial_type`, of which {', '.join(trial_types)} were chosen. "
            "Add it, or leave --trial-types out."
        )
    others = ~table["trial_type"].isin(trial_types)
    table.loc[others, "nuisance"] = table.loc[others, "trial_type"].fillna(NO_STIMULUS)


def mark_missing_stimuli(table: pd.DataFrame, file: Path, column: str, missing: str) -> None:
    """Mark the events without a stimulus as one regressor of no interest, or refuse them."""
    without = table["stimulus"].isna() & table["nuisance"].isna()
    if without.any() and missing == "error":
        raise InputError(
            f"{file}, line {table.index[without][0]} has no stimulus: `{column}` is empty or n/a "
            f"in {without.sum()} of {len(table)} events. Name the types that are trials with "
            "--trial-types, or take --missing nuisance; the others stay in the model, as "
            "regressors of no interest."
        )
    table.loc[without, "nuisance"] = NO_STIMULUS


def check_times(table: pd.DataFrame, file: Path) -> None:
    """Check that onsets and durations are numbers, and durations not negative."""
    require_values(table, ("onset", "duration"), file)
    for column in ("onset", "duration"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        invalid = ~np.isfinite(numbers.to_numpy(float))
        if column == "duration":
            invalid |= numbers.to_numpy(float) < 0
        if invalid.any():
            raise InputError(
                f"{file}, line {table.index[invalid][0]}: the {column} is "
                f"{table[column][invalid].iloc[0]!r}; expected seconds"
                f"{', 0 or more' if column == 'duration' else ''}."
            )


def check_same_column(columns: Mapping[Path, str]) -> None:
    """Refuse tables of events in which stimuli are named by different columns.

    Parameters
    ----------
    columns : mapping of Path to str
        Table of events -> its column of stimuli.

    Raises
    ------
    InputError
        If they differ.
    """
    first_file, first = next(iter(columns.items()))
    for file, column in columns.items():
        if column != first:
            raise InputError(
                f"stimuli are named by `{first}` in {first_file}, and by `{column}` in {file}; "
                "expected one column. Choose it with --stimulus-column."
            )


def check_fit(events: pd.DataFrame, times: ScanTimes, file: Path) -> None:
    """Check that events lie within a run, and trials do not overlap.

    Parameters
    ----------
    events : pd.DataFrame
        As `read_events` returns them.
    times : ScanTimes
        When the volumes of the run were acquired.
    file : Path
        The table's file, for the message.

    Raises
    ------
    InputError
        If an event begins after the end of the run, or a trial before the end of another one.
    """
    late = events["onset"] >= times.run_seconds
    if late.any():
        raise InputError(
            f"{file}, line {events.index[late][0]}: the onset is {events['onset'][late].iloc[0]:g} "
            f"s, but the run ends at {times.run_seconds:g} s ({times.n_volumes} volumes of "
            f"{times.tr_seconds:g} s), as for {late.sum()} of {len(events)} events. Onsets are in "
            "seconds from the first volume; correct the table, or fetch the whole run."
        )
    trials = events[events["nuisance"].isna()]
    onset, end = trials["onset"].to_numpy(float), (trials["onset"] + trials["duration"]).to_numpy()
    overlaps = (onset[1:] < end[:-1] - TOLERANCE_SECONDS) | (np.diff(onset) < TOLERANCE_SECONDS)
    if overlaps.any():
        first = int(np.argmax(overlaps))
        raise InputError(
            f"{file}, line {trials.index[first + 1]}: the trial begins at {onset[first + 1]:g} s, "
            f"before that of line {trials.index[first]} ends at {end[first]:g} s, as "
            f"{overlaps.sum()} of {len(trials)} do; expected trials one after the other. Choose "
            "the events that are trials with --trial-types, or a shorter --duration."
        )
