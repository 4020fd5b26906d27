"""What the files of a store hold: checked once, when they are opened, and before they are written.

JSON files by pydantic models, tables by their columns. Each check names the file, the first row or
key that is wrong, what was found and what was expected.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from mindllm.data.splits import SPLITS, check_splits
from mindllm.language.conversation import FMRI_TOKEN, check_conversation
from mindllm.utils.errors import InputError
from mindllm.utils.table_checks import (
    check_column,
    check_column_names,
    check_rows,
    read_checked_table,
)

REMEDY = "Prepare the store anew."
Name = Annotated[str, Field(min_length=1)]
ParcelNumber = Annotated[str, Field(pattern="^[1-9][0-9]{0,8}$")]
TEXT_COLUMNS = ("stimulus", "session", "run")
TRIAL_COLUMNS = ("stimulus", "session", "run", "repetition", "split")
ROLES = pa.array(["user", "assistant", "system"])
USER, SYSTEM = 0, 2  # positions in ROLES


class DatasetContent(BaseModel):
    """What dataset.json holds.

    Examples
    --------
    >>> DatasetContent(
    ...     format=3, name="pets", source="", license="", version="0.1.0", prepared_by="arrays",
    ...     options={}, standardized=False, has_presentation_order=True, stimulus_sets={},
    ... ).name
    'pets'
    """  # fmt: skip

    model_config = ConfigDict(extra="forbid")

    format: int
    name: Name
    source: str
    license: str
    version: str
    prepared_by: str
    options: dict[str, object]
    standardized: bool
    has_presentation_order: bool
    stimulus_sets: dict[Name, list[str]]


class SplitContent(BaseModel):
    """What split.json holds: how a split was made, by a rule with its options.

    Examples
    --------
    >>> SplitContent.model_validate(
    ...     {"name": "a", "by": "sessions", "from": "default", "trials": {"train": 3}}
    ... ).by
    'sessions'
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    by: Literal["stimulus", "cluster", "subject", "sessions"]
    origin: Annotated[Name, Field(alias="from")]
    trials: dict[str, Annotated[int, Field(ge=0)]]
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    seed: int | None = None
    clusters: int | None = None
    source: str | None = None
    similarity: float | None = None
    similarity_of_a_random_split: float | None = None
    similarity_before: float | None = None
    subjects_by_split: dict[str, list[str]] | None = None
    sessions: int | None = None
    subjects: list[str] | None = None


RULE_KEYS = {
    "stimulus": ("fractions", "seed"),
    "cluster": ("fractions", "seed", "clusters"),
    "subject": ("subjects_by_split",),
    "sessions": ("sessions", "subjects"),
}
DATASET = TypeAdapter(DatasetContent)
SPLIT = TypeAdapter(SplitContent)
PARCELS: TypeAdapter[dict[str, dict[str, str]]] = TypeAdapter(dict[Name, dict[ParcelNumber, Name]])


def check_rule(content: SplitContent, path: Path, remedy: str) -> None:
    """Check that split.json has the name of its folder, and the options of its rule."""
    if content.name != path.parent.name:
        raise InputError(
            f"{path}: the name is {content.name!r}, that of its folder {path.parent.name!r}; "
            f"expected the same. {remedy}"
        )
    for key in RULE_KEYS[content.by]:
        if getattr(content, key) is None:
            raise InputError(
                f"{path} has no {key}; expected {' and '.join(RULE_KEYS[content.by])} of a split "
                f"by {content.by}. {remedy}"
            )


def check_trials_table(trials: pd.DataFrame, where: str, remedy: str) -> None:
    """Check the trials of one subject.

    Parameters
    ----------
    trials : DataFrame
        With the columns of TRIAL_COLUMNS, each once.
    where : str
        The table, for the message.
    remedy : str
        What to do, for the message.

    Raises
    ------
    InputError
        If there is none, a value is missing or of another type, a split is unknown, a repetition
        is below 0, or a stimulus is in two splits.
    """
    if not len(trials):
        raise InputError(f"{where} has 0 rows; expected one per trial. {remedy}")
    for name in TEXT_COLUMNS:
        check_column(trials[name], "text", where, remedy)
    repetition = trials["repetition"]
    check_column(repetition, "whole numbers", where, remedy)
    check_rows((repetition >= 0).to_numpy(bool), repetition, "0 or more", where, remedy)
    check_split_column(trials, where, remedy)
    check_splits({where: trials})


def check_split_column(trials: pd.DataFrame, where: str, remedy: str) -> None:
    """Check that splits are known."""
    split = trials["split"]
    check_column(split, "text", where, remedy)
    check_rows(split.isin(SPLITS).to_numpy(), split, ", ".join(SPLITS), where, remedy)


def read_split_table(path: Path, subjects: list[str], remedy: str) -> pd.DataFrame:
    """Read the trials.parquet of a split: subject, trial_index and split of every trial."""
    table = read_checked_table(path, ("subject", "trial_index", "split"), remedy)
    check_column(table["subject"], "text", str(path), remedy)
    check_column(table["trial_index"], "whole numbers", str(path), remedy)
    check_split_column(table, str(path), remedy)
    present = set(table["subject"])
    if missing := [name for name in subjects if name not in present]:
        raise InputError(
            f"{path} has no trial of {missing[0]}; expected those of {', '.join(subjects)}. "
            f"{remedy}"
        )
    if not (table["split"] == "train").any():
        raise InputError(f"{path} has no trial of the split train; expected some. {remedy}")
    return table


def select_split(
    table: pd.DataFrame, subject: str, n_trials: int, path: Path, remedy: str
) -> np.ndarray:
    """Select the split (n_trials,) of every trial of a subject."""
    part = table[table["subject"] == subject]
    order = np.argsort(part["trial_index"].to_numpy(), kind="stable")
    indices = part["trial_index"].to_numpy()[order]
    if len(indices) != n_trials or (indices != np.arange(n_trials)).any():
        extent = f" from {indices[0]} to {indices[-1]}" if len(indices) else ""
        raise InputError(
            f"{path} has {len(indices)} rows of {subject}, trial_index{extent}; expected 0 to "
            f"{n_trials - 1}, each once. {remedy}"
        )
    return part["split"].to_numpy(str)[order]


# Conversations, as they stand in Arrow's memory: millions of rows take a second.


def check_conversations(
    table: pa.Table, count_trials: Callable[[str], int | None], path: Path
) -> None:
    """Check a table of conversations.

    Parameters
    ----------
    table : pyarrow.Table
        Of the columns stimulus, subject, trial_index, source, turns and answers, of which the
        first three may be missing.
    count_trials : callable
        Subject to its number of trials; None: there is no such subject.
    path : Path
        The table's file, for the message.

    Raises
    ------
    InputError
        If a column is missing, comes twice or has another type, or a row has no source, no topic,
        no answer, or turns that are no conversation; the message names the row, from 0.
    """
    check_column_names(table.column_names, ("source", "turns", "answers"), path, REMEDY)
    check_types(table, path)
    start = 0
    for batch in table.to_batches():
        for row, problem in (find_null(batch), find_invalid_turns(batch)):
            if row is not None:
                raise InputError(f"{path}, row {start + row}: {problem} {REMEDY}")
        check_topics(batch, start, count_trials, path)
        start += len(batch)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is text; a column without any value has none."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def is_list_of(kind: pa.DataType, is_element: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type of Arrow is a list of some type."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and is_element(kind.value_type)


def is_turn(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is a turn of a conversation."""
    names = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    return set(names) == {"role", "content"} and all(map(is_text, names.values()))


COLUMN_TYPES: Mapping[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "stimulus": ("text", is_text),
    "subject": ("text", is_text),
    "trial_index": ("whole numbers", lambda k: pa.types.is_integer(k) or pa.types.is_null(k)),
    "source": ("text", is_text),
    "turns": ("lists of role and content", lambda kind: is_list_of(kind, is_turn)),
    "answers": ("lists of texts", lambda kind: is_list_of(kind, is_text)),
}


def check_types(table: pa.Table, path: Path) -> None:
    """Check the types of the columns of conversations."""
    for name, (expected, is_expected) in COLUMN_TYPES.items():
        if name in table.column_names and not is_expected(kind := table.schema.field(name).type):
            raise InputError(
                f"{path}: the column {name} holds {kind}; expected {expected}. {REMEDY}"
            )


def find_null(batch: pa.RecordBatch) -> tuple[int | None, str]:
    """The first row without source, turns or answers, and what is wrong with it."""
    for name in ("source", "turns", "answers"):
        values = batch.column(name)
        length = pc.utf8_length if name == "source" else pc.list_value_length
        sizes = pc.fill_null(length(values), 0).to_numpy(zero_copy_only=False)
        if (sizes == 0).any():
            return int(np.argmin(sizes != 0)), f"{name} is empty or null; expected some."
    answers = batch.column("answers")
    if answers.flatten().null_count:
        elements = answers.flatten().is_null().to_numpy(zero_copy_only=False)
        row = row_numbers(answers)[np.argmax(elements)]
        return int(row), "one of the answers is null; expected texts."
    return None, ""


def row_numbers(lists: pa.Array) -> np.ndarray:
    """Row of each element of an array of lists without nulls."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths)


def find_invalid_turns(batch: pa.RecordBatch) -> tuple[int | None, str]:
    """The first row whose turns are no conversation, as `check_conversation` has it, and why."""
    if find_null(batch)[0] is not None or not len(batch):
        return None, ""
    lists = batch.column("turns")
    turns, rows = lists.flatten(), row_numbers(lists)
    roles, contents = (pc.struct_field(turns, name) for name in ("role", "content"))
    invalid = np.zeros(len(batch), bool)
    is_null = pc.or_(roles.is_null(), contents.is_null()).to_numpy(zero_copy_only=False)
    invalid[rows[is_null]] = True
    codes = pc.fill_null(pc.index_in(roles, ROLES), -1).to_numpy(zero_copy_only=False)
    starts = np.searchsorted(rows, np.arange(len(batch)))
    has_system = codes[starts] == SYSTEM
    position = np.arange(len(rows)) - starts[rows] - has_system[rows]
    invalid[rows[(codes != position % 2) & (position >= 0)]] = True
    invalid |= has_system & (np.bincount(rows, minlength=len(batch)) == 1)
    counts = pc.fill_null(pc.count_substring(contents, FMRI_TOKEN), 0)
    n_tokens = counts.to_numpy(zero_copy_only=False).astype(int)
    for weights in (n_tokens, n_tokens * (codes == USER)):
        invalid |= np.bincount(rows, weights, minlength=len(batch)) != 1
    if not invalid.any():
        return None, ""
    row = int(np.argmax(invalid))
    return row, describe_turns(lists[row].as_py())


def describe_turns(turns: list[dict[str, str]]) -> str:
    """Say why turns are no conversation."""
    if any(turn is None or None in turn.values() for turn in turns):
        return f"a turn has no role or no text: {turns!r}."
    try:
        check_conversation(turns)
    except InputError as error:
        return str(error).removesuffix(".") + "."
    raise AssertionError(turns)


def check_topics(
    batch: pa.RecordBatch, start: int, count_trials: Callable[[str], int | None], path: Path
) -> None:
    """Check that every conversation is about a stimulus, or about a trial that there is."""
    columns = {name: batch.column(name) for name in COLUMN_TYPES if name in batch.schema.names}
    nothing = pa.nulls(len(batch))
    stimulus = columns.get("stimulus", nothing)
    rows = np.flatnonzero(stimulus.is_null().to_numpy(zero_copy_only=False))
    if not len(rows):
        return
    subject, trial = (
        columns.get(name, nothing).take(pa.array(rows)).to_pandas()
        for name in ("subject", "trial_index")
    )
    n_trials = {name: count_trials(name) for name in subject.dropna().unique()}
    limits = pd.to_numeric(subject.map(n_trials), errors="coerce")
    indices = pd.to_numeric(trial, errors="coerce")
    are_valid = ((indices >= 0) & (indices < limits)).to_numpy(bool)
    if not are_valid.all():
        first = int(np.argmin(are_valid))
        name, index = (columns[n][rows[first]].as_py() for n in ("subject", "trial_index"))
        known = f"; {name} has the trials 0 to {limits[first] - 1:.0f}" if limits[first] > 0 else ""
        raise InputError(
            f"{path}, row {start + rows[first]}: stimulus is null, subject {name!r}, trial_index "
            f"{index}; expected a stimulus, or a trial of a subject of the store{known}. {REMEDY}"
        )
