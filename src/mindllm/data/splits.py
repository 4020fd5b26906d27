"""Which trials train, validate and test: rules that give every trial a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mindllm.utils.errors import InputError

SPLITS = ("train", "val", "test", "unused")
DEFAULT_SPLIT = "default"  # the split of the trials tables
Tables = Mapping[str, pd.DataFrame]  # subject -> trials
SplitBySubject = dict[str, np.ndarray]  # subject -> split of each trial


def check_splits(trials: Tables) -> None:
    """Refuse a stimulus in two splits, for one subject or across subjects.

    Parameters
    ----------
    trials : mapping from str to DataFrame
        Subject to trials with the columns stimulus and split.

    Raises
    ------
    InputError
        If a stimulus is in two of train, val and test.
    """
    table = pd.concat([t[["stimulus", "split"]].assign(subject=s) for s, t in trials.items()])
    counts = table[table["split"] != "unused"].groupby("stimulus")["split"].nunique()
    leaked = counts[counts > 1].index
    if not len(leaked):
        return
    rows = table[table["stimulus"] == leaked[0]].drop_duplicates().head(4)
    where = ", ".join(f"{row.split} ({row.subject})" for row in rows.itertuples())
    raise InputError(
        f"{len(leaked)} stimuli stand in two splits, first {leaked[0]!r}: {where}. "
        "Give every stimulus one split for all subjects."
    )


def split_stimuli(
    stimuli: Sequence[str], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, str]:
    """Assign stimuli to splits at random.

    Parameters
    ----------
    stimuli : sequence of str
    fractions : mapping from str to float
        Fraction of the stimuli for "val" and "test"; the rest trains.
    seed : int

    Returns
    -------
    dict of str to str
        Stimulus to split.

    Raises
    ------
    InputError
        If fractions are out of range or leave a split empty.

    Examples
    --------
    >>> sorted(split_stimuli(["a", "b", "c", "d"], {"test": 0.25}).values())
    ['test', 'train', 'train', 'train']
    """
    in_range = sum(fractions.values()) < 1 and min(fractions.values(), default=0) >= 0
    if not in_range or set(fractions) - {"val", "test"}:
        raise InputError(
            f"split fractions {dict(fractions)}: "
            "expected shares of val and test that sum to less than 1."
        )
    order = np.random.default_rng(seed).permutation(sorted(set(stimuli))).tolist()
    assigned, start = dict.fromkeys(order, "train"), 0
    for split, fraction in fractions.items():
        count = round(fraction * len(order))
        if fraction and not count:
            raise InputError(
                f"{fraction} of {len(order)} stimuli leaves the split {split} empty; "
                "take a larger share."
            )
        assigned.update(dict.fromkeys(order[start : start + count], split))
        start += count
    if "train" not in assigned.values():
        raise InputError(
            f"{dict(fractions)} of {len(order)} stimuli leaves the split train empty; "
            "take smaller shares."
        )
    return assigned


def hold_out_validation(trials: Tables, fraction: float, seed: int) -> dict[str, pd.DataFrame]:
    """Move a fraction of the training stimuli, drawn at random, to validation."""
    if not fraction:
        return dict(trials)
    train = pd.concat(trials.values()).query("split == 'train'")["stimulus"].unique().tolist()
    assigned = split_stimuli(train, {"val": fraction}, seed)
    held_out = {stimulus for stimulus, split in assigned.items() if split == "val"}
    return {
        subject: table.assign(split=table["split"].mask(table["stimulus"].isin(held_out), "val"))
        for subject, table in trials.items()
    }


def draw_splits(
    trials: Tables, fractions: Mapping[str, float], seed: int
) -> dict[str, pd.DataFrame]:
    """Trials with a column `split`, which is drawn by stimulus; see `split_stimuli`."""
    splits = split_by_stimulus(trials, fractions, seed)
    return {subject: table.assign(split=splits[subject]) for subject, table in trials.items()}


def split_by_stimulus(trials: Tables, fractions: Mapping[str, float], seed: int) -> SplitBySubject:
    """Fractions of the stimuli, drawn at random; see `split_stimuli`."""
    stimuli = pd.concat(trials.values())["stimulus"].unique().tolist()
    assigned = split_stimuli(stimuli, fractions, seed)
    return {s: table["stimulus"].map(assigned).to_numpy(str) for s, table in trials.items()}


def split_by_cluster(
    trials: Tables, clusters: Mapping[str, int], fractions: Mapping[str, float], seed: int
) -> SplitBySubject:
    """Whole clusters of stimuli, drawn at random until a split holds its fraction, or just more.

    Parameters
    ----------
    trials : mapping from str to DataFrame
    clusters : mapping from str to int
        Stimulus to cluster; trials of other stimuli are unused.
    fractions : mapping from str to float
    seed : int

    Returns
    -------
    dict of str to ndarray
        Subject to the split of each trial.

    Raises
    ------
    InputError
        If there are too few clusters.
    """
    sizes = Counter(clusters.values())
    split_stimuli(list(map(str, sizes)), fractions, seed)  # refuses an empty split
    left = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    of_cluster: dict[int, str] = {}
    for split, fraction in fractions.items():
        n_stimuli = 0
        while left and n_stimuli < fraction * len(clusters):
            n_stimuli += sizes[left[-1]]
            of_cluster[left.pop()] = split
    if not left:
        raise InputError(
            f"{len(sizes)} clusters are too few for the shares {dict(fractions)}; "
            "take more clusters."
        )
    assigned = {stimulus: of_cluster.get(c, "train") for stimulus, c in clusters.items()}
    return {
        subject: table["stimulus"].map(assigned).fillna("unused").to_numpy(str)
        for subject, table in trials.items()
    }


def split_by_subject(
    trials: Tables, subjects_by_split: Mapping[str, Sequence[str]]
) -> SplitBySubject:
    """Leave subjects out of training.

    Subjects of "test" alone are tested, those of "val" choose the checkpoint, others train as
    before. A left-out subject is tested on its own test trials if it has any, else on all.

    Parameters
    ----------
    trials : mapping from str to DataFrame
    subjects_by_split : mapping from str to sequence of str

    Returns
    -------
    dict of str to ndarray
        As `split_by_cluster`; trials that are in no split any more are unused.

    Raises
    ------
    InputError
        If a subject is unknown or listed twice, or none is left to train on.
    """
    split_of = {subject: split for split, names in subjects_by_split.items() for subject in names}
    check_left_out(trials, split_of, subjects_by_split)
    assigned = {}
    for subject, table in trials.items():
        splits = table["split"].to_numpy(str)
        if subject not in split_of and subjects_by_split.get("test"):
            splits = np.where(splits == "test", "unused", splits)
        if split := split_of.get(subject):
            pool = np.isin(splits, ["test"] if split == "test" else ["train", "val"])
            splits = np.where(pool if pool.any() else True, split, "unused")
        assigned[subject] = splits
    return assigned


def check_left_out(
    trials: Tables, split_of: Mapping[str, str], subjects_by_split: Mapping[str, Sequence[str]]
) -> None:
    """Refuse unknown or repeated subjects, and a split that leaves no subject to train on."""
    if unknown := sorted(set(split_of) - set(trials)):
        raise InputError(
            f"there is no subject {', '.join(unknown)}; there are {', '.join(trials)}."
        )
    if not split_of or len(split_of) < sum(map(len, subjects_by_split.values())):
        raise InputError(
            "name subjects for test or val, each for one of them; "
            f"found {dict(subjects_by_split) or 'nobody'}."
        )
    if not set(trials) - set(split_of):
        raise InputError(
            f"all {len(trials)} subjects were named for {', '.join(subjects_by_split)}; "
            "leave some to train on."
        )


def split_by_sessions(
    trials: Tables, count: int, subjects: Sequence[str] | None = None
) -> SplitBySubject:
    """Train on the first sessions of some subjects; what they test stays.

    Parameters
    ----------
    trials : mapping from str to DataFrame
    count : int
        Sessions that train; one hour of scanning is about one session.
    subjects : sequence of str, optional
        All subjects by default; others train on everything.

    Returns
    -------
    dict of str to ndarray
        As `split_by_cluster`; training trials of later sessions are unused.

    Raises
    ------
    InputError
        If there are not so many sessions, or nothing changes.
    """
    assigned, changed = {}, False
    for subject, table in trials.items():
        splits = table["split"].to_numpy(str)
        if subject in (subjects or trials):
            sessions = table["session"].unique().tolist()  # in the order of the trials
            if not 0 < count <= len(sessions):
                raise InputError(
                    f"{subject} has {len(sessions)} sessions; the first {count} were asked for."
                )
            later = ~table["session"].isin(sessions[:count]).to_numpy()
            dropped = later & (splits == "train")
            changed |= bool(dropped.any())
            splits = np.where(dropped, "unused", splits)
        assigned[subject] = splits
    if not changed:
        raise InputError(
            f"training on the first {count} sessions changes nothing here: no later session trains."
        )
    return assigned


def describe_split(split: Mapping[str, Any]) -> str:
    """A split's name and the rule that made it, for a report."""
    if "by" not in split:
        return str(split["name"])
    fractions = ", ".join(f"{f:g} to {name}" for name, f in split.get("fractions", {}).items())
    rules = {
        "stimulus": lambda: f"stimuli drawn at random, {fractions}",
        "cluster": lambda: describe_clusters(split, fractions),
        "subject": lambda: (
            "subjects left out: "
            + "; ".join(f"{s} {', '.join(n)}" for s, n in split["subjects_by_split"].items())
        ),
        "sessions": lambda: (
            f"the first {split['sessions']} sessions of {', '.join(split['subjects'])} for training"
        ),
    }
    return f"{split['name']} ({rules[split['by']]()}; made from the split {split['from']})"


def describe_clusters(split: Mapping[str, Any], fractions: str) -> str:
    """The rule of a split by cluster, with how far test stimuli are from training stimuli."""

    def cosine(name: str) -> str:
        return f"{split.get(name) or float('nan'):.2f}"

    before = f", before {cosine('similarity_before')}" if split.get("similarity_before") else ""
    return (
        f"whole clusters of stimuli of like meaning, {split['clusters']} in all, {fractions}; "
        "median cosine of a test stimulus to the nearest training stimulus "
        f"{cosine('similarity')}, in a random split {cosine('similarity_of_a_random_split')}"
        f"{before}"
    )
