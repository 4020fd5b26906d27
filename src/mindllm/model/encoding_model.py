"""Encoding model: how brains respond to a text, and the evidence of a trial for any text.

Features of a trial are the encoder's query outputs, standardized per subject, on their leading
principal components, with the subject aligned to the group without labels. In a basis where the
scatter around a stimulus is white, a trial y of stimulus s with text c is, in each dimension,

    y = m(c) + v(s) + noise,   v(s) ~ N(0, stimulus variance),   noise ~ N(0, 1)
    m(c) = w^T e(c) + u(c),    w ~ N(0, semantic variance),   u(c) ~ N(0, text variance)

e(c) is the centred, unit sentence embedding. w speaks of texts that were never shown; u and v
keep what was learned of the texts and stimuli that were. A trial of a known text is a trial of
one of its known stimuli, or of a new one. w has a closed form of the size of e (Bayesian linear
regression); `fit_encoding_model` is in `mindllm.model.encoding_fit`. A regression in the other
direction, `mindllm.model.embedding_regression`, is added to the evidence.

References
----------
Mitchell et al. 2008, Science 320; Naselaris et al. 2011, NeuroImage 56 (decoding by encoding).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from pydantic.types import PositiveInt
from torch import Tensor, nn

from mindllm.model.labelled_trials import compare_with_labels, point_to_texts
from mindllm.model.subject_alignment import (
    MAX_ALIGNMENT_TRIALS,
    MIN_ALIGNMENT_TRIALS,
    LabelledTrials,
    SubjectTransform,
    align_covariance,
    evenly_spaced,
    fit_response_map,
    mean_and_std,
)
from mindllm.utils.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
MAX_DENSITIES = 2**23  # densities in memory at once
SAME_TEXT = 1 - 1e-6  # cosine of embeddings


class EncodingModelConfig(BaseModel):
    """Options of the encoding model.

    Examples
    --------
    >>> EncodingModelConfig(rank=50).alignment_shrinkage
    0.5
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: PositiveInt | tuple[PositiveInt, ...] = (100, 200)
    """Principal components of the query outputs; of several numbers, the one at which the texts
    of left-out training subjects are most probable."""
    noise_shrinkage: Share = 0.5
    """Shrinkage of the covariance within stimuli to its diagonal."""
    alignment_shrinkage: Share | None = 0.5
    """Shrinkage of a subject's covariance before alignment to the group's; null: no alignment."""
    alignment_ridge: PositiveFloat | None = 12.0
    """Ridge of the map from a subject's trials to their expected responses, in multiples of the
    trials' mean scatter; null: no such map."""

    @property
    def ranks(self) -> tuple[int, ...]:
        """Numbers of principal components to choose among."""
        return (self.rank,) if isinstance(self.rank, int) else self.rank


@dataclass(frozen=True)
class Responses:
    """Predictive densities of a trial, one or several per text.

    Parameters
    ----------
    mean, variance : Tensor of shape (n_responses, rank)
        Of a trial: what is not known of the response, and the noise.
    texts : Tensor of int64, shape (n_responses,)
        Number of the text of each.
    """

    mean: Tensor
    variance: Tensor
    texts: Tensor


class EncodingModel(nn.Module):
    """Predictive density of trials given a text, made by `fit_encoding_model`.

    Parameters
    ----------
    tensors : mapping from str to Tensor
        The names and shapes of `SHAPES`; see `mindllm.model.encoding_fit`.

    Examples
    --------
    >>> import torch
    >>> from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch._C.Generator object at ...>
    >>> response = torch.randn(12, 20)
    >>> subject = lambda: SubjectFeatures(response.repeat(4, 1) + torch.randn(48, 20),
    ...                                   torch.arange(12).repeat(4))
    >>> model = fit_encoding_model({"sub-01": subject(), "sub-02": subject()}, torch.eye(12))
    >>> test = subject()
    >>> evidence = model.evidence(test.values, model.subject_transform(test.values), torch.eye(12))
    >>> bool((evidence.argmax(1) == test.stimuli).double().mean() > 0.5)
    True
    """

    SHAPES: ClassVar[dict[str, tuple[str | int, ...]]] = {
        "query_mean": ("num_queries",),
        "query_std": ("num_queries",),
        "components": ("num_queries", "rank"),
        "group_covariance": ("rank", "rank"),
        "basis": ("rank", "rank"),
        "center": ("rank",),
        "text_center": ("embedding_dim",),
        "text_embeddings": ("n_texts", "embedding_dim"),
        "stimulus_texts": ("n_stimuli",),
        "stimulus_means": ("n_stimuli", "rank"),
        "stimulus_counts": ("n_stimuli",),
        "weights": ("embedding_dim", "rank"),
        "axes": ("embedding_dim", "n_axes"),
        "information": ("n_axes",),
        "precision": ("rank",),
        "signal": (3, "rank"),
        "regression_weights": ("num_queries", "embedding_dim"),
        "regression_gain": (),
        "regression_scale": ("embedding_dim", "n_directions"),
        "label_gain": (),
        "label_correlation": (),
        "temperature": (),
        "alignment_shrinkage": (),
        "alignment_ridge": (),
    }

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in self.SHAPES:
            tensor = tensors[name].cpu()
            self.register_buffer(name, tensor.double() if tensor.is_floating_point() else tensor)

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
    stimulus_texts: Tensor
    stimulus_means: Tensor
    stimulus_counts: Tensor
    weights: Tensor
    axes: Tensor
    information: Tensor
    precision: Tensor
    signal: Tensor
    regression_weights: Tensor
    regression_gain: Tensor
    regression_scale: Tensor
    label_gain: Tensor
    label_correlation: Tensor
    temperature: Tensor
    alignment_shrinkage: Tensor
    alignment_ridge: Tensor

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Tensor], prefix: str, num_queries: int | None = None
    ) -> Self | None:
        """The encoding model among the tensors of a checkpoint; None if it holds none.

        Raises
        ------
        InputError
            If a tensor is missing, has another shape or type, or holds numbers out of range.
        """
        names = [prefix + name for name in cls.SHAPES]
        if not any(name.startswith(prefix) for name in state_dict):
            return None
        missing = [name for name in names if name not in state_dict]
        if missing:
            raise InputError(
                f"the checkpoint holds a part of an encoding model, without {', '.join(missing)}. "
                "Train or fetch the model again."
            )
        tensors = {name: state_dict[prefix + name] for name in cls.SHAPES}
        check_shapes(
            tensors, cls.SHAPES, {} if num_queries is None else {"num_queries": num_queries}
        )
        check_ranges(tensors)
        return cls(tensors)

    def subject_transform(
        self, query_outputs: Tensor | None = None, labels: Mapping[int, Tensor] | None = None
    ) -> SubjectTransform:
        """Standardize and align a subject by its own trials, without labels or with some.

        Parameters
        ----------
        query_outputs : Tensor of shape (n_trials, num_queries), optional
            Trials of the subject, those to be decoded or others. None, or fewer than 40: the
            training subjects' mean and standard deviation, and no alignment.
        labels : mapping of int to Tensor of shape (embedding_dim,), optional
            Sentence embedding of the text of those of the trials whose text is known.

        Returns
        -------
        SubjectTransform
        """
        identity = torch.eye(len(self.group_covariance)).to(self.components)
        if query_outputs is None or len(query_outputs) < MIN_ALIGNMENT_TRIALS:
            return SubjectTransform(self.query_mean, self.query_std, identity)
        values = query_outputs.to(self.components)
        subject = SubjectTransform(*mean_and_std(values), identity)
        shrinkage, ridge = float(self.alignment_shrinkage), float(self.alignment_ridge)
        if shrinkage >= 0:
            projected = (values - subject.mean) / subject.std @ self.components
            alignment = align_covariance(projected, self.group_covariance, shrinkage)
            subject = SubjectTransform(subject.mean, subject.std, alignment)
        if ridge < 0:
            return replace(
                subject, labelled=self.compare_with(self.standardize(values, subject), labels or {})
            )
        rows = evenly_spaced(len(values), MAX_ALIGNMENT_TRIALS)
        known = torch.tensor(sorted(labels or {}), dtype=torch.int64)
        rows = torch.unique(torch.cat([rows, known]))
        trials = self.transform(values[rows], subject)
        expected = self.expected_responses(trials)
        if labels:
            embeddings = torch.stack([labels[int(row)] for row in known])
            expected[torch.isin(rows, known)] = self.mean_responses(embeddings)
        return replace(
            subject,
            response_map=fit_response_map(trials, expected, ridge),
            labelled=self.compare_with(self.standardize(values, subject), labels or {}),
        )

    def compare_with(
        self, standardized: Tensor, labels: Mapping[int, Tensor]
    ) -> LabelledTrials | None:
        """Labelled ones among standardized trials, to compare others with; None: no part."""
        gain, of_regression = float(self.label_gain), float(self.regression_gain)
        if not labels or gain <= 0 or of_regression <= 0:
            return None
        rows = torch.tensor(list(labels), dtype=torch.int64)
        labelled = compare_with_labels(standardized, rows, self.components)
        if labelled is None:
            return None
        embeddings = torch.stack([labels[int(row)] for row in rows]).to(self.components)
        return point_to_texts(
            labelled,
            center_embeddings(embeddings, self.text_center),
            center_embeddings(self.text_embeddings, self.text_center),
            float(self.label_correlation),
            gain / of_regression,
        )

    def standardize(self, query_outputs: Tensor, subject: SubjectTransform) -> Tensor:
        """Z-score query outputs (n_trials, num_queries) of a subject."""
        return (query_outputs.to(self.components) - subject.mean) / subject.std

    def regression_features(self, query_outputs: Tensor, subject: SubjectTransform) -> Tensor:
        """What the regression makes of trials, (n_trials, embedding_dim).

        The product with a text's centred embedding is the part of its log-ratio that is linear in
        the trial. The subject's labelled trials add to it.
        """
        standardized = self.standardize(query_outputs, subject)
        features = standardized @ self.regression_weights
        return features if subject.labelled is None else features + subject.labelled(standardized)

    def regression_ratios(
        self, query_outputs: Tensor, subject: SubjectTransform, embeddings: Tensor
    ) -> Tensor:
        """Log-ratios (n_trials, n_texts) of the regression; see `embedding_regression`."""
        e = center_embeddings(embeddings, self.text_center)
        features = self.regression_features(query_outputs, subject)
        return features @ e.T - self.regression_offsets(e)

    def regression_offsets(self, centered: Tensor) -> Tensor:
        """What is subtracted from the log-ratios of texts (n_texts, embedding_dim), (n_texts,)."""
        return (centered @ self.regression_scale).square().sum(1) / 2

    def transform(self, query_outputs: Tensor, subject: SubjectTransform) -> Tensor:
        """Features (n_trials, rank) of trials, in which the noise is white."""
        standardized = self.standardize(query_outputs, subject)
        values = standardized @ self.components @ subject.alignment @ self.basis - self.center
        return values if subject.response_map is None else subject.response_map(values)

    def expected_responses(self, trials: Tensor) -> Tensor:
        """Mean response (n_trials, rank) to the training stimuli, by their probabilities."""
        responses = self.predict(self.text_embeddings, torch.arange(len(self.text_embeddings)))
        shown = len(responses.texts) - len(self.text_embeddings)  # the rest are new stimuli
        mean, variance = responses.mean[:shown], responses.variance[:shown]
        expected = []
        for part in trials.split(max(MAX_DENSITIES // len(mean), 1)):
            expected.append(gaussian_log_density(part, mean, variance).softmax(1) @ mean)
        return torch.cat(expected)

    def mean_responses(self, embeddings: Tensor) -> Tensor:
        """Mean response (n_texts, rank) to texts: over their known stimuli, or to a new one."""
        unique, inverse = torch.unique(embeddings.to(self.components), dim=0, return_inverse=True)
        responses = self.predict(unique)
        n_known = len(responses.texts) - len(unique)
        texts, of_new = responses.texts[:n_known], responses.mean[n_known:]
        counts = torch.bincount(texts, minlength=len(unique))[:, None]
        sums = torch.zeros_like(of_new).index_add(0, texts, responses.mean[:n_known])
        return torch.where(counts > 0, sums / counts.clamp_min(1), of_new)[inverse]

    def find_texts(self, embeddings: Tensor) -> Tensor:
        """Number of the training text with each embedding, int64 (n_texts,); -1: it is new."""
        trained = center_embeddings(self.text_embeddings, self.text_center).T
        known = []
        for part in embeddings.split(max(MAX_DENSITIES // len(self.text_embeddings), 1)):
            similarity, number = (center_embeddings(part, self.text_center) @ trained).max(1)
            known.append(torch.where(similarity > SAME_TEXT, number, -1))
        return torch.cat(known)

    def predict_text(self, embeddings: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the part of the response that all stimuli with a text share.

        Parameters
        ----------
        embeddings : Tensor of shape (n_texts, embedding_dim)
        known : Tensor of int64, shape (n_texts,)
            As `find_texts` returns it.

        Returns
        -------
        mean, variance : Tensor of shape (n_texts, rank)
        """
        e = center_embeddings(embeddings, self.text_center)
        semantic, of_text, _ = self.signal
        mean = e @ self.weights
        along = (e @ self.axes).square()
        posterior = semantic / (1 + semantic * self.precision * self.information[:, None])
        rest = (e.square().sum(1) - along.sum(1)).clamp_min(0)[:, None]
        spread = along @ posterior + rest * semantic
        measured, precision = self.text_means()
        rows = known[known >= 0]
        gain = of_text / (of_text + 1 / precision[rows])
        mean[known >= 0] += gain * (measured[rows] - mean[known >= 0])
        variance = spread + of_text
        variance[known >= 0] = (1 - gain).square() * spread[known >= 0] + of_text * (1 - gain)
        return mean, variance

    def text_means(self) -> tuple[Tensor, Tensor]:
        """Mean over stimuli of each training text's response, and its precision (n_texts, rank)."""
        weights = 1 / (self.signal[2] + 1 / self.stimulus_counts[:, None])
        return weighted_means(self.stimulus_means, weights, self.stimulus_texts)

    def predict(self, embeddings: Tensor, known: Tensor | None = None) -> Responses:
        """Predict trials of texts: of each known stimulus with the text, and of a new one.

        Parameters
        ----------
        embeddings : Tensor of shape (n_texts, embedding_dim)
            Sentence embeddings; a text that was trained on is known by its embedding.
        known : Tensor of int64, shape (n_texts,), optional
            Numbers of the training texts; None: found by `find_texts`.

        Returns
        -------
        Responses
            First of known stimuli, sorted by number, then of a new stimulus of each text.
        """
        embeddings = embeddings.to(self.components)
        known = self.find_texts(embeddings) if known is None else known
        mean, variance = self.predict_text(embeddings, known)
        of_stimulus = self.signal[2]
        number = torch.full((len(self.text_embeddings),), -1)
        number[known[known >= 0]] = torch.arange(len(known))[known >= 0]
        stimuli = (number[self.stimulus_texts] >= 0).nonzero()[:, 0]
        texts = number[self.stimulus_texts[stimuli]]
        gain = of_stimulus / (of_stimulus + 1 / self.stimulus_counts[stimuli, None])
        known_mean = mean[texts] + gain * (self.stimulus_means[stimuli] - mean[texts])
        known_variance = (1 - gain).square() * variance[texts] + of_stimulus * (1 - gain)
        return Responses(
            torch.cat([known_mean, mean]),
            torch.cat([known_variance, variance + of_stimulus]) + 1,
            torch.cat([texts, torch.arange(len(mean))]),
        )

    def evidence(
        self, query_outputs: Tensor, subject: SubjectTransform, embeddings: Tensor
    ) -> Tensor:
        """Evidence of trials for texts: log p(trial | text) - log p(trial), in nats.

        Parameters
        ----------
        query_outputs : Tensor of shape (n_trials, num_queries)
        subject : SubjectTransform
        embeddings : Tensor of shape (n_texts, embedding_dim)
            Several equal ones get the same evidence.

        Returns
        -------
        Tensor of shape (n_trials, n_texts)
            Positive where the trial speaks for the text.
        """
        unique, inverse = torch.unique(embeddings.to(self.components), dim=0, return_inverse=True)
        evidence = self.density_ratios(query_outputs, subject, unique)
        if self.regression_gain > 0:
            ratios = self.regression_ratios(query_outputs, subject, unique)
            evidence += self.regression_gain * ratios
        return evidence[:, inverse] / self.temperature

    def density_ratios(
        self, query_outputs: Tensor, subject: SubjectTransform, embeddings: Tensor
    ) -> Tensor:
        """Log-density of trials given each text, minus that with no text known, in nats.

        Parameters
        ----------
        query_outputs, subject
            As for `evidence`.
        embeddings : Tensor of shape (n_texts, embedding_dim)
            No two are equal.

        Returns
        -------
        Tensor of shape (n_trials, n_texts)
            The encoding model's part of the evidence, before the temperature.
        """
        y, responses = self.transform(query_outputs, subject), self.predict(embeddings)
        no_text = (self.signal.sum(0) + 1)[None]
        parts = []
        for part in y.split(max(MAX_DENSITIES // len(responses.mean), 1)):
            densities = gaussian_log_density(part, responses.mean, responses.variance)
            with_text = mean_density(densities, responses.texts, len(embeddings))
            without = gaussian_log_density(part, torch.zeros_like(no_text), no_text)
            parts.append(with_text - without)
        return torch.cat(parts)


def check_shapes(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[str | int, ...]],
    sizes: Mapping[str, int],
) -> None:
    """Check shapes and types of the tensors of an encoding model; equal names are equal sizes."""
    known: dict[str | int, int] = {3: 3}
    known.update(sizes)
    for name, shape in shapes.items():
        tensor = tensors[name]
        kind = torch.int64 if name == "stimulus_texts" else torch.float64
        has_kind = tensor.dtype == kind or (kind.is_floating_point and tensor.is_floating_point())
        fits = tensor.ndim == len(shape) and all(
            known.setdefault(size, length) == length and length > 0
            for size, length in zip(shape, tensor.shape, strict=True)
        )
        if not has_kind or not fits:
            expected = ", ".join(f"{size}={known.get(size, 'any')}" for size in shape)
            raise InputError(
                f"the encoding model's {name} has shape {tuple(tensor.shape)} and type "
                f"{tensor.dtype}; expected ({expected}) and {kind}. Train or fetch the model again."
            )


def check_ranges(tensors: Mapping[str, Tensor]) -> None:
    """Check that the numbers of an encoding model are in their ranges."""
    numbers, n_texts = tensors["stimulus_texts"], len(tensors["text_embeddings"])
    are_valid = {
        "query_std": ("above 0", tensors["query_std"] > 0),
        "stimulus_texts": (f"from 0 to {n_texts - 1}", (numbers >= 0) & (numbers < n_texts)),
        "stimulus_counts": ("1 or more", tensors["stimulus_counts"] >= 1),
        "signal": ("0 or more", tensors["signal"] >= 0),
        "regression_gain": ("0 or more", tensors["regression_gain"] >= 0),
        "label_gain": ("0 or more", tensors["label_gain"] >= 0),
        "label_correlation": ("0 or more", tensors["label_correlation"] >= 0),
        "temperature": ("above 0", tensors["temperature"] > 0),
    }
    for name, (expected, valid) in are_valid.items():
        if not valid.all():
            raise InputError(
                f"the encoding model's {name} holds {tensors[name][~valid].flatten()[0].item():g}; "
                f"expected numbers {expected}. Train or fetch the model again."
            )


def gaussian_log_density(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log-density (n, m), but for a constant, of rows of y (n, d) under m diagonal Gaussians."""
    precision = 1 / variance
    square = y.square() @ precision.T - 2 * y @ (mean * precision).T
    return -0.5 * (square + (mean.square() * precision + variance.log()).sum(1))


def mean_density(log_densities: Tensor, texts: Tensor, n_texts: int) -> Tensor:
    """Log of the mean density (n, n_texts) of each text's responses, from (n, n_responses)."""
    index = texts.expand_as(log_densities)
    largest = torch.full((len(log_densities), n_texts), -torch.inf).to(log_densities)
    largest = largest.scatter_reduce(1, index, log_densities, "amax")
    sums = torch.zeros_like(largest)
    sums = sums.scatter_add(1, index, (log_densities - largest.gather(1, index)).exp())
    counts = torch.bincount(texts, minlength=n_texts)
    return largest + sums.log() - counts.log()


def center_embeddings(embeddings: Tensor, center: Tensor) -> Tensor:
    """Sentence embeddings (n, embedding_dim) without their common part, as unit vectors."""
    return nn.functional.normalize(embeddings - center, dim=-1)


def weighted_means(values: Tensor, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means and sums of weights (n_groups, d) of rows (n, d) that belong to groups."""
    totals = torch.zeros(int(groups.max()) + 1, values.shape[1]).to(values)
    weight = totals.index_add(0, groups, weights)
    return totals.index_add(0, groups, weights * values) / weight, weight
