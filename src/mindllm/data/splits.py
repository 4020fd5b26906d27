"""Which trials train, choose and test: one split for all people of a stimulus, unless it is by people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mindllm.utils.errors import InputError

SPLITS = ("train", "val", "test", "unused")
DEFAULT_SPLIT = "default"  # the split of the trials tables
Tables = Mapping[str, pd.DataFrame]  # subject -> trials


def check_splits(trials: Mapping[str, pd.DataFrame]) -> None:
    """Raise InputError if any stimulus stands in two splits, for one subject or across subjects."""
    table = pd.concat([t[["stimulus", "split"]].assign(subject=s) for s, t in trials.items()])
    kinds = table[table["split"] != "unused"].groupby("stimulus")["split"].nunique()
    leaked = kinds[kinds > 1].index
    if len(leaked):
        where = table[table["stimulus"] == leaked[0]].drop_duplicates()
        raise InputError(
            f"{len(leaked)} stimuli stand in two splits, first {leaked[0]!r}: {', '.join(f'{r.split} ({r.subject})' for r in where.head(4).itertuples())}. Give every stimulus one split for all subjects."
        )


def split_stimuli(
    stimuli: Sequence[str], fractions: Mapping[str, float], seed: int = 0
) -> dict[str, str]:
    """Stimulus -> split, drawn at random: `fractions` of the stimuli go to each split named, the rest to train."""
    if (
        not sum(fractions.values()) < 1
        or min(fractions.values(), default=0) < 0
        or set(fractions) - {"val", "test"}
    ):
        raise InputError(
            f"split fractions {dict(fractions)}: expected shares of val and test that sum to less than 1."
        )
    order = np.random.default_rng(seed).permutation(sorted(set(stimuli)))
    out, start = dict.fromkeys(order.tolist(), "train"), 0
    for split, fraction in fractions.items():
        count = round(fraction * len(order))
        if fraction and not count:
            raise InputError(
                f"{fraction} of {len(order)} stimuli leaves the split {split} empty; take a larger share."
            )
        out.update(dict.fromkeys(order[start : start + count].tolist(), split))
        start += count
    if "train" not in out.values():
        raise InputError(
            f"{dict(fractions)} of {len(order)} stimuli leaves the split train empty; take smaller shares."
        )
    return out


def hold_out_validation(trials: Tables, fraction: float, seed: int) -> dict[str, pd.DataFrame]:
    """The trials with a share of the training stimuli, drawn at random, as validation."""
    if not fraction:
        return dict(trials)
    train = pd.concat(trials.values()).query("split == 'train'")["stimulus"].unique().tolist()
    drawn = {
        name
        for name, split in split_stimuli(train, {"val": fraction}, seed).items()
        if split == "val"
    }
    return {
        s: t.assign(split=t["split"].mask(t["stimulus"].isin(drawn), "val"))
        for s, t in trials.items()
    }


def split_by_stimulus(
    trials: Tables, fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Subject -> the split of each trial: shares of the stimuli, drawn at random."""
    names = pd.concat(trials.values())["stimulus"].unique().tolist()
    assigned = split_stimuli(names, fractions, seed)
    return {
        subject: table["stimulus"].map(assigned).to_numpy(str) for subject, table in trials.items()
    }


def split_by_cluster(
    trials: Tables, clusters: Mapping[str, int], fractions: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Whole clusters of stimuli to each split, drawn at random until it holds its share of the stimuli (or just more).

    clusters: stimulus -> cluster; trials of other stimuli, of which nothing is known, are left unused.
    """
    sizes = Counter(clusters.values())
    split_stimuli(
        list(map(str, sizes)), fractions, seed
    )  # refuses shares that leave a split without a cluster
    left = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    found: dict[int, str] = {}
    for split, fraction in fractions.items():
        held = 0
        while left and held < fraction * len(clusters):
            held += sizes[left[-1]]
            found[left.pop()] = split
    if not left:
        raise InputError(
            f"{len(sizes)} clusters are too few for the shares {dict(fractions)}; take more clusters."
        )
    assigned = {stimulus: found.get(cluster, "train") for stimulus, cluster in clusters.items()}
    return {
        s: table["stimulus"].map(assigned).fillna("unused").to_numpy(str)
        for s, table in trials.items()
    }


def split_by_subject(
    trials: Tables, subjects_by_split: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """The people named for `test` alone are tested, those for `val` choose the checkpoint, all others train as before.

    Who is tested is tested on their own test trials, where they have any, else on all trials; nothing else of them is used.
    """
    whose = {subject: split for split, names in subjects_by_split.items() for subject in names}
    if unknown := sorted(set(whose) - set(trials)):
        raise InputError(
            f"there is no subject {', '.join(unknown)}; there are {', '.join(trials)}."
        )
    if not whose or len(whose) < sum(map(len, subjects_by_split.values())):
        raise InputError(
            f"name people for test or val, each for one of them; found {dict(subjects_by_split) or 'nobody'}."
        )
    if not set(trials) - set(whose):
        raise InputError(
            f"all {len(trials)} subjects were named for {', '.join(subjects_by_split)}; leave some to train on."
        )
    out = {}
    for subject, table in trials.items():
        out[subject] = table["split"].to_numpy(str)
        if subject not in whose and subjects_by_split.get("test"):
            out[subject] = np.where(out[subject] == "test", "unused", out[subject])
        if split := whose.get(subject):
            pool = np.isin(out[subject], ["test"] if split == "test" else ["train", "val"])
            out[subject] = np.where(pool if pool.any() else True, split, "unused")
    return out


def split_by_sessions(
    trials: Tables, count: int, subjects: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """The first `count` sessions of these people (None: all) train, as do the trials of all others; what they test stays.

    One hour of scanning is about one session.
    """
    out = {}
    for subject, table in trials.items():
        own = table["split"].to_numpy(str)
        if subject in (subjects or trials):
            order = (
                table["session"].unique().tolist()
            )  # trials stand in the order of their sessions
            if not 0 < count <= len(order):
                raise InputError(
                    f"{subject} has {len(order)} sessions; the first {count} were asked for."
                )
            late = ~table["session"].isin(order[:count]).to_numpy()
            own = np.where(late & (own == "train"), "unused", own)
        out[subject] = own
    if all(
        (split == trials[subject]["split"].to_numpy(str)).all() for subject, split in out.items()
    ):
        raise InputError(
            f"training on the first {count} sessions changes nothing here: no later session trains."
        )
    return out


def describe_split(split: Mapping[str, Any]) -> str:
    """What a split is, for a report: its name, and the rule it was made by."""
    if "by" not in split:
        return str(split["name"])
    shares = ", ".join(f"{share:g} to {name}" for name, share in split.get("fractions", {}).items())
    rule = {
        "stimulus": f"stimuli drawn at random, {shares}",
        "cluster": f"whole clusters of stimuli of like meaning, {split.get('clusters')} in all, {shares}; median cosine of a test stimulus to the nearest training stimulus {split.get('similarity') or float('nan'):.2f}, in a random split {split.get('similarity_of_a_random_split') or float('nan'):.2f}"
        + (f", before {split['similarity_before']:.2f}" if split.get("similarity_before") else ""),
        "subject": "people left out: "
        + "; ".join(f"{name} {', '.join(w)}" for name, w in split.get("people", {}).items()),
        "sessions": f"the first {split.get('sessions')} sessions of {', '.join(split.get('subjects', []))} for training",
    }[split["by"]]
    return f"{split['name']} ({rule}; made from the split {split['from']})"
