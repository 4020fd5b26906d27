"""Fit of the encoding model in closed form; shares of variance, rank and scales are learned.

The shares of the signal variance that belong to meaning, text and stimulus are those of the
largest marginal likelihood, in groups of dimensions: the dimensions that tell stimuli apart best
carry the most meaning. Rank, temperature, and the part that the regression of embeddings on trials
has in the evidence, are chosen by leaving each training subject out in turn.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mindllm.model.embedding_regression import (
    DIRECTIONS,
    PENALTIES,
    EvidenceScale,
    LeftOutTrials,
    PredictionSums,
    RegressionSums,
    choose_scale,
    ridge_weights,
)
from mindllm.model.encoding_model import (
    EncodingModel,
    EncodingModelConfig,
    center_embeddings,
    weighted_means,
)
from mindllm.model.labelled_trials import (
    LabelledScores,
    choose_label_gain,
    compare_with_labels,
    halve,
    mean_correlation,
    point_to_texts,
)
from mindllm.model.subject_alignment import (
    MAX_ALIGNMENT_TRIALS,
    MIN_ALIGNMENT_TRIALS,
    align_subjects,
    evenly_spaced,
    matrix_power,
    mean_and_std,
)
from mindllm.utils.errors import InputError

FIRST_GROUP = 8  # dimensions of the first group of equal shares; each next one has twice as many
INITIAL_SHARES = (0.4, 0.2, 0.4)
MIN_EIGENVALUE = 1e-10  # of a principal component, relative to the largest
MAX_LEFT_OUT = 20  # subjects that are left out in turn
PRIOR_COUNT = 1.0  # of a Dirichlet prior, which keeps every share above 0


@dataclass(frozen=True)
class SubjectFeatures:
    """Query outputs of one subject's trials.

    Parameters
    ----------
    values : Tensor of shape (n_trials, num_queries)
    stimuli : Tensor of int64, shape (n_trials,)
        Number of each trial's stimulus.
    """

    values: Tensor
    stimuli: Tensor


@dataclass(frozen=True)
class Stimuli:
    """Stimuli of training trials and the embeddings of their texts.

    Parameters
    ----------
    texts : Tensor of int64, shape (n_stimuli,)
        Number of each stimulus' text.
    counts : Tensor of shape (n_stimuli,)
        Trials of each.
    embeddings : Tensor of shape (n_texts, embedding_dim)
        Sentence embeddings, each one once.
    """

    texts: Tensor
    counts: Tensor
    embeddings: Tensor

    @property
    def center(self) -> Tensor:
        """Mean (embedding_dim,) of the embeddings."""
        return self.embeddings.mean(0)


def fit_encoding_model(
    subjects: Mapping[str, SubjectFeatures],
    text_embeddings: Tensor,
    stimulus_texts: Tensor | None = None,
    config: EncodingModelConfig | None = None,
) -> EncodingModel:
    """Fit an encoding model in closed form; its rank and scales by leaving one subject out.

    Parameters
    ----------
    subjects : mapping from str to SubjectFeatures
        Training subjects; subjects with fewer than 40 trials are standardized like the others.
    text_embeddings : Tensor of shape (n_texts, embedding_dim)
        Sentence embeddings of the texts.
    stimulus_texts : Tensor of int64, shape (n_stimuli,), optional
        Number of the text of each stimulus that `SubjectFeatures.stimuli` numbers. None: each
        stimulus has the text of its number.
    config : EncodingModelConfig, optional

    Returns
    -------
    EncodingModel

    Raises
    ------
    InputError
        If fewer than two texts have trials, or no text has two.

    References
    ----------
    Temperature: Guo et al. 2017, On calibration of modern neural networks, ICML.
    """
    config = config or EncodingModelConfig()
    if stimulus_texts is None:
        stimulus_texts = torch.arange(len(text_embeddings))
    regression = RegressionFolds(subjects, text_embeddings, stimulus_texts)
    data = (subjects, text_embeddings, stimulus_texts, config)
    return fit_at_scales(*data, choose_scales(*data, regression), regression)


@dataclass(frozen=True)
class FitScales:
    """What is chosen by leaving training subjects out.

    Parameters
    ----------
    rank : int
        Principal components of the query outputs.
    evidence : EvidenceScale
        Temperature, and the part of the regression.
    label_gain, label_correlation : float
        Of labelled trials of a new subject.
    """

    rank: int
    evidence: EvidenceScale
    label_gain: float = 0.0
    label_correlation: float = 0.0


def choose_scales(
    subjects: Mapping[str, SubjectFeatures],
    text_embeddings: Tensor,
    stimulus_texts: Tensor,
    config: EncodingModelConfig,
    regression: "RegressionFolds",
) -> FitScales:
    """Choose rank and scales; of one subject, which cannot be left out, the first and none."""
    ranks = limit_ranks(config.ranks, subjects)
    if len(subjects) < 2:
        return FitScales(ranks[0], EvidenceScale())
    left_out = leave_subjects_out(
        subjects, text_embeddings, stimulus_texts, config, ranks, regression
    )
    scales = {rank: choose_scale(parts) for rank, parts in left_out.items()}
    rank = min(scales, key=lambda rank: scales[rank].loss)
    with_labels = [part.with_labels for part in left_out[rank] if part.with_labels]
    label_gain = choose_label_gain(with_labels, scales[rank].temperature)
    return FitScales(rank, scales[rank], label_gain, mean_correlation(with_labels))


def fit_at_scales(
    subjects: Mapping[str, SubjectFeatures],
    text_embeddings: Tensor,
    stimulus_texts: Tensor,
    config: EncodingModelConfig,
    scales: FitScales,
    regression: "RegressionFolds",
) -> EncodingModel:
    """Fit densities and regression, with rank and scales as they were chosen."""
    model = fit_closed_form(subjects, text_embeddings, stimulus_texts, config, scales.rank)
    model.temperature.fill_(scales.evidence.temperature)
    if scales.evidence.gain > 0:
        regression.add_to(model, scales.evidence)
    elif scales.label_gain > 0:
        model.regression_gain.fill_(1.0)  # its weights are 0, labelled trials add to them
    model.label_gain.fill_(scales.label_gain)
    model.label_correlation.fill_(scales.label_correlation)
    return model


def limit_ranks(ranks: Sequence[int], subjects: Mapping[str, SubjectFeatures]) -> list[int]:
    """Ranks to choose among, each once, that fits to all but the largest subject can have."""
    sizes = sorted(len(part.values) for part in subjects.values())
    width = next(iter(subjects.values())).values.shape[1]
    limit = max(min(width, sum(sizes[:-1] or sizes) - 1), 1)
    return sorted({min(rank, limit) for rank in ranks})


def leave_subjects_out(
    subjects: Mapping[str, SubjectFeatures],
    text_embeddings: Tensor,
    stimulus_texts: Tensor,
    config: EncodingModelConfig,
    ranks: Sequence[int],
    regression: "RegressionFolds",
) -> dict[int, list[LeftOutTrials]]:
    """What models of the others say of each left-out subject's trials, by rank."""
    results: dict[int, list[LeftOutTrials]] = {rank: [] for rank in ranks}
    names = list(subjects)
    for name in (names[i] for i in evenly_spaced(len(names), MAX_LEFT_OUT)):
        left_out = subjects[name]
        others = {other: part for other, part in subjects.items() if other != name}
        known = torch.unique(stimulus_texts[torch.cat([part.stimuli for part in others.values()])])
        texts = stimulus_texts[left_out.stimuli]
        rows = torch.isin(texts, known).nonzero()[:, 0]
        if not len(rows):
            continue
        rows = rows[evenly_spaced(len(rows), MAX_ALIGNMENT_TRIALS)]
        candidates, targets = torch.unique(texts[rows], return_inverse=True)
        embeddings, values = text_embeddings[candidates].double(), left_out.values[rows]
        unique, inverse = torch.unique(embeddings, dim=0, return_inverse=True)
        predicted = regression.predict_left_out(name)[:, rows]
        sums = regression.sums_left_out[name]
        axes_of_texts = regression.project(embeddings)
        standardized = standardize_subjects(list(others.values()))[2]
        components = principal_components(standardized, max(ranks))
        for rank in ranks:
            try:
                model = fit_closed_form(
                    others, text_embeddings, stimulus_texts, config, rank, components
                )
            except InputError:  # of two subjects, the one that is left may have too few trials
                continue
            transform = model.subject_transform(left_out.values)
            ratios = model.density_ratios(values, transform, unique)[:, inverse]
            with_labels = score_with_labels(model, left_out.values, rows, embeddings, targets)
            results[rank].append(
                LeftOutTrials(ratios, predicted, axes_of_texts, targets, sums, with_labels)
            )
    return results


def score_with_labels(
    model: EncodingModel, values: Tensor, rows: Tensor, embeddings: Tensor, targets: Tensor
) -> LabelledScores | None:
    """What is said of a left-out subject's trials when the other half of them is labelled.

    Parameters
    ----------
    model : EncodingModel
        Of the other subjects.
    values : Tensor of shape (n_trials, num_queries)
        All trials of the subject.
    rows : Tensor of int64, shape (n_rows,)
        Those that are labelled, half by half, and told.
    embeddings : Tensor of shape (n_texts, embedding_dim)
    targets : Tensor of int64, shape (n_rows,)
        Number of each row's text.

    Returns
    -------
    LabelledScores or None
        None where nothing of the trials is left to compare.
    """
    unique, inverse = torch.unique(embeddings, dim=0, return_inverse=True)
    halves = halve(targets)
    e = center_embeddings(embeddings, model.text_center)
    texts = center_embeddings(model.text_embeddings, model.text_center)
    ratios, similarities = torch.zeros(2, len(rows), len(e)).to(e)
    correlations = []
    for half in (0, 1):
        labelled, tested = (halves != half).nonzero()[:, 0], (halves == half).nonzero()[:, 0]
        if not len(labelled) or not len(tested):
            return None
        labels = {int(rows[i]): embeddings[targets[i]] for i in labelled}
        transform = model.subject_transform(values, labels)
        standardized = model.standardize(values, transform)
        others = compare_with_labels(standardized, rows[labelled], model.components)
        if others is None:
            return None
        k = others.similarity(standardized[rows[tested]])
        is_same = targets[tested][:, None] == targets[labelled]
        correlations.append(float(k[is_same].mean().nan_to_num()))
        others = point_to_texts(others, e[targets[labelled]], texts, max(correlations[-1], 0.0))
        similarities[tested] = k @ others.directions @ e.T
        tested_values = values[rows[tested]]
        ratios[tested] = model.density_ratios(tested_values, transform, unique)[:, inverse]
    return LabelledScores(ratios, similarities, targets, sum(correlations) / 2)


class RegressionFolds:
    """Regressions of sentence embeddings on query outputs, with each subject left out.

    Parameters
    ----------
    subjects : mapping from str to SubjectFeatures
    text_embeddings : Tensor of shape (n_texts, embedding_dim)
    stimulus_texts : Tensor of int64, shape (n_stimuli,)
    """

    def __init__(
        self,
        subjects: Mapping[str, SubjectFeatures],
        text_embeddings: Tensor,
        stimulus_texts: Tensor,
    ) -> None:
        parts = list(subjects.values())
        index, stimuli = number_stimuli(parts, text_embeddings, stimulus_texts)
        self.center = stimuli.center
        embeddings = center_embeddings(stimuli.embeddings, stimuli.center)
        self.n_texts = len(embeddings)
        self.axes = principal_components([embeddings], max(DIRECTIONS))
        self.sums_left_out: dict[str, list[PredictionSums]] = {}  # of each, one per penalty
        targets = embeddings[stimuli.texts[index]].split([len(part.values) for part in parts])
        self.values = dict(zip(subjects, standardize_subjects(parts)[2], strict=True))
        self.targets = dict(zip(subjects, targets, strict=True))
        n_trials, num_queries = len(index), parts[0].values.shape[1]
        self.is_small = n_trials < num_queries  # then trials are fewer numbers than their sums
        self._sums: RegressionSums | None = None

    def sums(self, subject: str) -> RegressionSums:
        """Sums over one subject's trials."""
        return RegressionSums.of_trials(self.values[subject], self.targets[subject])

    def weights(
        self,
        penalties: Sequence[float],
        left_out: str | None = None,
        axes: Tensor | None = None,
    ) -> list[Tensor]:
        """Weights at each penalty, fitted to all subjects but one that is left out.

        `axes` (embedding_dim, n_axes) are those that embeddings are predicted on; None: all.
        """
        if self.is_small:
            names = [name for name in self.values if name != left_out]
            values, targets = (
                [part[name] for name in names] for part in (self.values, self.targets)
            )
            joined = torch.cat(targets)
            return ridge_weights(
                torch.cat(values), joined if axes is None else joined @ axes, penalties
            )
        if self._sums is None:
            self._sums = reduce(operator.add, (self.sums(name) for name in self.values))
        sums = self._sums if left_out is None else self._sums - self.sums(left_out)
        if axes is not None:
            sums = replace(sums, moments=sums.moments @ axes)
        return sums.weights(penalties)

    def project(self, embeddings: Tensor) -> Tensor:
        """Embeddings (n_texts, embedding_dim) on the principal axes, (n_texts, n_axes)."""
        return center_embeddings(embeddings, self.center) @ self.axes

    def predict_left_out(self, left_out: str) -> Tensor:
        """Predict embeddings (n_penalties, n_trials, n_axes) of a subject by the others' trials.

        They are added to `sums_left_out`.
        """
        values, true = self.values[left_out], self.targets[left_out] @ self.axes
        predicted = [values @ w for w in self.weights(PENALTIES, left_out, self.axes)]
        sums = [PredictionSums.of_trials(part, true, self.n_texts) for part in predicted]
        self.sums_left_out[left_out] = sums
        return torch.stack(predicted)

    def add_to(self, model: EncodingModel, scale: EvidenceScale) -> None:
        """Give the regression on all subjects its part in a model's evidence."""
        model.regression_weights, model.regression_scale = self.combine(scale.penalty, scale.n_axes)
        model.regression_gain.fill_(scale.gain)

    def combine(self, penalty: int, n_axes: int) -> tuple[Tensor, Tensor]:
        """Weights and scale of a model's regression at the penalty of a number, on so many axes."""
        if not self.sums_left_out:
            names = list(self.values)
            for i in evenly_spaced(len(names), MAX_LEFT_OUT):
                self.predict_left_out(names[i])
        sums = [of_subject[penalty] for of_subject in self.sums_left_out.values()]
        readout = reduce(operator.add, sums).readout(n_axes)
        axes = self.axes[:, : len(readout.slopes)]
        (weights,) = self.weights([PENALTIES[penalty]], axes=axes)
        return weights @ readout.weights @ axes.T, axes @ readout.scale


def fit_closed_form(
    subjects: Mapping[str, SubjectFeatures],
    text_embeddings: Tensor,
    stimulus_texts: Tensor,
    config: EncodingModelConfig,
    rank: int | None = None,
    components: Tensor | None = None,
) -> EncodingModel:
    """Fit the densities alone, with the first of the ranks by default.

    The temperature is 1, and the regression has no part in the evidence. `components` are the
    principal components, this many or more, where they are known already.
    """
    parts = list(subjects.values())
    index, stimuli = number_stimuli(parts, text_embeddings, stimulus_texts)
    query_mean, query_std, standardized = standardize_subjects(parts)
    rank = rank or config.ranks[0]
    if components is None:
        components = principal_components(standardized, rank)
    components = components[:, :rank]
    projected = [values @ components for values in standardized]
    features, group_covariance = align_subjects(projected, config.alignment_shrinkage)
    basis, means, center, variance = discriminant_basis(
        features, index, stimuli.counts, config.noise_shrinkage
    )
    signal = fit_signal(variance, means, stimuli)
    tensors = {
        "query_mean": query_mean,
        "query_std": query_std,
        "components": components,
        "group_covariance": group_covariance,
        "basis": basis,
        "center": center,
        "text_center": stimuli.center,
        "text_embeddings": stimuli.embeddings,
        "stimulus_texts": stimuli.texts,
        "stimulus_means": means,
        "stimulus_counts": stimuli.counts,
        "signal": signal,
        "regression_weights": torch.zeros(len(query_mean), stimuli.embeddings.shape[1]),
        "regression_gain": torch.tensor(0.0),
        "regression_scale": torch.zeros(stimuli.embeddings.shape[1], 1),
        "label_gain": torch.tensor(0.0),
        "label_correlation": torch.tensor(0.0),
        "temperature": torch.tensor(1.0),
        # A negative number stands for no alignment, since tensors alone are saved.
        "alignment_shrinkage": torch.tensor(
            -1.0 if config.alignment_shrinkage is None else config.alignment_shrinkage
        ),
        "alignment_ridge": torch.tensor(config.alignment_ridge or -1.0),
    }
    return EncodingModel(tensors | regress_on_text(signal, means, stimuli))


def number_stimuli(
    parts: Sequence[SubjectFeatures], text_embeddings: Tensor, stimulus_texts: Tensor
) -> tuple[Tensor, Stimuli]:
    """Number the stimuli that have trials: each trial's number, and what they are.

    Texts with equal embeddings are one. Where too few trials repeat a stimulus to know the
    scatter within stimuli, all stimuli with one text are one.
    """
    numbers = torch.cat([part.stimuli for part in parts])
    used, texts = torch.unique(stimulus_texts[numbers], return_inverse=True)
    embeddings, of_text = torch.unique(text_embeddings[used].double(), dim=0, return_inverse=True)
    texts = of_text[texts]
    _, index = torch.unique(numbers, return_inverse=True)
    n_repeats = len(index) - int(index.max()) - 1
    if n_repeats < len(index) - len(embeddings) and n_repeats < len(embeddings):
        index = texts
    of_stimulus = torch.zeros(int(index.max()) + 1, dtype=torch.int64)
    of_stimulus[index] = texts
    counts = torch.bincount(index).double()
    if len(embeddings) < 2 or counts.max() < 2:
        raise InputError(
            f"{len(index)} training trials of {len(embeddings)} texts cannot fit an encoding "
            "model; expected at least two texts, and a text with at least two trials."
        )
    return index, Stimuli(of_stimulus, counts, embeddings)


def standardize_subjects(parts: Sequence[SubjectFeatures]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Mean and standard deviation (num_queries,) of subjects, and each one's z-scored values."""
    values = [part.values.double() for part in parts]
    scales = [mean_and_std(of_subject) for of_subject in values]
    query_mean = torch.stack([mean for mean, _ in scales]).mean(0)
    query_std = torch.stack([std for _, std in scales]).mean(0)
    standardized = []
    for of_subject, (mean, std) in zip(values, scales, strict=True):
        if len(of_subject) < MIN_ALIGNMENT_TRIALS:
            mean, std = query_mean, query_std
        standardized.append((of_subject - mean) / std)
    return query_mean, query_std, standardized


def principal_components(parts: Sequence[Tensor], rank: int) -> Tensor:
    """Leading principal axes (d, rank) of all rows of the parts (n, d)."""
    n_rows, size = sum(len(part) for part in parts), parts[0].shape[1]
    rank = min(rank, size, n_rows - 1)
    if n_rows < size:
        rows = torch.cat(list(parts))
        eigenvalues, vectors = torch.linalg.eigh(rows @ rows.T)
        if eigenvalues[-rank] > MIN_EIGENVALUE * eigenvalues[-1]:
            return rows.T @ vectors[:, -rank:].flip(1) / eigenvalues[-rank:].flip(0).sqrt()
        return torch.linalg.svd(rows, full_matrices=False)[2][:rank].T
    covariance = torch.stack([part.T @ part for part in parts]).sum(0) / n_rows
    return torch.linalg.eigh(covariance)[1][:, -rank:].flip(1)


def discriminant_basis(
    features: Tensor, index: Tensor, counts: Tensor, shrinkage: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Basis in which the scatter within stimuli is white, sorted by the scatter between them.

    Parameters
    ----------
    features : Tensor of shape (n_trials, d)
    index : Tensor of int64, shape (n_trials,)
        Stimulus of each trial.
    counts : Tensor of shape (n_stimuli,)
        Trials of each stimulus.
    shrinkage : float
        Of the scatter within stimuli, to its diagonal.

    Returns
    -------
    basis : Tensor of shape (d, d)
    means : Tensor of shape (n_stimuli, d)
        Mean of each stimulus in that basis, around `center`.
    center : Tensor of shape (d,)
    variance : Tensor of shape (d,)
        Variance between stimuli without the noise of their means; noise has variance 1.
    """
    means = torch.zeros(len(counts), features.shape[1]).to(features)
    means = means.index_add(0, index, features) / counts[:, None]
    residuals = features - means[index]
    within = residuals.T @ residuals / max(len(features) - len(counts), 1)
    within = (1 - shrinkage) * within + shrinkage * within.diagonal().diag()
    whitening = matrix_power(within, -0.5)
    white = means @ whitening
    white = white - white.mean(0)
    between = white.T @ white / len(counts) - (1 / counts).mean() * torch.eye(
        white.shape[1], dtype=white.dtype
    )
    variance, vectors = torch.linalg.eigh(between)
    basis = whitening @ vectors.flip(1)
    rotated = means @ basis
    return basis, rotated - rotated.mean(0), rotated.mean(0), variance.flip(0).clamp_min(1e-3)


def fit_signal(variance: Tensor, means: Tensor, stimuli: Stimuli) -> Tensor:
    """Semantic, text and stimulus variance (3, rank), by the largest marginal likelihood."""
    likelihood = MarginalLikelihood(variance, means, stimuli)
    shares = torch.zeros(3, len(variance), dtype=torch.float64)
    start, size = 0, FIRST_GROUP
    while start < len(variance):
        group = slice(start, start + size)
        shares[:, group] = likelihood.best_shares(group)[:, None]
        start, size = start + size, 2 * size
    return shares * variance


class MarginalLikelihood:
    """Likelihood of stimulus means under shares of the signal variance.

    The texts' precisions are taken as a factor of the dimension times a factor of the text,
    which is exact where all texts have equally many stimuli and trials.

    Parameters
    ----------
    variance : Tensor of shape (rank,)
        Signal variance of each dimension.
    means : Tensor of shape (n_stimuli, rank)
    stimuli : Stimuli
    """

    def __init__(self, variance: Tensor, means: Tensor, stimuli: Stimuli) -> None:
        ones = torch.ones_like(means)
        self.variance = variance.numpy()
        text_means, n_stimuli = weighted_means(means, ones, stimuli.texts)
        inverse, _ = weighted_means(1 / stimuli.counts[:, None] * ones, ones, stimuli.texts)
        deviations = (means - text_means[stimuli.texts]).square()
        deviations, _ = weighted_means(deviations, ones, stimuli.texts)
        self.n_stimuli = n_stimuli[:, :1].numpy()  # (n_texts, 1)
        self.noise = inverse[:, :1].numpy()
        self.deviations = (deviations * n_stimuli).numpy()  # (n_texts, rank)
        self.weights = self.text_weights(np.array(INITIAL_SHARES), slice(None))
        root = torch.from_numpy(self.weights).sqrt()
        e = center_embeddings(stimuli.embeddings, stimuli.center) * root
        left, scales, _ = torch.linalg.svd(e, full_matrices=False)
        self.information = scales.square().numpy()[:, None]
        projected = left.T @ (root * text_means)
        rest = (root * text_means).square().sum(0) - projected.square().sum(0)
        self.projected = projected.square().numpy()
        self.rest = rest.clamp_min(0).numpy()

    def text_variance(self, shares: np.ndarray, group: slice) -> np.ndarray:
        """Variance (n_texts, d) of text means around their prediction from the embedding."""
        _, of_text, of_stimulus = shares[:, None] * self.variance[None, group]
        return of_text + (of_stimulus + self.noise) / self.n_stimuli

    def text_weights(self, shares: np.ndarray, group: slice) -> np.ndarray:
        """Relative precision (n_texts, 1) of the texts, with mean 1."""
        precision = (1 / self.text_variance(shares, group)).mean(1, keepdims=True)
        return np.asarray(precision / precision.mean())

    def __call__(self, shares: np.ndarray, group: slice) -> float:
        """Log-likelihood of a group of dimensions, but for a constant."""
        semantic, _, of_stimulus = shares[:, None] * self.variance[None, group]
        within = of_stimulus + self.noise
        rest = (self.weights * self.text_variance(shares, group)).mean(0)
        along = semantic * self.information + rest
        n_rest = len(self.noise) - len(self.information)
        terms = (
            ((self.n_stimuli - 1) * np.log(within) + self.deviations[:, group] / within).sum(),
            (np.log(along) + self.projected[:, group] / along).sum(),
            (n_rest * np.log(rest) + self.rest[group] / rest).sum(),
        )
        return -0.5 * float(sum(terms))

    def best_shares(self, group: slice) -> Tensor:
        """Shares (3,) of the largest likelihood times a Dirichlet prior."""

        def loss(logits: np.ndarray) -> float:
            shares = softmax(logits)
            return -self(shares, group) - PRIOR_COUNT * float(np.log(shares).sum())

        start = np.log(INITIAL_SHARES[:2]) - np.log(INITIAL_SHARES[2])
        best = minimize(loss, start, method="L-BFGS-B", bounds=[(-8, 8)] * 2)
        return torch.from_numpy(softmax(best.x))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares that add up to one; the last one's logit is 0."""
    exponents = np.exp(np.append(logits, 0.0))
    return np.asarray(exponents / exponents.sum())


def regress_on_text(signal: Tensor, means: Tensor, stimuli: Stimuli) -> dict[str, Tensor]:
    """Bayesian linear regression of text means on sentence embeddings, per dimension.

    Parameters
    ----------
    signal : Tensor of shape (3, rank)
        Semantic, text and stimulus variance.
    means : Tensor of shape (n_stimuli, rank)
    stimuli : Stimuli

    Returns
    -------
    dict of str to Tensor
        weights : (embedding_dim, rank). The posterior covariance of dimension j is diagonal in
        the basis `axes` (embedding_dim, n_axes), with precision 1 / semantic_j +
        precision_j * information, and is the prior's in the directions left.
    """
    semantic, of_text, of_stimulus = signal
    within = 1 / (of_stimulus + 1 / stimuli.counts[:, None])
    text_means, precision = weighted_means(means, within, stimuli.texts)
    precision = 1 / (of_text + 1 / precision)  # (n_texts, rank)
    of_dimension = precision.mean(0)
    of_text_number = (precision / of_dimension).mean(1, keepdim=True)
    e = center_embeddings(stimuli.embeddings, stimuli.center)
    _, scales, axes = torch.linalg.svd(e * of_text_number.sqrt(), full_matrices=False)
    information, axes = scales.square(), axes.T
    # Per dimension and axis; the prior's precision is factored out, as semantic may be 0.
    posterior = semantic / (1 + semantic * of_dimension * information[:, None])
    moments = (e @ axes).T @ (text_means * of_text_number) * of_dimension
    return {
        "weights": axes @ (posterior * moments),
        "axes": axes,
        "information": information,
        "precision": of_dimension,
    }
