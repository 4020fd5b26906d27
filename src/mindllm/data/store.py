"""The store: one folder of plain files per data set, memory-mapped, whole or absent.

dataset.json  regions.json  conversations.parquet
subjects/<name>/  voxels.parquet  mask.nii.gz  betas.npy  trials.parquet  statistics.npz
splits/<name>/    split.json  trials.parquet  <subject>.npz            other splits than that of the trials tables
"""

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mindllm.data.splits import DEFAULT_SPLIT
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.masker_io import load_masker, load_voxel_column
from mindllm.fmri.scaling import SessionScaler
from mindllm.language.conversation import check_conversation
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, describe_read_errors, partial_path, read_json
from mindllm.utils.validation import check_format

FORMAT = 2
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CONVERSATIONS = pa.schema([
    ("stimulus", pa.string()), ("subject", pa.string()), ("trial_index", pa.int64()), ("source", pa.string()),
    ("turns", TURNS), ("answers", pa.list_(pa.string())),
])  # fmt: skip


class Store:
    """A prepared data set. Opening reads names and sizes only; betas stay on disk until rows are asked for.

    split: the name of a split made by `mindllm split`, which then says what trains and what tests; None: as prepared.
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = Path(path)
        if partial_path(self.path).is_dir() and not self.path.exists():
            raise InputError(
                f"{self.path} was not prepared to its end. Run the same `mindllm prepare` command again: it goes on where it stopped."
            )
        self.meta: dict[str, Any] = read_json(
            self.path / "dataset.json", "a store (made by `mindllm prepare`)"
        )
        check_format(self.path, "store", self.meta.get("format"), FORMAT, "Prepare it again.")
        self.parcel_names = {
            p: {int(k): v for k, v in names.items()}
            for p, names in read_json(self.path / "regions.json", "a store").items()
        }
        self.subjects: list[str] = sorted(
            p.name for p in (self.path / "subjects").glob("*") if p.is_dir()
        )
        if split not in (None, DEFAULT_SPLIT, *self.splits):
            raise InputError(
                f"{self.path} has no split {split!r}; it holds {', '.join([DEFAULT_SPLIT, *self.splits])}. `mindllm split` makes others."
            )
        self.split_dir = (
            self.path / "splits" / split if split not in (None, DEFAULT_SPLIT) else None
        )

    def __reduce__(self) -> tuple[type, tuple[Path, str | None]]:
        """Pickle the path alone: another process opens the store, and its memory maps, anew."""
        return type(self), (self.path, self.split_dir.name if self.split_dir else None)

    @property
    def splits(self) -> list[str]:
        """Names of the splits beside that of the trials tables."""
        return sorted(file.parent.name for file in self.path.glob("splits/*/split.json"))

    @cached_property
    def split(self) -> dict[str, Any]:
        """What the split is called and how it was made."""
        if self.split_dir is None:
            return {"name": DEFAULT_SPLIT}
        return dict(read_json(self.split_dir / "split.json", "a split (made by `mindllm split`)"))

    def select_subjects(self, names: Sequence[str] | None) -> list[str]:
        """The subjects to work with: all, or those named. Raises InputError for one that is not here."""
        unknown = [name for name in names or [] if name not in self.subjects]
        if unknown:
            raise InputError(
                f"{self.path} has no subject {', '.join(unknown)}; it holds {', '.join(self.subjects)}."
            )
        return sorted(set(names)) if names else self.subjects

    @cache  # noqa: B019 - a store lives as long as the command that opened it
    def masker(self, subject: str) -> VoxelMasker:
        """The subject's voxels."""
        return load_masker(self.path / "subjects" / subject, self.parcel_names)

    @cache  # noqa: B019
    def trials(self, subject: str) -> pd.DataFrame:
        """One row per trial; row numbers are those of the betas."""
        with describe_read_errors(self.path / "subjects" / subject / "trials.parquet") as path:
            table = pd.read_parquet(path)
        if self.split_dir is None:
            return table
        with describe_read_errors(
            self.split_dir / "trials.parquet", "Make the split anew."
        ) as path:
            part = pd.read_parquet(path, filters=[("subject", "==", subject)])
        return table.assign(
            split=part.set_index("trial_index")["split"].reindex(range(len(table))).to_numpy(str)
        )

    def betas(
        self,
        subject: str,
        trials: Sequence[int] | np.ndarray | None = None,
        *,
        standardize: bool = False,
    ) -> np.ndarray:
        """Single-trial responses of a subject.

        Parameters
        ----------
        subject : str
            The subject's label.
        trials : sequence of int, optional
            0-based trial indices; all of them by default.
        standardize : bool
            Z-score each trial over voxels, then each voxel with the mean and standard deviation of
            the trial's session, measured on training trials. Betas that came standardized are taken as they are.

        Returns
        -------
        ndarray of shape (n_trials, n_voxels)
            As stored and memory-mapped if `trials` is None and `standardize` is False; else a copy,
            float32 if standardized.

        Raises
        ------
        InputError
            If the file is damaged or has another shape than the tables promise.
        """
        if trials is None and not standardize:
            return self._stored_betas(subject)
        indices = np.arange(len(self.trials(subject))) if trials is None else np.asarray(trials)
        betas = self._stored_betas(subject)[indices]
        if not standardize:
            return betas
        if self.meta.get("standardized"):
            return np.asarray(betas, np.float32)
        sessions = self.trials(subject)["session"].to_numpy()[indices]
        return self.scaler(subject).transform(betas, sessions)

    @cache  # noqa: B019
    def _stored_betas(self, subject: str) -> np.ndarray:
        """(n_trials, n_voxels), memory-mapped, as measured."""
        expected = (len(self.trials(subject)), len(self.masker(subject)))
        with describe_read_errors(self.path / "subjects" / subject / "betas.npy") as path:
            betas = np.load(path, mmap_mode="r")
        if betas.shape != expected:
            raise InputError(
                f"{path} has shape {betas.shape}; trials.parquet and voxels.parquet promise {expected}. "
                "Prepare the store anew."
            )
        return betas

    @cache  # noqa: B019
    def scaler(self, subject: str) -> "SessionScaler":
        """Mean and standard deviation per session and voxel, from training trials alone."""
        file = (
            self.split_dir / f"{subject}.npz"
            if self.split_dir
            else self.path / "subjects" / subject / "statistics.npz"
        )
        with describe_read_errors(file) as path:
            return SessionScaler.load(path)

    def standardized_with(self, subject: str) -> str:
        """In words, what a subject's values were normalized with."""
        return (
            "came standardized" if self.meta.get("standardized") else self.scaler(subject).fitted_on
        )

    @property
    def stimulus_sets(self) -> dict[str, list[str]]:
        """Named sets of stimuli, that reports give rows of their own."""
        return dict(self.meta.get("stimulus_sets", {}))

    def ncsnr(self, subject: str) -> np.ndarray | None:
        """(V,) noise ceiling signal-to-noise ratio as published with the data, NaN where unknown; None: not published."""
        return load_voxel_column(self.path / "subjects" / subject, "ncsnr")

    @cached_property
    def conversations(self) -> pd.DataFrame:
        """`stimulus`, or `subject` and `trial`; `source`, `turns` (a conversation), `answers` (those that count as right), first one first.

        `turns` and `answers` stay in Arrow's memory and become Python lists one by one, as they are taken.
        """
        with describe_read_errors(self.path / "conversations.parquet") as path:
            return to_frame(pq.read_table(path))

    def add_conversations(self, conversations: pd.DataFrame) -> None:
        """Put these conversations in the place of all of the same sources, or beside the others; whole or not at all."""
        for turns in conversations["turns"]:
            check_conversation(turns)
        with describe_read_errors(self.path / "conversations.parquet") as path:
            table = pq.read_table(path)
        told = pc.is_in(
            table["source"], pa.array(sorted(set(conversations["source"])), pa.string())
        )
        both = [table.filter(pc.invert(told)), to_arrow(conversations)]
        with atomic_write(self.path / "conversations.parquet") as path:
            pq.write_table(pa.concat_tables(both, promote_options="permissive"), path)
        self.__dict__.pop("conversations", None)


def to_arrow(conversations: pd.DataFrame) -> pa.Table:
    """A table of conversations as it is written: every column of CONVERSATIONS, then any others."""
    bare = conversations.reset_index(drop=True)
    for name in CONVERSATIONS.names:
        if name not in bare:
            bare[name] = None
    others = [name for name in bare if name not in CONVERSATIONS.names]
    known = [
        pa.array(bare[field.name].tolist(), field.type, from_pandas=True) for field in CONVERSATIONS
    ]
    return pa.table(
        known + [pa.array(bare[name].astype(str)) for name in others],
        names=[*CONVERSATIONS.names, *map(str, others)],
    )


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table of conversations as it is used, with the columns that an older one lacks."""
    for field in CONVERSATIONS:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    kept = table.to_pandas(
        types_mapper=lambda kind: pd.ArrowDtype(kind) if pa.types.is_list(kind) else None
    )
    return kept.astype({"trial_index": "Int64"})


def mean_betas(store: Store, subject: str, groups: Sequence[np.ndarray]) -> np.ndarray:
    """Normalized values (B, V): the mean of each group of trials."""
    rows = np.concatenate([np.atleast_1d(group) for group in groups])
    starts = np.cumsum([0, *[np.size(group) for group in groups]])[:-1]
    sums = np.add.reduceat(store.betas(subject, rows, standardize=True), starts, axis=0)
    return sums / np.array([np.size(group) for group in groups], np.float32)[:, None]
