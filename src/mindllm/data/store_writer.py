"""Writing a store: subject by subject, whole or not at all; or from arrays."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mindllm.data.schemas import TRIAL_COLUMNS, check_trials_table
from mindllm.data.splits import SPLITS, check_splits
from mindllm.data.store import FORMAT, RUNS, Store, to_arrow
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.masker_io import save_masker
from mindllm.fmri.scaling import SessionScaler
from mindllm.language.conversation import (
    FMRI_TOKEN,
    QUESTION,
    Conversation,
    build_conversation,
    check_conversation,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists, disk_errors, partial_path, read_json, write_json
from mindllm.utils.folders import commit, remove_folder
from mindllm.utils.locks import lock_output
from mindllm.utils.manifest import Manifest
from mindllm.utils.validation import check_finite, check_values
from mindllm.utils.versions import package_version

DTYPES = ("float32", "float16")
SAMPLE_SIZE = 100_000  # betas whose median tells how small they are
logger = logging.getLogger(__name__)

BetaChunks = Iterable[tuple[np.ndarray, np.ndarray]]  # (trial indices, betas (n, V))


class StoreWriter:
    """Writes a store into `<path>.partial`, and renames it when it is whole.

    A second call with the same options goes on where the first one stopped. Its caller holds
    `lock_output(path)`.

    Parameters
    ----------
    path : str or Path
        Where the store is to be; must not exist.
    name, source, license : str
        Of the data set.
    prepared_by : str
        Reader that makes the store.
    options : mapping
        The reader's options.
    standardized : bool
        Whether betas are z-scores already.
    has_presentation_order : bool
        Whether trials stand in the order in which they were presented.
    stimulus_sets : mapping from str to sequence of str, optional
        Named sets of stimuli that reports give rows of their own.

    Raises
    ------
    InputError
        If `path` exists or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        source: str,
        license: str,
        prepared_by: str,
        options: Mapping[str, Any],
        standardized: bool = False,
        has_presentation_order: bool = True,
        stimulus_sets: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.path, self.partial = Path(path), partial_path(Path(path))
        check_not_exists(self.path)
        sets = stimulus_sets or {}
        self.meta = {
            "format": FORMAT,
            "name": name,
            "source": source,
            "license": license,
            "version": package_version("mindllm"),
            "prepared_by": prepared_by,
            "options": dict(options),
            "standardized": standardized,
            "has_presentation_order": has_presentation_order,
            "stimulus_sets": {label: sorted(map(str, sets[label])) for label in sets},
        }
        plan = self.partial / "dataset.json"
        with disk_errors(self.path):
            if plan.exists() and read_json(plan, "an unfinished store") != self.meta:
                logger.warning("%s was begun with other options; starting over", self.partial)
                shutil.rmtree(self.partial)
            (self.partial / "subjects").mkdir(parents=True, exist_ok=True)
            self.parts.mkdir(exist_ok=True)
            write_json(plan, self.meta)

    @property
    def parts(self) -> Path:
        """Folder of the sessions that are read but not yet joined."""
        return self.partial / "sessions"

    def has_subject(self, subject: str, fingerprint: str) -> bool:
        """Whether an earlier call has written this subject, of the same data.

        Parameters
        ----------
        subject : str
        fingerprint : str
            Tells what the subject is made of; see `write_subject`.

        Returns
        -------
        bool
            A subject that was made of other data is removed.
        """
        folder, note = self.partial / "subjects" / subject, self.parts / f"{subject}.json"
        if not folder.is_dir():
            return False
        if note.exists() and read_json(note, "an unfinished store", kind=str) == fingerprint:
            return True
        logger.warning("the data of %s have changed since they were read; reading anew", subject)
        remove_folder(folder, within=self.partial)
        return False

    def write_subject(
        self,
        masker: VoxelMasker,
        trials: pd.DataFrame,
        chunks: BetaChunks,
        dtype: str = "float32",
        ncsnr: np.ndarray | None = None,
        fingerprint: str = "",
    ) -> None:
        """Write one subject.

        Parameters
        ----------
        masker : VoxelMasker
        trials : DataFrame
            One row per trial, with the column stimulus.
        chunks : iterable of (trial indices, betas)
            Betas (n, n_voxels) of every trial, each once.
        dtype : {"float32", "float16"}
        ncsnr : ndarray of shape (n_voxels,), optional
            Noise ceiling signal-to-noise ratio as published.
        fingerprint : str
            Tells what the subject is made of, for `has_subject`.

        Raises
        ------
        InputError
            If a trial is missing or comes twice, betas are not finite or too large, or the disk
            is full.
        """
        check_dtype(dtype)
        trials = check_trials(trials, masker.subject)
        temporary = self.partial / f".{masker.subject}"
        remove_folder(temporary, within=self.partial)
        with disk_errors(self.path):
            temporary.mkdir(parents=True)
            write_betas(temporary / "betas.npy", chunks, masker, len(trials), dtype)
            if not self.meta["standardized"]:
                betas = np.load(temporary / "betas.npy", mmap_mode="r")
                SessionScaler.fit(betas, trials).save(temporary / "statistics.npz")
            save_masker(masker, temporary, {} if ncsnr is None else {"ncsnr": ncsnr})
            trials.to_parquet(temporary / "trials.parquet")
            Manifest.create(temporary)
            self._add_parcel_names(masker)
            write_json(self.parts / f"{masker.subject}.json", fingerprint)
            commit(temporary, self.partial / "subjects" / masker.subject)

    def _add_parcel_names(self, masker: VoxelMasker) -> None:
        """Keep the parcel names of a subject's atlases, which must be those of the others."""
        parcels = {
            atlas: {str(number): name for number, name in names.items()}
            for atlas, names in masker.parcel_names.items()
        }
        path = self.partial / "regions.json"
        earlier = read_json(path, "an unfinished store") if path.exists() else {}
        differing = [a for a in parcels if a in earlier and earlier[a] != parcels[a]]
        if differing:
            raise InputError(
                f"{masker.subject} numbers the parcels of {', '.join(differing)} otherwise than "
                "the subjects before; one lookup table per atlas is expected."
            )
        write_json(path, earlier | parcels)

    def finish(self, conversations: pd.DataFrame, runs: pd.DataFrame | None = None) -> Store:
        """Check the whole, write the conversations, and rename the store to its place.

        Parameters
        ----------
        conversations : DataFrame
            Columns stimulus (or subject and trial_index), source, turns, answers.
        runs : DataFrame, optional
            One row per run of which single-trial betas were estimated; see `Store.runs`.

        Returns
        -------
        Store
            Whole, at `path`.

        Raises
        ------
        InputError
            If no subject was written, a stimulus is in two splits, or a conversation is malformed.
        """
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
            pq.write_table(to_arrow(conversations), self.partial / "conversations.parquet")
            if runs is not None:
                runs.to_parquet(self.partial / RUNS, index=False)
            if not (self.partial / "regions.json").exists():
                write_json(self.partial / "regions.json", {})
            remove_folder(self.parts, within=self.partial)
            Manifest.create(self.partial)
            commit(self.partial, self.path)
        return Store(self.path)


def write_betas(
    path: Path, chunks: BetaChunks, masker: VoxelMasker, n_trials: int, dtype: str
) -> None:
    """Write betas to a .npy file, chunk by chunk; every trial must come once.

    Plain writes: on a full disk they raise an error, where a memory map would kill the process.
    """
    written = np.zeros(n_trials, int)
    with path.open("wb") as file:
        write_array_header(file, np.dtype(dtype), (n_trials, len(masker)))
        start = file.tell()
        for trials, betas in chunks:
            where = f"{masker.subject}, trials {trials[0]} to {trials[-1]}"
            cast = cast_betas(betas, len(masker), dtype, where)
            for trial, row in zip(trials, cast, strict=True):
                file.seek(start + int(trial) * row.nbytes)
                file.write(row.tobytes())
            written[trials] += 1
    if (written != 1).any():
        first = np.flatnonzero(written != 1)[0]
        raise InputError(
            f"{masker.subject}: trial {first} was given {written[first]} times; "
            "each trial needs its betas once."
        )


def write_store(
    path: str | Path,
    subjects: Iterable[tuple[VoxelMasker, np.ndarray, pd.DataFrame]],
    conversations: pd.DataFrame,
    *,
    name: str,
    source: str = "",
    license: str = "",
    dtype: str = "float32",
    standardized: bool = False,
    stimulus_sets: Mapping[str, Sequence[str]] | None = None,
    runs: pd.DataFrame | None = None,
) -> Store:
    """Write a store from arrays.

    Parameters
    ----------
    path : str or Path
        Folder to write; must not exist.
    subjects : iterable of (VoxelMasker, ndarray, DataFrame)
        Per subject its masker, betas (n_trials, n_voxels), and a table of trials with the column
        stimulus (and session, run, repetition, split if known).
    conversations : DataFrame
        Columns stimulus, source, turns, answers; see `conversations_from_captions`.
    name, source, license : str
        Of the data set.
    dtype : {"float32", "float16"}
        How betas are stored.
    standardized : bool
        Whether the betas are z-scores already, to be taken as they are.
    stimulus_sets : mapping from str to sequence of str, optional
        Named sets of stimuli, such as "shared1000", that reports give rows of their own.
    runs : DataFrame, optional
        One row per run of which single-trial betas were estimated; see `Store.runs`.

    Returns
    -------
    Store
        As `StoreWriter.finish` gives it.

    Raises
    ------
    InputError
        If arrays and tables do not fit, or the folder exists.

    Examples
    --------
    >>> import tempfile, nibabel as nib, numpy as np, pandas as pd
    >>> from mindllm import VoxelMasker, conversations_from_captions, write_store
    >>> mask_img = nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    >>> masker = VoxelMasker.from_mask_img(mask_img, subject="sub-01")
    >>> trials = pd.DataFrame({"stimulus": ["dog", "cat"] * 4})
    >>> captions = pd.DataFrame({"stimulus": ["dog", "cat"], "caption": ["a dog", "a cat"]})
    >>> betas = np.random.default_rng(0).normal(size=(8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = write_store(
    ...         f"{folder}/store",
    ...         [(masker, betas, trials)],
    ...         conversations_from_captions(captions),
    ...         name="pets",
    ...     )
    ...     store.betas("sub-01", [0, 1], standardize=True).shape
    (2, 8)
    """
    with lock_output(path):
        check_not_exists(Path(path))
        # The arrays are at hand: begin anew, whatever was interrupted.
        shutil.rmtree(partial_path(Path(path)), ignore_errors=True)
        writer = StoreWriter(
            path,
            name=name,
            source=source,
            license=license,
            prepared_by="arrays",
            options={},
            standardized=standardized,
            stimulus_sets=stimulus_sets,
        )
        for masker, betas, trials in subjects:
            check_values(betas, len(masker), masker.subject)
            if len(betas) != len(trials):
                raise InputError(
                    f"{masker.subject}: {len(betas)} rows of betas, but {len(trials)} rows of "
                    "trials."
                )
            writer.write_subject(masker, trials, [(np.arange(len(trials)), betas)], dtype)
        return writer.finish(conversations, runs)


def check_dtype(dtype: str) -> None:
    """Raise InputError unless betas can be stored as `dtype`."""
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; expected {' or '.join(DTYPES)}.")


def write_array_header(file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Write the header of a .npy file."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def cast_betas(betas: np.ndarray, n_voxels: int, dtype: str, where: str) -> np.ndarray:
    """Betas (n, n_voxels) as `dtype`.

    Raises
    ------
    InputError
        If there are other voxels, NaN or infinity, or numbers too large or small for the type.
    """
    check_values(betas, n_voxels, where)
    check_finite(betas, where)
    sizes, limits = np.abs(betas), np.finfo(dtype)
    if (highest := sizes.max(initial=0)) > limits.max:
        raise InputError(
            f"{where}: betas of up to {highest:.3g} do not fit {dtype}; use --dtype float32."
        )
    sample = sizes.ravel()[:: max(1, sizes.size // SAMPLE_SIZE)]
    typical = float(np.median(sample[sample > 0])) if sample.any() else np.inf
    if typical < limits.tiny:
        remedy = "use --dtype float32" if dtype == "float16" else "multiply them by a constant"
        raise InputError(
            f"{where}: betas of about {typical:.3g} are too small for {dtype}, in which numbers "
            f"below {limits.tiny:.3g} lose their digits or become 0; {remedy}."
        )
    return np.asarray(betas, dtype)


def conversations_from_captions(
    table: pd.DataFrame, source: str = "caption", question: str = QUESTION
) -> pd.DataFrame:
    """Make conversations from captions.

    Parameters
    ----------
    table : DataFrame
        Columns stimulus and caption, one row per caption.
    source : str
        Name of the source.
    question : str
        What the user asks.

    Returns
    -------
    DataFrame
        Columns stimulus, source, turns, answers: one conversation per caption, all captions of
        its stimulus accepted as answers.

    Examples
    --------
    >>> import pandas as pd
    >>> captions = pd.DataFrame({"stimulus": ["dog"], "caption": ["a dog runs"]})
    >>> conversations_from_captions(captions)["turns"][0][1]["content"]
    'a dog runs'
    """
    table = table[["stimulus", "caption"]].drop_duplicates()
    accepted = table.groupby("stimulus", sort=False)["caption"].agg(list)
    turns: list[Conversation] = [build_conversation(question, text) for text in table["caption"]]
    answers = [
        [text, *(other for other in accepted[stimulus] if other != text)]
        for stimulus, text in table.itertuples(index=False)
    ]
    return pd.DataFrame(
        {
            "stimulus": table["stimulus"].astype(str).to_numpy(),
            "source": source,
            "turns": turns,
            "answers": answers,
        }
    )


def check_captions(table: pd.DataFrame, file: Path) -> None:
    """Check that captions can be answers, before anything else is read.

    Parameters
    ----------
    table : DataFrame
        With the column caption; the index is the number of the line in the file.
    file : Path
        The table's file, for the message.

    Raises
    ------
    InputError
        If a caption holds the placeholder of a scan.
    """
    for line, caption in table["caption"].items():
        if FMRI_TOKEN in caption:
            raise InputError(
                f"{file}, line {line}: the caption {caption!r} holds {FMRI_TOKEN}, the placeholder "
                "of a scan in a conversation; expected a text without it."
            )


def check_trials(trials: pd.DataFrame, subject: str) -> pd.DataFrame:
    """The trials with all columns: by default one session and run, counted repetitions, train."""
    if "stimulus" not in trials or trials["stimulus"].isna().any():
        raise InputError(
            f"{subject}: the trials table needs a column `stimulus` without gaps; "
            f"found the columns {list(trials.columns)}."
        )
    trials = trials.reset_index(drop=True)
    trials = trials.assign(stimulus=trials["stimulus"].astype(str).to_numpy())
    defaults: dict[str, str | pd.Series] = {
        "session": "1",
        "run": "1",
        "repetition": trials.groupby("stimulus").cumcount(),
        "split": "train",
    }
    for column, value in defaults.items():
        if column not in trials:
            trials[column] = value
    unknown = sorted(set(trials["split"].astype(str)) - set(SPLITS))
    if unknown:
        raise InputError(f"{subject}: unknown split {unknown}; expected {', '.join(SPLITS)}.")
    trials = trials.assign(session=trials["session"].astype(str), run=trials["run"].astype(str))
    check_trials_table(trials, f"the trials of {subject}", "Mend the table of trials.")
    return trials[[*TRIAL_COLUMNS, *(c for c in trials if c not in TRIAL_COLUMNS)]]
