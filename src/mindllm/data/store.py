"""The store: one folder of plain files per data set, memory-mapped, whole or absent.

dataset.json  regions.json  conversations.parquet
subjects/<name>/  voxels.parquet  mask.nii.gz  betas.npy  trials.parquet  statistics.npz
splits/<name>/    split.json  trials.parquet  <subject>.npz            other splits than that of the trials tables
"""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import mindllm
from mindllm.conversation import QUESTION, Conversation, ask, check_conversation
from mindllm.data.spaces import load_measure, load_space, save_space, whole
from mindllm.data.splits import AS_PREPARED, SPLITS, check_splits
from mindllm.data.statistics import Statistics
from mindllm.errors import InputError
from mindllm.files import disk_errors, partial, publish, read_json, refuse_existing, whole_file, write_json
from mindllm.images import check_finite, check_values
from mindllm.voxels import VoxelSpace

FORMAT = 1
DTYPES = ("float32", "float16")
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CONVERSATIONS = pa.schema([
    ("stimulus", pa.string()), ("subject", pa.string()), ("trial", pa.int64()), ("source", pa.string()),
    ("turns", TURNS), ("answers", pa.list_(pa.string())),
])  # fmt: skip
TRIAL_COLUMNS = ("stimulus", "session", "run", "repeat", "split")
logger = logging.getLogger(__name__)


class Store:
    """A prepared data set. Opening reads names and sizes only; betas stay on disk until rows are asked for.

    split: the name of a split made by `mindllm split`, which then says what trains and what tests; None: as prepared.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = Path(path)
        if partial(self.path).is_dir() and not self.path.exists():
            raise InputError(
                f"{self.path} was not prepared to its end. Run the same `mindllm prepare` command again: it goes on where it stopped."
            )
        self.meta: dict[str, Any] = read_json(self.path / "dataset.json", "a store (made by `mindllm prepare`)")
        if self.meta.get("format", 0) > FORMAT:
            raise InputError(
                f"{self.path} has store format {self.meta['format']}; this version of mindllm reads up to {FORMAT}. Upgrade mindllm."
            )
        self.regions = {
            p: {int(k): v for k, v in names.items()}
            for p, names in read_json(self.path / "regions.json", "a store").items()
        }
        self.subjects: list[str] = sorted(p.name for p in (self.path / "subjects").glob("*") if p.is_dir())
        if split not in (None, AS_PREPARED, *self.splits):
            raise InputError(
                f"{self.path} has no split {split!r}; it holds {', '.join([AS_PREPARED, *self.splits])}. `mindllm split` makes others."
            )
        self.other_split = self.path / "splits" / split if split not in (None, AS_PREPARED) else None

    @property
    def splits(self) -> list[str]:
        """Names of the splits beside that of the trials tables."""
        return sorted(file.parent.name for file in self.path.glob("splits/*/split.json"))

    @cached_property
    def split(self) -> dict[str, Any]:
        """What the split is called and how it was made."""
        if self.other_split is None:
            return {"name": AS_PREPARED}
        return dict(read_json(self.other_split / "split.json", "a split (made by `mindllm split`)"))

    def choose(self, names: Sequence[str] | None) -> list[str]:
        """The subjects to work with: all, or those named. Raises InputError for one that is not here."""
        unknown = [name for name in names or [] if name not in self.subjects]
        if unknown:
            raise InputError(f"{self.path} has no subject {', '.join(unknown)}; it holds {', '.join(self.subjects)}.")
        return sorted(set(names)) if names else self.subjects

    @cache  # noqa: B019 - a store lives as long as the command that opened it
    def space(self, subject: str) -> VoxelSpace:
        """The subject's voxels."""
        return load_space(self.path / "subjects" / subject, self.regions)

    @cache  # noqa: B019
    def trials(self, subject: str) -> pd.DataFrame:
        """One row per trial; row numbers are those of the betas."""
        with whole(self.path / "subjects" / subject / "trials.parquet") as path:
            table = pd.read_parquet(path)
        if self.other_split is None:
            return table
        with whole(self.other_split / "trials.parquet", "Make the split anew.") as path:
            part = pd.read_parquet(path, filters=[("subject", "==", subject)])
        return table.assign(split=part.set_index("trial")["split"].reindex(range(len(table))).to_numpy(str))

    @cache  # noqa: B019
    def betas(self, subject: str) -> np.ndarray:
        """(trials, voxels), memory-mapped, as measured."""
        expected = (len(self.trials(subject)), len(self.space(subject)))
        with whole(self.path / "subjects" / subject / "betas.npy") as path:
            betas = np.load(path, mmap_mode="r")
        if betas.shape != expected:
            raise InputError(
                f"{path} has shape {betas.shape}; trials.parquet and voxels.parquet promise {expected}. Prepare the store anew."
            )
        return betas

    def values(self, subject: str, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Normalized values (B, V) float32 of some trials: levelled, then z-scored with the statistics of each trial's session.

        Betas that came normalized are taken as they are.
        """
        rows = np.arange(len(self.trials(subject))) if rows is None else np.asarray(rows)
        if self.meta.get("normalized"):
            return np.asarray(self.betas(subject)[rows], np.float32)
        return self.statistics(subject).apply(
            self.betas(subject)[rows], self.trials(subject)["session"].to_numpy()[rows]
        )

    @cache  # noqa: B019
    def statistics(self, subject: str) -> "Statistics":
        """Mean and standard deviation per session and voxel, from training trials alone."""
        file = (
            self.other_split / f"{subject}.npz"
            if self.other_split
            else self.path / "subjects" / subject / "statistics.npz"
        )
        with whole(file) as path:
            return Statistics.load(path)

    def normalized_with(self, subject: str) -> str:
        """In words, what a subject's values were normalized with."""
        return "came normalized" if self.meta.get("normalized") else self.statistics(subject).origin

    @property
    def sets(self) -> dict[str, list[str]]:
        """Named sets of stimuli, that reports give rows of their own."""
        return dict(self.meta.get("sets", {}))

    def ncsnr(self, subject: str) -> np.ndarray | None:
        """(V,) noise ceiling signal-to-noise ratio as published with the data, NaN where unknown; None: not published."""
        return load_measure(self.path / "subjects" / subject, "ncsnr")

    @cached_property
    def conversations(self) -> pd.DataFrame:
        """`stimulus`, or `subject` and `trial`; `source`, `turns` (a conversation), `answers` (those that count as right), first one first.

        `turns` and `answers` stay in Arrow's memory and become Python lists one by one, as they are taken.
        """
        with whole(self.path / "conversations.parquet") as path:
            return frame(pq.read_table(path))

    def add(self, conversations: pd.DataFrame) -> None:
        """Put these conversations in the place of all of the same sources, or beside the others; whole or not at all."""
        for turns in conversations["turns"]:
            check_conversation(turns)
        with whole(self.path / "conversations.parquet") as path:
            table = pq.read_table(path)
        told = pc.is_in(table["source"], pa.array(sorted(set(conversations["source"])), pa.string()))
        both = [table.filter(pc.invert(told)), arrow(conversations)]
        with whole_file(self.path / "conversations.parquet") as path:
            pq.write_table(pa.concat_tables(both, promote_options="permissive"), path)
        self.__dict__.pop("conversations", None)


def arrow(conversations: pd.DataFrame) -> pa.Table:
    """A table of conversations as it is written: every column of CONVERSATIONS, then any others."""
    bare = conversations.reset_index(drop=True)
    for name in CONVERSATIONS.names:
        if name not in bare:
            bare[name] = None
    others = [name for name in bare if name not in CONVERSATIONS.names]
    known = [pa.array(bare[field.name].tolist(), field.type, from_pandas=True) for field in CONVERSATIONS]
    return pa.table(
        known + [pa.array(bare[name].astype(str)) for name in others], names=[*CONVERSATIONS.names, *map(str, others)]
    )


def frame(table: pa.Table) -> pd.DataFrame:
    """A table of conversations as it is used, with the columns that an older one lacks."""
    for field in CONVERSATIONS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    kept = table.to_pandas(types_mapper=lambda kind: pd.ArrowDtype(kind) if pa.types.is_list(kind) else None)
    return kept.astype({"trial": "Int64"})


class StoreWriter:
    """Writes a store subject by subject into `<path>.partial`; `finish` renames it. A second call skips subjects already whole.

    normalized: betas are z-scores already.  ordered: trials stand in the order in which they were shown.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        origin: str,
        licence: str,
        reader: str,
        options: Mapping[str, Any],
        normalized: bool = False,
        ordered: bool = True,
        sets: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path, self.partial = Path(path), partial(Path(path))
        refuse_existing(self.path)
        self.meta = {
            "format": FORMAT,
            "name": name,
            "origin": origin,
            "licence": licence,
            "version": mindllm.__version__,
            "reader": reader,
            "options": dict(options),
            "normalized": normalized,
            "ordered": ordered,
            "sets": {label: sorted(map(str, members)) for label, members in (sets or {}).items()},
        }
        plan = self.partial / "dataset.json"
        with disk_errors(self.path):
            if plan.exists() and read_json(plan, "an unfinished store") != self.meta:
                logger.warning("%s was begun with other options; starting over", self.partial)
                shutil.rmtree(self.partial)
            (self.partial / "subjects").mkdir(parents=True, exist_ok=True)
            write_json(plan, self.meta)

    def has(self, subject: str) -> bool:
        """Whether this subject was already written by an earlier call."""
        return (self.partial / "subjects" / subject).is_dir()

    def subject(
        self,
        space: VoxelSpace,
        trials: pd.DataFrame,
        pieces: Iterable[tuple[np.ndarray, np.ndarray]],
        dtype: str = "float32",
        ncsnr: np.ndarray | None = None,
    ) -> None:
        """Write one subject. `pieces` yields (trial rows, betas (b, V)) until every trial was given once; ncsnr: (V,), as published."""
        check_dtype(dtype)
        trials = check_trials(trials, space.name)
        folder = self.partial / "subjects" / space.name
        temporary = self.partial / f".{space.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        with disk_errors(self.path):
            temporary.mkdir(parents=True)
            kind, written = np.dtype(dtype), np.zeros(len(trials), int)
            # Plain writes: on a full disk they raise an error, where writing to a memory map would kill the process.
            with (temporary / "betas.npy").open("wb") as file:
                begin_array(file, kind, (len(trials), len(space)))
                start = file.tell()
                for rows, values in pieces:
                    kept = fit(values, len(space), dtype, f"{space.name}, trials {rows[0]} to {rows[-1]}")
                    for row, value in zip(rows, kept, strict=True):
                        file.seek(start + int(row) * value.nbytes)
                        file.write(value.tobytes())
                    written[rows] += 1
            if (written != 1).any():
                raise InputError(
                    f"{space.name}: trial {np.flatnonzero(written != 1)[0]} was given {written[written != 1][0]} times; each trial needs its betas once."
                )
            if not self.meta["normalized"]:
                betas = np.load(temporary / "betas.npy", mmap_mode="r")
                Statistics.measure(betas, trials).save(temporary / "statistics.npz")
            save_space(space, temporary, {} if ncsnr is None else {"ncsnr": ncsnr})
            trials.to_parquet(temporary / "trials.parquet")
            regions = {p: {str(k): v for k, v in names.items()} for p, names in space.region_names.items()}
            path = self.partial / "regions.json"
            known = read_json(path, "an unfinished store") if path.exists() else {}
            differ = [p for p in regions if p in known and known[p] != regions[p]]
            if differ:
                raise InputError(
                    f"{space.name} numbers the regions of {', '.join(differ)} otherwise than the subjects before; one lookup table per parcellation is expected."
                )
            write_json(path, known | regions)
            publish(temporary, folder)

    def finish(self, conversations: pd.DataFrame) -> Store:
        """Check the whole, write the conversations, and put the store in its place."""
        trials = {
            folder.name: pd.read_parquet(folder / "trials.parquet")
            for folder in sorted((self.partial / "subjects").iterdir())
        }
        if not trials:
            raise InputError(f"{self.path}: no subject was given, so there is nothing to store.")
        check_splits(trials)
        for turns in conversations["turns"]:
            check_conversation(turns)
        with disk_errors(self.path):
            pq.write_table(arrow(conversations), self.partial / "conversations.parquet")
            if not (self.partial / "regions.json").exists():
                write_json(self.partial / "regions.json", {})
            publish(self.partial, self.path)
        return Store(self.path)


def write(
    path: str | Path,
    subjects: Iterable[tuple[VoxelSpace, np.ndarray, pd.DataFrame]],
    conversations: pd.DataFrame,
    *,
    name: str,
    origin: str = "",
    licence: str = "",
    dtype: str = "float32",
    normalized: bool = False,
    sets: Mapping[str, Sequence[str]] | None = None,
) -> Store:
    """Make a store of one's own arrays: per subject a voxel space, betas (trials, voxels), and a trials table with `stimulus`.

    conversations: `stimulus`, `source`, `turns`, `answers`; `captions` makes it from a table of captions.
    normalized: the betas are z-scores already, to be taken as they are.  sets: name -> stimuli, such as "982", that reports
    give rows of their own.
    """
    refuse_existing(Path(path))
    shutil.rmtree(
        partial(Path(path)), ignore_errors=True
    )  # the arrays are at hand: begin anew, whatever was interrupted
    writer = StoreWriter(
        path, name=name, origin=origin, licence=licence, reader="arrays", options={}, normalized=normalized, sets=sets
    )
    for space, betas, trials in subjects:
        check_values(betas, len(space), space.name)
        if len(betas) != len(trials):
            raise InputError(f"{space.name}: {len(betas)} rows of betas, but {len(trials)} rows of trials.")
        writer.subject(space, trials, [(np.arange(len(trials)), betas)], dtype)
    return writer.finish(conversations)


def check_dtype(dtype: str) -> None:
    """Raise InputError unless betas can be stored so."""
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; expected {' or '.join(DTYPES)}.")


def begin_array(file: IO[bytes], kind: np.dtype, shape: tuple[int, ...]) -> None:
    """Write what stands before the numbers in a .npy file."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind.str, "fortran_order": False, "shape": shape})


def fit(betas: np.ndarray, voxels: int, dtype: str, where: str) -> np.ndarray:
    """Betas (b, V) as `dtype`. Raises InputError for another number of voxels, NaN or infinity, or numbers too large for it."""
    check_values(betas, voxels, where)
    check_finite(betas, where)
    highest = max(betas.max(initial=0), -betas.min(initial=0))
    if highest > np.finfo(dtype).max:
        raise InputError(f"{where}: betas of up to {highest:.3g} do not fit {dtype}; use --dtype float32.")
    return np.asarray(betas, dtype)


def captions(table: pd.DataFrame, source: str = "caption", question: str = QUESTION) -> pd.DataFrame:
    """Conversations from captions, one per row of `stimulus`, `caption`; all captions of a stimulus count as right."""
    table = table[["stimulus", "caption"]].drop_duplicates()
    right = table.groupby("stimulus", sort=False)["caption"].agg(list)
    turns: list[Conversation] = [ask(question, text) for text in table["caption"]]
    answers = [
        [text, *(other for other in right[stimulus] if other != text)]
        for stimulus, text in table.itertuples(index=False)
    ]
    return pd.DataFrame(
        {"stimulus": table["stimulus"].astype(str).to_numpy(), "source": source, "turns": turns, "answers": answers}
    )


def check_trials(trials: pd.DataFrame, subject: str) -> pd.DataFrame:
    """The trials table with all its columns; what is not told gets one session, one run, counted repeats, and `train`."""
    if "stimulus" not in trials or trials["stimulus"].isna().any():
        raise InputError(
            f"{subject}: the trials table needs a column `stimulus` without gaps; found the columns {list(trials.columns)}."
        )
    trials = trials.reset_index(drop=True).assign(stimulus=trials["stimulus"].astype(str).to_numpy())
    defaults: dict[str, Any] = {
        "session": "1",
        "run": "1",
        "repeat": trials.groupby("stimulus").cumcount(),
        "split": "train",
    }
    for column, value in defaults.items():
        if column not in trials:
            trials[column] = value
    odd = sorted(set(trials["split"].astype(str)) - set(SPLITS))
    if odd:
        raise InputError(f"{subject}: unknown split {odd}; expected {', '.join(SPLITS)}.")
    others = [column for column in trials if column not in TRIAL_COLUMNS]
    return trials.assign(session=trials["session"].astype(str), run=trials["run"].astype(str))[
        [*TRIAL_COLUMNS, *others]
    ]
