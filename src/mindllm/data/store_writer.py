"""Making a store: person by person, whole or not at all; or of one's own arrays."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mindllm.data.splits import SPLITS, check_splits
from mindllm.data.store import FORMAT, Store, to_arrow
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.masker_io import save_masker
from mindllm.fmri.scaling import SessionScaler
from mindllm.language.conversation import (
    QUESTION,
    Conversation,
    build_conversation,
    check_conversation,
)
from mindllm.utils.errors import InputError
from mindllm.utils.files import (
    check_not_exists,
    commit,
    disk_errors,
    partial_path,
    read_json,
    remove_folder,
    write_json,
)
from mindllm.utils.validation import check_finite, check_values
from mindllm.utils.versions import package_version

DTYPES = ("float32", "float16")
TRIAL_COLUMNS = ("stimulus", "session", "run", "repetition", "split")
logger = logging.getLogger(__name__)


class StoreWriter:
    """Writes a store subject by subject into `<path>.partial`; `finish` renames it. A second call skips subjects already whole.

    normalized: betas are z-scores already.  ordered: trials stand in the order in which they were shown.
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
            "stimulus_sets": {
                label: sorted(map(str, members)) for label, members in (stimulus_sets or {}).items()
            },
        }
        plan = self.partial / "dataset.json"
        with disk_errors(self.path):
            if plan.exists() and read_json(plan, "an unfinished store") != self.meta:
                logger.warning("%s was begun with other options; starting over", self.partial)
                shutil.rmtree(self.partial)
            (self.partial / "subjects").mkdir(parents=True, exist_ok=True)
            write_json(plan, self.meta)

    def has_subject(self, subject: str) -> bool:
        """Whether this subject was already written by an earlier call."""
        return (self.partial / "subjects" / subject).is_dir()

    def write_subject(
        self,
        masker: VoxelMasker,
        trials: pd.DataFrame,
        chunks: Iterable[tuple[np.ndarray, np.ndarray]],
        dtype: str = "float32",
        ncsnr: np.ndarray | None = None,
    ) -> None:
        """Write one subject. `pieces` yields (trial rows, betas (b, V)) until every trial was given once; ncsnr: (V,), as published."""
        check_dtype(dtype)
        trials = check_trials(trials, masker.subject)
        folder = self.partial / "subjects" / masker.subject
        temporary = self.partial / f".{masker.subject}"
        remove_folder(temporary, within=self.partial)
        with disk_errors(self.path):
            temporary.mkdir(parents=True)
            kind, written = np.dtype(dtype), np.zeros(len(trials), int)
            # Plain writes: on a full disk they raise an error, where writing to a memory map would kill the process.
            with (temporary / "betas.npy").open("wb") as file:
                write_array_header(file, kind, (len(trials), len(masker)))
                start = file.tell()
                for rows, values in chunks:
                    kept = cast_betas(
                        values,
                        len(masker),
                        dtype,
                        f"{masker.subject}, trials {rows[0]} to {rows[-1]}",
                    )
                    for row, value in zip(rows, kept, strict=True):
                        file.seek(start + int(row) * value.nbytes)
                        file.write(value.tobytes())
                    written[rows] += 1
            if (written != 1).any():
                raise InputError(
                    f"{masker.subject}: trial {np.flatnonzero(written != 1)[0]} was given {written[written != 1][0]} times; each trial needs its betas once."
                )
            if not self.meta["standardized"]:
                betas = np.load(temporary / "betas.npy", mmap_mode="r")
                SessionScaler.fit(betas, trials).save(temporary / "statistics.npz")
            save_masker(masker, temporary, {} if ncsnr is None else {"ncsnr": ncsnr})
            trials.to_parquet(temporary / "trials.parquet")
            regions = {
                p: {str(k): v for k, v in names.items()} for p, names in masker.parcel_names.items()
            }
            path = self.partial / "regions.json"
            known = read_json(path, "an unfinished store") if path.exists() else {}
            differ = [p for p in regions if p in known and known[p] != regions[p]]
            if differ:
                raise InputError(
                    f"{masker.subject} numbers the regions of {', '.join(differ)} otherwise than the subjects before; one lookup table per parcellation is expected."
                )
            write_json(path, known | regions)
            commit(temporary, folder)

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
            pq.write_table(to_arrow(conversations), self.partial / "conversations.parquet")
            if not (self.partial / "regions.json").exists():
                write_json(self.partial / "regions.json", {})
            commit(self.partial, self.path)
        return Store(self.path)


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
) -> Store:
    """Make a store of one's own arrays: per subject a voxel space, betas (trials, voxels), and a trials table with `stimulus`.

    conversations: `stimulus`, `source`, `turns`, `answers`; `captions` makes it from a table of captions.
    normalized: the betas are z-scores already, to be taken as they are.  sets: name -> stimuli, such as "982", that reports
    give rows of their own.
    """
    check_not_exists(Path(path))
    shutil.rmtree(
        partial_path(Path(path)), ignore_errors=True
    )  # the arrays are at hand: begin anew, whatever was interrupted
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
    for space, betas, trials in subjects:
        check_values(betas, len(space), space.subject)
        if len(betas) != len(trials):
            raise InputError(
                f"{space.subject}: {len(betas)} rows of betas, but {len(trials)} rows of trials."
            )
        writer.write_subject(space, trials, [(np.arange(len(trials)), betas)], dtype)
    return writer.finish(conversations)


def check_dtype(dtype: str) -> None:
    """Raise InputError unless betas can be stored so."""
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; expected {' or '.join(DTYPES)}.")


def write_array_header(file: IO[bytes], kind: np.dtype, shape: tuple[int, ...]) -> None:
    """Write what stands before the numbers in a .npy file."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": kind.str, "fortran_order": False, "shape": shape}
    )


def cast_betas(betas: np.ndarray, voxels: int, dtype: str, where: str) -> np.ndarray:
    """Betas (b, V) as `dtype`. Raises InputError for another number of voxels, NaN or infinity, or numbers too large for it."""
    check_values(betas, voxels, where)
    check_finite(betas, where)
    highest = max(betas.max(initial=0), -betas.min(initial=0))
    if highest > np.finfo(dtype).max:
        raise InputError(
            f"{where}: betas of up to {highest:.3g} do not fit {dtype}; use --dtype float32."
        )
    return np.asarray(betas, dtype)


def conversations_from_captions(
    table: pd.DataFrame, source: str = "caption", question: str = QUESTION
) -> pd.DataFrame:
    """Conversations from captions, one per row of `stimulus`, `caption`; all captions of a stimulus count as right."""
    table = table[["stimulus", "caption"]].drop_duplicates()
    right = table.groupby("stimulus", sort=False)["caption"].agg(list)
    turns: list[Conversation] = [build_conversation(question, text) for text in table["caption"]]
    answers = [
        [text, *(other for other in right[stimulus] if other != text)]
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


def check_trials(trials: pd.DataFrame, subject: str) -> pd.DataFrame:
    """The trials table with all its columns; what is not told gets one session, one run, counted repeats, and `train`."""
    if "stimulus" not in trials or trials["stimulus"].isna().any():
        raise InputError(
            f"{subject}: the trials table needs a column `stimulus` without gaps; found the columns {list(trials.columns)}."
        )
    trials = trials.reset_index(drop=True).assign(
        stimulus=trials["stimulus"].astype(str).to_numpy()
    )
    defaults: dict[str, Any] = {
        "session": "1",
        "run": "1",
        "repetition": trials.groupby("stimulus").cumcount(),
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
