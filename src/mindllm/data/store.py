"""A store: one folder of plain files per data set, memory-mapped, whole or absent.

dataset.json  regions.json  conversations.parquet  manifest.json  (runs.parquet)
subjects/<name>/  voxels.parquet  mask.nii.gz  betas.npy  trials.parquet  statistics.npz
splits/<name>/    split.json  trials.parquet  <subject>.npz
The folder, that of each subject and that of each split have a manifest.json with checksums.
"""

import hashlib
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mindllm.data.schemas import (
    DATASET,
    PARCELS,
    REMEDY,
    SPLIT,
    TRIAL_COLUMNS,
    check_conversations,
    check_rule,
    check_trials_table,
    read_split_table,
    select_split,
)
from mindllm.data.splits import DEFAULT_SPLIT, check_splits
from mindllm.fmri.atlases import check_atlas_names
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.masker_io import load_masker, load_voxel_column
from mindllm.fmri.scaling import SessionScaler
from mindllm.language.conversation import check_conversation
from mindllm.utils.arrays import check_header, read_array_header
from mindllm.utils.bounded_cache import BoundedCache
from mindllm.utils.errors import InputError, name_file
from mindllm.utils.files import describe_read_errors, partial_path, read_json
from mindllm.utils.locks import lock_output
from mindllm.utils.manifest import MANIFEST, Manifest
from mindllm.utils.parquet import read_arrow
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.table_checks import read_checked_table
from mindllm.utils.validation import check_finite, check_format, validate_content

FORMAT = 3
RUNS = "runs.parquet"
WHAT = "a store (made by `mindllm prepare`)"
SPLIT_WHAT, SPLIT_REMEDY = "a split (made by `mindllm split`)", "Make the split anew."
# Held in memory, of the subjects used last: their voxels, and their means and deviations.
MAX_MASKER_BYTES, MAX_SCALER_BYTES = 2**29, 2**30
BETA_TYPES = ("float32", "float16")
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CONVERSATIONS = pa.schema(
    [
        ("stimulus", pa.string()),
        ("subject", pa.string()),
        ("trial_index", pa.int64()),
        ("source", pa.string()),
        ("turns", TURNS),
        ("answers", pa.list_(pa.string())),
    ]
)


def read_parcel_names(path: Path) -> dict[str, dict[int, str]]:
    """Read and check regions.json: atlas -> parcel number -> parcel name."""
    parcels = validate_content(PARCELS, read_json(path, WHAT), str(path), REMEDY)
    with name_file(path):
        check_atlas_names(parcels)
    return {
        atlas: {int(number): name for number, name in names.items()}
        for atlas, names in parcels.items()
    }


def masker_size(masker: VoxelMasker) -> int:
    """Bytes of a masker's arrays."""
    arrays = (masker.voxel_indices, masker.coords_mm, *masker.parcel_labels.values())
    return sum(array.nbytes for array in arrays)


class Store:
    """A prepared data set.

    Opening it reads names and sizes; betas stay on disk until trials are asked for.

    Parameters
    ----------
    path : str or Path
        The store's folder.
    split : str, optional
        A split made by `mindllm split`; by default the one that the store was prepared with.

    Attributes
    ----------
    subjects : list of str
    parcel_names : dict
        Atlas name -> parcel number -> parcel name.
    meta : dict
        Content of dataset.json.

    Raises
    ------
    InputError
        If it is no store, unfinished, of another format, or has no such split.

    Examples
    --------
    >>> store = Store("store")  # doctest: +SKIP
    >>> store.betas("sub-01", [0, 1], standardize=True).shape  # doctest: +SKIP
    (2, 7631)
    """

    def __init__(self, path: str | Path, split: str | None = None) -> None:
        self.path = Path(path)
        if partial_path(self.path).is_dir() and not self.path.exists():
            raise InputError(
                f"{self.path} was not prepared to its end. "
                "Run the same `mindllm prepare` command again: it goes on where it stopped."
            )
        self.meta: dict[str, Any] = read_json(self.path / "dataset.json", WHAT)
        check_format(self.path, "store", self.meta.get("format"), FORMAT, "Prepare it again.")
        self.manifest = Manifest.read(self.path, WHAT, REMEDY)
        path = self.manifest.check("dataset.json")
        validate_content(DATASET, self.meta, str(path), REMEDY)
        self.parcel_names = read_parcel_names(self.manifest.check("regions.json"))
        listed = [Path(name).parts for name in self.manifest.content.files]
        self.subjects: list[str] = natural_sorted(
            parts[1] for parts in listed if parts[0] == "subjects" and len(parts) == 3
        )
        if split not in (None, DEFAULT_SPLIT, *self.splits):
            raise InputError(
                f"{self.path} has no split {split!r}; it holds "
                f"{', '.join([DEFAULT_SPLIT, *self.splits])}. `mindllm split` makes others."
            )
        self._maskers = BoundedCache[str, VoxelMasker](MAX_MASKER_BYTES, masker_size)
        self._scalers = BoundedCache[str, SessionScaler](
            MAX_SCALER_BYTES, lambda scaler: scaler.mean.nbytes + scaler.std.nbytes
        )
        chosen = split not in (None, DEFAULT_SPLIT)
        self.split_dir = self.path / "splits" / str(split) if chosen else None

    def __reduce__(self) -> tuple[type, tuple[Path, str | None]]:
        """Pickle the path alone: another process opens the store, and its memory maps, anew."""
        return type(self), (self.path, self.split_dir.name if self.split_dir else None)

    @property
    def splits(self) -> list[str]:
        """Names of the splits beside the default one."""
        return sorted(file.parent.name for file in self.path.glob("splits/*/split.json"))

    @cached_property
    def split(self) -> dict[str, Any]:
        """Name of the split and how it was made."""
        if self.split_dir is None:
            return {"name": DEFAULT_SPLIT}
        path = self.split_file("split.json")
        content = read_json(path, SPLIT_WHAT)
        check_rule(validate_content(SPLIT, content, str(path), SPLIT_REMEDY), path, SPLIT_REMEDY)
        return content

    @cache  # noqa: B019 - a store lives as long as the command that opened it
    def subject_dir(self, subject: str) -> Path:
        """Folder of a subject, whose files are checked against its manifest.

        Parameters
        ----------
        subject : str

        Returns
        -------
        Path

        Raises
        ------
        InputError
            If a file is missing or is not the one that was written.
        """
        folder = self.path / "subjects" / subject
        self.manifest.check(f"subjects/{subject}/{MANIFEST}")
        Manifest.read(folder, WHAT, REMEDY, owner=self.path).check_all()
        return folder

    @cached_property
    def _split_manifest(self) -> Manifest:
        assert self.split_dir is not None
        return Manifest.read(self.split_dir, SPLIT_WHAT, SPLIT_REMEDY, owner=self.path)

    def split_file(self, name: str) -> Path:
        """A file of the chosen split, checked against the split's manifest.

        Parameters
        ----------
        name : str
            Such as "trials.parquet".

        Returns
        -------
        Path

        Raises
        ------
        InputError
            If it is missing or is not the one that was written.
        """
        return self._split_manifest.check(name)

    def fingerprint(self, subject: str) -> str:
        """Tell the data of a subject, under this split, from any others.

        Parameters
        ----------
        subject : str

        Returns
        -------
        str
            Hexadecimal digits that depend on every byte of betas, trials, voxels, scaling and
            split.

        Raises
        ------
        InputError
            If a file is missing or is not the one that was written.
        """
        digest = hashlib.sha256((self.subject_dir(subject) / MANIFEST).read_bytes())
        if self.split_dir is not None:
            for name in ("trials.parquet", f"{subject}.npz"):
                if entry := self._split_manifest.content.files.get(name):
                    digest.update(entry.sha256.encode())
        return digest.hexdigest()[:12]

    def select_subjects(self, names: Sequence[str] | None) -> list[str]:
        """The subjects to work with.

        Parameters
        ----------
        names : sequence of str, optional
            All subjects by default.

        Returns
        -------
        list of str
            In the order of `subjects`.

        Raises
        ------
        InputError
            If a subject is not in the store.
        """
        unknown = [name for name in names or [] if name not in self.subjects]
        if unknown:
            raise InputError(
                f"{self.path} has no subject {', '.join(unknown)}; "
                f"it holds {', '.join(self.subjects)}."
            )
        return natural_sorted(set(names)) if names else self.subjects

    def select_atlases(self, names: Sequence[str] | None) -> dict[str, dict[int, str]]:
        """Names of the parcels of some atlases.

        Parameters
        ----------
        names : sequence of str or None
            Atlases; None: all of them.

        Returns
        -------
        dict of str to dict of int to str
            Atlas -> parcel label -> parcel name.

        Raises
        ------
        InputError
            If the store has no such atlas.
        """
        unknown = [name for name in names or () if name not in self.parcel_names]
        if unknown:
            raise InputError(
                f"{self.path} has no atlas {', '.join(unknown)}; "
                f"it holds {', '.join(self.parcel_names) or 'none'}."
            )
        chosen = self.parcel_names if names is None else names
        return {atlas: self.parcel_names[atlas] for atlas in chosen}

    def masker(self, subject: str) -> VoxelMasker:
        """The subject's voxels; those of the subjects used last are held.

        Parameters
        ----------
        subject : str

        Returns
        -------
        VoxelMasker
        """
        return self._maskers.get(
            subject, lambda: load_masker(self.subject_dir(subject), self.parcel_names)
        )

    def maskers(self, subjects: Sequence[str]) -> "SubjectMaskers":
        """The voxels of subjects, read when they are asked for.

        Parameters
        ----------
        subjects : sequence of str

        Returns
        -------
        sequence of VoxelMasker
        """
        return SubjectMaskers(self, subjects)

    @cache  # noqa: B019
    def trials(self, subject: str) -> pd.DataFrame:
        """One row per trial, in the order of the betas.

        Parameters
        ----------
        subject : str

        Returns
        -------
        DataFrame
            Columns stimulus, session, run, repetition, split, and others of the data set.
        """
        path = self.subject_dir(subject) / "trials.parquet"
        table = read_checked_table(path, TRIAL_COLUMNS, REMEDY)
        check_trials_table(table, str(path), REMEDY)
        if self.split_dir is None:
            return table
        path = self.split_dir / "trials.parquet"
        splits = select_split(self._split_table, subject, len(table), path, SPLIT_REMEDY)
        table = table.assign(split=splits)
        check_splits({str(path): table})
        return table

    @cached_property
    def _split_table(self) -> pd.DataFrame:
        assert self.split  # split.json is checked, too
        return read_split_table(self.split_file("trials.parquet"), self.subjects, SPLIT_REMEDY)

    def check_splits(self, subjects: Sequence[str]) -> None:
        """Check that no stimulus is in two splits, of one subject or of several.

        Parameters
        ----------
        subjects : sequence of str
            Subjects to check.

        Raises
        ------
        InputError
            If one is, unless the split leaves out subjects, whose stimuli may be those of others.
        """
        if self.split.get("by") != "subject":
            with name_file(self.path):
                check_splits({subject: self.trials(subject) for subject in subjects})

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
            the trial's session, measured on training trials. Betas that came standardized are
            taken as they are.

        Returns
        -------
        ndarray of shape (n_trials, n_voxels)
            As stored and memory-mapped if `trials` is None and `standardize` is False; else a copy,
            float32 if standardized.

        Raises
        ------
        InputError
            If the file is damaged, has another shape than the tables promise, or holds NaN or
            infinity in one of these trials.
        """
        if trials is None and not standardize:
            return self._stored_betas(subject)
        indices = np.arange(len(self.trials(subject))) if trials is None else np.asarray(trials)
        betas = self._stored_betas(subject)[indices]
        if not standardize or self.meta.get("standardized"):
            check_finite(betas, f"{self.path}, {subject}")
            return np.asarray(betas, np.float32) if standardize else betas
        sessions = self.trials(subject)["session"].to_numpy()[indices]
        return self.scaler(subject).transform(betas, sessions)

    @cache  # noqa: B019
    def _stored_betas(self, subject: str) -> np.ndarray:
        """(n_trials, n_voxels), memory-mapped, as measured."""
        expected = (len(self.trials(subject)), len(self.masker(subject)))
        path = self.subject_dir(subject) / "betas.npy"
        header = read_array_header(path, REMEDY)
        if header.shape != expected:
            raise InputError(
                f"{path} has shape {header.shape}; trials.parquet and voxels.parquet promise "
                f"{expected}. {REMEDY}"
            )
        check_header(header, str(path), expected, BETA_TYPES, REMEDY)
        with describe_read_errors(path, REMEDY):
            return np.load(path, mmap_mode="r")

    def mean_betas(self, subject: str, groups: Sequence[np.ndarray]) -> np.ndarray:
        """Standardized betas, averaged over groups of trials.

        Parameters
        ----------
        subject : str
        groups : sequence of ndarray of int
            Trial indices of each group, such as the repetitions of a stimulus.

        Returns
        -------
        ndarray of shape (n_groups, n_voxels)
            float32.
        """
        trials = np.concatenate([np.atleast_1d(group) for group in groups])
        sizes = np.array([np.size(group) for group in groups])
        starts = np.cumsum([0, *sizes])[:-1]
        sums = np.add.reduceat(self.betas(subject, trials, standardize=True), starts, axis=0)
        return sums / sizes.astype(np.float32)[:, None]

    def scaler(self, subject: str) -> SessionScaler:
        """Mean and standard deviation per session and voxel, of training trials.

        Parameters
        ----------
        subject : str

        Returns
        -------
        SessionScaler
        """
        return self._scalers.get(subject, lambda: self._load_scaler(subject))

    def _load_scaler(self, subject: str) -> SessionScaler:
        sessions = set(self.trials(subject)["session"])
        n_voxels = len(self.masker(subject))
        if self.split_dir:
            file = self.split_file(f"{subject}.npz")
            return SessionScaler.load(file, n_voxels, sessions, SPLIT_REMEDY)
        file = self.subject_dir(subject) / "statistics.npz"
        return SessionScaler.load(file, n_voxels, sessions)

    def standardized_with(self, subject: str) -> str:
        """What a subject's betas are standardized with.

        Parameters
        ----------
        subject : str

        Returns
        -------
        str
            In words, for reports.
        """
        if self.meta.get("standardized"):
            return "came standardized"
        return self.scaler(subject).fitted_on

    @property
    def stimulus_sets(self) -> dict[str, list[str]]:
        """Named sets of stimuli that reports give rows of their own."""
        return dict(self.meta.get("stimulus_sets", {}))

    def ncsnr(self, subject: str) -> np.ndarray | None:
        """Noise ceiling signal-to-noise ratio as published with the data.

        Parameters
        ----------
        subject : str

        Returns
        -------
        ndarray of shape (n_voxels,) or None
            NaN where unknown; None if it was not published.
        """
        return load_voxel_column(self.subject_dir(subject), "ncsnr")

    @cached_property
    def runs(self) -> pd.DataFrame | None:
        """One row per run of which `prepare` estimated single-trial betas; None: it did not.

        Columns are subject, session, run, n_trials, and numbers about the design of the run.

        Raises
        ------
        InputError
            If the file is not the one that was written, or lacks a column.
        """
        if RUNS not in self.manifest.content.files:
            return None
        path = self.manifest.check(RUNS)
        return read_checked_table(path, ("subject", "session", "run", "n_trials"), REMEDY)

    @cached_property
    def conversations(self) -> pd.DataFrame:
        """All conversations.

        Columns `stimulus`, or `subject` and `trial_index`; `source`, `turns` (messages), `answers`
        (accepted ones, the first is that of the turns). `turns` and `answers` stay in Arrow's
        memory and become Python lists as they are taken.
        """
        path = self.manifest.check("conversations.parquet")
        table = read_arrow(path, REMEDY)
        check_conversations(table, self._count_trials, path)
        return to_frame(table)

    def _count_trials(self, subject: str) -> int | None:
        """Number of trials of a subject, which are not read; None: there is no such subject."""
        if subject not in self.subjects:
            return None
        with describe_read_errors(self.subject_dir(subject) / "trials.parquet") as path:
            return int(pq.read_metadata(path).num_rows)

    def add_conversations(self, conversations: pd.DataFrame) -> None:
        """Add conversations, replacing all of the same sources, whole or not at all.

        Parameters
        ----------
        conversations : DataFrame
            Columns as in `conversations`.

        Raises
        ------
        InputError
            If a conversation is malformed, another process adds some, or the disk is full.
        """
        for turns in conversations["turns"]:
            check_conversation(turns)
        with lock_output(self.path):
            self._replace_conversations(conversations)
        self.__dict__.pop("conversations", None)

    def _replace_conversations(self, conversations: pd.DataFrame) -> None:
        # Read again: another process may have added conversations since this store was opened.
        self.manifest = Manifest.read(self.path, WHAT, REMEDY)
        table = read_arrow(self.manifest.check("conversations.parquet"), REMEDY)
        sources = pa.array(sorted(set(conversations["source"])), pa.string())
        kept = table.filter(pc.invert(pc.is_in(table["source"], sources)))
        parts = [kept, to_arrow(conversations)]
        with self.manifest.replace_file("conversations.parquet") as path:
            pq.write_table(pa.concat_tables(parts, promote_options="permissive"), path)


def to_arrow(conversations: pd.DataFrame) -> pa.Table:
    """A table of conversations as it is written: the columns of CONVERSATIONS, then others."""
    table = conversations.reset_index(drop=True)
    for name in CONVERSATIONS.names:
        if name not in table:
            table[name] = None
    others = [name for name in table if name not in CONVERSATIONS.names]
    columns = [pa.array(table[f.name].tolist(), f.type, from_pandas=True) for f in CONVERSATIONS]
    columns += [pa.array(table[name].astype(str)) for name in others]
    return pa.table(columns, names=[*CONVERSATIONS.names, *map(str, others)])


def to_frame(table: pa.Table) -> pd.DataFrame:
    """A table of conversations as it is used; missing columns are filled with nulls."""
    for column in CONVERSATIONS:
        if column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    frame = table.to_pandas(
        types_mapper=lambda kind: pd.ArrowDtype(kind) if pa.types.is_list(kind) else None
    )
    return frame.astype({"trial_index": "Int64"})


class SubjectMaskers(Sequence[VoxelMasker]):
    """Maskers of subjects of a store, read when they are asked for.

    Parameters
    ----------
    store : Store
    subjects : sequence of str
    """

    def __init__(self, store: Store, subjects: Sequence[str]) -> None:
        self.store, self.subjects = store, subjects

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return SubjectMaskers(self.store, self.subjects[index])
        return self.store.masker(self.subjects[index])
