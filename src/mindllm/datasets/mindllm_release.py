"""A store from the authors' prepared data: trials in one of two layouts, roi/, and the instruction files cache/*.json.

Values come normalized and are taken as they are. Trials of `test` stay test; validation stimuli are drawn from the training
stimuli (the authors' code validates on test), or are those of MindEye's own `val`.
Source: github.com/Graph-and-Geometric-Learning/MindLLM, src/dataset.py.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import Progress

from mindllm.data.splits import check_splits, hold_out_validation
from mindllm.data.store import Store
from mindllm.data.store_writer import StoreWriter
from mindllm.datasets.release_layouts import LAYOUTS, Chunks
from mindllm.fmri.roi_volumes import find_roi_subjects, load_roi_maskers
from mindllm.language.conversation import check_conversation
from mindllm.utils.errors import InputError
from mindllm.utils.files import check_not_exists
from mindllm.utils.progress import Advance, progress_bar

INFO = "nsd_stim_info_merged.csv"
FIRST = "coco-caption"  # the source that a store's evaluation asks about
logger = logging.getLogger(__name__)


def prepare(
    folder: str | Path,
    out: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    layout: str | None = None,
    sources: Sequence[str] | None = None,
    val_fraction: float = 0.1,
    dtype: str = "float32",
    seed: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Make the store `out`. A stimulus is its 0-based NSD number, or, where nsd_stim_info_merged.csv is absent, its COCO id.

    layout: nsd0 or mindeye, where both are there.  sources: names of instruction files (None: all).  val: share of the
    training stimuli.  Raises InputError, naming the file, for anything missing, damaged or not as published.
    """
    check_not_exists(Path(out))
    root = Path(folder) / "data" if (Path(folder) / "data").is_dir() else Path(folder)
    readers = {name: kind(root) for name, kind in LAYOUTS.items()}
    there = [name for name, reader in readers.items() if reader.subjects]
    layout = layout or (there[0] if len(there) == 1 else None)
    if layout not in there:
        raise InputError(
            f"{root} holds the layouts {there or 'of nobody'}{f', and {layout} was asked for' if layout else '; choose one with --layout' if there else ''}. Expected nsd0/subject_1.h5 (nsd0) or webdataset_avg_split/train/subj01 (mindeye)."
        )
    reader = readers[layout]
    coco = read_info(root / INFO, needed=layout == "mindeye")
    chosen = sorted(set(subjects or reader.subjects))
    if unknown := sorted(set(chosen) - set(reader.subjects)):
        raise InputError(
            f"{root} has no data of {', '.join(unknown)}; it holds {', '.join(reader.subjects)}."
        )
    if bare := sorted(set(chosen) - set(find_roi_subjects(root / "roi"))):
        raise InputError(
            f"{root / 'roi'} has no folder {', '.join(bare)}; the mask of every subject is needed."
        )
    spaces = load_roi_maskers({name: root / "roi" / name for name in chosen})
    tables = {}
    with progress_bar(progress, "listing trials", len(chosen)) as advance:
        for subject in chosen:
            tables[subject] = name_stimuli(reader.trials(subject), coco, root)
            advance(1, f"listing trials of {subject}")
    check_splits(tables)
    tables = hold_out_validation(tables, 0.0 if reader.own_val else val_fraction, seed)
    conversations = read_conversations(root / "cache", tables, sources)
    options = {
        "layout": layout, "subjects": chosen, "sources": list(sources or []), "val_fraction": val_fraction, "seed": seed, "dtype": dtype,
        "stimulus": "nsdId" if coco else "cocoId",
    }  # fmt: skip
    writer = StoreWriter(
        out,
        name=f"NSD as prepared for MindLLM ({layout})",
        source="https://huggingface.co/datasets/BoltzmachineQ/brain-instruction-tuning",
        license="the terms of NSD and of each instruction source",
        prepared_by="mindllm-release",
        options=options,
        standardized=True,
        has_presentation_order=layout
        == "nsd0",  # MindEye's files hold the repeats of an image together
    )
    logger.warning(
        "positions are millimetres of each person's own grid, not MNI: people's voxels may not correspond"
    )
    with progress_bar(progress, "preparing", sum(map(len, tables.values()))) as advance:
        for subject in chosen:
            words = f"preparing {subject}"
            if writer.has_subject(subject):
                advance(len(tables[subject]), words)
                continue
            pieces = reader.iter_chunks(subject, tables[subject], spaces[subject].voxel_indices)
            writer.write_subject(
                spaces[subject], tables[subject], counted(pieces, advance, words), dtype
            )
    return writer.finish(conversations)


def counted(pieces: Chunks, advance: Advance, words: str) -> Chunks:
    """The pieces, counted as they are taken."""
    for rows, values in pieces:
        yield rows, values
        advance(len(rows), words)


def read_info(file: Path, needed: bool) -> dict[int, int] | None:
    """0-based NSD number -> COCO id; None where the table is absent and not needed."""
    if not file.is_file():
        if needed:
            raise InputError(
                f"there is no {file}, which tells the COCO id of each image. Fetch it from NSD (experiments/nsd)."
            )
        logger.info("no %s: stimuli are named by their COCO ids", file)
        return None
    table = pd.read_csv(file)
    number = "nsdId" if "nsdId" in table else "Unnamed: 0"
    if not {number, "cocoId"} <= set(table.columns):
        raise InputError(
            f"{file} has the columns {list(table.columns)[:8]}; expected `nsdId` and `cocoId`."
        )
    return dict(zip(table[number].astype(int), table["cocoId"].astype(int), strict=True))


def name_stimuli(trials: pd.DataFrame, coco: Mapping[int, int] | None, root: Path) -> pd.DataFrame:
    """The trials with both names of what was shown: `coco_id`, and `stimulus`, the NSD number where the table is there."""
    known, column = (
        (coco or {}, "nsd_id")
        if "nsd_id" in trials
        else ({c: n for n, c in (coco or {}).items()}, "coco_id")
    )
    if coco is not None and (unknown := sorted(set(trials[column]) - set(known))):
        raise InputError(
            f"{root / INFO} does not list {len(unknown)} images that were shown, first {column} {unknown[0]}."
        )
    if column == "nsd_id":
        return trials.assign(
            stimulus=trials["nsd_id"].astype(str), coco_id=trials["nsd_id"].map(known)
        ).drop(columns=column)
    return trials.assign(
        stimulus=(trials["coco_id"].map(known) if known else trials["coco_id"]).astype(str)
    )


def read_conversations(
    cache: Path, tables: Mapping[str, pd.DataFrame], sources: Sequence[str] | None
) -> pd.DataFrame:
    """The conversations about these trials: of a `stimulus`, or (the image before) of a `subject` and `trial`.

    `answers` begins with what the conversation itself says; then come the other right answers, repetitions included.
    """
    files = {
        file.stem: file
        for file in sorted(cache.glob("*.json"), key=lambda f: (f.stem != FIRST, f.stem))
    }
    if unknown := sorted(set(sources or []) - set(files)):
        raise InputError(
            f"{cache} has no {', '.join(f'{s}.json' for s in unknown)}; it holds {', '.join(files) or 'none'}."
        )
    if not files:
        raise InputError(
            f"{cache} has no instruction files (*.json): without text, trials cannot be trained on or scored."
        )
    stimuli = {
        int(c): s for t in tables.values() for c, s in zip(t["coco_id"], t["stimulus"], strict=True)
    }
    trials = {
        f"subject_{int(subject[4:])}-{'train' if split == 'val' else split}-{key}": (subject, row)
        for subject, table in tables.items()
        for row, (split, key) in enumerate(zip(table["split"], table["key"], strict=True))
    }
    rows = []
    for name in sources or files:
        for number, sample in enumerate(read_samples(files[name])):
            where = f"{files[name]}, sample {number}"
            try:
                stimulus = stimuli.get(int(sample["coco_id"])) if "coco_id" in sample else None
                subject, trial = (
                    (None, None)
                    if "coco_id" in sample
                    else trials.get(sample["sample_id"], (None, None))
                )
                if stimulus is None and subject is None:
                    continue  # about an image or a person that is not here
                turns = [{"role": t["role"], "content": t["content"]} for t in sample["chat"]]
                rows.append(
                    (
                        stimulus,
                        subject,
                        trial,
                        sample["from"],
                        turns,
                        right(turns, sample.get("answers")),
                    )
                )
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{where} is not as published ({type(error).__name__}: {error}); expected `coco_id` or `sample_id`, `from`, `chat`, `answers`."
                ) from error
            try:
                check_conversation(turns)
            except InputError as error:
                raise InputError(f"{where}: {error}") from error
    table = pd.DataFrame(
        rows, columns=["stimulus", "subject", "trial_index", "source", "turns", "answers"]
    )
    return table.astype({"trial_index": "Int64"})


def read_samples(file: Path) -> list[dict[str, Any]]:
    """The samples of an instruction file."""
    try:
        samples = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is damaged or truncated ({error}). Fetch it again.") from error
    if not isinstance(samples, list):
        raise InputError(f"{file} holds {type(samples).__name__}; expected a list of samples.")
    return samples


def right(turns: Sequence[Mapping[str, str]], answers: Any) -> list[str]:
    """The right answers as a flat list, the last one of the conversation first."""
    own = [turn["content"] for turn in turns if turn["role"] == "assistant"][-1]

    def flat(part: Any) -> list[str]:
        return (
            [part]
            if isinstance(part, str)
            else [text for each in part or [] for text in flat(each)]
        )

    others = flat(answers)
    if own in others:
        others.remove(own)
    return [own, *others]
