"""Quality control of a store: checks that would show common faults of preparation."""

from __future__ import annotations

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

N_SAMPLED_TRIALS = 256  # per subject
N_PAIRS = 400  # of trials compared, per subject
MIN_REPEATED_STIMULI = 8
MAX_BETA_RATIO = 1000  # of the largest beta to the median
MAX_EXCLUDED = 0.3  # of the volumes of a run
MAX_VARIANCE_INFLATION = 50  # of a beta, by the other regressors
MNI_BOX_MM = np.array([[-90, 91], [-126, 91], [-72, 109]])  # of the template
SIDES = {
    -1: re.compile(r"(^|[_\W])(l|lh|left)([_\W]|$)", re.I),
    1: re.compile(r"(^|[_\W])(r|rh|right)([_\W]|$)", re.I),
}


@dataclass(frozen=True)
class QCResult:
    """One check.

    Parameters
    ----------
    subject : str
        Empty for a check over all subjects.
    name : str
        What is checked.
    passed : bool
    message : str
        What was measured and, if it did not pass, what to do.
    """

    subject: str
    name: str
    passed: bool
    message: str


def group_results(checks: Sequence[QCResult]) -> list[QCResult]:
    """Failed checks first, subject by subject; then passed ones, one line for all subjects."""
    passed: dict[str, list[QCResult]] = {}
    for check in checks:
        if check.passed:
            passed.setdefault(check.name, []).append(check)
    lines = []
    for name, group in passed.items():
        first = group[0]
        subjects = f"{len(group)} subjects; {first.subject}" if len(group) > 1 else first.subject
        lines.append(QCResult(subjects, name, True, first.message))
    return [*(check for check in checks if not check.passed), *lines]


def check_subject(store: Store, subject: str, rng: np.random.Generator) -> list[QCResult]:
    """All checks of one subject.

    Parameters
    ----------
    store : Store
    subject : str
    rng : numpy.random.Generator
        Draws the trials that are read.

    Returns
    -------
    list of QCResult
    """
    return [
        *check_coordinates(store, subject),
        *check_betas(store, subject, rng),
        *check_repetitions(store, subject, rng),
    ]


def check_store(store: Store) -> list[QCResult]:
    """All checks over subjects.

    Parameters
    ----------
    store : Store

    Returns
    -------
    list of QCResult
    """
    return [check_leak(store), check_text(store)]


def check_coordinates(store: Store, subject: str) -> list[QCResult]:
    """Whether voxels lie in the template's brain, and left and right parcels on their side."""
    masker = store.masker(subject)
    inside = ((masker.coords_mm > MNI_BOX_MM[:, 0]) & (masker.coords_mm < MNI_BOX_MM[:, 1])).all(1)
    grey = (grey_matter_probability(masker.coords_mm) > 0.1).mean()
    passed = bool(inside.all() and grey > 0.3)
    message = (
        f"{grey:.0%} of the voxels are where the template has grey matter, "
        f"{(~inside).sum()} outside its box"
    )
    if not passed:
        message += (
            "; are the positions MNI millimetres? A wrong affine or native space looks like this"
        )
    results = [QCResult(subject, "voxels lie in the MNI brain", passed, message)]
    for atlas in masker.parcel_labels:
        results += check_sides(store, subject, atlas)
    return results


def check_sides(store: Store, subject: str, atlas: str) -> list[QCResult]:
    """Whether parcels called left or right lie there; nothing if no parcel is called so."""
    masker = store.masker(subject)
    labels, names = masker.parcel_labels[atlas], masker.parcel_names[atlas]
    if not any(pattern.search(name) for name in names.values() for pattern in SIDES.values()):
        return []
    wrong = []
    for label in np.setdiff1d(labels, 0).tolist():
        x_mm = float(np.median(masker.coords_mm[labels == label, 0]))
        wrong += [
            names[label]
            for side, pattern in SIDES.items()
            if pattern.search(names[label]) and x_mm * side < -2
        ]
    message = "left is left"
    if wrong:
        message = (
            f"{len(wrong)} parcels lie on the other side, first {wrong[0]}; is a file mirrored?"
        )
    return [QCResult(subject, f"sides of {atlas}", not wrong, message)]


def check_betas(store: Store, subject: str, rng: np.random.Generator) -> list[QCResult]:
    """Whether sampled trials are finite and in range, voxels vary, and sessions differ."""
    trials, betas = store.trials(subject), store.betas(subject)
    rows = np.sort(rng.permutation(len(trials))[:N_SAMPLED_TRIALS])
    values = np.asarray(betas[rows], np.float32)
    bad = int((~np.isfinite(values)).any(1).sum())
    highest = float(np.abs(values).max() / (np.median(np.abs(values)) or 1.0))
    message = (
        f"{len(values)} trials looked at, {bad} with NaN or infinity; "
        f"the largest beta is {highest:.0f} times the median"
    )
    results = [QCResult(subject, "betas", not bad and highest < MAX_BETA_RATIO, message)]
    if not store.meta.get("standardized"):
        results += check_standardization(store, subject)
    return [*results, check_sessions(store, subject)]


def check_standardization(store: Store, subject: str) -> list[QCResult]:
    """Whether voxels vary, and what the subject is standardized with."""
    scaler, trials = store.scaler(subject), store.trials(subject)
    constant = int((scaler.std == 0).all(0).sum())
    varies = constant < 0.05 * len(store.masker(subject))
    message = f"{constant} voxels never vary and count as 0"
    results = [QCResult(subject, "voxels vary", varies, message)]
    n_train = trials[trials["split"] == "train"].groupby("session").size()
    n_train = n_train.reindex(trials["session"].unique(), fill_value=0)
    short = n_train[n_train < MIN_TRIALS].index.tolist()
    message = f"standardized with {scaler.fitted_on}, session by session"
    if short:
        listed = f"{', '.join(short[:5])}{'...' if len(short) > 5 else ''}"
        message = (
            f"standardized with {scaler.fitted_on}; the sessions {listed} have fewer than "
            f"{MIN_TRIALS} training trials and take those of all sessions"
        )
    on_training = scaler.fitted_on == "training trials"
    return [*results, QCResult(subject, "standardization", on_training, message)]


def check_sessions(store: Store, subject: str) -> QCResult:
    """Whether the first trials of sessions differ: a session may be a copy of another."""
    trials, betas = store.trials(subject), store.betas(subject)
    first = trials.reset_index(drop=True).groupby("session", sort=False).head(1).index
    copies = [
        int(row)
        for n, row in enumerate(first)
        for earlier in first[:n]
        if (betas[row] == betas[earlier]).all()
    ]
    message = f"{len(first)} different ones"
    if copies:
        message = (
            f"the session that begins with trial {copies[0]} is a copy of another; fetch it again"
        )
    return QCResult(subject, "sessions", not copies, message)


def check_repetitions(store: Store, subject: str, rng: np.random.Generator) -> list[QCResult]:
    """Whether repetitions of a stimulus correlate more than trials of different stimuli."""
    name = "trials belong to their stimuli"
    trials = store.trials(subject).reset_index(drop=True)
    stimuli = trials["stimulus"].to_numpy()
    groups = [rows for rows in trials.groupby("stimulus").indices.values() if len(rows) > 1]
    if len(groups) < MIN_REPEATED_STIMULI:
        message = (
            f"not checked: {len(groups)} stimuli were shown more than once, "
            f"and {MIN_REPEATED_STIMULI} are needed"
        )
        return [QCResult(subject, name, True, message)]
    drawn = rng.permutation(len(groups))[:N_PAIRS]
    pairs = np.array([rng.choice(groups[i], 2, replace=False) for i in drawn])
    others = np.stack([pairs[:, 0], np.roll(pairs[:, 1], 1)], 1)
    others = others[stimuli[others[:, 0]] != stimuli[others[:, 1]]]
    same, different = (pattern_correlation(store, subject, rows) for rows in (pairs, others))
    error = float(np.sqrt(same.var() / len(same) + different.var() / len(different)))
    gap = float(same.mean() - different.mean())
    message = (
        f"two trials of a stimulus correlate {same.mean():.3f}, of different ones "
        f"{different.mean():.3f} ({gap / max(error, 1e-12):.1f} standard errors apart)"
    )
    passed = gap > 2 * error
    if not passed:
        message += "; is the table of trials shifted, or another subject's?"
    return [QCResult(subject, name, passed, message)]


def pattern_correlation(store: Store, subject: str, pairs: np.ndarray) -> np.ndarray:
    """Correlation over voxels (n_pairs,) of the standardized betas of pairs of trials (n, 2)."""
    correlations = []
    for chunk in np.array_split(pairs, max(1, len(pairs) // 64)):
        a, b = (
            store.betas(subject, chunk[:, side], standardize=True).astype(np.float64)
            for side in (0, 1)
        )
        a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        norm = np.maximum(np.sqrt((a**2).sum(1) * (b**2).sum(1)), 1e-12)
        correlations.append((a * b).sum(1) / norm)
    return np.concatenate(correlations)


def check_runs(runs: pd.DataFrame | None) -> list[QCResult]:
    """Whether the single-trial models of runs tell trials apart; nothing without such models.

    Parameters
    ----------
    runs : DataFrame or None
        As `Store.runs`.

    Returns
    -------
    list of QCResult
    """
    columns = {"excluded_fraction", "n_dropped_trials", "max_variance_inflation"}
    if runs is None or not columns <= set(runs):
        return []
    excluded, inflation = runs["excluded_fraction"], runs["max_variance_inflation"]
    keys = zip(runs["subject"], runs["session"], runs["run"])
    labels = [f"{subject}, session {session}, run {run}" for subject, session, run in keys]
    passed = bool(excluded.max() <= MAX_EXCLUDED and inflation.max() <= MAX_VARIANCE_INFLATION)
    message = (
        f"{len(runs)} runs, {runs['n_dropped_trials'].sum()} trials left out; at most "
        f"{excluded.max():.0%} of the volumes excluded ({labels[excluded.argmax()]}); the other "
        f"regressors increase the variance of a beta at most {inflation.max():.0f} times "
        f"({labels[inflation.argmax()]})"
    )
    if not passed:
        message += "; leave such runs out, or take fewer confounds"
    return [QCResult("", "single-trial models", passed, message)]


def check_leak(store: Store) -> QCResult:
    """Whether no stimulus is both trained on and tested."""
    name = "no stimulus on both sides of the split"
    trials = {subject: store.trials(subject) for subject in store.subjects}
    try:
        check_splits(trials)
    except InputError as error:
        by_subject = store.split.get("by") == "subject"
        reason = " (a split by subject, so stimuli are shared)" if by_subject else ""
        return QCResult("", name, by_subject, f"{error}{reason}")
    stimuli = pd.concat(trials.values()).drop_duplicates("stimulus")
    counts = stimuli["split"].value_counts().to_dict()
    return QCResult("", name, True, ", ".join(f"{n} stimuli in {k}" for k, n in counts.items()))


def check_text(store: Store) -> QCResult:
    """Whether every stimulus that was presented has text."""
    presented = set(pd.concat([store.trials(s) for s in store.subjects])["stimulus"])
    without = presented - set(store.conversations["stimulus"].dropna())
    message = f"all {len(presented)} stimuli have text"
    if without:
        message = (
            f"{len(without)} of {len(presented)} stimuli have no text; "
            "add some: mindllm prepare instructions"
        )
    return QCResult("", "text about the stimuli", not without, message)
