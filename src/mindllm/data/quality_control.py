"""Whether a store looks right: what goes wrong in preparing data, looked for in the data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mindllm.data.splits import check_splits
from mindllm.data.store import Store
from mindllm.fmri.scaling import MIN_TRIALS
from mindllm.fmri.templates import grey_matter_probability
from mindllm.utils.errors import InputError

SAMPLE = 256  # trials read per person
PAIRS = 400  # pairs of trials compared per person
MNI_MM = np.array([[-90, 91], [-126, 91], [-72, 109]])  # the template's box
SIDES = {
    -1: re.compile(r"(^|[_\W])(l|lh|left)([_\W]|$)", re.I),
    1: re.compile(r"(^|[_\W])(r|rh|right)([_\W]|$)", re.I),
}


@dataclass(frozen=True)
class QCResult:
    """One thing that was looked at: in whom (all: ""), what, whether it is as it should be, and what was found, with what to do."""

    subject: str
    name: str
    passed: bool
    message: str


def group_results(checks: Sequence[QCResult]) -> list[QCResult]:
    """What is odd, person by person, first; then what is fine, everybody's in one line."""
    fine = {
        check.name: [c for c in checks if c.passed and c.name == check.name]
        for check in checks
        if check.passed
    }
    lines = []
    for name, some in fine.items():
        whose = f"{len(some)} people; {some[0].subject}" if len(some) > 1 else some[0].subject
        lines.append(QCResult(whose, name, True, some[0].message))
    return [*(check for check in checks if not check.passed), *lines]


def check_subject(store: Store, subject: str, rng: np.random.Generator) -> list[QCResult]:
    """One person's voxels, betas and repeats."""
    return [
        *check_coordinates(store, subject),
        *check_betas(store, subject, rng),
        *check_repetitions(store, subject, rng),
    ]


def check_store(store: Store) -> list[QCResult]:
    """What is looked at over all people."""
    return [check_leak(store), check_text(store)]


def check_coordinates(store: Store, subject: str) -> list[QCResult]:
    """Whether voxels lie in the template's brain, and regions named left or right on their side."""
    space = store.masker(subject)
    inside = ((space.coords_mm > MNI_MM[:, 0]) & (space.coords_mm < MNI_MM[:, 1])).all(1)
    grey = (grey_matter_probability(space.coords_mm) > 0.1).mean()
    out = [
        QCResult(
            subject, "voxels lie in the MNI brain", bool(inside.all() and grey > 0.3),
            f"{grey:.0%} of the voxels are where the template has grey matter, {(~inside).sum()} outside its box"
            + ("" if inside.all() and grey > 0.3 else "; are the positions MNI millimetres? A wrong affine or native space looks like this"),
        )
    ]  # fmt: skip
    for p, numbers in space.parcel_labels.items():
        wrong = []
        for number in np.setdiff1d(numbers, 0).tolist():
            name = space.parcel_names[p][number]
            x = float(np.median(space.coords_mm[numbers == number, 0]))
            wrong += [name for side, words in SIDES.items() if words.search(name) and x * side < -2]
        if wrong or any(
            words.search(name)
            for name in space.parcel_names[p].values()
            for words in SIDES.values()
        ):
            found = (
                f"{len(wrong)} regions lie on the other side, first {wrong[0]}; is a file mirrored?"
                if wrong
                else "left is left"
            )
            out.append(QCResult(subject, f"sides of {p}", not wrong, found))
    return out


def check_betas(store: Store, subject: str, rng: np.random.Generator) -> list[QCResult]:
    """Whether a sample of trials is finite and not far out, sessions are different ones, and voxels vary."""
    trials, betas = store.trials(subject), store.betas(subject)
    values = np.asarray(betas[np.sort(rng.permutation(len(trials))[:SAMPLE])], np.float32)
    bad = int((~np.isfinite(values)).any(1).sum())
    spread = np.median(np.abs(values)) or 1.0
    highest = float(np.abs(values).max() / spread)
    fine = not bad and highest < 1000
    out = [QCResult(subject, "betas", fine, f"{len(values)} trials looked at, {bad} with NaN or infinity; the largest beta is {highest:.0f} times the median")]  # fmt: skip
    if not store.meta.get("standardized"):
        statistics = store.scaler(subject)
        dead = int((statistics.std == 0).all(0).sum())
        out.append(QCResult(subject, "voxels vary", dead < 0.05 * len(store.masker(subject)), f"{dead} voxels never vary and count as 0"))  # fmt: skip
        small = (
            trials[trials["split"] == "train"]
            .groupby("session")
            .size()
            .reindex(trials["session"].unique(), fill_value=0)
        )
        few = small[small < MIN_TRIALS].index.tolist()
        words = f"normalized with {statistics.fitted_on}" + (
            f"; the sessions {', '.join(few[:5])}{'...' if len(few) > 5 else ''} have fewer than {MIN_TRIALS} training trials and take those of all sessions" if few else ", session by session"
        )  # fmt: skip
        out.append(
            QCResult(subject, "normalization", statistics.fitted_on == "training trials", words)
        )
    first = trials.reset_index(drop=True).groupby("session", sort=False).head(1).index
    same = [
        int(row)
        for n, row in enumerate(first)
        for other in first[:n]
        if (betas[row] == betas[other]).all()
    ]
    found = (
        f"the session that begins with trial {same[0]} is a copy of another; fetch it again"
        if same
        else f"{len(first)} different ones"
    )
    return [*out, QCResult(subject, "sessions", not same, found)]


def check_repetitions(store: Store, subject: str, rng: np.random.Generator) -> list[QCResult]:
    """Whether two trials of one stimulus resemble each other more than two of different ones: the design fits the scans."""
    shown = store.trials(subject)["stimulus"].to_numpy()
    groups = [
        rows
        for rows in store.trials(subject)
        .reset_index(drop=True)
        .groupby("stimulus")
        .indices.values()
        if len(rows) > 1
    ]
    if len(groups) < 8:
        told = f"not checked: {len(groups)} stimuli were shown more than once, and 8 are needed"
        return [QCResult(subject, "trials belong to their stimuli", True, told)]
    pairs = np.array(
        [rng.choice(groups[i], 2, replace=False) for i in rng.permutation(len(groups))[:PAIRS]]
    )
    others = np.stack([pairs[:, 0], np.roll(pairs[:, 1], 1)], 1)
    others = others[shown[others[:, 0]] != shown[others[:, 1]]]

    def resemblance(rows: np.ndarray) -> np.ndarray:
        """Correlation over voxels of each pair of trials."""
        out = []
        for some in np.array_split(rows, max(1, len(rows) // 64)):
            a, b = (
                store.betas(subject, some[:, side], standardize=True).astype(np.float64)
                for side in (0, 1)
            )
            a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
            out.append((a * b).sum(1) / np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-12))
        return np.concatenate(out)

    same, other = resemblance(pairs), resemblance(others)
    error = float(np.sqrt(same.var() / len(same) + other.var() / len(other)))
    gap = float(same.mean() - other.mean())
    words = f"two trials of a stimulus correlate {same.mean():.3f}, of different ones {other.mean():.3f} ({gap / max(error, 1e-12):.1f} standard errors apart)"
    fine = gap > 2 * error
    return [QCResult(subject, "trials belong to their stimuli", fine, words + ("" if fine else "; is the table of trials shifted, or another person's?"))]  # fmt: skip


def check_leak(store: Store) -> QCResult:
    """Whether no stimulus is both trained on and tested."""
    trials = {subject: store.trials(subject) for subject in store.subjects}
    try:
        check_splits(trials)
    except InputError as error:
        return QCResult("", "no stimulus on both sides of the split", store.split.get("by") == "subject", f"{error} (a split by people, so stimuli are shared)" if store.split.get("by") == "subject" else str(error))  # fmt: skip
    counts = (
        pd.concat(trials.values()).drop_duplicates("stimulus")["split"].value_counts().to_dict()
    )
    return QCResult("", "no stimulus on both sides of the split", True, ", ".join(f"{n} stimuli in {k}" for k, n in counts.items()))  # fmt: skip


def check_text(store: Store) -> QCResult:
    """Whether every stimulus that was shown has text."""
    shown = set(pd.concat([store.trials(subject) for subject in store.subjects])["stimulus"])
    silent = shown - set(store.conversations["stimulus"].dropna())
    words = f"{len(silent)} of {len(shown)} stimuli have no text; add some: mindllm prepare instructions" if silent else f"all {len(shown)} stimuli have text"  # fmt: skip
    return QCResult("", "text about the stimuli", not silent, words)
