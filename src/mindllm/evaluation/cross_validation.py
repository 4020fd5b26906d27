"""Cross-validation of evidence: every subject left out in turn, with seen and with new answers.

Each subject is evaluated by an encoding model that was fitted to the other subjects, on the query
outputs of an encoder whose queries are receptive fields spread over their voxels. `seen answers`:
among all answers, all of which were shown to the other subjects. `new answers`: the answers are
divided into folds; the trials of a fold are identified among its answers, by a model that was
fitted without them. Or the new answers are those of a split of the store, and the seen ones all
others. No language model is read, so a fold takes seconds.

There are no p-values: every subject is both tested and fitted to, so that the tests of different
subjects are not independent, and permutations within subjects would be too narrow.

References
----------
Bengio & Grandvalet 2004, No unbiased estimator of the variance of k-fold cross-validation, JMLR 5.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from torch import Tensor

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.evaluation.baselines import ALPHAS, attend_groups
from mindllm.evaluation.cache import PARTIAL_DIR, PredictionCache, hash_scaling, hash_texts
from mindllm.evaluation.conditions import ALL_SUBJECTS
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions, MetricRow, SubjectPredictions
from mindllm.evaluation.score import (
    TrialScores,
    pool_subjects,
    score_predictions,
    summarize_scores,
)
from mindllm.language.hub import DEFAULT_SENTENCE_ENCODER
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.metrics.calibration import (
    EvidenceCalibration,
    candidate_probabilities,
    evidence_calibration,
)
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.encoding_fit import SubjectFeatures, fit_closed_form, fit_encoding_model
from mindllm.model.encoding_model import EncodingModel, EncodingModelConfig, center_embeddings
from mindllm.model.subject_alignment import mean_and_std
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance
from mindllm.utils.seeds import subject_seed

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
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
    seed : int
        Of folds, permutations and bootstrap.
    sentence_encoder : str
        Hub id or folder.
    encoding_model : EncodingModelConfig
    encoder : MindLLMConfig
        The receptive fields that trials are read with.
    """

    n_folds: int = 10
    test_split: str | None = None
    seed: int = 0
    sentence_encoder: str = DEFAULT_SENTENCE_ENCODER
    encoding_model: EncodingModelConfig = field(default_factory=EncodingModelConfig)
    encoder: MindLLMConfig = field(default_factory=MindLLMConfig)


@dataclass(frozen=True, slots=True)
class ProtocolScores:
    """Scores of seen or of new answers.

    Parameters
    ----------
    name : {"seen answers", "new answers"}
    n_subjects, n_trials, n_candidates : int
        n_candidates: that a trial is identified among.
    rows : tuple of MetricRow
        Identification of all subjects and of each, under every condition; without p-values.
    calibration : EvidenceCalibration
        Of `fmri` over all trials.
    """

    name: str
    n_subjects: int
    n_trials: int
    n_candidates: int
    rows: tuple[MetricRow, ...]
    calibration: EvidenceCalibration

    def value(self, metric: str, condition: str = "fmri") -> float | None:
        """Return the value over all subjects; None where it was not measured."""
        keys = (metric, condition, ALL_SUBJECTS)
        rows = [r for r in self.rows if (r.metric, r.condition, r.subject) == keys]
        return rows[0].value if rows else None


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
        self.stimuli = {s: store.trials(s)["stimulus"].to_numpy(str) for s in self.subjects}
        names = sorted(set(np.concatenate(list(self.stimuli.values())).tolist()))
        answers = first_answers(store, self.subjects, names)
        self.answers = sorted(set(answers))
        number = {text: i for i, text in enumerate(self.answers)}
        self.names, self.stimulus_texts = names, np.array([number[text] for text in answers])
        self.folds = self.split_folds() if self.options.test_split else self.random_folds()
        self.cache = PredictionCache(
            None if directory is None else directory / PARTIAL_DIR, self.fingerprint()
        )

    def fingerprint(self) -> dict[str, str]:
        """Return everything that the evidence depends on."""
        return {
            "store": str(self.store.meta.get("name")),
            "trials": hash_texts(*(hash_scaling(self.store, s) for s in self.subjects)),
            "subjects": ", ".join(self.subjects),
            "left out": ", ".join(self.left_out),
            "answers": hash_texts(*self.answers),
            "options": repr(self.options),
        }

    @cached_property
    def embeddings(self) -> Tensor:
        """Sentence embeddings of the answers (n_answers, embedding_dim)."""
        vectors = embed_sentences(self.answers, self.options.sentence_encoder)
        return torch.from_numpy(vectors).double()

    def random_folds(self) -> list[np.ndarray]:
        """Divide the answers into folds: the numbers of each one's."""
        n_answers, n_folds = len(self.answers), self.options.n_folds
        if n_answers < 2 * n_folds:
            raise InputError(
                f"{n_answers} answers cannot be divided into {n_folds} folds of two or more; "
                "choose fewer folds."
            )
        order = np.random.default_rng(self.options.seed).permutation(n_answers)
        return [np.sort(order[i::n_folds]) for i in range(n_folds)]

    def split_folds(self) -> list[np.ndarray]:
        """Return one fold: the numbers of the answers to stimuli of the test split."""
        split = self.options.test_split
        trials = [self.store.trials(s) for s in self.subjects]
        tested = {name for t in trials for name in t["stimulus"][t["split"] == split]}
        fold = np.unique(self.stimulus_texts[np.isin(self.names, sorted(tested))])
        if min(len(fold), len(self.answers) - len(fold)) < 2:
            raise InputError(
                f"{len(fold)} of {len(self.answers)} answers are those of the split {split!r}; "
                "expected at least two, and at least two others."
            )
        return [fold]

    def run(self, advance: Advance | None = None) -> dict[str, ProtocolScores]:
        """Fit and evaluate every fold of every subject.

        Parameters
        ----------
        advance : Advance, optional
            Called with 1 after each of `n_steps` fits.

        Returns
        -------
        dict of str to ProtocolScores
            `seen answers` and `new answers`.
        """
        of_seen, of_new = [], []
        for subject in self.left_out:
            fit = SubjectFit(self, subject, advance)
            of_seen.append(self.predictions(fit, None))
            of_new += [self.predictions(fit, fold) for fold in range(len(self.folds))]
        seen = [self.seen_answers] * len(of_seen)
        return {
            "seen answers": self.score("seen answers", of_seen, seen),
            "new answers": self.score("new answers", of_new, self.folds * len(self.left_out)),
        }

    @property
    def n_steps(self) -> int:
        """Fits in all."""
        return len(self.left_out) * (1 + len(self.folds))

    @property
    def seen_answers(self) -> np.ndarray:
        """Numbers of the answers that seen answers are identified among."""
        everything = np.arange(len(self.answers))
        return np.setdiff1d(everything, self.folds[0]) if self.options.test_split else everything

    def predictions(self, fit: "SubjectFit", fold: int | None) -> SubjectPredictions:
        """Return the predictions of a left-out subject, of one fold of new answers or of all."""
        texts = self.stimulus_texts[self.stimulus_index(fit.subject)]
        answers = self.seen_answers if fold is None else self.folds[fold]
        rows = np.flatnonzero(np.isin(texts, answers))
        conditions = fit.predict(fold, rows)
        conditions["shuffled_trials"] = conditions["fmri"].broadcast_to_trials(len(rows))
        return SubjectPredictions(fit.subject, self.stimuli[fit.subject][rows], conditions)

    def stimulus_index(self, subject: str) -> np.ndarray:
        """Return the number of each trial's stimulus."""
        return np.searchsorted(self.names, self.stimuli[subject])

    def score(
        self,
        name: str,
        predictions: Sequence[SubjectPredictions],
        candidates: Sequence[np.ndarray],
    ) -> ProtocolScores:
        """Score predictions, each among its own candidates."""
        parts, probabilities, targets = [], [], []
        for p, answers in zip(predictions, candidates, strict=True):
            if not len(p.stimuli):
                continue
            part = score_predictions(p, self.evaluation_set(answers), permutations=1)
            # Trials are resampled by the answer, whose number in the fold is another one.
            parts.append(replace(part, target_indices=answers[part.target_indices]))
            evidence = p.conditions["fmri"].evidence
            assert evidence is not None
            padded = np.zeros((len(evidence), max(map(len, candidates))))
            padded[:, : len(answers)] = candidate_probabilities(evidence)
            probabilities.append(padded)
            targets.append(part.target_indices)
        n_candidates = round(float(np.mean([len(c) for c in candidates])))
        rows = [
            replace(row, p_value=None, group_p_value=None)
            for scores in [*pool_by_subject(parts), pool_subjects(parts)]
            for row in summarize_scores(scores, n_candidates, seed=self.options.seed)
            if row.metric.startswith("identification_evidence")
        ]
        return ProtocolScores(
            name,
            len(self.left_out),
            sum(len(t) for t in targets),
            n_candidates,
            tuple(rows),
            evidence_calibration(np.concatenate(probabilities), np.concatenate(targets)),
        )

    def evaluation_set(self, answers: np.ndarray) -> EvaluationSet:
        """Return the stimuli with these answers, which are the candidates."""
        kept = np.flatnonzero(np.isin(self.stimulus_texts, answers))
        texts = [self.answers[i] for i in answers]
        return EvaluationSet(
            trial_indices={},
            splits={},
            stimuli=[self.names[i] for i in kept],
            references=[[self.answers[self.stimulus_texts[i]]] for i in kept],
            candidates=texts,
            target_indices=np.searchsorted(answers, self.stimulus_texts[kept]),
            question="",
            question_source="",
        )


class SubjectFit:
    """Fits that leave one subject out.

    Parameters
    ----------
    validation : CrossValidation
    subject : str
        Who is left out.
    advance : Advance or None
        Called with 1 after each fit.
    """

    def __init__(
        self, validation: CrossValidation, subject: str, advance: Advance | None = None
    ) -> None:
        self.validation, self.subject, self.advance = validation, subject, advance
        self.others = [s for s in validation.subjects if s != subject]

    @cached_property
    def features(self) -> dict[str, SubjectFeatures]:
        """Query outputs of everybody, by an encoder that knows the others' voxels alone."""
        store = self.validation.store
        torch.manual_seed(self.validation.options.seed)
        encoder = FMRIEncoder(self.validation.options.encoder, {})
        encoder.init_queries([store.masker(s) for s in self.others])
        features = {}
        for subject in self.validation.subjects:
            index = torch.from_numpy(self.validation.stimulus_index(subject))
            trials = list(np.arange(len(index))[:, None])
            outputs = attend_groups(encoder, store, subject, trials)
            features[subject] = SubjectFeatures(outputs, index)
        return features

    @cached_property
    def alpha(self) -> float:
        """Penalty of ridge regression, chosen with subjects left out."""
        x, y, groups = self.regression_data(self.validation.seen_answers)
        folds = GroupKFold(min(5, len(self.others)))
        search = GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=folds).fit(x, y, groups=groups)
        return float(search.best_params_["alpha"])

    def predict(self, fold: int | None, rows: np.ndarray) -> dict[str, ConditionPredictions]:
        """Predict trials (rows) by evidence and by simpler methods; what was kept is read."""
        cache = self.validation.cache
        answers, name = self.validation.seen_answers, "seen"
        shown = answers
        if fold is not None:
            answers, name = self.validation.folds[fold], f"fold-{fold}"
            shown = np.setdiff1d(np.arange(len(self.validation.answers)), answers)
        conditions = {}
        for condition, predict in self.methods(fold):
            compute = partial(predict, shown, answers)
            evidence = cache.array(self.subject, f"{name}-{condition}", compute)[rows]
            conditions[condition] = ConditionPredictions(None, [""] * len(rows), evidence=evidence)
        if self.advance:
            self.advance(1)
        return conditions

    def methods(self, fold: int | None) -> Iterator[tuple[str, Method]]:
        """Yield conditions and what predicts (n_trials, n_candidates) from shown and candidates."""
        yield "fmri", self.predict_evidence
        yield "trained_on_permuted_pairs", self.predict_permuted
        yield "ridge", self.predict_ridge
        if fold is None:
            yield "linear_discriminant", self.predict_discriminant

    def training_features(self, shown: np.ndarray) -> dict[str, SubjectFeatures]:
        """Trials of the other subjects whose answer was shown."""
        features = {}
        for subject in self.others:
            part = self.features[subject]
            texts = self.validation.stimulus_texts[part.stimuli.numpy()]
            mask = torch.from_numpy(np.isin(texts, shown))
            features[subject] = SubjectFeatures(part.values[mask], part.stimuli[mask])
        return features

    def predict_evidence(self, shown: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Evidence for answers, of a model fitted to the answers that were shown."""
        return self.evidence(self.training_features(shown), answers, fit_encoding_model)

    def evidence(
        self,
        training: Mapping[str, SubjectFeatures],
        answers: np.ndarray,
        fit: Callable[..., EncodingModel],
    ) -> np.ndarray:
        """Evidence for answers, of a model that is fitted here."""
        validation = self.validation
        texts = torch.from_numpy(validation.stimulus_texts)
        model = fit(training, validation.embeddings, texts, validation.options.encoding_model)
        values = self.features[self.subject].values
        transform = model.subject_transform(values)
        return model.evidence(values, transform, validation.embeddings[answers]).numpy()

    def predict_permuted(self, shown: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """The same of a model fitted to trials that are paired with the stimuli of others."""
        permuted = {}
        for subject, part in self.training_features(shown).items():
            rng = np.random.default_rng(subject_seed(self.validation.options.seed, subject))
            order = torch.from_numpy(rng.permutation(len(part.stimuli)))
            permuted[subject] = SubjectFeatures(part.values, part.stimuli[order])
        return self.evidence(permuted, answers, fit_closed_form)

    def predict_ridge(self, shown: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Cosines of answers with the embedding that ridge regression predicts."""
        x, y, _ = self.regression_data(shown)
        ridge = Ridge(alpha=self.alpha).fit(x, y)
        predicted = torch.from_numpy(ridge.predict(standardize(self.features[self.subject])))
        embeddings = self.validation.embeddings
        targets = center_embeddings(embeddings[answers], embeddings[shown].mean(0))
        return (center_embeddings(predicted, torch.zeros(())) @ targets.T).numpy()

    def predict_discriminant(self, shown: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Log-probabilities of answers by linear discriminant analysis with shrinkage."""
        parts = self.training_features(shown)
        x = np.concatenate([standardize(part) for part in parts.values()])
        _, _, axes = torch.linalg.svd(torch.from_numpy(x), full_matrices=False)
        axes = axes[: self.validation.options.encoding_model.rank].T.numpy()
        y = np.concatenate(
            [self.validation.stimulus_texts[part.stimuli.numpy()] for part in parts.values()]
        )
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x @ axes, y)
        scores = np.full((len(self.features[self.subject].values), len(answers)), -np.inf)
        test = standardize(self.features[self.subject]) @ axes
        scores[:, np.searchsorted(answers, model.classes_)] = model.predict_log_proba(test)
        return np.maximum(scores, np.finfo(np.float32).min)

    def regression_data(self, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Standardized query outputs, centred embeddings and subjects of the training trials."""
        parts = self.training_features(shown)
        center = self.validation.embeddings[shown].mean(0)
        embeddings = center_embeddings(self.validation.embeddings, center).numpy()
        texts = [self.validation.stimulus_texts[part.stimuli.numpy()] for part in parts.values()]
        return (
            np.concatenate([standardize(part) for part in parts.values()]),
            embeddings[np.concatenate(texts)],
            np.repeat(np.arange(len(parts)), [len(t) for t in texts]),
        )


def first_answers(store: Store, subjects: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the first answer about each stimulus; a stimulus without one is an InputError."""
    splits = sorted({str(split) for s in subjects for split in set(store.trials(s)["split"])})
    trials = [TrialDataset(store, subjects, split) for split in splits]
    answers = ConversationDataset(store, trials).first_answer
    missing = [name for name in names if name not in answers]
    if missing:
        raise InputError(
            f"{store.path} has no text about {len(missing)} of {len(names)} stimuli "
            f"(first: {missing[0]}); cross-validation needs one about each."
        )
    return [answers[name] for name in names]


def select(names: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Return the names; InputError if one is not among the subjects that take part."""
    missing = [name for name in names if name not in subjects]
    if missing or not names:
        raise InputError(
            f"cannot leave out {', '.join(missing) or 'nobody'}: "
            f"the subjects that take part are {', '.join(subjects)}."
        )
    return list(names)


def standardize(part: SubjectFeatures) -> np.ndarray:
    """Return the z-scored query outputs of a subject."""
    values = part.values.double()
    mean, std = mean_and_std(values)
    return ((values - mean) / std).numpy()


def pool_by_subject(parts: Sequence[TrialScores]) -> list[TrialScores]:
    """Put the folds of each subject together."""
    names = sorted({part.subject for part in parts})
    pooled = [(name, pool_subjects([p for p in parts if p.subject == name])) for name in names]
    return [replace(scores, subject=name) for name, scores in pooled]
