"""What a model makes of one subject's trials: attention, contributions, words and lesions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from mindllm.explain.attention import attention_of_queries, attention_of_tokens
from mindllm.explain.attribution import AttributionConfig, WordAttributions, attribute_words
from mindllm.explain.contributions import Contributions, contribute
from mindllm.explain.evidence_path import Question
from mindllm.explain.features import AffineFeatures, trial_features
from mindllm.explain.lesions import (
    Lesions,
    RandomSets,
    answer_without,
    lesion_trials,
    random_orders,
)
from mindllm.explain.regions import Region, find_region
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.choices import find_answers
from mindllm.model.evidence import Betas
from mindllm.model.modeling import MindLLM
from mindllm.utils.errors import InputError


class Explainer:
    """Explains what a model says of one subject's trials.

    Parameters
    ----------
    model : MindLLM
    masker : VoxelMasker
        The subject's voxels.
    betas : ndarray or Tensor of shape (n_trials, n_voxels)
        Standardized betas of the trials to explain.
    subject_betas : ndarray or Tensor of shape (n_other_trials, n_voxels), optional
        Trials that the subject is aligned by, as for `MindLLM.evidence`.

    Examples
    --------
    >>> explainer = Explainer(model, masker, betas)  # doctest: +SKIP
    >>> explainer.contributions("a dog runs").voxels.shape  # doctest: +SKIP
    (60, 7631)
    """

    def __init__(
        self,
        model: MindLLM,
        masker: VoxelMasker,
        betas: Betas,
        subject_betas: Betas | None = None,
    ) -> None:
        self.model, self.masker = model, masker
        self.betas = np.atleast_2d(torch.as_tensor(betas).cpu().numpy())
        self.subject_betas = subject_betas

    @cached_property
    def features(self) -> AffineFeatures:
        """Features of the trials by the encoding model."""
        return trial_features(self.model, self.masker, self.betas, self.subject_betas)

    @cached_property
    def query_attention(self) -> np.ndarray:
        """Fraction of each query's attention per voxel, (num_queries, n_voxels)."""
        return attention_of_queries(self.model, self.masker)

    @cached_property
    def token_attention(self) -> np.ndarray:
        """Fraction of each fMRI token's attention per voxel, (num_fmri_tokens, n_voxels)."""
        return attention_of_tokens(self.model, self.masker, self.betas)

    def attention_of_token(self, token: int) -> np.ndarray:
        """Where one fMRI token attends to.

        Parameters
        ----------
        token : int
            From 0.

        Returns
        -------
        ndarray of shape (n_voxels,)
            Fractions of its attention, which sum to one.

        Raises
        ------
        InputError
            If there is no such token.
        """
        if not 0 <= token < len(self.token_attention):
            raise InputError(
                f"there is no fMRI token {token}; the model has tokens 0 to "
                f"{len(self.token_attention) - 1}."
            )
        return self.token_attention[token]

    def question_about(self, text: str, against: Sequence[str] = ()) -> Question:
        """Evidence for a text, against none known or against others.

        Parameters
        ----------
        text : str
        against : sequence of str
            Texts that it is compared with; none: the density with no text known.

        Returns
        -------
        Question

        Raises
        ------
        InputError
            If the model has no encoding model.
        """
        others = self.model.embed_texts(list(against)) if against else None
        embeddings = self.model.embed_texts([text])
        assert self.model.encoding_model is not None
        return Question.of_texts(self.model.encoding_model, embeddings, others)

    def question_about_words(self, words: Sequence[str], texts: Sequence[str]) -> Question:
        """Evidence for the texts that name one of some words, against those that do not.

        Parameters
        ----------
        words : sequence of str
            Forms of a word, such as dog and dogs.
        texts : sequence of str
            Such as the texts that the model was trained on.

        Returns
        -------
        Question

        Raises
        ------
        InputError
            If all texts name one of the words, or none does.
        """
        naming, others = find_answers(texts, [list(words)])
        embeddings = self.model.embed_texts(list(texts))
        assert self.model.encoding_model is not None
        return Question.of_texts(self.model.encoding_model, embeddings[naming], embeddings[others])

    def contributions(
        self, text: str, trials: Sequence[int] | None = None, against: Sequence[str] = ()
    ) -> Contributions:
        """Contribution of every voxel to the evidence for a text.

        Parameters
        ----------
        text : str
            Known or new.
        trials : sequence of int, optional
            Rows of the betas; all by default.
        against : sequence of str
            As for `question_about`.

        Returns
        -------
        Contributions
        """
        return contribute(self.select(trials), self.question_about(text, against))

    def word_contributions(
        self, words: Sequence[str], texts: Sequence[str], trials: Sequence[int] | None = None
    ) -> Contributions:
        """Contribution of every voxel to the evidence for a word.

        Parameters
        ----------
        words, texts
            As for `question_about_words`.
        trials : sequence of int, optional
            Rows of the betas; all by default.

        Returns
        -------
        Contributions
        """
        return contribute(self.select(trials), self.question_about_words(words, texts))

    def attribute_words(
        self,
        trial: int,
        answer: str | None = None,
        question: str | None = None,
        *,
        words: Sequence[int] | None = None,
        config: AttributionConfig | None = None,
    ) -> WordAttributions:
        """Attribute the words of an answer to voxels, through the language model.

        Parameters
        ----------
        trial : int
            Row of the betas.
        answer : str, optional
            By default what the model decodes.
        question, words, config
            As for `mindllm.explain.attribution.attribute_words`.

        Returns
        -------
        WordAttributions
        """
        betas = self.betas[trial]
        text = answer or self.model.decode(betas, self.masker, question)[0]
        return attribute_words(
            self.model, self.masker, betas, text, question, words=words, config=config
        )

    def lesion(
        self,
        parcels: Sequence[str],
        text: str,
        trials: Sequence[int] | None = None,
        *,
        n_random: int = 200,
        kind: RandomSets = "contiguous",
        seed: int = 0,
    ) -> Lesions:
        """Evidence for a text that trials lose without parcels, against random voxels.

        Parameters
        ----------
        parcels : sequence of str
            Names or patterns; see `mindllm.explain.regions.find_region`.
        text : str
        trials : sequence of int, optional
            Rows of the betas; all by default.
        n_random, kind, seed
            Random sets; see `mindllm.explain.lesions.random_orders`.

        Returns
        -------
        Lesions
            Of one region.
        """
        region = find_region(self.masker, parcels)
        orders = random_orders(self.masker, int(region.voxels.sum()), n_random, kind, seed)
        features = self.select(trials)
        questions = [self.question_about(text)] * len(features)
        return lesion_trials(features, questions, [region], orders)

    def lesion_answer(
        self, parcels: Sequence[str], trial: int, answer: str, question: str | None = None
    ) -> float:
        """Log-likelihood ratio of an answer that a trial loses without parcels.

        Parameters
        ----------
        parcels : sequence of str
            As for `lesion`.
        trial : int
            Row of the betas.
        answer : str
        question : str, optional
            By default the one that the model was trained with.

        Returns
        -------
        float
            In nats.
        """
        region: Region = find_region(self.masker, parcels)
        masks = region.voxels[None]
        betas = self.betas[trial]
        return float(answer_without(self.model, self.masker, betas, answer, masks, question)[0])

    def select(self, trials: Sequence[int] | None) -> AffineFeatures:
        """The features of some of the trials, or all."""
        return self.features if trials is None else self.features.select(trials)
