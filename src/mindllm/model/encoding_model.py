"""Encoding model: how brains respond to a text, and the evidence of a trial for any text.

Features of a trial are the encoder's query outputs, standardized per subject, on their leading
principal components, with the subject's covariance aligned to the group's without labels. In a
basis where the scatter around a text is white, a trial y of text c is

    y = m(c) + noise,   noise ~ N(0, I)
    m(c) = W^T e(c) + u(c),   W ~ N(0, sigma^2 alpha),   u(c) ~ N(0, sigma^2 (1 - alpha))

e(c) is the centred, unit sentence embedding. W speaks of texts that were never shown, u keeps what
was learned of those that were. W has a closed form of the size of e (Bayesian linear regression).

References
----------
Mitchell et al. 2008, Science 320; Naselaris et al. 2011, NeuroImage 56 (decoding by encoding).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from pydantic.types import PositiveInt
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from mindllm.model.configuration import Fraction
from mindllm.utils.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
MIN_ALIGNMENT_TRIALS = 40  # fewer trials of a subject say too little about its covariance


class EncodingModelConfig(BaseModel):
    """Options of the encoding model.

    Examples
    --------
    >>> EncodingModelConfig(rank=50).semantic_rank
    50
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: PositiveInt = 100
    """Principal components of the query outputs."""
    semantic_rank: PositiveInt = 50
    """Dimensions, those that tell texts apart best, in which meaning generalizes to new texts."""
    semantic_share: Fraction = 0.45
    """alpha: share of the signal variance that follows the sentence embeddings."""
    noise_shrinkage: Share = 0.5
    """Shrinkage of the covariance within texts to its diagonal."""
    alignment_shrinkage: Share | None = 0.5
    """Shrinkage of a subject's covariance before alignment to the group's; null: no alignment."""


@dataclass(frozen=True)
class SubjectFeatures:
    """Query outputs of one subject's trials.

    Parameters
    ----------
    values : Tensor of shape (n_trials, num_queries)
    texts : Tensor of int64, shape (n_trials,)
        Number of each trial's text.
    """

    values: Tensor
    texts: Tensor


@dataclass(frozen=True)
class SubjectTransform:
    """Standardization and alignment of one subject, from its own trials without labels.

    Parameters
    ----------
    mean, std : Tensor of shape (num_queries,)
        Of its query outputs.
    alignment : Tensor of shape (rank, rank)
        Applied to its principal components.
    """

    mean: Tensor
    std: Tensor
    alignment: Tensor


class EncodingModel(nn.Module):
    """Predictive density of trials given a text, made by `fit_encoding_model`.

    Parameters
    ----------
    tensors : mapping from str to Tensor
        The names of `TENSORS`; see `fit_encoding_model`.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> response = torch.randn(12, 20)
    >>> subject = lambda: SubjectFeatures(response.repeat(4, 1) + torch.randn(48, 20),
    ...                                   torch.arange(12).repeat(4))
    >>> model = fit_encoding_model({"sub-01": subject(), "sub-02": subject()}, torch.eye(12))
    >>> test = subject()
    >>> evidence = model.evidence(test.values, model.subject_transform(test.values), torch.eye(12))
    >>> bool((evidence.argmax(1) == test.texts).double().mean() > 0.5)
    True
    """

    TENSORS = (
        "query_mean",
        "query_std",
        "components",
        "group_covariance",
        "basis",
        "center",
        "text_center",
        "text_embeddings",
        "text_means",
        "text_counts",
        "weights",
        "weights_covariance",
        "signal",
        "temperature",
        "alignment_shrinkage",
    )

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in self.TENSORS:
            self.register_buffer(name, tensors[name].double().cpu())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Stay on the CPU in float64, wherever the model is moved: it is small, and exact."""
        return self

    query_mean: Tensor
    query_std: Tensor
    components: Tensor
    group_covariance: Tensor
    basis: Tensor
    center: Tensor
    text_center: Tensor
    text_embeddings: Tensor
    text_means: Tensor
    text_counts: Tensor
    weights: Tensor
    weights_covariance: Tensor
    signal: Tensor
    temperature: Tensor
    alignment_shrinkage: Tensor

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], prefix: str) -> Self | None:
        """The encoding model among the tensors of a checkpoint; None if it holds none."""
        names = [prefix + name for name in cls.TENSORS]
        if not any(name in state_dict for name in names):
            return None
        missing = [name for name in names if name not in state_dict]
        if missing:
            raise InputError(
                f"the checkpoint holds a part of an encoding model, without {', '.join(missing)}. "
                "Train or fetch the model again."
            )
        return cls({name: state_dict[prefix + name] for name in cls.TENSORS})

    def subject_transform(self, query_outputs: Tensor | None = None) -> SubjectTransform:
        """Standardize and align a subject by its own trials, without labels.

        Parameters
        ----------
        query_outputs : Tensor of shape (n_trials, num_queries), optional
            Trials of the subject, those to be decoded or others. None, or fewer than 40: the
            training subjects' mean and standard deviation, and no alignment.

        Returns
        -------
        SubjectTransform
        """
        identity = torch.eye(len(self.group_covariance)).to(self.components)
        if query_outputs is None or len(query_outputs) < MIN_ALIGNMENT_TRIALS:
            return SubjectTransform(self.query_mean, self.query_std, identity)
        values = query_outputs.to(self.components)
        mean, std = mean_and_std(values)
        shrinkage = float(self.alignment_shrinkage)
        if shrinkage < 0:
            return SubjectTransform(mean, std, identity)
        projected = (values - mean) / std @ self.components
        alignment = align_covariance(projected, self.group_covariance, shrinkage)
        return SubjectTransform(mean, std, alignment)

    def transform(self, query_outputs: Tensor, subject: SubjectTransform) -> Tensor:
        """Features (n_trials, rank) of trials, in which the noise is white."""
        standardized = (query_outputs.to(self.components) - subject.mean) / subject.std
        return standardized @ self.components @ subject.alignment @ self.basis - self.center

    def predict(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the response to texts.

        Parameters
        ----------
        embeddings : Tensor of shape (n_texts, embedding_dim)
            Sentence embeddings; a text that was trained on is known by its embedding.

        Returns
        -------
        mean : Tensor of shape (n_texts, rank)
        variance : Tensor of shape (n_texts, rank)
            Of a trial: what is not known of the response, and the noise.
        """
        embeddings = embeddings.to(self.components)
        e = center_embeddings(embeddings, self.text_center)
        semantic, specific = self.signal
        mean = e @ self.weights
        spread = ((e @ self.weights_covariance) * e).sum(1, keepdim=True)
        has_meaning = (semantic > 0).to(e)
        variance = spread * has_meaning + specific + 1
        similarity = e @ center_embeddings(self.text_embeddings, self.text_center).T
        nearest = similarity.max(1)
        known = nearest.values > 1 - 1e-6
        rows = nearest.indices[known]
        gain = specific / (specific + 1 / self.text_counts[rows][:, None])
        mean[known] = (1 - gain) * mean[known] + gain * self.text_means[rows]
        uncertain = (1 - gain).square() * spread[known] * has_meaning + specific * (1 - gain)
        variance[known] = uncertain + 1
        return mean, variance

    def evidence(
        self, query_outputs: Tensor, subject: SubjectTransform, embeddings: Tensor
    ) -> Tensor:
        """Evidence of trials for texts: log p(trial | text) - log p(trial), in nats.

        Parameters
        ----------
        query_outputs : Tensor of shape (n_trials, num_queries)
        subject : SubjectTransform
        embeddings : Tensor of shape (n_texts, embedding_dim)

        Returns
        -------
        Tensor of shape (n_trials, n_texts)
            Positive where the trial speaks for the text.
        """
        y = self.transform(query_outputs, subject)
        mean, variance = self.predict(embeddings)
        no_text = (self.signal.sum(0) + 1)[None]
        with_text = gaussian_log_density(y, mean, variance)
        without = gaussian_log_density(y, torch.zeros_like(no_text), no_text)
        return (with_text - without) / self.temperature


def gaussian_log_density(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log-density (n, m), but for a constant, of rows of y (n, d) under m diagonal Gaussians."""
    precision = 1 / variance
    square = y.square() @ precision.T - 2 * y @ (mean * precision).T
    return -0.5 * (square + (mean.square() * precision + variance.log()).sum(1))


def center_embeddings(embeddings: Tensor, center: Tensor) -> Tensor:
    """Sentence embeddings (n, embedding_dim) without their common part, as unit vectors."""
    return nn.functional.normalize(embeddings - center, dim=-1)


def mean_and_std(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (d,) of values (n, d); 1 where they never vary."""
    std = values.std(0, correction=0)
    return values.mean(0), torch.where(std > 0, std, 1)


def shrink_covariance(values: Tensor, shrinkage: float) -> Tensor:
    """Covariance (d, d) of values (n, d), shrunk to a multiple of the identity."""
    covariance = torch.cov(values.T, correction=0)
    mean_variance = covariance.diagonal().mean()
    return (1 - shrinkage) * covariance + shrinkage * mean_variance * torch.eye(
        len(covariance), dtype=values.dtype, device=values.device
    )


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Power of a symmetric positive matrix (d, d)."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    eigenvalues = eigenvalues.clamp_min(1e-6 * eigenvalues.max())
    return (vectors * eigenvalues**power) @ vectors.T


def align_covariance(values: Tensor, target: Tensor, shrinkage: float) -> Tensor:
    """Map (d, d) that gives values (n, d) the covariance `target`: whiten, then color.

    References
    ----------
    Sun, Feng & Saenko 2016, Return of frustratingly easy domain adaptation (CORAL), AAAI.
    """
    covariance = shrink_covariance(values, shrinkage)
    return matrix_power(covariance, -0.5) @ matrix_power(target, 0.5)


def fit_encoding_model(
    subjects: Mapping[str, SubjectFeatures],
    text_embeddings: Tensor,
    config: EncodingModelConfig | None = None,
) -> EncodingModel:
    """Fit an encoding model in closed form; its temperature by leaving one subject out.

    Parameters
    ----------
    subjects : mapping from str to SubjectFeatures
        Training subjects; subjects with fewer than 40 trials are standardized like the others.
    text_embeddings : Tensor of shape (n_texts, embedding_dim)
        Sentence embeddings of the texts that `SubjectFeatures.texts` numbers.
    config : EncodingModelConfig, optional

    Returns
    -------
    EncodingModel

    Raises
    ------
    InputError
        If fewer than two texts have trials, or no text has two.
    """
    config = config or EncodingModelConfig()
    model = fit_closed_form(subjects, text_embeddings, config)
    if len(subjects) > 2:
        model.temperature.fill_(choose_temperature(subjects, text_embeddings, config))
    return model


def choose_temperature(
    subjects: Mapping[str, SubjectFeatures], text_embeddings: Tensor, config: EncodingModelConfig
) -> float:
    """Temperature at which left-out subjects' true texts are most probable, in [0.5, 5]."""
    evidence, targets = [], []
    for name, left_out in subjects.items():
        others = {other: part for other, part in subjects.items() if other != name}
        known = torch.unique(torch.cat([part.texts for part in others.values()]))
        rows = torch.isin(left_out.texts, known)
        if not rows.any():
            continue
        model = fit_closed_form(others, text_embeddings, config)
        transform = model.subject_transform(left_out.values)
        evidence.append(model.evidence(left_out.values[rows], transform, text_embeddings[known]))
        targets.append(torch.searchsorted(known, left_out.texts[rows]))
    if not evidence:
        return 1.0

    def loss(log_temperature: float) -> float:
        factor = torch.tensor(-log_temperature).exp()
        losses = [
            nn.functional.cross_entropy(e * factor, t, reduction="sum")
            for e, t in zip(evidence, targets, strict=True)
        ]
        return float(sum(losses))

    best = minimize_scalar(loss, bounds=(-0.7, 1.6), method="bounded")
    return float(torch.tensor(best.x).exp())


def fit_closed_form(
    subjects: Mapping[str, SubjectFeatures], text_embeddings: Tensor, config: EncodingModelConfig
) -> EncodingModel:
    """Fit everything but the temperature, which is 1."""
    parts = list(subjects.values())
    texts, index = torch.unique(torch.cat([part.texts for part in parts]), return_inverse=True)
    counts = torch.bincount(index).double()
    if len(texts) < 2 or counts.max() < 2:
        raise InputError(
            f"{len(index)} training trials of {len(texts)} texts cannot fit an encoding model; "
            "expected at least two texts, and a text with at least two trials."
        )
    query_mean, query_std, standardized = standardize_subjects(parts)
    components = principal_components(standardized, config.rank)
    projected = [values @ components for values in standardized]
    features, group_covariance = align_subjects(projected, config.alignment_shrinkage)
    basis, means, center, signal_variance = discriminant_basis(
        features, index, counts, config.noise_shrinkage
    )
    signal = split_signal(signal_variance, config)
    embeddings = text_embeddings[texts].double()
    text_center = embeddings.mean(0)
    weights, covariance = regress_on_text(
        center_embeddings(embeddings, text_center), means, counts, signal
    )
    # A negative number stands for no alignment, since tensors alone are saved.
    shrinkage = -1.0 if config.alignment_shrinkage is None else config.alignment_shrinkage
    return EncodingModel(
        {
            "query_mean": query_mean,
            "query_std": query_std,
            "components": components,
            "group_covariance": group_covariance,
            "basis": basis,
            "center": center,
            "text_center": text_center,
            "text_embeddings": embeddings,
            "text_means": means,
            "text_counts": counts,
            "weights": weights,
            "weights_covariance": covariance,
            "signal": signal,
            "temperature": torch.tensor(1.0),
            "alignment_shrinkage": torch.tensor(shrinkage),
        }
    )


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
    n_rows = sum(len(part) for part in parts)
    covariance = torch.stack([part.T @ part for part in parts]).sum(0) / n_rows
    _, vectors = torch.linalg.eigh(covariance)
    rank = min(rank, len(covariance), n_rows - 1)
    return vectors[:, -rank:].flip(1)


def align_subjects(parts: Sequence[Tensor], shrinkage: float | None) -> tuple[Tensor, Tensor]:
    """Rows of all subjects (n, d), each aligned to the mean covariance (d, d) of all."""
    usable = [len(part) >= MIN_ALIGNMENT_TRIALS for part in parts]
    chosen = [part for part, ok in zip(parts, usable, strict=True) if ok] or list(parts)
    target = torch.stack([shrink_covariance(part, shrinkage or 0) for part in chosen]).mean(0)
    if shrinkage is None:
        return torch.cat(list(parts)), target
    aligned = [
        part @ align_covariance(part, target, shrinkage) if ok else part
        for part, ok in zip(parts, usable, strict=True)
    ]
    return torch.cat(aligned), target


def discriminant_basis(
    features: Tensor, index: Tensor, counts: Tensor, shrinkage: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Basis in which the scatter within texts is white, sorted by the scatter between them.

    Parameters
    ----------
    features : Tensor of shape (n_trials, d)
    index : Tensor of int64, shape (n_trials,)
        Text of each trial.
    counts : Tensor of shape (n_texts,)
        Trials of each text.
    shrinkage : float
        Of the scatter within texts, to its diagonal.

    Returns
    -------
    basis : Tensor of shape (d, d)
    means : Tensor of shape (n_texts, d)
        Mean of each text in that basis, around `center`.
    center : Tensor of shape (d,)
    signal_variance : Tensor of shape (d,)
        Variance between texts without the noise of their means; noise has variance 1.
    """
    means = torch.zeros(len(counts), features.shape[1]).to(features)
    means = means.index_add(0, index, features) / counts[:, None]
    residuals = features - means[index]
    within = residuals.T @ residuals / max(len(features) - len(counts), 1)
    within = (1 - shrinkage) * within + shrinkage * within.diagonal().diag()
    whitening = matrix_power(within, -0.5)
    white = means @ whitening
    white = white - white.mean(0)
    # Texts with many trials say more about the scatter between texts.
    between = white.T @ white / len(counts) - (1 / counts).mean() * torch.eye(
        white.shape[1], dtype=white.dtype
    )
    variance, vectors = torch.linalg.eigh(between)
    basis = whitening @ vectors.flip(1)
    rotated = means @ basis
    return basis, rotated - rotated.mean(0), rotated.mean(0), variance.flip(0).clamp_min(1e-4)


def split_signal(variance: Tensor, config: EncodingModelConfig) -> Tensor:
    """Semantic and text-specific variance of each dimension (2, rank), from the mean of all."""
    mean = variance.mean().expand(len(variance))
    has_meaning = torch.arange(len(variance)) < config.semantic_rank
    semantic = torch.where(has_meaning, config.semantic_share * mean, 0)
    return torch.stack([semantic, mean - semantic])


def regress_on_text(
    embeddings: Tensor, means: Tensor, counts: Tensor, signal: Tensor
) -> tuple[Tensor, Tensor]:
    """Bayesian linear regression of responses on sentence embeddings.

    Parameters
    ----------
    embeddings : Tensor of shape (n_texts, embedding_dim)
        Centred unit vectors.
    means : Tensor of shape (n_texts, rank)
    counts : Tensor of shape (n_texts,)
    signal : Tensor of shape (2, rank)
        Semantic and text-specific variance.

    Returns
    -------
    weights : Tensor of shape (embedding_dim, rank)
        0 in dimensions without semantic variance.
    covariance : Tensor of shape (embedding_dim, embedding_dim)
        Of the weights, the same in all dimensions that have semantic variance.
    """
    semantic, specific = signal[:, 0]
    precision = 1 / (specific + 1 / counts)
    weighted = embeddings * precision[:, None]
    # The prior's precision is factored out, so that no semantic variance means no covariance.
    information = semantic * weighted.T @ embeddings + torch.eye(embeddings.shape[1]).to(means)
    covariance = semantic * torch.linalg.inv(information)
    return covariance @ weighted.T @ means * (signal[0] > 0), covariance
