"""Features of the encoding model as an affine function of a trial's betas.

The betas x (n_voxels,) of a trial become features y (rank,) by steps that are affine in x:

    z = A x                                       attention weights, (num_queries, n_voxels)
    v = ((z - mean) / std) C R basis - center     z-score, components, alignment of the subject
    y = scale v (I + W)                           map to the expected responses

Behind y stands r = ((z - mean) / std) B, whose product with a text's sentence embedding is what the
ridge regression says for it, where the regression has a part in the evidence; labelled trials of
the subject, but the trial itself, have added to B.

W is the map that is fitted to the subject's other trials alone; of a trial that took part in the
fit it is the map without it (a rank-one change of the ridge regression, in closed form), so that
y is the same as `EncodingModel.transform` gives. What is learned of the subject from its trials
(mean, std, R, W) is held fixed: contributions are those of this trial, not those of the others.

References
----------
Sherman & Morrison 1950, Annals of Mathematical Statistics 21 (the map without one trial).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mindllm.fmri.masker import VoxelMasker
from mindllm.model.encoding_model import EncodingModel
from mindllm.model.evidence import Betas
from mindllm.model.modeling import MindLLM
from mindllm.model.subject_alignment import (
    SAME_TRIAL,
    ResponseMap,
    SubjectTransform,
    squared_distances,
)

CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class TrialMaps:
    """Map of each trial to its expected response, I + W, as factors that are applied in turn.

    Parameters
    ----------
    inverse : Tensor of shape (rank, rank)
        Inverse of the scatter of all fitted trials, plus the ridge.
    cross : Tensor of shape (rank, rank)
        Product of all fitted trials and their targets.
    trials, targets : Tensor of shape (n_trials, rank)
        Each trial and its target where it took part in the fit; 0 where it did not.
    scale : Tensor
    """

    inverse: Tensor
    cross: Tensor
    trials: Tensor
    targets: Tensor
    scale: Tensor

    @classmethod
    def of_trials(cls, response_map: ResponseMap, values: Tensor) -> TrialMaps:
        """Maps of trials (n_trials, rank), each without what was fitted to the trial itself."""
        distances, nearest = squared_distances(values, response_map.trials).min(1)
        took_part = (distances <= SAME_TRIAL * values.square().sum(1))[:, None]
        return cls(
            response_map.inverse,
            response_map.trials.T @ response_map.targets,
            torch.where(took_part, values, 0),
            torch.where(took_part, response_map.targets[nearest], 0),
            response_map.scale,
        )

    def select(self, rows: Tensor) -> TrialMaps:
        """Maps of some of the trials."""
        trials, targets = self.trials[rows], self.targets[rows]
        return replace(self, trials=trials, targets=targets)

    def matrix(self, trial: int) -> Tensor:
        """Map (rank, rank) of one trial, scale included."""
        x, target = self.trials[trial], self.targets[trial]
        projected = self.inverse @ x
        inverse = self.inverse + torch.outer(projected, projected) / (1 - x @ projected)
        weights = inverse @ (self.cross - torch.outer(x, target))
        return self.scale * (torch.eye(len(x)).to(x) + weights)


@dataclass(frozen=True)
class AffineFeatures:
    """Features of a subject's trials, and how they follow from betas.

    Parameters
    ----------
    attention : Tensor of shape (num_queries, n_voxels)
        Attention weights of the subject.
    betas : Tensor of shape (n_trials, n_voxels), float64
        Standardized betas.
    values : Tensor of shape (n_trials, n_features), float64
        Features y of the trials, and r behind them.
    at_zero : Tensor of shape (n_trials, n_features), float64
        Features of zero betas, under the map of each trial.
    projection : Tensor of shape (num_queries, rank), float64
        Query outputs to v, without its constant.
    regression : Tensor of shape (num_queries, embedding_dim), float64
        Query outputs to r, without its constant; embedding_dim 0 where it has no part.
    maps : TrialMaps or None
        Maps to the expected responses; None: the subject has none.
    labelled : tuple of Tensor, optional
        What the subject's labelled trials add to the regression: query outputs to similarities
        (num_queries, n_labels), these to r (n_labels, embedding_dim), and which of them are other
        trials than each trial (n_trials, n_labels).
    """

    attention: Tensor
    betas: Tensor
    values: Tensor
    at_zero: Tensor
    projection: Tensor
    regression: Tensor
    maps: TrialMaps | None
    labelled: tuple[Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.betas)

    def select(self, trials: Sequence[int] | np.ndarray) -> AffineFeatures:
        """Features of some of the trials.

        Parameters
        ----------
        trials : sequence of int
            Rows of `betas`.

        Returns
        -------
        AffineFeatures
        """
        rows = torch.as_tensor(trials, dtype=torch.int64)
        return replace(
            self,
            betas=self.betas[rows],
            values=self.values[rows],
            at_zero=self.at_zero[rows],
            maps=None if self.maps is None else self.maps.select(rows),
            labelled=self.labelled and (*self.labelled[:2], self.labelled[2][rows]),
        )

    def trial_projection(self, trial: int) -> Tensor:
        """Projection (num_queries, n_features) of a trial's query outputs to its features."""
        projection = self.projection
        if self.maps is not None:
            projection = projection @ self.maps.matrix(trial)
        return torch.cat([projection, self.trial_regression(trial)], 1)

    def trial_regression(self, trial: int) -> Tensor:
        """Regression (num_queries, embedding_dim), with labelled trials but the trial itself."""
        if self.labelled is None:
            return self.regression
        weights, directions, are_others = self.labelled
        return self.regression + (weights * are_others[trial]) @ directions

    def add_regression(self, outputs: Tensor, mean: Tensor) -> AffineFeatures:
        """The same with r behind the features, from query outputs and what is taken from them."""
        values, at_zero = [], []
        for trial, row in enumerate(outputs):
            matrix = self.trial_regression(trial)
            values.append(torch.cat([self.values[trial], (row - mean) @ matrix]))
            at_zero.append(torch.cat([self.at_zero[trial], -mean @ matrix]))
        return replace(self, values=torch.stack(values), at_zero=torch.stack(at_zero))

    def to_voxels(self, gradients: Tensor) -> Tensor:
        """Carry mean gradients of features back to voxels, times their betas.

        Parameters
        ----------
        gradients : Tensor of shape (n_trials, n_features)

        Returns
        -------
        Tensor of shape (n_trials, n_voxels)
            Their sum over voxels is the product of gradient and `values - at_zero`.
        """
        rows = [self.trial_projection(i) @ row for i, row in enumerate(gradients)]
        of_queries = torch.stack(rows) if rows else gradients.new_zeros(0, len(self.projection))
        return self.betas * multiply_attention(of_queries, self.attention)

    def voxel_features(self, trial: int) -> Tensor:
        """Part of each voxel in the features of a trial, (n_voxels, n_features).

        Their sum is `values - at_zero`.
        """
        projection = self.trial_projection(trial)
        return self.betas[trial, :, None] * multiply_attention(projection.T, self.attention).T


def multiply_attention(rows: Tensor, attention: Tensor) -> Tensor:
    """Product (n, n_voxels) of rows (n, num_queries) and attention weights, in float64."""
    step = max(1, CHUNK_BYTES // (8 * attention.shape[1]))
    product = rows.new_zeros(len(rows), attention.shape[1])
    for start in range(0, len(attention), step):
        part = slice(start, start + step)
        product += rows[:, part] @ attention[part].to(rows)
    return product


def query_outputs(attention: Tensor, betas: Tensor) -> Tensor:
    """Query outputs (n_trials, num_queries) of betas (n_trials, n_voxels), in float64."""
    step = max(1, CHUNK_BYTES // (8 * attention.shape[1]))
    return torch.cat([betas @ part.to(betas).T for part in attention.split(step)], 1)


@torch.no_grad()
def trial_features(
    model: MindLLM, masker: VoxelMasker, betas: Betas, subject_betas: Betas | None = None
) -> AffineFeatures:
    """Features of trials by the encoding model, as an affine function of their betas.

    Parameters
    ----------
    model : MindLLM
        With an encoding model.
    masker : VoxelMasker
    betas : ndarray or Tensor of shape (n_trials, n_voxels)
        Standardized betas.
    subject_betas : ndarray or Tensor of shape (n_other_trials, n_voxels), optional
        Trials to align the subject by; as for `MindLLM.evidence`.

    Returns
    -------
    AffineFeatures

    Raises
    ------
    InputError
        If the model has no encoding model, or betas do not fit the voxels.
    """
    subject = model.subject_transform(masker, subject_betas)
    assert model.encoding_model is not None  # else there is no transform
    model.query_outputs(betas, masker)  # refuses voxels and betas that do not fit
    attention = model.encoder.attention_weights(model.encoder.prepare_voxels(masker)).cpu()
    rows = torch.atleast_2d(torch.as_tensor(betas)).cpu()
    return build_features(
        model.encoding_model, subject, attention, rows.to(attention.dtype).double()
    )


def build_features(
    model: EncodingModel, subject: SubjectTransform, attention: Tensor, betas: Tensor
) -> AffineFeatures:
    """Features of betas (n_trials, n_voxels) in float64; see `trial_features`."""
    projection = model.components @ subject.alignment @ model.basis / subject.std[:, None]
    constant = -subject.mean @ projection - model.center
    outputs = query_outputs(attention, betas)
    values = outputs @ projection + constant
    at_zero, maps = constant.expand_as(values), None
    if subject.response_map is not None:
        maps = TrialMaps.of_trials(subject.response_map, values)
        matrices = [maps.matrix(i) for i in range(len(values))]
        mapped = [(v @ m, zero @ m) for v, zero, m in zip(values, at_zero, matrices, strict=True)]
        values, at_zero = (torch.stack(rows) for rows in zip(*mapped, strict=True))
    regression = model.regression_weights / subject.std[:, None]
    regression = regression if model.regression_gain > 0 else regression[:, :0]
    labelled = None
    if subject.labelled is not None:
        part, standardized = subject.labelled, model.standardize(outputs, subject)
        weights = part.weights / subject.std[:, None]
        labelled = (weights, part.directions, part.are_others(standardized))
    features = AffineFeatures(
        attention, betas, values, at_zero, projection, regression, maps, labelled
    )
    return features.add_regression(outputs, subject.mean)
