"""Evidence along the path from zero betas to a trial, and its mean gradient.

The features of a trial are y, those of zero betas y0, and the path is y0 + t (y - y0), t from 0
to 1. The evidence E is a difference of log-densities, each of a Gaussian or of a mean of several
(lme is the logarithm of the mean of exponentials),

    E = lme over texts of (lme over responses k of log N_k(y) - log N_0(y)) / temperature

to which the regression of sentence embeddings on trials adds gain (r^T e - |S^T e|^2 / 2), with r
the predicted embedding, for a text with embedding e: r stands behind y in the features,
and its mean gradient g along the path gives every feature the part (y - y0) g, which sum to
E(y) - E(y0) (integrated gradients). Of a text with one response E is quadratic, and the mean
gradient is the gradient in the middle of the path, exactly. Of several responses it is

    g = sum over k of (W_k (m_k - y0) - V_k (y - y0)) / v_k

with W_k and V_k the integrals over t of the weight of response k, and of t times it: two numbers
per response, which Gauss-Legendre quadrature gives to `TOLERANCE`.

References
----------
Sundararajan, Taly & Yan 2017, Axiomatic attribution for deep networks, ICML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindllm.model.encoding_model import (
    EncodingModel,
    Responses,
    center_embeddings,
    gaussian_log_density,
    mean_density,
)

TOLERANCE = 1e-9  # of the sum of all parts, relative to the evidence (at least of 1 nat)
NODES = 8  # per panel
MAX_PANELS = 2**9


@dataclass(frozen=True)
class Question:
    """What the evidence is for: texts, against no text known or against other texts.

    Parameters
    ----------
    responses : Responses
        Predictive densities of all texts.
    supports : Tensor of bool, shape (n_texts,)
        The texts that it is for.
    opposes : Tensor of bool, shape (n_texts,)
        The texts that it is against; none: it is against the density with no text known.
    no_text : Tensor of shape (1, rank)
        Variance of a trial with no text known.
    temperature : float
    regression : Tensor of shape (n_responses, embedding_dim), optional
        Gain times the embedding of each response's text; None: the regression has no part.
    regression_offset : Tensor of shape (n_responses,) or float
        What is subtracted from the part of the regression of each response's text, nats.
    """

    responses: Responses
    supports: Tensor
    opposes: Tensor
    no_text: Tensor
    temperature: float
    regression: Tensor | None = None
    regression_offset: Tensor | float = 0.0

    @classmethod
    def of_texts(
        cls, model: EncodingModel, embeddings: Tensor, opposed: Tensor | None = None
    ) -> Question:
        """Evidence for texts (n, embedding_dim) against none, or others; equal ones count once."""
        supports = torch.unique(embeddings.to(model.components), dim=0)
        others = supports[:0] if opposed is None else torch.unique(opposed.to(supports), dim=0)
        is_other = torch.arange(len(supports) + len(others)) >= len(supports)
        texts = torch.cat([supports, others])
        responses, gain = model.predict(texts), float(model.regression_gain)
        centered = center_embeddings(texts, model.text_center)[responses.texts]
        return cls(
            responses,
            ~is_other,
            is_other,
            (model.signal.sum(0) + 1)[None],
            float(model.temperature),
            gain * centered if gain > 0 else None,
            gain * model.regression_offsets(centered),
        )

    @property
    def is_quadratic(self) -> bool:
        """Whether the evidence is quadratic in the features."""
        n_texts = (int(self.supports.sum()), int(self.opposes.sum()))
        return len(self.responses.texts) == sum(n_texts) and max(n_texts) == 1

    def log_densities(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities (n, n_responses), and (n, 1) with no text known."""
        y, predicted = self.split(features)
        of_texts = gaussian_log_density(y, self.responses.mean, self.responses.variance)
        if self.regression is not None:
            of_texts = of_texts + predicted @ self.regression.T - self.regression_offset
        zero = torch.zeros_like(self.no_text)
        return of_texts, gaussian_log_density(y, zero, self.no_text)

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the encoding model, and predicted embeddings."""
        rank = self.responses.mean.shape[1]
        return features[:, :rank], features[:, rank:]

    def evidence(self, features: Tensor) -> Tensor:
        """Evidence (n,) of features (n, n_features), in nats."""
        return self.combine(*self.log_densities(features))[0]

    def combine(self, of_texts: Tensor, no_text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evidence (n,) and its derivative by each log-density, (n, n_responses) and (n,)."""
        texts, n_texts = self.responses.texts, len(self.supports)
        densities = mean_density(of_texts, texts, n_texts)
        within = (of_texts - densities[:, texts]).exp()
        within = within / torch.zeros_like(densities).index_add(1, texts, within)[:, texts]
        scaled = (densities - no_text) / self.temperature
        evidence, of_text = torch.zeros(len(scaled)).to(scaled), torch.zeros_like(scaled)
        for sign, chosen in ((1, self.supports), (-1, self.opposes)):
            if chosen.any():
                evidence = evidence + sign * (
                    scaled[:, chosen].logsumexp(1) - math.log(chosen.sum())
                )
                of_text[:, chosen] = sign * scaled[:, chosen].softmax(1)
        weights = of_text / self.temperature
        return evidence, within * weights[:, texts], -weights.sum(1)


@dataclass(frozen=True)
class PathIntegral:
    """Evidence at both ends of the path, and its mean gradient.

    Parameters
    ----------
    evidence, at_zero : Tensor of shape (n_trials,)
        Of the trials, and of zero betas; nats.
    gradients : Tensor of shape (n_trials, n_features)
        Mean over the path.
    error : float
        Largest difference of the sum of all parts from `evidence - at_zero`, nats.
    """

    evidence: Tensor
    at_zero: Tensor
    gradients: Tensor
    error: float


def integrate(question: Question, values: Tensor, at_zero: Tensor) -> PathIntegral:
    """Integrate the gradient of the evidence from zero betas to trials.

    Parameters
    ----------
    question : Question
    values, at_zero : Tensor of shape (n_trials, n_features), float64
        Features of the trials and of zero betas.

    Returns
    -------
    PathIntegral

    Examples
    --------
    >>> import torch
    >>> from mindllm.model.encoding_model import Responses
    >>> one = torch.ones(1, 2, dtype=torch.float64)
    >>> text = Responses(one, one, torch.tensor([0]))
    >>> yes = torch.tensor([True])
    >>> question = Question(text, yes, ~yes, 2 * one, temperature=1.0)
    >>> path = integrate(question, 3 * one, 0 * one)
    >>> torch.allclose((path.gradients * 3).sum(1), path.evidence - path.at_zero)
    True
    """
    start, end = (question.evidence(features) for features in (at_zero, values))
    step = values - at_zero
    panels = 1
    while True:
        gradients = mean_gradients(question, at_zero, step, panels)
        error = float(((gradients * step).sum(1) - (end - start)).abs().max()) if len(step) else 0.0
        if error <= TOLERANCE * max(1.0, float(end.abs().max())) or panels >= MAX_PANELS:
            return PathIntegral(end, start, gradients, error)
        panels *= 2


def mean_gradients(question: Question, start: Tensor, step: Tensor, panels: int) -> Tensor:
    """Mean gradient (n_trials, n_features) by Gauss-Legendre quadrature in equal panels."""
    nodes, weights = gauss_legendre(panels)
    ends = [question.log_densities(start + t * step) for t in (0.0, 0.5, 1.0)]
    of_texts = fit_parabola(*(densities for densities, _ in ends))
    no_text = fit_parabola(*(density for _, density in ends))
    total = torch.zeros_like(ends[0][0])
    first_moment = torch.zeros_like(total)
    of_none = torch.zeros(2, len(start)).to(start)
    for t, weight in zip(nodes, weights, strict=True):
        _, derivatives, derivative = question.combine(
            evaluate_parabola(of_texts, t), evaluate_parabola(no_text, t)
        )
        total += weight * derivatives
        first_moment += weight * t * derivatives
        of_none += weight * torch.stack([derivative, t * derivative])
    precision = 1 / question.responses.variance
    (start, predicted), (step, _) = question.split(start), question.split(step)
    gradients = total @ (question.responses.mean * precision)
    gradients -= (total @ precision) * start + (first_moment @ precision) * step
    gradients -= (of_none[0, :, None] * start + of_none[1, :, None] * step) / question.no_text
    if question.regression is None:
        return torch.cat([gradients, torch.zeros_like(predicted)], 1)
    return torch.cat([gradients, total @ question.regression], 1)


def gauss_legendre(panels: int) -> tuple[list[float], list[float]]:
    """Nodes and weights in [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    starts = np.arange(panels)[:, None]
    inside = (starts + (nodes + 1) / 2) / panels
    return inside.ravel().tolist(), np.tile(weights / 2 / panels, panels).tolist()


def fit_parabola(first: Tensor, middle: Tensor, last: Tensor) -> Sequence[Tensor]:
    """Coefficients of 1, t and t^2 of parabolas through their values at 0, 0.5 and 1."""
    curvature = 2 * (first - 2 * middle + last)
    return first, last - first - curvature, curvature


def evaluate_parabola(coefficients: Sequence[Tensor], t: float) -> Tensor:
    """Values of parabolas at t."""
    constant, slope, curvature = coefficients
    return constant + t * (slope + t * curvature)
