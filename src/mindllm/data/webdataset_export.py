"""A store as WebDataset shards: tar files that are read from beginning to end, for streaming.

webdataset.json      what the folder holds: subjects, shards, options
subjects/<name>/     voxels.parquet, mask.nii.gz and statistics.npz, as in the store
<name>-000000.tar    trials in order, two files each: <key>.betas.npy and <key>.json
manifest.json        checksums
"""

import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from rich.progress import Progress

from mindllm.data.store import Store
from mindllm.utils.errors import InputError
from mindllm.utils.files import (
    atomic_write,
    check_not_exists,
    check_output,
    describe_read_errors,
    disk_errors,
    partial_path,
    read_json,
    write_json,
)
from mindllm.utils.folders import commit
from mindllm.utils.locks import lock_output
from mindllm.utils.manifest import Manifest
from mindllm.utils.progress import progress_bar
from mindllm.utils.validation import check_format, validate_content

FORMAT = 1
INDEX = "webdataset.json"
SUBJECT_FILES = ("voxels.parquet", "mask.nii.gz", "statistics.npz")
WHAT, REMEDY = "an export (made by `mindllm export-webdataset`)", "Export the store anew."
JsonRow = dict[str, object]


class Shard(BaseModel):
    """A tar file of consecutive trials of a subject.

    Examples
    --------
    >>> Shard(file="sub-01-000000.tar", subject="sub-01", first_trial=0, n_trials=100).n_trials
    100
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    subject: str
    first_trial: int = Field(ge=0)
    n_trials: int = Field(ge=1)


class ExportIndex(BaseModel):
    """What webdataset.json holds.

    Attributes
    ----------
    format : int
    name, source, license : str
        Of the store.
    split : str
        The split that the trials' column `split` is of.
    fingerprints : dict of str to str
        Subject -> fingerprint of its data in the store.
    conversations : str
        Checksum of the store's conversations.
    standardized : bool
        Whether betas are z-scored as for a training, or as measured.
    parcel_names : dict
        Atlas -> parcel number -> parcel name.
    shards : list of Shard
    """

    model_config = ConfigDict(extra="forbid")

    format: int
    name: str
    source: str
    license: str
    split: str
    fingerprints: dict[str, str]
    conversations: str
    standardized: bool
    parcel_names: dict[str, dict[str, str]]
    shards: list[Shard]


CONTENT = TypeAdapter(ExportIndex)


@dataclass(frozen=True)
class WebTrial:
    """A trial that was read from a shard.

    Parameters
    ----------
    subject : str
    trial_index : int
        Row of the subject's betas in the store.
    betas : ndarray of shape (n_voxels,)
    trial : dict
        Columns of the trials table, such as stimulus, session and split.
    conversations : list of dict
        About the trial or its stimulus: source, turns, answers.
    """

    subject: str
    trial_index: int
    betas: np.ndarray
    trial: JsonRow
    conversations: list[JsonRow]


def export_webdataset(
    store: Store,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    shard_size: int = 1000,
    standardize: bool = False,
    progress: Progress | None = None,
) -> ExportIndex:
    """Write a store as WebDataset shards, completely or not at all.

    A shard is complete or absent; an interrupted export goes on with those that are missing.

    Parameters
    ----------
    store : Store
    out : str or Path
        New folder.
    subjects : sequence of str, optional
        All by default.
    shard_size : int
        Trials in a shard.
    standardize : bool
        Write betas as a training reads them, float32, instead of as measured.
    progress : rich.progress.Progress, optional

    Returns
    -------
    ExportIndex

    Raises
    ------
    InputError
        If `out` exists, holds an interrupted export with other options or data, or the disk is
        full.
    """
    out = Path(out)
    index = plan_export(store, store.select_subjects(subjects), shard_size, standardize)
    with lock_output(out), disk_errors(out):
        check_output(out, [store.path])
        check_not_exists(out)
        folder = partial_path(out)
        begin_export(folder, out, index, store)
        missing = [shard for shard in index.shards if not (folder / shard.file).exists()]
        count = len(index.shards)
        with progress_bar(progress, "writing shards", count, count - len(missing)) as advance:
            conversations = ConversationTable(store.conversations)
            for shard in missing:
                write_shard(folder / shard.file, store, shard, conversations, standardize)
                advance(1)
        Manifest.create(folder)
        commit(folder, out)
    return index


def plan_export(
    store: Store, subjects: Sequence[str], shard_size: int, standardize: bool
) -> ExportIndex:
    """List the shards of an export, and what they depend on."""
    shards = [
        Shard(
            file=f"{subject}-{number:06d}.tar",
            subject=subject,
            first_trial=first,
            n_trials=min(shard_size, len(store.trials(subject)) - first),
        )
        for subject in subjects
        for number, first in enumerate(range(0, len(store.trials(subject)), shard_size))
    ]
    return ExportIndex(
        format=FORMAT,
        name=store.meta["name"],
        source=store.meta["source"],
        license=store.meta["license"],
        split=store.split["name"],
        fingerprints={subject: store.fingerprint(subject) for subject in subjects},
        conversations=store.manifest.content.files["conversations.parquet"].sha256,
        standardized=standardize,
        parcel_names={
            atlas: {str(number): name for number, name in names.items()}
            for atlas, names in store.parcel_names.items()
        },
        shards=shards,
    )


def begin_export(folder: Path, out: Path, index: ExportIndex, store: Store) -> None:
    """Write what is not in shards, or check that an interrupted export is the same."""
    path = folder / INDEX
    if path.exists():
        saved = validate_content(CONTENT, read_json(path, WHAT), str(path), REMEDY)
        if saved != index:
            raise InputError(
                f"{folder} holds an interrupted export of {out} with other options or data. "
                "Repeat its options, remove that folder, or choose another name."
            )
        return
    for subject in index.fingerprints:
        target = folder / "subjects" / subject
        target.mkdir(parents=True, exist_ok=True)
        for name in SUBJECT_FILES:
            shutil.copyfile(store.subject_dir(subject) / name, target / name)
    write_json(path, index.model_dump())


class ConversationTable:
    """Conversations by what they are about.

    Parameters
    ----------
    table : DataFrame
        Of a store.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table.reset_index(drop=True)
        of_trials = self.table["trial_index"].notna().to_numpy()
        rows = np.flatnonzero(~of_trials)
        groups = self.table.iloc[rows].groupby("stimulus").indices
        self.by_stimulus = {str(name): rows[group] for name, group in groups.items()}
        self.by_trial: dict[tuple[str, int], list[int]] = {}
        about = self.table.iloc[np.flatnonzero(of_trials)]
        keys = zip(about["subject"].astype(str), about["trial_index"].astype(int), strict=True)
        for row, key in zip(about.index, keys, strict=True):
            self.by_trial.setdefault(key, []).append(int(row))

    def find(self, subject: str, trial_index: int, stimulus: str) -> list[JsonRow]:
        """Conversations about a trial and about its stimulus."""
        rows = [*self.by_stimulus.get(stimulus, []), *self.by_trial.get((subject, trial_index), [])]
        return [
            {
                "source": row["source"],
                "turns": [dict(turn) for turn in row["turns"]],
                "answers": [] if row["answers"] is None else list(row["answers"]),
            }
            for row in self.table.iloc[rows].to_dict("records")
        ]


def write_shard(
    path: Path, store: Store, shard: Shard, conversations: ConversationTable, standardize: bool
) -> None:
    """Write the trials of a shard, completely or not at all."""
    subject, first = shard.subject, shard.first_trial
    table = store.trials(subject).iloc[first : first + shard.n_trials]
    columns = json.loads(table.to_json(orient="records", double_precision=15))
    betas = store.betas(subject, range(first, first + shard.n_trials), standardize=standardize)
    number = store.subjects.index(subject)
    with atomic_write(path) as temporary, tarfile.open(temporary, "w") as tar:
        for offset, (row, trial) in enumerate(zip(betas, columns, strict=True)):
            index = first + offset
            key = f"{number:04d}-{index:06d}"  # without a dot, at which the suffix begins
            content = {
                "subject": subject,
                "trial_index": index,
                "trial": trial,
                "conversations": conversations.find(subject, index, trial["stimulus"]),
            }
            buffer = io.BytesIO()
            np.save(buffer, row, allow_pickle=False)
            add_file(tar, f"{key}.betas.npy", buffer.getvalue())
            text = json.dumps(content, ensure_ascii=False, allow_nan=False)
            add_file(tar, f"{key}.json", text.encode())


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar; the same content gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def read_export(folder: str | Path) -> ExportIndex:
    """Read what an export holds.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    ExportIndex

    Raises
    ------
    InputError
        If it is no export, or of another format.
    """
    folder = Path(folder)
    content: Mapping[str, object] = read_json(folder / INDEX, WHAT)
    check_format(folder, "export", content.get("format"), FORMAT, REMEDY)
    return validate_content(CONTENT, content, str(folder / INDEX), REMEDY)


def iter_webdataset(
    folder: str | Path, subjects: Sequence[str] | None = None
) -> Iterator[WebTrial]:
    """Read the trials of an export in order, shard by shard.

    Parameters
    ----------
    folder : str or Path
    subjects : sequence of str, optional
        All by default.

    Yields
    ------
    WebTrial

    Raises
    ------
    InputError
        If a shard is missing, damaged, or is not the one that was written.

    Examples
    --------
    >>> for trial in iter_webdataset("shards"):  # doctest: +SKIP
    ...     print(trial.subject, trial.trial_index, trial.betas.shape)
    """
    folder = Path(folder)
    index = read_export(folder)
    manifest = Manifest.read(folder, WHAT, REMEDY)
    for shard in index.shards:
        if subjects is None or shard.subject in subjects:
            path = manifest.check(shard.file)
            trials = list(read_shard(path))
            if len(trials) != shard.n_trials:
                raise InputError(
                    f"{path} holds {len(trials)} trials; {INDEX} lists {shard.n_trials}. {REMEDY}"
                )
            yield from trials


def read_shard(path: Path) -> Iterator[WebTrial]:
    """Read the trials of one shard."""
    with describe_read_errors(path, REMEDY), tarfile.open(path) as tar:
        members = iter(tar)
        for betas_member, json_member in zip(members, members, strict=True):
            betas_file, json_file = tar.extractfile(betas_member), tar.extractfile(json_member)
            assert betas_file is not None
            assert json_file is not None
            array = np.load(io.BytesIO(betas_file.read()), allow_pickle=False)
            row = json.loads(json_file.read())
            yield WebTrial(betas=array, **row)
