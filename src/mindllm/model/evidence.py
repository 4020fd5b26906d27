"""Evidence of trials for texts, coverage of a subject's voxels, and adaptation to a subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mindllm.fmri.masker import VoxelMasker
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.coverage import VoxelCoverage, check_coverage, voxel_coverage
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.encoding_model import EncodingModel
from mindllm.model.pretrained import PretrainedModule
from mindllm.model.subject_alignment import MIN_ALIGNMENT_TRIALS, SubjectTransform
from mindllm.utils.errors import InputError
from mindllm.utils.validation import check_values

Betas = np.ndarray | Tensor
MAX_CHECKED_MASKERS = 64  # a server sees any number of them


class EvidenceModule(PretrainedModule):
    """What a `MindLLM` says of texts by its encoding model, and of a subject's voxels."""

    _checked_maskers: dict[int, VoxelMasker]

    def query_outputs(self, betas: Betas, masker: VoxelMasker | VoxelFeatures) -> Tensor:
        """Query outputs of the attention; see `MindLLM.query_outputs`."""
        raise NotImplementedError

    def coverage(self, masker: VoxelMasker) -> VoxelCoverage:
        """Compare voxels with those that the model was trained on.

        Parameters
        ----------
        masker : VoxelMasker

        Returns
        -------
        VoxelCoverage
        """
        in_mni = self.encoder.config.coordinate_system == "mni_mm"
        return voxel_coverage(masker, self.maskers, self.encoder.parcel_names, in_mni)

    def _check_coverage(self, masker: VoxelMasker) -> None:
        """Check the coverage of a subject's voxels, once."""
        if id(masker) not in self._checked_maskers:
            check_coverage(self.coverage(masker))
            while len(self._checked_maskers) >= MAX_CHECKED_MASKERS:
                del self._checked_maskers[next(iter(self._checked_maskers))]
            self._checked_maskers[id(masker)] = masker  # kept, so that no other has its id

    def evidence(
        self,
        betas: Betas,
        masker: VoxelMasker | VoxelFeatures,
        texts: Sequence[str] | Tensor,
        subject_betas: Betas | None = None,
    ) -> Tensor:
        """Evidence of trials for texts, by the encoding model: log p(trial | text) - log p(trial).

        Parameters
        ----------
        betas, masker
            As for `encode`.
        texts : sequence of str, or Tensor of shape (n_texts, embedding_dim)
            Any texts, also those that were never trained on; or what `embed_texts` made of them.
        subject_betas : ndarray or Tensor of shape (n_other_trials, n_voxels), optional
            Trials of the same subject, of anything and without labels, to align it to the training
            subjects by; at least 40. None: as `adapt_subject` has adapted the model to the
            subject, else no alignment.

        Returns
        -------
        Tensor of shape (n_trials, n_texts), float64
            In nats, against the density with no text known; positive where the trial speaks for
            the text.

        Raises
        ------
        InputError
            If the model has no encoding model.

        Examples
        --------
        >>> texts = ["a person reads", "a dog swims"]
        >>> model.evidence(betas, masker, texts, subject_betas=betas)  # doctest: +SKIP
        tensor([[ 3.1, -2.4]], dtype=torch.float64)
        """
        model, _ = self.require_encoding_model()
        embeddings = texts if isinstance(texts, Tensor) else self.embed_texts(texts)
        outputs = self.query_outputs(betas, masker)
        if subject_betas is betas:
            transform = model.subject_transform(outputs)
        else:
            transform = self.subject_transform(masker, subject_betas)
        return model.evidence(outputs, transform, embeddings)

    def subject_transform(
        self, masker: VoxelMasker | VoxelFeatures, subject_betas: Betas | None = None
    ) -> SubjectTransform:
        """Standardization and alignment of a subject, as `evidence` reads its trials.

        Parameters
        ----------
        masker, subject_betas
            As for `evidence`.

        Returns
        -------
        SubjectTransform

        Raises
        ------
        InputError
            If the model has no encoding model.
        """
        model, _ = self.require_encoding_model()
        if subject_betas is not None:
            return model.subject_transform(self.query_outputs(subject_betas, masker))
        subject = masker.subject if isinstance(masker, VoxelMasker) else None
        return self.adaptations.get(subject or "", model.subject_transform(None))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts as the encoding model reads them.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        Tensor of shape (n_texts, embedding_dim)
            Unit vectors.

        Raises
        ------
        InputError
            If the model has no encoding model.
        """
        _, sentence_encoder = self.require_encoding_model()
        return torch.from_numpy(embed_sentences(texts, sentence_encoder))

    def require_encoding_model(self) -> tuple[EncodingModel, str]:
        """The encoding model and its sentence encoder; InputError if there are none."""
        if self.encoding_model is None or self.sentence_encoder is None:
            raise InputError(
                "this model has no encoding model, so it gives no evidence for texts. Train it "
                "anew, or rank texts by log_likelihood."
            )
        return self.encoding_model, self.sentence_encoder

    def adapt_subject(
        self, betas: Betas, masker: VoxelMasker, texts: Sequence[str | None] | None = None
    ) -> None:
        """Adapt the encoding model to a subject, in closed form; evidence then reads it so.

        Without labels the subject's trials are given the scale and covariance of the training
        subjects and mapped to the responses that are expected of them; trials whose text is known
        are mapped to the response to that text.

        Parameters
        ----------
        betas : ndarray or Tensor of shape (n_trials, n_voxels)
            Standardized betas of the subject, at least 40.
        masker : VoxelMasker
            The subject's voxels; kept in `maskers`.
        texts : sequence of str or None, length n_trials, optional
            What was shown in each trial; None where it is not known.

        Raises
        ------
        InputError
            If the model has no encoding model, there are fewer than 40 trials, or another number
            of texts.

        Examples
        --------
        >>> model.adapt_subject(betas, masker, ["a dog runs", None, ...])  # doctest: +SKIP
        """
        model, _ = self.require_encoding_model()
        check_values(np.asarray(torch.as_tensor(betas).cpu()), len(masker), masker.subject)
        known = {i: text for i, text in enumerate(texts or []) if text is not None}
        if len(betas) < MIN_ALIGNMENT_TRIALS or len(texts or betas) != len(betas):
            raise InputError(
                f"{masker.subject}: {len(betas)} trials and {len(texts or [])} texts; expected at "
                f"least {MIN_ALIGNMENT_TRIALS} trials, and a text or None for each."
            )
        labels = dict(zip(known, self.embed_texts(list(known.values())), strict=True))
        outputs = self.query_outputs(betas, masker)
        self.adaptations[masker.subject] = model.subject_transform(outputs, labels)
        self.maskers[masker.subject] = masker
