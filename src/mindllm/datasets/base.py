"""The base class of the dataset readers: the steps from a published data set to a store.

A reader of a data set says which subjects there are, what they were shown, which voxels they have
and how a session's betas are read. `DatasetReader.prepare` does the rest: it draws validation
stimuli, reads sessions side by side, and writes the store.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import draw_splits, hold_out_validation
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter, check_dtype
from mindllm.datasets.parallel import SessionReader, SubjectRecording, write_recordings
from mindllm.fmri.masker import VoxelMasker
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_name, check_not_exists
from mindllm.utils.locks import lock_output
from mindllm.utils.progress import progress_bar
from mindllm.utils.ranges import format_ranges
from mindllm.utils.sorting import natural_sorted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DatasetDescription:
    """What a store says about the data set it was made of.

    Attributes
    ----------
    name : str
        Name of the data set.
    source : str
        Publication, and where the data come from.
    license : str
        Terms of use.
    standardized : bool
        Whether the betas are z-scores already, to be taken as they are.
    has_presentation_order : bool
        Whether trials stand in the order in which they were shown.
    """

    name: str
    source: str
    license: str
    standardized: bool = False
    has_presentation_order: bool = True


@dataclass(frozen=True)
class SubjectFiles:
    """Base class of the paths of one subject's files.

    Attributes
    ----------
    root : Path
        Folder of the data set.
    name : str
        Label of the subject.
    """

    root: Path
    name: str


@dataclass(frozen=True, slots=True)
class _StorePlan:
    """A store that was begun: its writer, what to read, conversations and runs."""

    writer: StoreWriter
    recordings: list[SubjectRecording]
    conversations: pd.DataFrame
    runs: pd.DataFrame | None


class DatasetReader(ABC):
    """Base class of the dataset readers; a subclass describes one layout of files.

    A subclass takes its own options in its constructor and implements `find_subjects`,
    `read_trials`, `load_masker`, `session_readers` and `describe`; the other methods have defaults.

    Parameters
    ----------
    root : str or Path
        Folder of the data set.
    subjects : sequence of str, optional
        Labels of the subjects to read. Default: all in the data set.

    Attributes
    ----------
    prepared_by : str
        Name of the reader in a store, as in ``mindllm prepare NAME``.
    default_dtype : str
        How betas are stored where `prepare` is not given a dtype.
    default_val_fraction : float
        Fraction of stimuli for validation where `prepare` is not given one.
    reader_columns : tuple of str
        Columns of the trials tables that the reader alone needs; a store does not keep them.

    Examples
    --------
    A reader of one subject with four voxels and three trials:

    >>> import tempfile
    >>> import numpy as np, pandas as pd
    >>> from mindllm.fmri.masker import VoxelMasker
    >>> class ExampleReader(DatasetReader):
    ...     prepared_by = "example"
    ...     def find_subjects(self):
    ...         return ["sub-01"]
    ...     def read_trials(self, subject):
    ...         return pd.DataFrame({"stimulus": ["cat", "dog", "cat"]})
    ...     def load_masker(self, subject, trials):
    ...         voxels = np.argwhere(np.ones((2, 2, 1))).astype(np.int32)
    ...         coords_mm = voxels.astype(np.float32)
    ...         return VoxelMasker(subject, (2, 2, 1), np.eye(4), voxels, coords_mm, {}, {})
    ...     def session_readers(self, masker, trials, dtype):
    ...         return [SessionReader("session 1", np.arange(3), lambda: np.eye(3, 4))]
    ...     def describe(self, subjects):
    ...         return DatasetDescription("Example", "none", "CC0", standardized=True)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = ExampleReader(folder).prepare(f"{folder}/store")
    ...     store.subjects, store.betas("sub-01").shape
    (['sub-01'], (3, 4))
    """

    prepared_by: ClassVar[str]
    default_dtype: ClassVar[str] = "float16"
    default_val_fraction: ClassVar[float] = 0.0
    reader_columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, root: str | Path, *, subjects: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        self.subjects = None if subjects is None else list(subjects)

    @property
    def location(self) -> str:
        """Where the subjects are listed, for messages."""
        return str(self.root)

    @abstractmethod
    def find_subjects(self) -> list[str]:
        """List the labels of all subjects in the data set, sorted.

        Raises
        ------
        InputError
            If there are none.
        """

    @abstractmethod
    def read_trials(self, subject: str) -> pd.DataFrame:
        """Read a subject's trials, one row each, with `stimulus` and what else is published."""

    @abstractmethod
    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        """Load a subject's voxels: where they are, and in which parcels."""

    @abstractmethod
    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        """List what reads the betas of a subject, session by session; it must be picklable."""

    @abstractmethod
    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        """Describe the data set, of which these subjects are read."""

    def options(self) -> dict[str, object]:
        """List the reader's options as a store keeps them."""
        return {}

    def stimulus_sets(self, trials: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
        """Name the sets of stimuli that a report gives rows of their own."""
        return {}

    def read_ncsnr(self, masker: VoxelMasker) -> np.ndarray | None:
        """Read the published noise ceiling signal-to-noise ratios (V,); None: not published."""
        return None

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Read the conversations about the stimuli; by default there are none."""
        return pd.DataFrame({"stimulus": [], "source": [], "turns": [], "answers": []})

    def describe_runs(self, subjects: Sequence[str]) -> pd.DataFrame | None:
        """Describe the runs whose betas the reader itself estimates, a row each; None: it does not.

        Columns are `subject`, `session`, `run`, `n_trials` and numbers.
        """
        return None

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        """Assign the trials to splits; by default training stimuli are drawn for validation."""
        return hold_out_validation(trials, val_fraction, seed)

    def select_subjects(self) -> list[str]:
        """Select the subjects to read: those asked for, or all.

        Returns
        -------
        list of str
            Labels, sorted.

        Raises
        ------
        InputError
            If a subject that was asked for is not there, or a label cannot be part of a path.
        """
        present = self.find_subjects()
        if unknown := sorted(set(self.subjects or []) - set(present)):
            raise InputError(
                f"{self.location} has no subject {', '.join(unknown)}; "
                f"it holds {', '.join(present)}. Choose among them."
            )
        selected = natural_sorted(set(self.subjects or present))
        return [check_name(subject, "subject", self.location) for subject in selected]

    def prepare(
        self,
        out: str | Path,
        *,
        dtype: str | None = None,
        val_fraction: float | None = None,
        seed: int = 0,
        n_jobs: int = 1,
        dask_scheduler: str | None = None,
        progress: Progress | None = None,
    ) -> Store:
        """Prepare the store `out`; called again after an interruption, it goes on.

        Parameters
        ----------
        out : str or Path
            Folder of the store to make.
        dtype : {"float16", "float32"}, optional
            How betas are stored. Default: `default_dtype`.
        val_fraction : float, optional
            Fraction of training stimuli for validation. Default: `default_val_fraction`.
        seed : int
            Seed of the random draws.
        n_jobs : int
            Processes that read sessions at once.
        dask_scheduler : str, optional
            Address of a dask scheduler to read on.
        progress : rich.progress.Progress, optional

        Returns
        -------
        Store
            Of the selected subjects, their splits assigned.

        Raises
        ------
        InputError
            If `out` exists or another process writes it, or a file is missing, damaged or not as
            published.
        """
        dtype = dtype or self.default_dtype
        fraction = self.default_val_fraction if val_fraction is None else val_fraction
        with lock_output(out):
            plan = self._plan(out, dtype, fraction, seed, progress)
            write_recordings(
                plan.writer,
                plan.recordings,
                dtype,
                n_jobs=n_jobs,
                dask_scheduler=dask_scheduler,
                progress=progress,
            )
            return plan.writer.finish(plan.conversations, plan.runs)

    def _plan(
        self, out: str | Path, dtype: str, val_fraction: float, seed: int, progress: Progress | None
    ) -> _StorePlan:
        """Read all but the betas, and begin the store."""
        check_not_exists(Path(out))
        check_dtype(dtype)
        trials = self.assign_splits(self._list_trials(progress), val_fraction, seed)
        recordings = [
            self._open_recording(subject, table, dtype) for subject, table in trials.items()
        ]
        conversations = self.read_conversations(trials)
        draw = {"val_fraction": val_fraction, "dtype": dtype, "seed": seed}
        writer = self._create_writer(out, trials, draw)
        return _StorePlan(writer, recordings, conversations, self.describe_runs(list(trials)))

    def _list_trials(self, progress: Progress | None) -> dict[str, pd.DataFrame]:
        """Read the trials of every subject."""
        subjects, trials = self.select_subjects(), {}
        with progress_bar(progress, "listing trials", len(subjects)) as advance:
            for subject in subjects:
                trials[subject] = self.read_trials(subject)
                advance(1, f"listing trials of {subject}")
        return trials

    def _open_recording(self, subject: str, trials: pd.DataFrame, dtype: str) -> SubjectRecording:
        """Gather what is needed to read and write one subject."""
        masker = self.load_masker(subject, trials)
        unused = [column for column in self.reader_columns if column in trials]
        return SubjectRecording(
            masker=masker,
            trials=trials.drop(columns=unused),
            sessions=self.session_readers(masker, trials, dtype),
            ncsnr=self.read_ncsnr(masker),
        )

    def _create_writer(
        self,
        out: str | Path,
        trials: Mapping[str, pd.DataFrame],
        draw: Mapping[str, object],
    ) -> StoreWriter:
        """Begin the store, or go on with the one that was begun with equal options."""
        description = self.describe(list(trials))
        return StoreWriter(
            out,
            name=description.name,
            source=description.source,
            license=description.license,
            prepared_by=self.prepared_by,
            options={"subjects": list(trials), **self.options(), **draw},
            standardized=description.standardized,
            has_presentation_order=description.has_presentation_order,
            stimulus_sets={
                name: stimuli for name, stimuli in self.stimulus_sets(trials).items() if stimuli
            },
        )


def assign_fractions(
    trials: Mapping[str, pd.DataFrame], fractions: Mapping[str, float], seed: int, tables: str
) -> dict[str, pd.DataFrame]:
    """Assign fractions of the stimuli to splits, unless the tables name the splits.

    Parameters
    ----------
    trials : mapping of str to DataFrame
        By subject.
    fractions : mapping of str to float
        Of `val` and `test`; 0 leaves a split out.
    seed : int
    tables : str
        What the warning calls the tables, which may have a column `split`.

    Returns
    -------
    dict of str to DataFrame
    """
    fractions = {split: fraction for split, fraction in fractions.items() if fraction}
    if not fractions:
        return dict(trials)
    if any("split" in table for table in trials.values()):
        logger.warning("%s have a column `split`; the fractions %s are not used", tables, fractions)
        return dict(trials)
    return draw_splits(trials, fractions, seed)


class SessionFilesReader(DatasetReader):
    """Base class of the readers of data sets with files per subject and numbered session.

    Parameters
    ----------
    root, subjects
        As for `DatasetReader`.
    sessions : sequence of int, optional
        Sessions to read. Default: all that a subject should have.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        subjects: Sequence[str] | None = None,
        sessions: Sequence[int] | None = None,
    ) -> None:
        super().__init__(root, subjects=subjects)
        self.sessions = None if sessions is None else list(sessions)

    @abstractmethod
    def expected_sessions(self, subject: str) -> list[int]:
        """List the sessions that a subject should have."""

    @abstractmethod
    def session_files(self, subject: str, session: int) -> list[Path]:
        """List the files of a session, the betas first."""

    @abstractmethod
    def bind_read(
        self, masker: VoxelMasker, session: int, trials: pd.DataFrame, dtype: str
    ) -> Callable[[], np.ndarray]:
        """Return what reads a session's betas (n_trials, n_voxels); it must be picklable."""

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        return [
            SessionReader(
                name=f"{masker.subject}, session {session}",
                rows=rows.index.to_numpy(),
                read=self.bind_read(masker, int(str(session)), rows, dtype),
                files=tuple(self.session_files(masker.subject, int(str(session)))),
            )
            for session, rows in trials.groupby("session", sort=False)
        ]

    def select_sessions(self, subject: str) -> list[int]:
        """Select the sessions to read: those asked for, or all that a subject should have.

        Returns
        -------
        list of int
            Session numbers, sorted.

        Raises
        ------
        InputError
            If files of a session are missing.
        """
        sessions = sorted(set(self.sessions or self.expected_sessions(subject)))
        missing = {
            session: files
            for session in sessions
            if (files := [f for f in self.session_files(subject, session) if not f.is_file()])
        }
        if missing:
            first = next(iter(missing.values()))[0]
            present = [session for session in sessions if session not in missing]
            raise InputError(
                f"{subject} lacks the sessions {format_ranges(list(missing))} "
                f"({len(missing)} of {len(sessions)}): there is no {first}. Fetch them, or say "
                f"which to take, e.g. --sessions {format_ranges(present) or '1-10'}."
            )
        return sessions


def drop_voxels(masker: VoxelMasker, kept: np.ndarray, reason: str, remedy: str) -> VoxelMasker:
    """Leave voxels out of a masker, with a warning.

    Parameters
    ----------
    masker : VoxelMasker
        The voxels.
    kept : np.ndarray
        (n_voxels,) which of them to keep.
    reason : str
        What the others do, such as "hold NaN".
    remedy : str
        What to do if all do.

    Returns
    -------
    VoxelMasker
        The voxels that are kept.

    Raises
    ------
    InputError
        If none is left.
    """
    n_dropped, n_voxels = int((~kept).sum()), len(kept)
    if n_dropped == n_voxels:
        raise InputError(
            f"{masker.subject}: all {n_voxels} voxels of its mask {reason}, so none is left. "
            f"{remedy}"
        )
    if n_dropped:
        logger.warning(
            "%s: %d of %d voxels %s and are left out", masker.subject, n_dropped, n_voxels, reason
        )
    return masker.select_voxels(kept)
