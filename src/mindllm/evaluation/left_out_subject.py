"""A left-out subject: what models of the other subjects' trials say about its trials."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from torch import Tensor

from mindllm.data.store import Store
from mindllm.evaluation.answer_folds import AnswerFolds
from mindllm.evaluation.baselines import ALPHAS, attend_groups
from mindllm.evaluation.cache import PredictionCache
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder
from mindllm.model.encoding_fit import (
    FitScales,
    RegressionFolds,
    SubjectFeatures,
    choose_scales,
    fit_at_scales,
)
from mindllm.model.encoding_model import EncodingModel, EncodingModelConfig, center_embeddings
from mindllm.model.proposals import similarity_gains
from mindllm.model.receptive_fields import init_queries
from mindllm.model.subject_alignment import mean_and_std
from mindllm.utils.seeds import subject_seed

Method = Callable[[int | None], np.ndarray]


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Options of the models that are fitted.

    Parameters
    ----------
    seed : int
        Of receptive fields and permutations.
    encoding_model : EncodingModelConfig
    encoder : MindLLMConfig
        The receptive fields that trials are read with.
    """

    seed: int
    encoding_model: EncodingModelConfig
    encoder: MindLLMConfig


class LeftOutSubject:
    """A left-out subject, and the models that are fitted to the others.

    Parameters
    ----------
    store : Store
    subject : str
        Who is left out.
    folds : AnswerFolds
    embeddings : Tensor of shape (n_answers, embedding_dim)
        Sentence embeddings of the answers.
    options : FitOptions
    cache : PredictionCache
        Where predictions are kept.
    encoder : FMRIEncoder, optional
        Trained on the others. None: one with receptive fields, which is not trained.
    """

    def __init__(
        self,
        store: Store,
        subject: str,
        folds: AnswerFolds,
        embeddings: Tensor,
        options: FitOptions,
        cache: PredictionCache,
        encoder: FMRIEncoder | None = None,
    ) -> None:
        self.store, self.subject, self.folds = store, subject, folds
        self.encoder = encoder
        self.embeddings, self.options, self.cache = embeddings, options, cache
        self.others = [s for s in folds.subjects if s != subject]
        self._models: dict[tuple[int | None, bool], EncodingModel] = {}
        self._scales: dict[int | None, FitScales] = {}

    @cached_property
    def features(self) -> dict[str, SubjectFeatures]:
        """Query outputs of everybody, by an encoder that knows the others' voxels alone."""
        torch.manual_seed(self.options.seed)
        encoder = self.encoder
        if encoder is None:
            encoder = FMRIEncoder(self.options.encoder, {})
            init_queries(encoder, self.store.maskers(self.others))
        features = {}
        for subject in self.folds.subjects:
            index = torch.from_numpy(self.folds.stimulus_index(subject))
            trials = list(np.arange(len(index))[:, None])
            outputs = attend_groups(encoder, self.store, subject, trials)
            features[subject] = SubjectFeatures(outputs, index)
        return features

    @cached_property
    def alpha(self) -> float:
        """Penalty of ridge regression, chosen with subjects left out."""
        x, y, groups = self.regression_data(None)
        folds = GroupKFold(min(5, len(self.others)))
        search = GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=folds).fit(x, y, groups=groups)
        return float(search.best_params_["alpha"])

    def predict(self, fold: int | None) -> dict[str, np.ndarray]:
        """Scores (n_trials, n_candidates) of all trials, by condition; what was kept is read."""
        name = "seen" if fold is None else f"fold-{fold}"
        return {
            condition: self.cache.array(self.subject, f"{name}-{condition}", partial(predict, fold))
            for condition, predict in self.methods(fold)
        }

    def methods(self, fold: int | None) -> Iterator[tuple[str, Method]]:
        """Yield conditions and what predicts scores of a fold's candidates."""
        yield "fmri", partial(self.predict_evidence, False)
        yield "trained_on_permuted_pairs", partial(self.predict_evidence, True)
        yield "ridge", self.predict_ridge
        if fold is None:
            yield "linear_discriminant", self.predict_discriminant

    def choose_texts(self, fold: int, embeddings: Tensor) -> dict[str, np.ndarray]:
        """Choose a text about each trial by each condition; what was kept is read.

        Parameters
        ----------
        fold : int
        embeddings : Tensor of shape (n_texts, embedding_dim)
            Of the texts to choose among.

        Returns
        -------
        dict of str to ndarray of int, shape (n_trials,)
            Number of the text.
        """

        def by_evidence(permuted: bool) -> np.ndarray:
            center = self.model(fold, permuted).text_center
            evidence = self.evidence(fold, permuted, embeddings)
            return similarity_gains(evidence, embeddings - center).argmax(1).numpy()

        def by_ridge() -> np.ndarray:
            return self.ridge_similarity(fold, embeddings).argmax(1).numpy()

        choices: dict[str, Callable[[], np.ndarray]] = {
            "fmri": partial(by_evidence, False),
            "trained_on_permuted_pairs": partial(by_evidence, True),
            "ridge": by_ridge,
        }
        return {
            condition: self.cache.array(self.subject, f"text-{fold}-{condition}", choose)
            for condition, choose in choices.items()
        }

    def training_features(self, fold: int | None) -> dict[str, SubjectFeatures]:
        """Trials of the other subjects whose answer is shown in a fold."""
        features = {}
        for subject in self.others:
            part = self.features[subject]
            mask = np.isin(self.folds.stimulus_texts[part.stimuli.numpy()], self.folds.shown(fold))
            rows = torch.from_numpy(mask)
            features[subject] = SubjectFeatures(part.values[rows], part.stimuli[rows])
        return features

    def model(self, fold: int | None, permuted: bool) -> EncodingModel:
        """Fit to the answers that are shown in a fold, or to pairs that are permuted; once.

        Rank and scales are those of the pairs as they are: the control has all parts of the
        evidence, with the weight that they have where pairs are not permuted.
        """
        fold = self.folds.hidden(fold)
        if (fold, permuted) not in self._models:
            features, embeddings = self.training_features(fold), self.embeddings
            texts = torch.from_numpy(self.folds.stimulus_texts)
            config = self.options.encoding_model
            regression = RegressionFolds(features, embeddings, texts)
            if fold not in self._scales:
                chosen = choose_scales(features, embeddings, texts, config, regression)
                self._scales = {fold: chosen}
            if permuted:
                features = permute_pairs(features, self.options.seed)
                regression = RegressionFolds(features, embeddings, texts)
            scales = self._scales[fold]
            fitted = fit_at_scales(features, embeddings, texts, config, scales, regression)
            self._models = {(fold, permuted): fitted} | {
                key: model for key, model in self._models.items() if key[0] == fold
            }
        return self._models[fold, permuted]

    def evidence(self, fold: int | None, permuted: bool, embeddings: Tensor) -> Tensor:
        """Evidence of trials for texts, by their embeddings."""
        model, values = self.model(fold, permuted), self.features[self.subject].values
        return model.evidence(values, model.subject_transform(values), embeddings)

    def predict_evidence(self, permuted: bool, fold: int | None) -> np.ndarray:
        """Evidence of trials for the candidates of a fold."""
        candidates = self.embeddings[self.folds.candidates(fold)]
        return self.evidence(fold, permuted, candidates).numpy()

    def predict_ridge(self, fold: int | None) -> np.ndarray:
        """Cosines of the candidates with the embedding that ridge regression predicts."""
        return self.ridge_similarity(fold, self.embeddings[self.folds.candidates(fold)]).numpy()

    def ridge_similarity(
        self,
        fold: int | None,
        embeddings: Tensor,
        labelled: Tensor | None = None,
        alone: bool = False,
    ) -> Tensor:
        """Cosines of texts with the embedding that ridge regression predicts of each trial.

        labelled: trials of the subject that are fitted to, too, or alone.
        """
        x, y, _ = self.regression_data(fold)
        if labelled is not None:
            texts = self.folds.stimulus_texts[self.folds.stimulus_index(self.subject)]
            center = self.embeddings[self.folds.shown(fold)].mean(0)
            own_x = standardize(self.features[self.subject])[labelled]
            own_y = center_embeddings(self.embeddings[texts[labelled]], center).numpy()
            x = own_x if alone else np.concatenate([x, own_x])
            y = own_y if alone else np.concatenate([y, own_y])
        ridge = Ridge(alpha=self.alpha).fit(x, y)
        predicted = torch.from_numpy(ridge.predict(standardize(self.features[self.subject])))
        center = self.embeddings[self.folds.shown(fold)].mean(0)
        targets = center_embeddings(embeddings, center)
        return center_embeddings(predicted, torch.zeros(())) @ targets.T

    def predict_discriminant(self, fold: int | None) -> np.ndarray:
        """Log-probabilities of answers by linear discriminant analysis with shrinkage."""
        parts = self.training_features(fold)
        x = np.concatenate([standardize(part) for part in parts.values()])
        _, _, axes = torch.linalg.svd(torch.from_numpy(x), full_matrices=False)
        axes = axes[: self.options.encoding_model.ranks[0]].T.numpy()
        y = np.concatenate(
            [self.folds.stimulus_texts[part.stimuli.numpy()] for part in parts.values()]
        )
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x @ axes, y)
        answers = self.folds.candidates(fold)
        scores = np.full((len(self.features[self.subject].values), len(answers)), -np.inf)
        test = standardize(self.features[self.subject]) @ axes
        scores[:, np.searchsorted(answers, model.classes_)] = model.predict_log_proba(test)
        return np.maximum(scores, np.finfo(np.float32).min)

    def regression_data(self, fold: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Standardized query outputs, centred embeddings and subjects of the training trials."""
        parts = self.training_features(fold)
        center = self.embeddings[self.folds.shown(fold)].mean(0)
        embeddings = center_embeddings(self.embeddings, center).numpy()
        texts = [self.folds.stimulus_texts[part.stimuli.numpy()] for part in parts.values()]
        return (
            np.concatenate([standardize(part) for part in parts.values()]),
            embeddings[np.concatenate(texts)],
            np.repeat(np.arange(len(parts)), [len(t) for t in texts]),
        )


def permute_pairs(parts: Mapping[str, SubjectFeatures], seed: int) -> dict[str, SubjectFeatures]:
    """Pair each subject's trials with the stimuli of others of its trials, at random."""
    permuted = {}
    for subject, part in parts.items():
        order = np.random.default_rng(subject_seed(seed, subject)).permutation(len(part.stimuli))
        permuted[subject] = SubjectFeatures(part.values, part.stimuli[torch.from_numpy(order)])
    return permuted


def standardize(part: SubjectFeatures) -> np.ndarray:
    """Return the z-scored query outputs of a subject."""
    values = part.values.double()
    mean, std = mean_and_std(values)
    return ((values - mean) / std).numpy()
