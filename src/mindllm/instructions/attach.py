"""Conversations of a source, joined to the trials of a store."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.instructions.registry import ASPECTS, SOURCES, Style, format_sample, get_source
from mindllm.instructions.source_files import SourceFiles
from mindllm.utils.errors import InputError

COLUMNS = ("stimulus", "subject", "trial_index", "source", "turns", "answers", "key")
Place = tuple[str | None, str | None, int | None]  # a stimulus, or a subject and a trial
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a source gave: `conversations`, about `covered` of `total` stimuli (or trials: `unit`)."""

    source: str
    conversations: int
    covered: int
    total: int
    unit: str

    def __str__(self) -> str:
        return f"{self.source}: {self.conversations:,} conversations about {self.covered:,} of {self.total:,} {self.unit} ({self.covered / max(self.total, 1):.0%})"


def attach_source(
    store: Store,
    source: str,
    files: Sequence[str | Path],
    *,
    style: Style = "mindllm",
    images: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Put the conversations of a source into a store, in place of those that it had of it; see `collect`."""
    table = collect(store, source, files, style=style, images=images, progress=progress)
    store.add_conversations(table)
    return summarize(store, source, table)


def collect(
    store: Store,
    source: str,
    files: Sequence[str | Path],
    *,
    style: Style = "mindllm",
    images: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The conversations of a source about a store's stimuli: `stimulus` (or `subject`, `trial`), `source`, `turns`, `answers`, `key`.

    files: the official files, in any order, or folders of them.  style: whose words, see `worded`.  images: `stimulus`,
    `coco_id`, where the trials have no `coco_id`. A source's own split says nothing: every question about an image that was
    shown is taken, and the trials' split decides. Raises InputError for files that are not those of the source, and where
    no conversation is about any stimulus.
    """
    if style not in get_args(Style):
        raise InputError(f"there is no style {style!r}; choose {' or '.join(get_args(Style))}.")
    kind = get_source(source)
    given = SourceFiles(source, files, kind.files, kind.url, progress)
    places = {"coco_id": of_images, "previous": of_images_before, "stimulus": of_stimuli}[
        kind.joins
    ](store, images)
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    read = silent = 0
    for item in kind.read(given, places.keys()):
        read += 1
        if not item.answers or not all(answer for _, answer in item.turns):
            silent += 1
            continue
        turns, answers = format_sample(item, kind, style)
        for place in places[item.image]:
            for name, value in zip(
                COLUMNS, (*place, source, turns, answers, item.key), strict=True
            ):
                columns[name].append(value)
    if silent:
        logger.warning(
            "%s: %d items have no answer, as in a test split, and are left out", source, silent
        )
    if not columns["turns"]:
        if kind.joins == "stimulus":
            raise InputError(
                f"{source}: {', '.join(map(str, files))} tells of none of the {len(places):,} stimuli of {store.path}, which are called as {next(iter(places))!r}. Name them alike."
            )
        raise InputError(
            f"{source}: none of {len(places):,} images of {store.path} is asked about in {', '.join(map(str, files))}{f'; {silent} of {read} items have no answer, as in a test split' if silent else ''}. Give the files of train and val; if they are, the store's coco_id (or the names of its stimuli) are others than theirs."
        )
    table = pd.DataFrame(columns).astype(
        {"trial_index": "Int64", "stimulus": object, "subject": object}
    )
    found = summarize(store, source, table)
    if found.covered < found.total:
        logger.info("%s; %d have none", found, found.total - found.covered)
    return table


def of_images(store: Store, images: pd.DataFrame | None) -> dict[Any, list[Place]]:
    """COCO id -> the stimuli that show it."""
    places: dict[Any, list[Place]] = defaultdict(list)
    for stimulus, image in stimulus_coco_ids(store, images).items():
        places[image].append((stimulus, None, None))
    return dict(places)


def of_images_before(store: Store, images: pd.DataFrame | None) -> dict[Any, list[Place]]:
    """COCO id -> the trials that come right after it in the same session and run; or as `prev_coco_id` says, where it stands.

    Raises InputError for a store that does not know the order of its trials.
    """
    if not store.meta.get("has_presentation_order", True):
        raise InputError(
            f"{store.path} is of {store.meta['name']}, which does not tell in which order its trials were shown, so what was seen before a trial is unknown. Add other sources."
        )
    image = stimulus_coco_ids(store, images)
    places: dict[Any, list[Place]] = defaultdict(list)
    for subject in store.subjects:
        trials = store.trials(subject)
        before = trials.groupby(["session", "run"], sort=False)["stimulus"].shift().map(image)
        if "prev_coco_id" in trials:
            before = trials["prev_coco_id"].where(trials["prev_coco_id"] >= 0)
        for row, number in enumerate(before):
            if pd.notna(number):
                places[int(number)].append((None, subject, row))
    return dict(places)


def of_stimuli(store: Store, images: pd.DataFrame | None) -> dict[Any, list[Place]]:
    """The stimuli, by name."""
    return {name: [(name, None, None)] for name in shown(store)}


def shown(store: Store) -> list[str]:
    """Every stimulus, once."""
    return list(
        dict.fromkeys(
            name for subject in store.subjects for name in store.trials(subject)["stimulus"]
        )
    )


def stimulus_coco_ids(store: Store, images: pd.DataFrame | None) -> dict[str, int]:
    """Stimulus -> COCO id, from `images` or else the trials. Raises InputError where neither says it, or two differ."""
    names = set(shown(store))
    tables = [store.trials(subject) for subject in store.subjects] if images is None else [images]
    if images is not None and not {"stimulus", "coco_id"} <= set(images.columns):
        raise InputError(
            f"the table of images has the columns {list(images.columns)}; expected `stimulus` and `coco_id`."
        )
    told = [table[["stimulus", "coco_id"]].dropna() for table in tables if "coco_id" in table]
    pairs = pd.concat(told).astype({"stimulus": str}).drop_duplicates() if told else pd.DataFrame()
    if pairs.empty:
        raise InputError(
            f"no trial in {store.path} has a coco_id, by which images are known to this source. Give a table with the columns stimulus and coco_id (--images TABLE)."
        )
    pairs = pairs[pairs["stimulus"].isin(names)]
    if pairs.empty:
        raise InputError(
            f"the table of images names no stimulus of {store.path}, whose stimuli are called as {sorted(names)[0]!r}."
        )
    twice = pairs[pairs["stimulus"].duplicated(keep=False)]
    if len(twice):
        raise InputError(
            f"the stimulus {twice['stimulus'].iloc[0]!r} has two COCO ids, {twice['coco_id'].iloc[0]} and {twice['coco_id'].iloc[1]}; expected one."
        )
    try:
        return dict(
            zip(pairs["stimulus"], (int(number) for number in pairs["coco_id"]), strict=True)
        )
    except ValueError as error:
        raise InputError(f"a coco_id is no whole number ({error}).") from error


def summarize(store: Store, source: str, table: pd.DataFrame) -> Summary:
    """What some conversations of one source cover."""
    if table["stimulus"].notna().any():
        return Summary(
            source, len(table), table["stimulus"].nunique(), len(shown(store)), "stimuli"
        )
    trials = sum(len(store.trials(subject)) for subject in store.subjects)
    return Summary(
        source,
        len(table),
        len(table[["subject", "trial_index"]].drop_duplicates()),
        trials,
        "trials",
    )


def summary(store: Store) -> pd.DataFrame:
    """What a store is asked: a row per source and, below those of an aspect that has several, one for `all`.

    `aspect`, `source`, `conversations`, `with text` (how many stimuli, or trials: `of`), `share` of all that are, and `words`
    of an answer on average.
    """
    table = store.conversations
    words = table["turns"].map(
        lambda turns: [len(t["content"].split()) for t in turns if t["role"] == "assistant"]
    )
    table = table.assign(said=words.map(sum), answered=words.map(len))
    aspect = table["source"].map(lambda name: SOURCES[name].aspect if name in SOURCES else "other")
    rows = []
    for name in (*ASPECTS, "other"):
        of_aspect = table[aspect == name]
        sources: Iterable[Any] = dict.fromkeys(of_aspect["source"])
        parts = [(source, of_aspect[of_aspect["source"] == source]) for source in sources]
        for source, part in [*parts, ("all", of_aspect)] if len(parts) > 1 else parts:
            found = summarize(store, source, part)
            rows.append({
                "aspect": name, "source": source, "conversations": found.conversations, "with text": found.covered,
                "of": found.unit, "share": found.covered / max(found.total, 1), "words": part["said"].sum() / max(part["answered"].sum(), 1),
            })  # fmt: skip
    return pd.DataFrame(
        rows, columns=["aspect", "source", "conversations", "with text", "of", "share", "words"]
    )
