"""Letting a model read: real scans one by one or averaged over repeats, no scan, no tokens, zeros and noise."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mindllm.data.store import Store, mean_betas
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import MindLLMProcessor
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

N_NOISE_INPUTS = 4  # scans of noise per person


class Predictor:
    """A model that answers a task's question: likelihoods of all candidates, and free-running text."""

    def __init__(
        self,
        model: MindLLM,
        evaluation_set: EvaluationSet,
        batch_size: int = 16,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.evaluation_set, self.batch_size, self.options = (
            model,
            evaluation_set,
            batch_size,
            dict(options or {}),
        )
        self.null_log_likelihoods: np.ndarray | None = (
            None  # (C,) what it says of the candidates without a scan: read first
        )
        self.null_predictions = self.predict_tokens(model.null_tokens[None], "the mean fMRI token")
        self.null_log_likelihoods = self.null_predictions.null_log_likelihoods

    def predict_trials(
        self,
        store: Store,
        subject: str,
        groups: Sequence[np.ndarray],
        advance: Advance | None = None,
        voxels: np.ndarray | None = None,
    ) -> ConditionPredictions:
        """What it says of each group of trials (rows of the store), read as one scan: their mean.

        voxels: (V,) which voxels of the person to show; the others are left out, as if they had not been measured.
        """
        space = store.masker(subject)
        space = space if voxels is None else space.select_voxels(np.flatnonzero(voxels))
        parts = []
        # The attention over the voxels is made once per call of encode, so many trials are encoded at once.
        for start in range(0, len(groups), 16 * self.batch_size):
            values = mean_betas(store, subject, groups[start : start + 16 * self.batch_size])
            tokens = self.model.encode(values if voxels is None else values[:, voxels], space)
            parts.append(self.predict_tokens(tokens, subject, advance, write=voxels is None))
        assert sum(len(part.texts) for part in parts) == len(groups), "a trial was lost"
        likelihood = np.concatenate(
            [part.log_likelihoods for part in parts if part.log_likelihoods is not None]
        )
        return ConditionPredictions(
            likelihood, [text for part in parts for text in part.texts], self.null_log_likelihoods
        )

    def predict_tokens(
        self, tokens: Tensor, where: str, advance: Advance | None = None, write: bool = True
    ) -> ConditionPredictions:
        """What it says of fMRI tokens (B, T, width); without `write` only how likely the candidates are."""
        likelihood, texts = [], []
        for some in tokens.split(self.batch_size):
            likelihood.append(
                self.model.score_candidates(
                    some, self.evaluation_set.candidates, self.evaluation_set.question
                )
                .double()
                .numpy()
            )
            asked = [self.model.build_conversation(self.evaluation_set.question)] * len(some)
            texts += self.model.generate(some, asked, **self.options) if write else [""] * len(some)
            if advance:
                advance(len(some))
        found = check_log_likelihoods(np.concatenate(likelihood), where)
        return ConditionPredictions(
            found,
            texts,
            found[0] if self.null_log_likelihoods is None else self.null_log_likelihoods,
        )

    def predict_question_only(self) -> ConditionPredictions:
        """What the language model says to the question alone: the prompt without any place for a scan."""
        bare, empty = copy.copy(self), self.model.null_tokens[None, :0]
        bare.model = copy.copy(self.model)
        prompter = self.model.processor
        bare.model.processor = MindLLMProcessor(
            prompter.tokenizer, 0, self.model.chat_template, prompter.max_length
        )
        return bare.predict_tokens(empty, "the question alone")

    def predict_artificial_inputs(
        self, store: Store, subject: str, seed: int | Sequence[int]
    ) -> dict[str, ConditionPredictions]:
        """What it says of a scan at the mean of every voxel, and of Gaussian noise as large as normalized values are."""
        space = store.masker(subject)
        noise = (
            np.random.default_rng(seed).normal(size=(N_NOISE_INPUTS, len(space))).astype(np.float32)
        )
        zeros = np.zeros((1, len(space)), np.float32)
        return {
            name: self.predict_tokens(self.model.encode(values, space), f"{name} input")
            for name, values in (("zero", zeros), ("noise", noise))
        }

    def log_likelihood_ratio(
        self, store: Store, subject: str, groups: Sequence[np.ndarray], texts: Sequence[str]
    ) -> np.ndarray:
        """log p(text | scan) - log p(text | no brain) in nats (B,), of what was decoded from each scan."""
        out = []
        for start in range(0, len(groups), 16 * self.batch_size):
            tokens = self.model.encode(
                mean_betas(store, subject, groups[start : start + 16 * self.batch_size]),
                store.masker(subject),
            )
            for i, some in enumerate(tokens.split(self.batch_size)):
                said = list(texts[start + i * self.batch_size :][: len(some)])
                answered = [
                    self.model.build_conversation(self.evaluation_set.question, text)
                    for text in said
                ]
                out.append(self.model.log_likelihood_ratio(some, answered).double().cpu().numpy())
        return np.concatenate(out)


def check_log_likelihoods(likelihood: np.ndarray, where: str) -> np.ndarray:
    """The likelihoods, or an InputError if the model says NaN or infinity."""
    bad = int((~np.isfinite(likelihood)).any(1).sum())
    if bad:
        raise InputError(
            f"the model gives NaN or infinite likelihoods for {bad} of {len(likelihood)} trials ({where}); its training has probably diverged. Train it again, with a smaller learning rate."
        )
    return likelihood


def shuffled_conditions(
    brain: ConditionPredictions, others: Sequence[ConditionPredictions], sessions: np.ndarray
) -> dict[str, ConditionPredictions]:
    """One person's own readings as those of other trials: shuffled, shuffled within the session; and other people's."""
    trials = len(brain.texts)
    out = {"shuffled_trials": brain.broadcast_to_trials(trials)}
    if len(set(sessions.tolist())) > 1:
        out["shuffled_within_session"] = brain.shared_within(sessions, sessions)
    if others:
        likelihood = np.concatenate(
            [other.log_likelihoods for other in others if other.log_likelihoods is not None]
        )
        texts = [text for other in others for text in other.texts]
        out["other_subject"] = ConditionPredictions(
            likelihood, texts, brain.null_log_likelihoods
        ).broadcast_to_trials(trials)
    return out
