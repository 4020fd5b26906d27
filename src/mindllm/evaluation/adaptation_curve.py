"""Adaptation curve: how well a left-out subject is read, by how many of its trials have a label.

Each subject in turn is left out of the fit. Its trials are divided into two halves, each with half
of the repetitions of every answer; one half is tested, the labels are those of trials of the other
half, and the other way round. Without labels there are two tiers: anatomy alone (the position of
the voxels), and label-free alignment to the training subjects by all of the subject's trials.
Beside them stands ridge regression, from the labelled trials of the subject alone and together
with those of the training subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.cross_validation import CrossValidation, ignore_progress
from mindllm.evaluation.left_out_subject import LeftOutSubject
from mindllm.metrics.inference import bootstrap_interval, subject_means
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance
from mindllm.utils.seeds import subject_seed

ANATOMY, UNLABELLED, LABELLED = "anatomy only", "label-free alignment", "labelled trials"
RIDGE, SCRATCH = "ridge with the training subjects", "ridge from scratch"
N_DRAWS = 1  # of the labelled trials of each half


@dataclass(frozen=True, slots=True)
class AdaptationRow:
    """How well trials are identified in one tier.

    Parameters
    ----------
    subject : str
        "all" is the mean of the subjects.
    tier : str
    n_labels : int
        Labelled trials of the subject.
    n_trials : int
        That are tested.
    top1, two_way : float
        Of all answers, in [0, 1].
    top1_ci_low, top1_ci_high, two_way_ci_low, two_way_ci_high : float
        95 % bootstrap interval over answers, and over subjects.
    gain, gain_ci_low, gain_ci_high : float
        Top 1 minus that of anatomy only, paired.
    """

    subject: str
    tier: str
    n_labels: int
    n_trials: int
    top1: float
    top1_ci_low: float
    top1_ci_high: float
    two_way: float
    two_way_ci_low: float
    two_way_ci_high: float
    gain: float
    gain_ci_low: float
    gain_ci_high: float


@dataclass(frozen=True)
class TierScores:
    """Scores (n_trials, 2) of a subject's trials, top 1 and 2-way, means over draws."""

    tier: str
    n_labels: int
    values: np.ndarray


class AdaptationCurve:
    """Adaptation curve of the left-out subjects of a cross-validation.

    Parameters
    ----------
    validation : CrossValidation
        Says who is left out, and with which options models are fitted.
    counts : sequence of int
        Numbers of labelled trials; at most half of a subject's trials.

    Raises
    ------
    InputError
        If a number of labels is more than half of the trials.

    Examples
    --------
    >>> from mindllm import Store
    >>> validation = CrossValidation(Store("store"))  # doctest: +SKIP
    >>> rows = AdaptationCurve(validation, [30, 60]).run()  # doctest: +SKIP

    Beside a cross-validation, whose models it then shares:

    >>> curve = AdaptationCurve(validation, [30, 60])  # doctest: +SKIP
    >>> results = validation.run(visit=curve.add)  # doctest: +SKIP
    >>> rows = curve.rows()  # doctest: +SKIP
    """

    def __init__(self, validation: CrossValidation, counts: Sequence[int]) -> None:
        self.validation = validation
        self._scores: dict[str, list[TierScores]] = {}
        self._answers: dict[str, np.ndarray] = {}
        self.counts = sorted({count for count in counts if count > 0})
        store = validation.store
        sizes = {s: len(store.trials(s)) // 2 for s in validation.left_out}
        smallest = min(sizes, key=lambda subject: sizes[subject])
        if self.counts and self.counts[-1] > sizes[smallest]:
            raise InputError(
                f"{self.counts[-1]} labelled trials: {smallest} has {sizes[smallest]} in half of "
                "its trials, the other half of which are tested; choose fewer."
            )

    @property
    def n_steps(self) -> int:
        """Subjects that are left out."""
        return len(self.validation.left_out)

    def run(self, advance: Advance | None = None) -> list[AdaptationRow]:
        """Evaluate every tier in every left-out subject.

        Parameters
        ----------
        advance : Advance, optional
            Called with 1 after each of `n_steps` subjects.

        Returns
        -------
        list of AdaptationRow
            Of each subject, then of all.
        """
        for subject in self.validation.left_out:
            self.add(self.validation.leave_out(subject))
            (advance or ignore_progress)(1)
        return self.rows()

    def add(self, left_out: LeftOutSubject) -> None:
        """Evaluate every tier in one left-out subject."""
        tested = TestedSubject(left_out)
        self._scores[left_out.subject] = tested.score(self.counts)
        self._answers[left_out.subject] = tested.answers

    def rows(self) -> list[AdaptationRow]:
        """Return the rows of each subject that was added, then those of all."""
        scores, answers = self._scores, self._answers
        return [row for subject in scores for row in subject_rows(scores, answers, [subject])] + (
            subject_rows(scores, answers, list(scores))
        )


class TestedSubject:
    """A left-out subject whose trials are tested, half by half.

    Parameters
    ----------
    left_out : LeftOutSubject
    """

    __test__ = False  # not a test, whatever its name begins with

    def __init__(self, left_out: LeftOutSubject) -> None:
        self.left_out = left_out
        folds, subject = left_out.folds, left_out.subject
        self.answers = folds.stimulus_texts[folds.stimulus_index(subject)]
        self.halves = divide(self.answers)
        self.values = left_out.features[subject].values
        self.seed = subject_seed(left_out.options.seed, subject)

    def score(self, counts: Sequence[int]) -> list[TierScores]:
        """Score all trials in every tier."""
        model = self.left_out.model(None, False)
        untouched, aligned = model.subject_transform(None), model.subject_transform(self.values)
        embeddings = self.left_out.embeddings
        tiers = [
            TierScores(tier, 0, self.hits(model.evidence(self.values, transform, embeddings)))
            for tier, transform in ((ANATOMY, untouched), (UNLABELLED, aligned))
        ]
        tiers.append(
            TierScores(RIDGE, 0, self.hits(self.left_out.ridge_similarity(None, embeddings)))
        )
        for count in counts:
            tiers += self.score_labelled(count)
        return tiers

    def score_labelled(self, count: int) -> list[TierScores]:
        """Score all trials with so many labels, means over draws."""
        sums = {tier: np.zeros((len(self.answers), 2)) for tier in (LABELLED, RIDGE, SCRATCH)}
        for draw in range(N_DRAWS):
            for half in (0, 1):
                tested = np.flatnonzero(self.halves == half)
                rng = np.random.default_rng([self.seed, draw, half])
                labelled = np.sort(rng.permutation(np.flatnonzero(self.halves != half))[:count])
                for tier, predicted in self.predict(labelled).items():
                    sums[tier][tested] += self.hits(predicted)[tested] / N_DRAWS
        return [TierScores(tier, count, values) for tier, values in sums.items()]

    def predict(self, labelled: np.ndarray) -> dict[str, Tensor]:
        """Scores (n_trials, n_answers) of all trials with the labels of some, by tier."""
        left_out, embeddings = self.left_out, self.left_out.embeddings
        model = left_out.model(None, False)
        labels = {int(row): embeddings[self.answers[row]] for row in labelled}
        transform = model.subject_transform(self.values, labels)
        rows = torch.from_numpy(labelled)
        return {
            LABELLED: model.evidence(self.values, transform, embeddings),
            RIDGE: left_out.ridge_similarity(None, embeddings, rows),
            SCRATCH: left_out.ridge_similarity(None, embeddings, rows, alone=True),
        }

    def hits(self, scores: Tensor) -> np.ndarray:
        """Top 1 and 2-way (n_trials, 2) of scores (n_trials, n_answers); ties count half."""
        of_true = scores[torch.arange(len(scores)), torch.from_numpy(self.answers)][:, None]
        lower = (scores < of_true).double().sum(1)
        ties = (scores == of_true).double().sum(1)  # the true one among them
        two_way = (lower + (ties - 1) / 2) / (scores.shape[1] - 1)
        top1 = torch.where((scores > of_true).any(1), 0, 1 / ties)
        return torch.stack([top1, two_way], 1).numpy()


def divide(answers: np.ndarray) -> np.ndarray:
    """Divide trials into two halves (n_trials,), 0 and 1, by turns for each answer."""
    halves, turn = np.zeros(len(answers), int), 0
    for answer in np.unique(answers):
        for row in np.flatnonzero(answers == answer):
            halves[row] = turn % 2
            turn += 1
    return halves


def subject_rows(
    scores: dict[str, list[TierScores]], answers: dict[str, np.ndarray], subjects: Sequence[str]
) -> list[AdaptationRow]:
    """Return the rows of one subject, or of the mean of several."""
    clusters = np.concatenate([answers[s] for s in subjects])
    names = np.repeat(subjects, [len(answers[s]) for s in subjects])
    label = subjects[0] if len(subjects) == 1 else ALL_SUBJECTS
    rows = []
    for parts in zip(*(scores[s] for s in subjects), strict=True):
        values = np.concatenate([part.values for part in parts])
        zero = np.concatenate([scores[s][0].values for s in subjects])
        table = np.column_stack([values, values[:, 0] - zero[:, 0]])
        low, high = bootstrap_interval(table, clusters, names)
        means = subject_means(table, names).mean(0)
        rows.append(
            AdaptationRow(
                label,
                parts[0].tier,
                parts[0].n_labels,
                len(table),
                *(float(x) for triple in zip(means, low, high, strict=True) for x in triple),
            )
        )
    return rows
