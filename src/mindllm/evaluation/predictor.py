"""Predictions of a model: of trials or their means, of zeros and noise, without fMRI tokens."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mindllm.data.store import Store
from mindllm.evaluation.evaluation_set import EvaluationSet
from mindllm.evaluation.results import ConditionPredictions
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import MindLLMProcessor
from mindllm.model.subject_alignment import MIN_ALIGNMENT_TRIALS, SubjectTransform
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

N_NOISE_INPUTS = 4  # per subject
GENERATED_BATCHES = 4  # a step reads all weights for one token of each trial
ENCODED_BATCHES = 16  # attention over the voxels is computed once per call of encode


class Predictor:
    """A model that answers the question of an evaluation set.

    Parameters
    ----------
    model : MindLLM
        The model.
    evaluation_set : EvaluationSet
        Question and candidates.
    batch_size : int
        Trials per call of the language model.
    generate_options : mapping, optional
        Options of the model's `generate`.

    Attributes
    ----------
    null_predictions : ConditionPredictions
        Predictions from the mean fMRI tokens of training: one row.
    """

    def __init__(
        self,
        model: MindLLM,
        evaluation_set: EvaluationSet,
        batch_size: int = 16,
        generate_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.evaluation_set = model, evaluation_set
        self.batch_size, self.generate_options = batch_size, dict(generate_options or {})
        self._transforms: dict[str, SubjectTransform] = {}
        self.null_log_likelihoods: np.ndarray | None = None  # (C,), known after the next line
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
        """Predict from the mean of each group of trials.

        Parameters
        ----------
        store : Store
            Where the trials are.
        subject : str
            Whose trials.
        groups : sequence of ndarray
            Trial indices; one prediction per group.
        advance : callable, optional
            Called with the number of predictions made.
        voxels : ndarray of bool, shape (n_voxels,), optional
            Which voxels to use; the others are left out, as if they had not been measured, and no
            text is generated.

        Returns
        -------
        ConditionPredictions
            One row per group.
        """
        masker = store.masker(subject)
        masker = masker if voxels is None else masker.select_voxels(np.flatnonzero(voxels))
        parts = []
        for batch in self._encoded_batches(groups):
            betas = store.mean_betas(subject, batch)
            tokens = self.model.encode(betas if voxels is None else betas[:, voxels], masker)
            parts.append(self.predict_tokens(tokens, subject, advance, generate=voxels is None))
        assert sum(len(part.texts) for part in parts) == len(groups), "a trial was lost"
        log_likelihoods = np.concatenate(
            [part.log_likelihoods for part in parts if part.log_likelihoods is not None]
        )
        texts = [text for part in parts for text in part.texts]
        evidence = None if voxels is not None else self.predict_evidence(store, subject, groups)
        return ConditionPredictions(
            log_likelihoods, texts, self.null_log_likelihoods, evidence=evidence
        )

    def predict_evidence(
        self, store: Store, subject: str, groups: Sequence[np.ndarray]
    ) -> np.ndarray | None:
        """Compute the evidence of the mean of each group of trials for the candidates.

        The subject is aligned by all of its trials in the store, without labels; by the means
        themselves where these are of several trials.

        Parameters
        ----------
        store, subject, groups
            As in `predict_trials`.

        Returns
        -------
        ndarray of shape (B, C) or None
            In nats; None if the model has no encoding model.
        """
        model = self.model.encoding_model
        if model is None:
            return None
        outputs = self._query_outputs(store, subject, groups)
        is_averaged = max(map(len, groups)) > 1 and len(groups) >= MIN_ALIGNMENT_TRIALS
        if is_averaged and subject not in self.model.adaptations:
            return self._evidence(outputs, model.subject_transform(outputs))
        return self._evidence(outputs, self._transform(store, subject))

    def _evidence(self, outputs: Tensor, transform: SubjectTransform) -> np.ndarray:
        """Return the evidence (B, C) of query outputs for the candidates."""
        assert self.model.encoding_model is not None
        embeddings = self.candidate_embeddings
        return self.model.encoding_model.evidence(outputs, transform, embeddings).numpy()

    @cached_property
    def candidate_embeddings(self) -> Tensor:
        """Sentence embeddings (C, embedding_dim) of the candidates, for the encoding model."""
        assert self.model.sentence_encoder is not None
        texts = list(self.evaluation_set.candidates)
        return torch.from_numpy(embed_sentences(texts, self.model.sentence_encoder))

    def _transform(self, store: Store, subject: str) -> SubjectTransform:
        """Return what the model was adapted to, or the alignment by all trials, computed once."""
        assert self.model.encoding_model is not None
        if subject in self.model.adaptations:
            return self.model.adaptations[subject]
        if subject not in self._transforms:
            groups = [np.array([row]) for row in range(len(store.trials(subject)))]
            outputs = self._query_outputs(store, subject, groups)
            self._transforms[subject] = self.model.encoding_model.subject_transform(outputs)
        return self._transforms[subject]

    def _query_outputs(self, store: Store, subject: str, groups: Sequence[np.ndarray]) -> Tensor:
        """Return the query outputs (B, num_queries) of the mean of each group of trials."""
        voxels = self.model.encoder.prepare_voxels(store.masker(subject))
        return torch.cat(
            [
                self.model.query_outputs(store.mean_betas(subject, batch), voxels).cpu()
                for batch in self._encoded_batches(groups)
            ]
        )

    def predict_tokens(
        self, tokens: Tensor, where: str, advance: Advance | None = None, generate: bool = True
    ) -> ConditionPredictions:
        """Predict from fMRI tokens.

        Parameters
        ----------
        tokens : Tensor of shape (B, num_fmri_tokens, token_dim)
            The fMRI tokens.
        where : str
            What they are of, for error messages.
        advance : callable, optional
            Called with the number of predictions made.
        generate : bool
            False: texts are empty, and only the candidates are scored.

        Returns
        -------
        ConditionPredictions
            B rows.

        Raises
        ------
        InputError
            If the model gives NaN or infinite log-likelihoods.
        """
        task, log_likelihoods = self.evaluation_set, []
        for batch in tokens.split(self.batch_size):
            scores = self.model.score_candidates(batch, task.candidates, task.question)
            log_likelihoods.append(scores.double().cpu().numpy())
            if advance:
                advance(len(batch))
        values = check_log_likelihoods(np.concatenate(log_likelihoods), where)
        texts = self._generate(tokens) if generate else [""] * len(tokens)
        null = values[0] if self.null_log_likelihoods is None else self.null_log_likelihoods
        return ConditionPredictions(values, texts, null)

    def _generate(self, tokens: Tensor) -> list[str]:
        """Return a text for each row of fMRI tokens (B, num_fmri_tokens, token_dim)."""
        texts: list[str] = []
        for batch in tokens.split(GENERATED_BATCHES * self.batch_size):
            conversations = [self.model.build_conversation(self.evaluation_set.question)]
            texts += self.model.generate(batch, conversations * len(batch), **self.generate_options)
        return texts

    def predict_question_only(self) -> ConditionPredictions:
        """Predict from the question alone: the prompt without any fMRI token. One row."""
        bare = copy.copy(self)
        bare.model = without_fmri_tokens(self.model)
        return bare.predict_tokens(self.model.null_tokens[None, :0], "the question alone")

    def predict_artificial_input(
        self, store: Store, subject: str, name: str, seed: int | Sequence[int]
    ) -> ConditionPredictions:
        """Predict from `zero` betas (one row), or from standard Gaussian `noise` (four rows)."""
        masker = store.masker(subject)
        if name == "zero":
            betas = np.zeros((1, len(masker)), np.float32)
        else:
            noise = np.random.default_rng(seed).normal(size=(N_NOISE_INPUTS, len(masker)))
            betas = noise.astype(np.float32)
        predictions = self.predict_tokens(self.model.encode(betas, masker), f"{name} input")
        if self.model.encoding_model is None:
            return predictions
        outputs = self.model.query_outputs(betas, masker)
        evidence = self._evidence(outputs, self._transform(store, subject))
        return replace(predictions, evidence=evidence)

    def log_likelihood_ratio(
        self,
        store: Store,
        subject: str,
        groups: Sequence[np.ndarray],
        predictions: ConditionPredictions,
    ) -> np.ndarray:
        """Compute log p(text | fMRI) - log p(text | null tokens) of the predicted texts.

        Texts that are candidates were scored before, and are not read again. Another text is read
        with each trial that it was predicted from, and once with the null tokens.

        Parameters
        ----------
        store, subject, groups
            As in `predict_trials`.
        predictions : ConditionPredictions
            What it returned: one text per group, and the candidates' log-likelihoods.

        Returns
        -------
        ndarray of shape (B,)
            In nats.
        """
        assert predictions.log_likelihoods is not None
        assert predictions.null_log_likelihoods is not None
        ratios = np.empty(len(groups))
        columns = {text: i for i, text in enumerate(self.evaluation_set.candidates)}
        rows_to_read = []
        for row, text in enumerate(predictions.texts):
            if (column := columns.get(text)) is None:
                rows_to_read.append(row)
                continue
            log_likelihood = predictions.log_likelihoods[row, column]
            ratios[row] = log_likelihood - predictions.null_log_likelihoods[column]
        if rows_to_read:
            texts = [predictions.texts[row] for row in rows_to_read]
            read_groups = [groups[row] for row in rows_to_read]
            ratios[rows_to_read] = self._read_ratios(store, subject, read_groups, texts)
        return ratios

    def _read_ratios(
        self, store: Store, subject: str, groups: Sequence[np.ndarray], texts: Sequence[str]
    ) -> np.ndarray:
        """Return the log-likelihood ratio (B,) of one text per group, by reading them."""
        distinct = sorted(set(texts))
        null = self._text_log_likelihoods(
            self.model.null_tokens.expand(len(distinct), -1, -1), distinct
        )
        without_fmri = dict(zip(distinct, null, strict=True))
        log_likelihoods, start = [], 0
        for group_batch in self._encoded_batches(groups):
            betas = store.mean_betas(subject, group_batch)
            tokens = self.model.encode(betas, store.masker(subject))
            answers = texts[start : start + len(tokens)]
            log_likelihoods.append(self._text_log_likelihoods(tokens, answers))
            start += len(tokens)
        return np.concatenate(log_likelihoods) - [without_fmri[text] for text in texts]

    @torch.no_grad()
    def _text_log_likelihoods(self, tokens: Tensor, texts: Sequence[str]) -> np.ndarray:
        """Return the log-likelihood (B,) of one text per row of fMRI tokens."""
        parts, question = [], self.evaluation_set.question
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            prompts = [
                self.model.processor(self.model.build_conversation(question, text), cut=True)
                for text in texts[rows]
            ]
            values, _ = prompt_log_likelihood(self.model, tokens[rows], prompts)
            parts.append(values.double().cpu().numpy())
        return np.concatenate(parts)

    def _encoded_batches(self, groups: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        """Yield as many groups as are encoded at once."""
        step = ENCODED_BATCHES * self.batch_size
        for start in range(0, len(groups), step):
            yield groups[start : start + step]


def check_log_likelihoods(log_likelihoods: np.ndarray, where: str) -> np.ndarray:
    """Return log-likelihoods (B, C), or raise InputError if some are NaN or infinite."""
    n_bad = int((~np.isfinite(log_likelihoods)).any(1).sum())
    if n_bad:
        raise InputError(
            f"the model gives NaN or infinite likelihoods for {n_bad} of {len(log_likelihoods)} "
            f"trials ({where}); its training has probably diverged. "
            "Train it again, with a smaller learning rate."
        )
    return log_likelihoods


def shuffled_conditions(
    fmri: ConditionPredictions,
    other_subjects: Sequence[ConditionPredictions],
    sessions: np.ndarray,
) -> dict[str, ConditionPredictions]:
    """Reuse predictions as those of other trials.

    Parameters
    ----------
    fmri : ConditionPredictions
        One subject's predictions of its B trials.
    other_subjects : sequence of ConditionPredictions
        The other subjects' predictions.
    sessions : ndarray of shape (B,)
        Session of each trial.

    Returns
    -------
    dict of str to ConditionPredictions
        `shuffled_trials`; `shuffled_within_session` where there are several sessions;
        `other_subject` where there are other subjects.
    """
    n_trials = len(fmri.texts)
    conditions = {"shuffled_trials": fmri.broadcast_to_trials(n_trials)}
    if len(set(sessions.tolist())) > 1:
        conditions["shuffled_within_session"] = fmri.shared_within(sessions, sessions)
    if other_subjects:
        log_likelihoods = np.concatenate(
            [other.log_likelihoods for other in other_subjects if other.log_likelihoods is not None]
        )
        texts = [text for other in other_subjects for text in other.texts]
        evidence = [other.evidence for other in other_subjects if other.evidence is not None]
        pooled = ConditionPredictions(
            log_likelihoods,
            texts,
            fmri.null_log_likelihoods,
            evidence=np.concatenate(evidence) if evidence else None,
        )
        conditions["other_subject"] = pooled.broadcast_to_trials(n_trials)
    return conditions


def without_fmri_tokens(model: MindLLM) -> MindLLM:
    """Return a model with the same weights whose prompts have no fMRI tokens, so it reads none."""
    bare, processor = copy.copy(model), model.processor
    bare.processor = MindLLMProcessor(
        processor.tokenizer, 0, model.chat_template, processor.max_length
    )
    return bare
