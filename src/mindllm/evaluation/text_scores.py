"""The field's text scores of every condition's texts, with intervals: BLEU, METEOR, ROUGE-L and CIDEr beside the controls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer

from mindllm.evaluation.conditions import ALL_SUBJECTS, CONDITIONS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions, SubjectPredictions
from mindllm.evaluation.score import RESAMPLES
from mindllm.metrics.captions import sentence_scores, tokenize
from mindllm.metrics.inference import bootstrap_interval

TEXT_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
MEANS = TEXT_METRICS[
    4:
]  # the mean of what each text earns; METEOR's official value weighs texts by their length
COLUMNS = 2 + 4 + 4 + len(MEANS)  # BLEU's lengths, n-grams said and n-grams right
DRAWS = (
    3  # stand-ins per trial, where a condition has many readings of which none is the trial's own
)
Lines = Mapping[str, str]


def text_scores(
    people: Sequence[SubjectPredictions], task: EvaluationSet, seed: int = 0
) -> list[dict[str, Any]]:
    """Rows for each person, condition and score, in per cent; `difference` is brain minus the condition. Needs Java.

    A human caption is the stimulus' second accepted answer, scored against the others, where every stimulus has two.
    """
    accepted = dict(zip(task.stimuli, task.references, strict=True))
    several = all(len(set(some)) > 1 for some in task.references)
    # person -> condition -> what is said (B, draws) and the accepted answers (B)
    pairs: dict[str, dict[str, tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]]]] = {}
    for readings in people:
        rng, right = (
            np.random.default_rng([seed, len(pairs)]),
            [accepted[s] for s in readings.stimuli],
        )
        pairs[readings.subject] = {
            c: (drawn(said, rng, CONDITIONS[c].kind == "blind"), right)
            for c, said in readings.conditions.items()
            if c != "shuffled_within_session"
        }
        if several:
            others = [[text for text in some if text != some[1]] for some in right]
            pairs[readings.subject]["human"] = ([[some[1]] for some in right], others)
    texts = {
        t
        for own in pairs.values()
        for said, right in own.values()
        for some in (*said, *right)
        for t in some
    }
    lines = {
        text: found[0] for text, found in tokenize({text: [text] for text in sorted(texts)}).items()
    }
    found = {p: {c: measure(*said, lines) for c, said in own.items()} for p, own in pairs.items()}
    answers = {readings.subject: task.columns(readings.stimuli)[1] for readings in people}
    rows = [
        row
        for person in found
        for row in summarize_text_scores({person: found[person]}, answers, seed)
    ]
    return rows if len(found) == 1 else [*rows, *summarize_text_scores(found, answers, seed)]


def drawn(said: ConditionPredictions, rng: np.random.Generator, blind: bool) -> list[list[str]]:
    """The texts of each trial: its own, some drawn from its group, or the first one, where no scan is read."""
    if said.groups is None:
        return [[text] for text in said.texts]
    of_rows, of_trials = said.groups
    if blind:
        return [[said.texts[0]] for _ in of_trials]
    rows = {g: np.flatnonzero(of_rows == g) for g in np.unique(of_trials)}
    return [[said.texts[i] for i in rng.choice(rows[g], DRAWS)] for g in of_trials]


def measure(
    said: Sequence[Sequence[str]], right: Sequence[Sequence[str]], lines: Lines
) -> tuple[np.ndarray, np.ndarray]:
    """Official scores (7,), and per trial (B, COLUMNS) what they are sums or means of, both means over the draws."""
    keys = [(i, d) for i, some in enumerate(said) for d in range(len(some))]
    given = {f"{i}#{d}": [lines[said[i][d]]] for i, d in keys}
    wanted = {f"{i}#{d}": [lines[text] for text in right[i]] for i, d in keys}
    total, each = sentence_scores(given, wanted)
    table = np.zeros((len(said), COLUMNS))
    bleu = BleuScorer(n=4)
    for key in given:
        bleu += (given[key][0], wanted[key])
    for n, ((i, _), comps) in enumerate(zip(keys, bleu.ctest, strict=True)):
        closest = min((abs(length - comps["testlen"]), length) for length in comps["reflen"])[1]
        row = [
            closest,
            comps["testlen"],
            *comps["guess"],
            *comps["correct"],
            *(each[name][n] for name in MEANS),
        ]
        table[i] += np.array(row) / len(said[i])
    return np.array([total[name] for name in TEXT_METRICS]), table


def corpus(sums: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Scores (R, 7) of sums (R, COLUMNS) over trials (R,): BLEU of the summed counts, as its scorer computes it, and means."""
    reference, length, guess, correct = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    precision = np.cumprod((correct + 1e-15) / (guess + 1e-9), axis=1) ** (1 / np.arange(1, 5))
    ratio = (length + 1e-15) / (reference + 1e-9)
    penalty = np.where(ratio < 1, np.exp(np.minimum(0, 1 - 1 / np.maximum(ratio, 1e-12))), 1.0)
    return np.concatenate([precision * penalty[:, None], sums[:, 10:] / trials[:, None]], 1)


def summarize_text_scores(
    found: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    answers: Mapping[str, np.ndarray],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of one person, or of all: then each score is the mean of people's, and the interval is over people and answers."""
    people = list(found)
    names = [c for c in found[people[0]] if all(c in found[p] for p in people)]
    table = np.concatenate([np.concatenate([found[p][c][1] for c in names], 1) for p in people])
    shown = np.concatenate([answers[p] for p in people])
    whose = np.concatenate([np.full(len(answers[p]), p) for p in people])
    value = np.stack(
        [np.mean([found[p][c][0] for p in people], 0) for c in names]
    )  # (conditions, 7)
    plain = np.stack(
        [
            np.mean(
                [
                    corpus(found[p][c][1].sum(0)[None], np.array([len(answers[p])]))[0]
                    for p in people
                ],
                0,
            )
            for c in names
        ]
    )

    def statistic(sums: np.ndarray, trials: np.ndarray) -> np.ndarray:
        scores = np.stack([corpus(part, trials) for part in np.split(sums, len(names), 1)], 1)
        return np.concatenate([scores, scores[:, :1] - scores], 1).reshape(len(sums), -1)

    low, high = (
        side.reshape(2, len(names), -1)
        for side in bootstrap_interval(
            table, shown, whose, resamples=RESAMPLES, seed=seed, statistic=statistic
        )
    )
    moved = value - plain  # from the mean over texts to the official value: of METEOR alone
    gap, apart = value[:1] - value, moved[:1] - moved
    rows = []
    for n, condition in enumerate(names):
        for m, metric in enumerate(TEXT_METRICS):
            row = {
                "subject": people[0] if len(people) == 1 else ALL_SUBJECTS,
                "condition": condition,
                "metric": metric,
            }
            row |= {
                "value": 100 * value[n, m],
                "ci_low": 100 * (low[0, n, m] + moved[n, m]),
                "ci_high": 100 * (high[0, n, m] + moved[n, m]),
            }
            if condition != "fmri":
                row |= {
                    "difference": 100 * gap[n, m],
                    "difference_ci_low": 100 * (low[1, n, m] + apart[n, m]),
                    "difference_ci_high": 100 * (high[1, n, m] + apart[n, m]),
                }
            rows.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return rows
