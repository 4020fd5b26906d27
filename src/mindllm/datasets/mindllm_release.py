"""Reader of the authors' prepared data: trials in one of two layouts, roi/, and cache/*.json.

Betas are standardized by the authors and are taken as they are. Trials of `test` stay test;
validation stimuli are drawn from the training stimuli (the authors' code validates on test), or are
those of MindEye's own `val`.

References
----------
github.com/Graph-and-Geometric-Learning/MindLLM, src/dataset.py.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, ValidationError, field_validator

from mindllm.data.splits import check_splits
from mindllm.datasets.base import DatasetDescription, DatasetReader
from mindllm.datasets.parallel import SessionReader
from mindllm.datasets.release_layouts import LAYOUTS, ReleaseLayout
from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.roi_volumes import find_roi_subjects, load_roi_maskers
from mindllm.language.conversation import check_conversation
from mindllm.utils.errors import InputError, describe_error, shorten
from mindllm.utils.tables import read_table, require_values
from mindllm.utils.text_files import parse_json, read_text

INFO = "nsd_stim_info_merged.csv"
FIRST = "coco-caption"  # the source that a store's evaluation asks about
CHUNK_SIZE = 500  # keys, each with its trials, that a worker reads at a time
logger = logging.getLogger(__name__)


class MindLLMReleaseReader(DatasetReader):
    """Reader of the data that the authors of MindLLM prepared of NSD.

    A stimulus is named by its 0-based nsdId or, where nsd_stim_info_merged.csv is absent, by its
    COCO id. `val_fraction` of `prepare` is not used where the layout has validation trials.

    Parameters
    ----------
    root : str or Path
        Folder that holds nsd0 or webdataset_avg_split, cache and roi, or that holds it as data.
    subjects : sequence of str, optional
        Labels such as subj01. Default: all that are there.
    layout : {"nsd0", "mindeye"}, optional
        Layout to read. Default: the one that is there.
    sources : sequence of str, optional
        Names of instruction files to take, such as coco-caption. Default: all.
    """

    prepared_by = "mindllm-release"
    default_dtype = "float32"
    default_val_fraction = 0.1

    def __init__(
        self,
        root: str | Path,
        *,
        subjects: Sequence[str] | None = None,
        layout: str | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        folder = Path(root) / "data"
        super().__init__(folder if folder.is_dir() else root, subjects=subjects)
        self.sources = list(sources or [])
        self._layout_name = layout

    @cached_property
    def layout_name(self) -> str:
        """Name of the layout that is read: the one asked for, or the only one."""
        layouts = [name for name, layout in LAYOUTS.items() if layout(self.root).subjects]
        name = self._layout_name or (layouts[0] if len(layouts) == 1 else None)
        if name in layouts:
            return str(name)
        if self._layout_name:
            hint = f", and {self._layout_name} was asked for"
        else:
            hint = "; choose one with --layout" if layouts else ""
        raise InputError(
            f"{self.root} holds the layouts {layouts or 'of no subject'}{hint}. Expected "
            "nsd0/subject_1.h5 (nsd0) or webdataset_avg_split/train/subj01 (mindeye)."
        )

    @cached_property
    def layout(self) -> ReleaseLayout:
        """The layout that is read."""
        return LAYOUTS[self.layout_name](self.root)

    @cached_property
    def coco_ids(self) -> dict[int, int] | None:
        """The COCO id of every 0-based nsdId; None: not known."""
        return read_coco_ids(self.root / INFO, required=self.layout_name == "mindeye")

    @cached_property
    def maskers(self) -> dict[str, VoxelMasker]:
        """The maskers of all subjects, with parcel labels that they share."""
        subjects, folder = self.select_subjects(), self.root / "roi"
        if missing := sorted(set(subjects) - set(find_roi_subjects(folder))):
            raise InputError(
                f"{folder} has no folder {', '.join(missing)}; the mask of every subject is needed."
            )
        return load_roi_maskers({subject: folder / subject for subject in subjects})

    def find_subjects(self) -> list[str]:
        return list(self.layout.subjects)

    def read_trials(self, subject: str) -> pd.DataFrame:
        coco_ids, _ = self.coco_ids, self.maskers  # what is missing is noticed before long reading
        return name_stimuli(self.layout.read_trials(subject), coco_ids, self.root / INFO)

    def assign_splits(
        self, trials: Mapping[str, pd.DataFrame], val_fraction: float, seed: int
    ) -> dict[str, pd.DataFrame]:
        check_splits(trials)
        fraction = 0.0 if self.layout.has_val_split else val_fraction
        return super().assign_splits(trials, fraction, seed)

    def load_masker(self, subject: str, trials: pd.DataFrame) -> VoxelMasker:
        return self.maskers[subject]

    def session_readers(
        self, masker: VoxelMasker, trials: pd.DataFrame, dtype: str
    ) -> list[SessionReader]:
        subject = masker.subject
        return [
            SessionReader(
                f"{subject}, trials {rows[0] + 1} to {rows[-1] + 1}",
                rows,
                bind(self.layout.read_betas, subject, trials.iloc[rows], masker.voxel_indices),
                self.layout.beta_files(subject, trials.iloc[rows]),
            )
            for rows in split_by_keys(trials)
        ]

    def read_conversations(self, trials: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        return read_conversations(self.root / "cache", trials, self.sources)

    def describe(self, subjects: Sequence[str]) -> DatasetDescription:
        logger.warning(
            "coordinates are millimeters of each subject's own grid, not MNI: "
            "voxels of different subjects may not correspond"
        )
        return DatasetDescription(
            name=f"NSD as prepared for MindLLM ({self.layout_name})",
            source="https://huggingface.co/datasets/BoltzmachineQ/brain-instruction-tuning",
            license="the terms of NSD and of each instruction source",
            standardized=True,
            # MindEye's files hold the repetitions of an image together.
            has_presentation_order=self.layout_name == "nsd0",
        )

    def options(self) -> dict[str, object]:
        return {
            "layout": self.layout_name,
            "sources": self.sources,
            "stimulus": "nsdId" if self.coco_ids else "cocoId",
        }


class ReleaseTurn(BaseModel):
    """A turn of a sample."""

    role: str
    content: str


class ReleaseSample(BaseModel):
    """What is read of a sample of an instruction file, beside what it is about."""

    source: str = Field(alias="from")
    chat: list[ReleaseTurn]
    answers: Any = None

    @field_validator("answers")
    @classmethod
    def check_answers(cls, answers: Any) -> Any:
        """Answers are texts, or lists of them at any depth."""
        parts = [answers]
        while parts:
            part = parts.pop()
            if isinstance(part, list):
                parts += part
            elif part is not None and not isinstance(part, str):
                raise ValueError(f"{shorten(repr(part), 80)} is no text")
        return answers


def split_by_keys(trials: pd.DataFrame) -> list[np.ndarray]:
    """Split the rows into what a worker reads at a time; the trials of a key stay together."""
    keys = trials["split"] + "/" + trials["key"]
    starts = np.flatnonzero((keys != keys.shift()).to_numpy())
    return np.split(np.arange(len(trials)), starts[CHUNK_SIZE::CHUNK_SIZE])


def read_coco_ids(file: Path, required: bool) -> dict[int, int] | None:
    """Read the COCO id of every 0-based nsdId; None where the table is absent and not required."""
    if not file.is_file():
        if required:
            raise InputError(
                f"there is no {file}, which tells the COCO id of each image. "
                "Fetch it from NSD (experiments/nsd)."
            )
        logger.info("no %s: stimuli are named by their COCO ids", file)
        return None
    table = read_table(file, "NSD's table of images")
    column = "nsdId" if "nsdId" in table else "Unnamed: 0"
    if not {column, "cocoId"} <= set(table.columns):
        raise InputError(
            f"{file} has the columns {list(table.columns)[:8]}; expected `nsdId` and `cocoId`."
        )
    require_values(table, (column, "cocoId"), file)
    return dict(zip(table[column].astype(int), table["cocoId"].astype(int), strict=True))


def name_stimuli(
    trials: pd.DataFrame, coco_ids: Mapping[int, int] | None, file: Path
) -> pd.DataFrame:
    """Add to the trials both names of what was shown: `coco_id` and `stimulus`.

    Parameters
    ----------
    trials : pd.DataFrame
        Trials with `nsd_id` or `coco_id`.
    coco_ids : mapping of int to int, optional
        The COCO id of every nsdId; without it, COCO ids name the stimuli.
    file : Path
        Where `coco_ids` is from, for messages.

    Raises
    ------
    InputError
        If `coco_ids` lacks an image.
    """
    column = "nsd_id" if "nsd_id" in trials else "coco_id"
    other_ids = dict(coco_ids or {})
    if column == "coco_id":
        other_ids = {coco_id: nsd_id for nsd_id, coco_id in other_ids.items()}
    if coco_ids is not None and (unknown := sorted(set(trials[column]) - set(other_ids))):
        raise InputError(
            f"{file} does not list {len(unknown)} images that were shown, "
            f"first {column} {unknown[0]}."
        )
    if column == "nsd_id":
        return trials.assign(
            stimulus=trials["nsd_id"].astype(str), coco_id=trials["nsd_id"].map(other_ids)
        ).drop(columns=column)
    stimuli = trials["coco_id"].map(other_ids) if other_ids else trials["coco_id"]
    return trials.assign(stimulus=stimuli.astype(str))


def read_conversations(
    cache: Path, trials: Mapping[str, pd.DataFrame], sources: Sequence[str]
) -> pd.DataFrame:
    """Read the conversations about these trials.

    Parameters
    ----------
    cache : Path
        Folder of the instruction files.
    trials : mapping of str to pd.DataFrame
        The trials of each subject.
    sources : sequence of str
        Names of the files to read; empty: all.

    Returns
    -------
    pd.DataFrame
        Conversations about a `stimulus`, or (the image before) about the trial `trial_index` of a
        `subject`. `answers` begins with what the conversation itself says; then come the other
        right answers, with repetitions.

    Raises
    ------
    InputError
        If a file is missing, damaged or not as published.
    """
    files = find_instruction_files(cache, sources)
    stimuli = {
        int(coco_id): stimulus
        for table in trials.values()
        for coco_id, stimulus in zip(table["coco_id"], table["stimulus"], strict=True)
    }
    trial_indices = {
        f"subject_{int(subject[4:])}-{'train' if split == 'val' else split}-{key}": (subject, index)
        for subject, table in trials.items()
        for index, (split, key) in enumerate(zip(table["split"], table["key"], strict=True))
    }
    rows = [row for file in files for row in iter_conversations(file, stimuli, trial_indices)]
    columns = ["stimulus", "subject", "trial_index", "source", "turns", "answers"]
    return pd.DataFrame(rows, columns=columns).astype({"trial_index": "Int64"})


def find_instruction_files(cache: Path, sources: Sequence[str]) -> list[Path]:
    """Find the instruction files of these sources, or all; captions come first."""
    files = {
        file.stem: file
        for file in sorted(cache.glob("*.json"), key=lambda file: (file.stem != FIRST, file.stem))
    }
    if unknown := sorted(set(sources) - set(files)):
        raise InputError(
            f"{cache} has no {', '.join(f'{name}.json' for name in unknown)}; "
            f"it holds {', '.join(files) or 'none'}."
        )
    if not files:
        raise InputError(
            f"{cache} has no instruction files (*.json): "
            "without text, trials cannot be trained on or scored."
        )
    return [files[name] for name in sources or files]


def iter_conversations(
    file: Path,
    stimuli: Mapping[int, str],
    trial_indices: Mapping[str, tuple[str, int]],
) -> Iterator[tuple[object, ...]]:
    """Iterate over the conversations of a file that are about these stimuli or trials.

    Parameters
    ----------
    file : Path
        An instruction file.
    stimuli : mapping of int to str
        COCO id -> stimulus.
    trial_indices : mapping of str to tuple
        The authors' id of a trial -> subject and index of the trial.

    Yields
    ------
    tuple
        stimulus, subject, trial_index, source, turns and answers.
    """
    for number, sample in enumerate(read_samples(file)):
        stimulus, subject, trial_index = None, None, None
        try:
            if "coco_id" in sample:
                stimulus = stimuli.get(int(sample["coco_id"]))
            else:
                subject, trial_index = trial_indices.get(sample["sample_id"], (None, None))
            if stimulus is None and subject is None:
                continue  # about an image or a subject that is not here
            valid = ReleaseSample.model_validate(sample)
        except (KeyError, TypeError, ValueError, OverflowError, ValidationError) as error:
            raise InputError(
                f"{file}, sample {number} is not as published ({describe_error(error)}); "
                "expected `coco_id` or `sample_id`, `from`, `chat`, `answers`."
            ) from error
        turns = [{"role": turn.role, "content": turn.content} for turn in valid.chat]
        try:
            check_conversation(turns)
            if len(turns) < 2:
                raise InputError("the conversation has no answer.")
        except InputError as error:
            raise InputError(f"{file}, sample {number}: {error}") from error
        answers = flatten_answers(turns, valid.answers)
        yield stimulus, subject, trial_index, valid.source, turns, answers


def read_samples(file: Path) -> list[Any]:
    """Read the samples of an instruction file."""
    text = read_text(file, "instructions of the published data")
    samples = parse_json(text, file, "Fetch it again.")
    if not isinstance(samples, list):
        raise InputError(f"{file} holds {type(samples).__name__}; expected a list of samples.")
    return samples


def flatten_answers(turns: Sequence[Mapping[str, str]], answers: Any) -> list[str]:
    """Flatten the right answers into a list, the last one of the conversation first."""
    last = [turn["content"] for turn in turns if turn["role"] == "assistant"][-1]

    others, parts = [], [answers]
    while parts:
        part = parts.pop()
        if isinstance(part, str):
            others.append(part)
        else:
            parts += reversed(part or [])
    if last in others:
        others.remove(last)
    return [last, *others]
