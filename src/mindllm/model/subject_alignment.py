"""Label-free alignment of a subject to the training subjects: scale, covariance, responses.

Each step reads the subject's own trials and no label: query outputs are z-scored; their
principal components are given the group's covariance; and a linear map takes the trials nearer
to the responses that the encoding model expects, weighted by the probabilities that it gives to
the training stimuli. The map for a trial is fitted to the subject's other trials alone, so that
what the model first believed of a trial cannot confirm itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mindllm.utils.errors import InputError

MIN_ALIGNMENT_TRIALS = 40  # fewer trials of a subject say too little about its covariance
MAX_ALIGNMENT_TRIALS = 2000  # more change the map no further
SAME_TRIAL = 1e-6  # squared distance, relative to the squared norm
PARTS = ("response_map", "labelled")  # of a transform, where it has them


@dataclass(frozen=True)
class ResponseMap:
    """Ridge regression from a subject's trials to what is expected of them.

    Parameters
    ----------
    trials : Tensor of shape (n_trials, rank)
        The trials that it was fitted to.
    targets : Tensor of shape (n_trials, rank)
        Expected responses minus the trials, on the trials' scale.
    inverse : Tensor of shape (rank, rank)
        Inverse of the trials' scatter plus the ridge.
    scale : Tensor
        Keeps the mean squared norm of the trials.
    """

    trials: Tensor
    targets: Tensor
    inverse: Tensor
    scale: Tensor

    @property
    def is_consistent(self) -> bool:
        """Whether there are as many targets as trials."""
        return len(self.trials) == len(self.targets)

    def __call__(self, values: Tensor) -> Tensor:
        """Map trials (n, rank), each without what was fitted to the trial itself."""
        return (values + self.correct(values)) * self.scale

    def correct(self, values: Tensor) -> Tensor:
        """Add what leaves each trial nearer to its expected response, (n, rank)."""
        projected = values @ self.inverse
        correction = projected @ (self.trials.T @ self.targets)
        distances, nearest = squared_distances(values, self.trials).min(1)
        norms = values.square().sum(1)
        leverage = torch.where(distances <= SAME_TRIAL * norms, (projected * values).sum(1), 0)
        leverage = leverage[:, None]
        return (correction - leverage * self.targets[nearest]) / (1 - leverage)


def fit_response_map(trials: Tensor, expected: Tensor, ridge: float) -> ResponseMap | None:
    """Fit the map from trials to expected responses.

    Parameters
    ----------
    trials, expected : Tensor of shape (n_trials, rank)
        Features, and the response that is expected of each.
    ridge : float
        Added to each direction of the trials' scatter, in multiples of its mean over directions.

    Returns
    -------
    ResponseMap or None
        None if the expected responses have nothing in common with the trials.
    """
    norm = trials.square().sum()
    gain = (expected * trials).sum() / norm
    if not gain > 0:
        return None
    identity = torch.eye(trials.shape[1]).to(trials)
    scatter = trials.T @ trials + ridge * norm / trials.shape[1] * identity
    targets = expected / gain - trials
    unscaled = ResponseMap(trials, targets, torch.linalg.inv(scatter), torch.ones_like(norm))
    scale = (norm / (trials + unscaled.correct(trials)).square().sum()).sqrt()
    return ResponseMap(trials, targets, unscaled.inverse, scale)


@dataclass(frozen=True)
class LabelledTrials:
    """Labelled trials of a subject, which other trials are compared with.

    See `mindllm.model.labelled_trials`, which makes them.

    Parameters
    ----------
    trials : Tensor of shape (n_labels, num_queries)
        Standardized query outputs.
    weights : Tensor of shape (num_queries, n_labels)
        The product of standardized query outputs with them is the similarity.
    directions : Tensor of shape (n_labels, embedding_dim)
        What each adds to the predicted embedding.
    """

    trials: Tensor
    weights: Tensor
    directions: Tensor

    @property
    def is_consistent(self) -> bool:
        """Whether there are as many weights and directions as trials."""
        return len(self.trials) == self.weights.shape[1] == len(self.directions)

    def __call__(self, standardized: Tensor) -> Tensor:
        """Embeddings (n, embedding_dim) to add to those that are predicted of trials."""
        return self.similarity(standardized) @ self.directions

    def similarity(self, standardized: Tensor) -> Tensor:
        """Similarity (n, n_labels) with each labelled trial; 0 with the trial itself."""
        return (standardized @ self.weights) * self.are_others(standardized)

    def are_others(self, standardized: Tensor) -> Tensor:
        """Whether each labelled trial is another than each trial, (n, n_labels)."""
        norms = standardized.square().sum(1, keepdim=True)
        return squared_distances(standardized, self.trials) > SAME_TRIAL * norms


@dataclass(frozen=True)
class SubjectTransform:
    """Standardization and alignment of one subject, from its own trials without labels.

    Parameters
    ----------
    mean, std : Tensor of shape (num_queries,)
        Of its query outputs.
    alignment : Tensor of shape (rank, rank)
        Applied to its principal components.
    response_map : ResponseMap or None
        Applied last, in the basis of white noise.
    labelled : LabelledTrials or None
        What trials are compared with, beside the encoding model.
    """

    mean: Tensor
    std: Tensor
    alignment: Tensor
    response_map: ResponseMap | None = None
    labelled: LabelledTrials | None = None

    def to_tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name; `from_tensors` is the inverse."""
        tensors = {name: getattr(self, name) for name in ("mean", "std", "alignment")}
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                tensors |= {f"{name}.{n}": t for n, t in vars(part).items()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], num_queries: int, rank: int) -> Self:
        """Put a transform together from its tensors.

        Parameters
        ----------
        tensors : mapping of str to Tensor
        num_queries, rank : int
            Sizes of the model.

        Raises
        ------
        InputError
            If one is missing or unknown, or has another shape.
        """
        expected: dict[str, tuple[int | None, ...]] = {
            "mean": (num_queries,), "std": (num_queries,), "alignment": (rank, rank)
        }  # fmt: skip
        for part, shapes in part_shapes(num_queries, rank).items():
            if any(name.startswith(f"{part}.") for name in tensors):
                expected |= {f"{part}.{name}": shape for name, shape in shapes.items()}
        if tensors.keys() != expected.keys():
            names = ", ".join(sorted(tensors.keys() ^ expected.keys()))
            raise InputError(
                f"the adaptation to a subject lacks tensors, or has unknown ones: {names}. "
                "Adapt the model again."
            )
        for name, shape in expected.items():
            tensor = tensors[name]
            if not tensor.is_floating_point() or not fits(tuple(tensor.shape), shape):
                shown = ", ".join("any" if size is None else str(size) for size in shape)
                raise InputError(
                    f"the adaptation to a subject holds {name} of {tensor.dtype} and shape "
                    f"{tuple(tensor.shape)}; expected numbers of shape ({shown}). Adapt the model "
                    "again."
                )
        parts = {
            part: {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{part}.")}
            for part in PARTS
        }
        response_map = ResponseMap(**parts["response_map"]) if parts["response_map"] else None
        labelled = LabelledTrials(**parts["labelled"]) if parts["labelled"] else None
        for held in (response_map, labelled):
            if held and not held.is_consistent:
                raise InputError(
                    "the adaptation to a subject has another number of trials than of targets. "
                    "Adapt the model again."
                )
        mean, std, alignment = (tensors[name] for name in ("mean", "std", "alignment"))
        return cls(mean, std, alignment, response_map, labelled)


def part_shapes(num_queries: int, rank: int) -> dict[str, dict[str, tuple[int | None, ...]]]:
    """Shapes of the tensors of the parts of a transform; None: any number of trials or more."""
    return {
        "response_map": {
            "trials": (None, rank), "targets": (None, rank), "inverse": (rank, rank), "scale": ()
        },
        "labelled": {
            "trials": (None, num_queries),
            "weights": (num_queries, None),
            "directions": (None, None),
        },
    }  # fmt: skip


def fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a shape is the expected one."""
    return len(shape) == len(expected) and all(
        size in (None, length) for length, size in zip(shape, expected, strict=True)
    )


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n, m) of rows of a (n, d) and b (m, d)."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def evenly_spaced(count: int, limit: int) -> Tensor:
    """At most `limit` of the numbers below `count`, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, limit)).round().long()


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
