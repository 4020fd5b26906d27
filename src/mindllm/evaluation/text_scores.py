"""BLEU, METEOR, ROUGE-L and CIDEr of every condition's texts, with intervals."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions, MetricRow, SubjectPredictions
from mindllm.evaluation.score import N_RESAMPLES
from mindllm.metrics.captions import sentence_scores, tokenize
from mindllm.metrics.inference import bootstrap_interval
from mindllm.metrics.java import JavaError

TEXT_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
# Largest value of each; CIDEr-D as pycocoevalcap computes it is in [0, 10].
MAXIMA = np.array([1.0, 1, 1, 1, 1, 1, 10])
MEANS = TEXT_METRICS[4:]  # means over texts; METEOR's official value weighs texts by length
N_COLUMNS = 2 + 4 + 4 + len(MEANS)  # BLEU's lengths, predicted n-grams and matching n-grams
N_DRAWS = 3  # texts per trial, where a condition has many of which none is the trial's own
TokenLines = Mapping[str, str]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TextPairs:
    """Texts and references of B trials: of each trial one or more texts, and its references."""

    texts: Sequence[Sequence[str]]
    references: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Official scores (7,), and per trial (B, 13) what they are sums or means of."""

    scores: np.ndarray
    table: np.ndarray


def percent_factor(metric: str) -> float:
    """Return what turns a text score in [0, 1] into the number that papers print.

    Parameters
    ----------
    metric : str
        One of TEXT_METRICS.

    Returns
    -------
    float
        100; for CIDEr 1000, because its value is divided by 10.

    Examples
    --------
    >>> percent_factor("BLEU-4"), percent_factor("CIDEr")
    (100.0, 1000.0)
    """
    return 100.0 * float(MAXIMA[TEXT_METRICS.index(metric)])


def text_scores(
    subjects: Sequence[SubjectPredictions], task: EvaluationSet, seed: int = 0
) -> list[MetricRow]:
    """Score the texts of every condition. Needs Java.

    Parameters
    ----------
    subjects : sequence of SubjectPredictions
        Predictions of every condition.
    task : EvaluationSet
        References.
    seed : int
        Of the draws of texts and the bootstrap.

    Returns
    -------
    list of MetricRow
        For each subject, condition and score, and for ALL_SUBJECTS where there are several; values
        in [0, 1] (CIDEr / 10), None for METEOR where its program died. `human` is the stimulus'
        second reference, scored against the others, where every stimulus has two.

    Raises
    ------
    JavaError
        If the tokenizer dies; see `try_text_scores`.
    """
    pairs = {
        predictions.subject: text_pairs(predictions, task, [seed, n])
        for n, predictions in enumerate(subjects)
    }
    lines = tokenize_all(pairs)
    measured = {
        subject: {c: measure(pair.texts, pair.references, lines) for c, pair in by_name.items()}
        for subject, by_name in pairs.items()
    }
    targets = {p.subject: task.columns(p.stimuli)[1] for p in subjects}
    stimuli = {p.subject: p.stimuli for p in subjects}
    parts = [{subject: measured[subject]} for subject in measured]
    if len(measured) > 1:
        parts.append(measured)
    return [row for part in parts for row in summarize_text_scores(part, targets, stimuli, seed)]


def try_text_scores(
    subjects: Sequence[SubjectPredictions], task: EvaluationSet, seed: int = 0
) -> tuple[list[MetricRow], str | None]:
    """Score the texts of every condition as `text_scores`; where Java dies, return why instead.

    Parameters
    ----------
    subjects, task, seed
        As for `text_scores`.

    Returns
    -------
    rows : list of MetricRow
        Empty where Java dies, of which a warning is given.
    reason : str or None
        Why there are none.
    """
    try:
        return text_scores(subjects, task, seed), None
    except JavaError as error:
        logger.warning("text scores are left out: %s", error)
        return [], str(error)


def text_pairs(
    predictions: SubjectPredictions, task: EvaluationSet, seed: Sequence[int]
) -> dict[str, TextPairs]:
    """Return the texts and references of every condition of a subject, and of `human`."""
    by_stimulus = dict(zip(task.stimuli, task.references, strict=True))
    references = [by_stimulus[stimulus] for stimulus in predictions.stimuli]
    rng = np.random.default_rng(seed)
    pairs = {
        c: TextPairs(draw_texts(predicted, rng, CONDITIONS[c].kind == "blind"), references)
        for c, predicted in predictions.conditions.items()
        if c != "shuffled_within_session"
    }
    if all(len(set(texts)) > 1 for texts in task.references):
        others = [[text for text in texts if text != texts[1]] for texts in references]
        pairs["human"] = TextPairs([[texts[1]] for texts in references], others)
    return pairs


def tokenize_all(pairs: Mapping[str, Mapping[str, TextPairs]]) -> TokenLines:
    """Return every text that occurs to its tokens as one line."""
    texts = {
        text
        for by_name in pairs.values()
        for pair in by_name.values()
        for group in (*pair.texts, *pair.references)
        for text in group
    }
    tokens = tokenize({text: [text] for text in sorted(texts)})
    return {text: lines[0] for text, lines in tokens.items()}


def draw_texts(
    predictions: ConditionPredictions, rng: np.random.Generator, blind: bool
) -> list[list[str]]:
    """Return texts of each trial: its own; some of its group; or the first, where it is blind."""
    if predictions.groups is None:
        return [[text] for text in predictions.texts]
    row_groups, trial_groups = predictions.groups
    if blind:
        return [[predictions.texts[0]] for _ in trial_groups]
    rows = {group: np.flatnonzero(row_groups == group) for group in np.unique(trial_groups)}
    return [
        [predictions.texts[i] for i in rng.choice(rows[group], N_DRAWS)] for group in trial_groups
    ]


def measure(
    texts: Sequence[Sequence[str]], references: Sequence[Sequence[str]], lines: TokenLines
) -> TextStatistics:
    """Compute official scores and their parts per trial.

    Parameters
    ----------
    texts : sequence of sequence of str, length B
        Texts of each trial; their scores are averaged.
    references : sequence of sequence of str, length B
        References of each trial.
    lines : mapping of str to str
        Tokens of each text.

    Returns
    -------
    TextStatistics
        In the scorers' own range.
    """
    keys = [(i, draw) for i, group in enumerate(texts) for draw in range(len(group))]
    predicted = {f"{i}#{draw}": [lines[texts[i][draw]]] for i, draw in keys}
    targets = {f"{i}#{draw}": [lines[text] for text in references[i]] for i, draw in keys}
    total, per_text = sentence_scores(predicted, targets)
    table = np.zeros((len(texts), N_COLUMNS))
    bleu = BleuScorer(n=4)
    for key in predicted:
        bleu += (predicted[key][0], targets[key])
    for n, ((i, _), counts) in enumerate(zip(keys, bleu.ctest, strict=True)):
        length = counts["testlen"]
        closest = min((abs(other - length), other) for other in counts["reflen"])[1]
        means = [per_text[name][n] if name in per_text else np.nan for name in MEANS]
        row = [closest, length, *counts["guess"], *counts["correct"], *means]
        table[i] += np.array(row) / len(texts[i])
    return TextStatistics(np.array([total.get(name, np.nan) for name in TEXT_METRICS]), table)


def corpus_scores(sums: np.ndarray, n_trials: np.ndarray) -> np.ndarray:
    """Compute scores of summed statistics.

    Parameters
    ----------
    sums : ndarray of shape (R, 13)
        Sums over trials of the tables of `measure`.
    n_trials : ndarray of shape (R,)
        How many trials they are sums of.

    Returns
    -------
    ndarray of shape (R, 7)
        BLEU of the summed counts, as its scorer computes it; means of the others.

    References
    ----------
    BLEU: Papineni et al. 2002, ACL.
    """
    reference, length, guess, correct = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    precision = np.cumprod((correct + 1e-15) / (guess + 1e-9), axis=1) ** (1 / np.arange(1, 5))
    ratio = (length + 1e-15) / (reference + 1e-9)
    penalty = np.where(ratio < 1, np.exp(np.minimum(0, 1 - 1 / np.maximum(ratio, 1e-12))), 1.0)
    return np.concatenate([precision * penalty[:, None], sums[:, 10:] / n_trials[:, None]], 1)


def summarize_text_scores(
    measured: Mapping[str, Mapping[str, TextStatistics]],
    targets: Mapping[str, np.ndarray],
    stimuli: Mapping[str, np.ndarray],
    seed: int,
) -> list[MetricRow]:
    """Summarize the text scores of one subject, or of several.

    measured is by subject and condition; targets and stimuli are those of the trials (B,), by
    subject. Of several subjects, each score is the mean of theirs, and the interval is over
    subjects and answers.
    """
    subjects = list(measured)
    names = [c for c in measured[subjects[0]] if all(c in measured[s] for s in subjects)]
    value = np.stack([np.mean([measured[s][c].scores for s in subjects], 0) for c in names])
    low, high = text_intervals(measured, names, targets, seed)
    means = np.stack([np.mean([mean_scores(measured[s][c]) for s in subjects], 0) for c in names])
    moved = value - means  # from the mean over texts to the official value: of METEOR alone
    values = np.stack([value, value[:1] - value]) / MAXIMA
    lows, highs = (
        (side + np.stack([moved, moved[:1] - moved])) / MAXIMA for side in (low, high)
    )  # (2, conditions, 7): of the condition, and of fMRI minus it
    shown = np.concatenate([stimuli[s] for s in subjects])
    label = subjects[0] if len(subjects) == 1 else ALL_SUBJECTS
    return [
        MetricRow(
            subject=label,
            condition=condition,
            metric=metric,
            value=finite_or_none(values[0, n, m]),
            ci_low=finite_or_none(lows[0, n, m]),
            ci_high=finite_or_none(highs[0, n, m]),
            chance_level=None,
            n_trials=len(shown),
            n_subjects=len(subjects),
            difference=finite_or_none(values[1, n, m]) if condition != "fmri" else None,
            difference_ci_low=finite_or_none(lows[1, n, m]) if condition != "fmri" else None,
            difference_ci_high=finite_or_none(highs[1, n, m]) if condition != "fmri" else None,
            n_stimuli=len(np.unique(shown)),
        )
        for n, condition in enumerate(names)
        for m, metric in enumerate(TEXT_METRICS)
    ]


def finite_or_none(value: float) -> float | None:
    """Return a number as it is saved; None for one that was not measured."""
    return float(value) if np.isfinite(value) else None


def mean_scores(statistics: TextStatistics) -> np.ndarray:
    """Return scores (7,) of all trials, with METEOR as the mean over texts."""
    table = statistics.table
    return corpus_scores(table.sum(0)[None], np.array([len(table)]))[0]


def text_intervals(
    measured: Mapping[str, Mapping[str, TextStatistics]],
    names: Sequence[str],
    targets: Mapping[str, np.ndarray],
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ends of the intervals of each condition, and of fMRI minus it: (2, conditions, 7)."""
    subjects = list(measured)
    table = np.concatenate(
        [np.concatenate([measured[s][c].table for c in names], 1) for s in subjects]
    )
    labels = np.concatenate([np.full(len(targets[s]), s) for s in subjects])

    def statistic(sums: np.ndarray, n_trials: np.ndarray) -> np.ndarray:
        parts = np.split(sums, len(names), 1)
        scores = np.stack([corpus_scores(part, n_trials) for part in parts], 1)
        return np.concatenate([scores, scores[:, :1] - scores], 1).reshape(len(sums), -1)

    low, high = bootstrap_interval(
        table,
        np.concatenate([targets[s] for s in subjects]),
        labels,
        resamples=N_RESAMPLES,
        seed=seed,
        statistic=statistic,
    )
    shape = (2, len(names), len(TEXT_METRICS))
    return low.reshape(shape), high.reshape(shape)
