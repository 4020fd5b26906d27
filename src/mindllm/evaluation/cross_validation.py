"""Cross-validation of evidence: every subject left out in turn, with seen and with new answers.

Each subject is evaluated by an encoding model that was fitted to the other subjects, on the query
outputs of an encoder whose queries are receptive fields spread over their voxels. `seen answers`:
among all answers, all of which were shown to the other subjects. `new answers`: the answers are
divided into folds; the trials of a fold are identified among its answers, by a model that was
fitted without them. Or the new answers are those of a split of the store, and the seen ones all
others. No language model is read, so a fold takes seconds.

`free text` of new answers, on demand: a text is chosen about each trial, by evidence, among the
answers that were shown and texts that a language model writes after their example. The answers of
the fold are then ranked by their similarity with that text.

There are no p-values: every subject is both tested and fitted to, so that the tests of different
subjects are not independent, and permutations within subjects would be too narrow.

References
----------
Bengio & Grandvalet 2004, No unbiased estimator of the variance of k-fold cross-validation, JMLR 5.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mindllm.data.store import Store
from mindllm.evaluation.answer_folds import AnswerFolds
from mindllm.evaluation.cache import PARTIAL_DIR, PredictionCache, hash_texts
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.left_out_subject import FitOptions, LeftOutSubject
from mindllm.evaluation.results import ConditionPredictions, MetricRow, SubjectPredictions
from mindllm.evaluation.score import (
    TrialScores,
    pool_subjects,
    score_predictions,
    summarize_scores,
)
from mindllm.language.hub import DEFAULT_SENTENCE_ENCODERS
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.metrics.calibration import (
    EvidenceCalibration,
    candidate_probabilities,
    evidence_calibration,
)
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoding_model import EncodingModelConfig
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.proposals import sample_texts
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

MIN_SUBJECTS = 3  # two are left to fit when one is left out


@dataclass(frozen=True, slots=True)
class CrossValidationOptions:
    """Options of a cross-validation.

    Parameters
    ----------
    n_folds : int
        Folds of answers.
    test_split : str, optional
        Instead of folds: the new answers are those of the stimuli with this split.
    n_texts : int
        Texts that the language model writes for each fold; 0: there is no free text.
    language_model : str, optional
        That writes them.
    seed : int
        Of folds, texts, permutations and bootstrap.
    sentence_encoder : str
        Hub ids or folders, separated by commas.
    encoding_model : EncodingModelConfig
    encoder : MindLLMConfig
        The receptive fields that trials are read with.
    """

    n_folds: int = 10
    test_split: str | None = None
    n_texts: int = 0
    language_model: str | None = None
    seed: int = 0
    sentence_encoder: str = DEFAULT_SENTENCE_ENCODERS
    encoding_model: EncodingModelConfig = field(default_factory=EncodingModelConfig)
    encoder: MindLLMConfig = field(default_factory=MindLLMConfig)


@dataclass(frozen=True, slots=True)
class Proposals:
    """Texts to choose among in a fold.

    Parameters
    ----------
    texts : list of str
    embeddings : Tensor of shape (n_texts, embedding_dim)
        By the sentence encoders that the model reads texts with.
    similarity : ndarray of shape (n_texts, n_answers)
        Cosine with the fold's new answers by the default sentence encoder, whatever the model's.
    """

    texts: list[str]
    embeddings: Tensor
    similarity: np.ndarray


@dataclass(frozen=True, slots=True)
class ChosenText:
    """The text that was chosen about a trial, beside the answer that was not trained on."""

    subject: str
    stimulus: str
    answer: str
    text: str


@dataclass(frozen=True, slots=True)
class ProtocolScores:
    """Scores of seen answers, of new answers, or of free text about new answers.

    Parameters
    ----------
    name : {"seen answers", "new answers", "free text"}
    n_subjects, n_trials, n_candidates : int
        n_candidates: that a trial is identified among.
    rows : tuple of MetricRow
        Identification of all subjects and of each, under every condition; without p-values.
    calibration : EvidenceCalibration or None
        Of `fmri` over all trials; None for free text.
    texts : tuple of ChosenText
        Of free text.
    """

    name: str
    n_subjects: int
    n_trials: int
    n_candidates: int
    rows: tuple[MetricRow, ...]
    calibration: EvidenceCalibration | None
    texts: tuple[ChosenText, ...] = ()

    def value(self, metric: str, condition: str = "fmri") -> float | None:
        """Return the value over all subjects; None where it was not measured."""
        keys = (metric, condition, ALL_SUBJECTS)
        rows = [r for r in self.rows if (r.metric, r.condition, r.subject) == keys]
        return rows[0].value if rows else None


@dataclass(frozen=True, slots=True)
class FoldPredictions:
    """Predictions of one subject's trials among the answers of one fold; None: of all."""

    fold: int | None
    of_subject: SubjectPredictions


class CrossValidation:
    """Cross-validation of evidence on one store.

    Parameters
    ----------
    store : Store
    subjects : sequence of str, optional
        Subjects that take part, three or more. None: all.
    left_out : sequence of str, optional
        Those of them that are left out in turn. None: all.
    options : CrossValidationOptions, optional
    directory : Path, optional
        What is computed is kept here until the end: called again, it is read.

    Raises
    ------
    InputError
        If the subjects are fewer than three, the answers fewer than two folds of two, or the
        split has fewer than two answers, or none but its own are left.

    Examples
    --------
    >>> from mindllm import Store
    >>> results = CrossValidation(Store("store")).run()  # doctest: +SKIP
    >>> results["new answers"].value("identification_evidence_2way")  # doctest: +SKIP
    0.75
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[str] | None = None,
        options: CrossValidationOptions | None = None,
        directory: Path | None = None,
        left_out: Sequence[str] | None = None,
    ) -> None:
        self.store, self.options = store, options or CrossValidationOptions()
        self.subjects = store.select_subjects(subjects)
        self.left_out = self.subjects if left_out is None else select(left_out, self.subjects)
        if len(self.subjects) < MIN_SUBJECTS:
            raise InputError(
                f"{len(self.subjects)} subjects: leaving one out needs at least {MIN_SUBJECTS}."
            )
        o = self.options
        self.folds = AnswerFolds.divide(store, self.subjects, o.n_folds, o.test_split, o.seed)
        self.fit_options = FitOptions(o.seed, o.encoding_model, o.encoder)
        self.cache = PredictionCache(
            None if directory is None else directory / PARTIAL_DIR, self.fingerprint()
        )
        self._proposals: dict[int, Proposals] = {}

    def fingerprint(self) -> dict[str, str]:
        """Return everything that the evidence depends on."""
        return {
            "store": str(self.store.meta.get("name")),
            "trials": hash_texts(*(self.store.fingerprint(s) for s in self.subjects)),
            "subjects": ", ".join(self.subjects),
            "left out": ", ".join(self.left_out),
            "answers": hash_texts(*self.folds.answers),
            "options": repr(self.options),
        }

    @cached_property
    def embeddings(self) -> Tensor:
        """Sentence embeddings of the answers (n_answers, embedding_dim)."""
        vectors = embed_sentences(self.folds.answers, self.options.sentence_encoder)
        return torch.from_numpy(vectors).double()

    @property
    def n_steps(self) -> int:
        """Fits in all, and folds that texts are written for."""
        n_folds = len(self.folds.folds)
        return len(self.left_out) * (1 + n_folds) + (n_folds if self.options.n_texts else 0)

    def leave_out(self, subject: str) -> LeftOutSubject:
        """Return a left-out subject, and the models that are fitted to the others."""
        return LeftOutSubject(
            self.store, subject, self.folds, self.embeddings, self.fit_options, self.cache
        )

    def run(
        self,
        advance: Advance | None = None,
        visit: Callable[[LeftOutSubject], None] | None = None,
    ) -> dict[str, ProtocolScores]:
        """Fit and evaluate every fold of every subject.

        Parameters
        ----------
        advance : Advance, optional
            Called with 1 after each of `n_steps` steps.
        visit : callable, optional
            Called with each left-out subject while the model of all answers is fitted to the
            others, so that nothing else has to fit it again.

        Returns
        -------
        dict of str to ProtocolScores
            `seen answers`, `new answers` and, with `n_texts`, `free text`.
        """
        step = advance or ignore_progress
        predictions: dict[str, list[FoldPredictions]] = defaultdict(list)
        for subject in self.left_out:
            left_out = self.leave_out(subject)
            for fold in (None, *range(len(self.folds.folds))):
                name = "seen answers" if fold is None else "new answers"
                predictions[name].append(self.predict(left_out, fold))
                if fold is None and visit:
                    visit(left_out)
                if fold is not None and self.options.n_texts:
                    proposals = self.proposals(fold, step)
                    predictions["free text"].append(self.predict_text(left_out, fold, proposals))
                step(1)
        return {name: self.score(name, parts) for name, parts in predictions.items()}

    def predict(self, left_out: LeftOutSubject, fold: int | None) -> FoldPredictions:
        """Return the predictions of a left-out subject, of one fold of new answers or of all."""
        rows = self.folds.rows(left_out.subject, fold)
        conditions = {
            name: ConditionPredictions(None, [""] * len(rows), evidence=scores[rows])
            for name, scores in left_out.predict(fold).items()
        }
        return self.of_rows(left_out.subject, fold, rows, conditions)

    def predict_text(
        self, left_out: LeftOutSubject, fold: int, proposals: Proposals
    ) -> FoldPredictions:
        """Return the texts about a left-out subject's trials, as similarities with the answers."""
        rows = self.folds.rows(left_out.subject, fold)
        texts, similarity = proposals.texts, proposals.similarity
        conditions = {
            name: ConditionPredictions(
                None, [texts[i] for i in chosen[rows]], evidence=similarity[chosen[rows]]
            )
            for name, chosen in left_out.choose_texts(fold, proposals.embeddings).items()
        }
        return self.of_rows(left_out.subject, fold, rows, conditions)

    def of_rows(
        self,
        subject: str,
        fold: int | None,
        rows: np.ndarray,
        conditions: dict[str, ConditionPredictions],
    ) -> FoldPredictions:
        """Put the conditions of some trials together, with shuffled ones."""
        conditions["shuffled_trials"] = conditions["fmri"].broadcast_to_trials(len(rows))
        stimuli = self.folds.stimuli[subject][rows]
        return FoldPredictions(fold, SubjectPredictions(subject, stimuli, conditions))

    def proposals(self, fold: int, advance: Advance) -> Proposals:
        """Return the texts to choose among in a fold."""
        if fold not in self._proposals:
            examples = [self.folds.answers[i] for i in self.folds.shown(fold)]
            sampled = self.cache.texts(f"texts-{fold}", partial(self.sample, examples))
            texts = list(dict.fromkeys([*examples, *sampled]))
            vectors = embed_sentences(texts, self.options.sentence_encoder)
            answers = [self.folds.answers[i] for i in self.folds.candidates(fold)]
            similarity = embed_sentences(texts) @ embed_sentences(answers).T
            self._proposals[fold] = Proposals(texts, torch.from_numpy(vectors).double(), similarity)
            advance(1)
        return self._proposals[fold]

    def sample(self, examples: Sequence[str]) -> list[str]:
        """Let the language model write texts after examples."""
        n_texts, seed = self.options.n_texts, self.options.seed
        return sample_texts(self.language_model, examples, n_texts, seed=seed)

    @cached_property
    def language_model(self) -> FrozenLanguageModel:
        """The language model that writes texts."""
        return load_language_model(self.options.language_model)

    def score(self, name: str, predictions: Sequence[FoldPredictions]) -> ProtocolScores:
        """Score predictions, each among the candidates of its fold."""
        parts, kept = [], [p for p in predictions if len(p.of_subject.stimuli)]
        for p in kept:
            part = score_predictions(
                p.of_subject, self.folds.evaluation_set(p.fold), permutations=1
            )
            # Trials are resampled by the answer, whose number in the fold is another one.
            numbers = self.folds.candidates(p.fold)[part.target_indices]
            parts.append(replace(part, target_indices=numbers))
        n_candidates = round(
            float(np.mean([len(self.folds.candidates(p.fold)) for p in predictions]))
        )
        prefix = "text_similarity" if name == "free text" else "identification_evidence"
        rows = [
            replace(
                row,
                metric=row.metric.replace("identification_evidence", prefix),
                p_value=None,
                group_p_value=None,
            )
            for scores in [*pool_by_subject(parts), pool_subjects(parts)]
            for row in summarize_scores(scores, n_candidates, seed=self.options.seed)
            if row.metric.startswith("identification_evidence")
        ]
        return ProtocolScores(
            name,
            len(self.left_out),
            sum(len(part.target_indices) for part in parts),
            n_candidates,
            tuple(rows),
            None if name == "free text" else self.calibrate(kept, parts),
            tuple(self.chosen_texts(kept)) if name == "free text" else (),
        )

    def calibrate(
        self, predictions: Sequence[FoldPredictions], parts: Sequence[TrialScores]
    ) -> EvidenceCalibration:
        """Measure the calibration of the probabilities by evidence, over all folds."""
        probabilities, targets = [], []
        size = max(len(self.folds.candidates(p.fold)) for p in predictions)
        for p, part in zip(predictions, parts, strict=True):
            candidates, evidence = (
                self.folds.candidates(p.fold),
                p.of_subject.conditions["fmri"].evidence,
            )
            assert evidence is not None
            padding = ((0, 0), (0, size - len(candidates)))
            probabilities.append(np.pad(candidate_probabilities(evidence), padding))
            targets.append(np.searchsorted(candidates, part.target_indices))
        return evidence_calibration(np.concatenate(probabilities), np.concatenate(targets))

    def chosen_texts(self, predictions: Sequence[FoldPredictions]) -> Iterator[ChosenText]:
        """Yield the text about each trial beside its answer."""
        answers = [self.folds.answers[i] for i in self.folds.stimulus_texts]
        answer_of = dict(zip(self.folds.names, answers, strict=True))
        for p in predictions:
            texts = p.of_subject.conditions["fmri"].texts
            for stimulus, text in zip(p.of_subject.stimuli.tolist(), texts, strict=True):
                yield ChosenText(p.of_subject.subject, stimulus, answer_of[stimulus], text)


def ignore_progress(count: int, description: str | None = None, /) -> None:
    """Take note of nothing."""


def select(names: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Return the names; InputError if one is not among the subjects that take part."""
    missing = [name for name in names if name not in subjects]
    if missing or not names:
        raise InputError(
            f"cannot leave out {', '.join(missing) or 'nobody'}: "
            f"the subjects that take part are {', '.join(subjects)}."
        )
    return list(names)


def pool_by_subject(parts: Sequence[TrialScores]) -> list[TrialScores]:
    """Put the folds of each subject together."""
    names = sorted({part.subject for part in parts})
    pooled = [(name, pool_subjects([p for p in parts if p.subject == name])) for name in names]
    return [replace(scores, subject=name) for name, scores in pooled]
