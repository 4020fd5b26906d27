"""The model as the server uses it: scans to fMRI tokens, kept for later, and evidence for texts.

Everything here is called by one thread, that of `mindllm.serve.worker`, but for what is checked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mindllm.explain.attention import MNIGrid
from mindllm.explain.contributions import Contributions
from mindllm.fmri.masker import VoxelMasker
from mindllm.model.coverage import check_coverage
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.modeling import MindLLM
from mindllm.model.subject_alignment import (
    MAX_ALIGNMENT_TRIALS,
    SubjectTransform,
    evenly_spaced,
)
from mindllm.serve.api_errors import not_found
from mindllm.serve.monitoring import Monitoring
from mindllm.serve.scans import Scan
from mindllm.serve.schemas import Region
from mindllm.utils.bounded_cache import BoundedCache

FMRIKey: TypeAlias = tuple[str, int, tuple[tuple[str, str], ...]]
WordKey: TypeAlias = tuple[FMRIKey, str, str | None, int]
TextKey: TypeAlias = tuple[FMRIKey, str]
CACHED_SUBJECTS = 32
CACHED_WORDS = 32  # whose maps take long
CACHED_TEXTS = 32  # whose contributions are asked for as an image and by region
CACHED_MAPS = 2  # subjects whose attention is kept, which may be large
BETAS_AT_ONCE = 2**26  # bytes of betas in memory, while a subject's trials are read
MAX_PROPOSALS = 1000  # the texts that were most frequent in training


@dataclass(frozen=True)
class FMRISource:
    """A trial of the store, or a volume of an uploaded scan.

    Parameters
    ----------
    group : str
        Key of the subject or scan that it belongs to.
    index : int
        Number of the trial or volume.
    count : int
        Trials or volumes of the group.
    masker : VoxelMasker
    read : callable
        Called with indices; it returns their standardized betas (n, n_voxels).
    subject : str or None
        None: an uploaded scan.
    off : tuple of (str, str)
        Atlas and name of the parcels that are switched off.
    stimuli : ndarray of shape (count,) or None
        Stimulus of each trial of the group; None: not known.
    """

    group: str
    index: int
    count: int
    masker: VoxelMasker
    read: Callable[[np.ndarray], np.ndarray]
    subject: str | None = None
    off: tuple[tuple[str, str], ...] = ()
    stimuli: np.ndarray | None = None

    @property
    def key(self) -> FMRIKey:
        """Tells it from all others."""
        return self.group, self.index, self.off

    @property
    def is_off(self) -> np.ndarray:
        """Which voxels are switched off, (n_voxels,) bool."""
        is_off = np.zeros(len(self.masker), bool)
        for atlas, parcel in self.off:
            names = self.masker.parcel_names[atlas]
            numbers = [number for number, name in names.items() if name == parcel]
            is_off |= np.isin(self.masker.parcel_labels[atlas], numbers)
        return is_off

    def betas(self) -> np.ndarray:
        """Standardized betas (1, n_voxels), 0 where voxels are switched off."""
        betas = self.read(np.array([self.index]))
        return np.where(self.is_off, 0, betas).astype(np.float32) if self.off else betas

    def whole(self) -> Self:
        """The same with all its voxels."""
        return replace(self, off=())

    def without(self, regions: Sequence[Region]) -> Self:
        """The same with parcels switched off.

        Raises
        ------
        APIError
            If it has no voxel in one of them.
        """
        pairs = {(region.atlas, region.parcel) for region in regions}
        known = {
            (atlas, self.masker.parcel_names[atlas][number])
            for atlas, labels in self.masker.parcel_labels.items()
            for number in np.unique(labels[labels > 0]).tolist()
        }
        if unknown := sorted(pairs - known):
            raise not_found(
                f"the scan has no voxel in {unknown[0][0]}: {unknown[0][1]}; its `regions` are "
                "listed with the subject or scan.",
                "region_not_found",
            )
        return replace(self, off=tuple(sorted(pairs)))

    @property
    def others(self) -> str:
        """What its evidence is compared with, in words."""
        if self.subject is None:
            return "other volumes of the scan"
        return f"other trials of {self.subject}, of other stimuli"


@dataclass(frozen=True)
class EncodedFMRI:
    """What the encoder made of a scan.

    Parameters
    ----------
    fmri_tokens : Tensor of shape (num_fmri_tokens, token_dim)
        Before the projector.
    query_outputs : Tensor of shape (num_queries,)
    """

    fmri_tokens: Tensor
    query_outputs: Tensor


@dataclass(frozen=True)
class SubjectContext:
    """What evidence of any trial of a subject needs.

    Parameters
    ----------
    transform : SubjectTransform
    rows : ndarray of shape (n,)
        Trials of the subject, evenly spaced.
    query_outputs : Tensor of shape (n, num_queries)
        Of these trials.
    """

    transform: SubjectTransform
    rows: np.ndarray
    query_outputs: Tensor


class FMRIDecoder:
    """A model and what was computed with it.

    Parameters
    ----------
    model : MindLLM
    cached_scans : int
        Trials and volumes whose fMRI tokens are kept.
    monitoring : Monitoring

    Attributes
    ----------
    proposals : list of str
        Texts that the model was trained on, the most frequent first.
    """

    def __init__(self, model: MindLLM, cached_scans: int, monitoring: Monitoring) -> None:
        self.model, self.monitoring = model, monitoring
        self.proposals = list(model.model_card.answers or {})[:MAX_PROPOSALS]
        self._encoded: BoundedCache[FMRIKey, EncodedFMRI] = BoundedCache(cached_scans)
        self._voxels: BoundedCache[str, VoxelFeatures] = BoundedCache(CACHED_SUBJECTS)
        self._contexts: BoundedCache[str, SubjectContext] = BoundedCache(CACHED_SUBJECTS)
        self._attention: BoundedCache[str, Tensor] = BoundedCache(CACHED_MAPS)
        self._grids: BoundedCache[str, MNIGrid] = BoundedCache(CACHED_MAPS)
        self._words: BoundedCache[WordKey, np.ndarray] = BoundedCache(CACHED_WORDS)
        self._texts: BoundedCache[TextKey, Contributions] = BoundedCache(CACHED_TEXTS)
        self._proposal_embeddings: Tensor | None = None

    @property
    def has_evidence(self) -> bool:
        """Whether the model gives evidence for texts."""
        return self.model.encoding_model is not None and self.model.sentence_encoder is not None

    def prepare(self) -> None:
        """Load what the first request would wait for."""
        if self.has_evidence:
            self.proposal_embeddings()

    def proposal_embeddings(self) -> Tensor:
        """Embeddings (n_proposals, embedding_dim) of the proposals."""
        if self._proposal_embeddings is None:
            self._proposal_embeddings = self.model.embed_texts(self.proposals or ["a scene"])
            self._proposal_embeddings = self._proposal_embeddings[: len(self.proposals)]
        return self._proposal_embeddings

    def check_voxels(self, masker: VoxelMasker) -> tuple[str, ...]:
        """Refuse voxels that cannot mean anything to the model; warnings where they mean little.

        Raises
        ------
        InputError
            As `mindllm.model.coverage.check_coverage`, and for parcels that are unknown.
        """
        coverage = self.model.coverage(masker)
        check_coverage(coverage)
        self.model.encoder.prepare_voxels(masker)
        return (coverage.describe(),) if coverage.describe() else ()

    def forget(self, group: str) -> None:
        """Remove what was kept of a subject or scan."""
        self._encoded.remove(lambda key: key[0] == group)
        self._words.remove(lambda key: key[0][0] == group)
        self._texts.remove(lambda key: key[0][0] == group)
        for cache in (self._voxels, self._contexts, self._attention, self._grids):
            cache.remove(lambda key: key == group)

    def voxels(self, source: FMRISource) -> VoxelFeatures:
        """Voxels of a scan, as the encoder reads them."""
        prepare = self.model.encoder.prepare_voxels
        return self._voxels.get(source.group, lambda: prepare(source.masker))

    @torch.no_grad()
    def attention(self, source: FMRISource) -> Tensor:
        """Attention weights (num_queries, n_voxels) of the queries over a scan's voxels."""
        weigh = self.model.encoder.attention_weights
        return self._attention.get(source.group, lambda: weigh(self.voxels(source)).cpu())

    def word_map(self, key: WordKey, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Attribution (n_voxels,) of a word, kept: its image and its regions are asked for."""
        return self._words.get(key, make)

    def contributions(self, key: TextKey, make: Callable[[], Contributions]) -> Contributions:
        """Contributions to the evidence for a text, kept for the same reason."""
        return self._texts.get(key, make)

    def mni_grid(self, source: FMRISource) -> MNIGrid:
        """The grid in MNI space that shows a scan's voxels."""
        return self._grids.get(source.group, lambda: MNIGrid(source.masker))

    @torch.no_grad()
    def encode(self, source: FMRISource) -> tuple[EncodedFMRI, bool]:
        """fMRI tokens of a scan, and whether they were kept from before."""
        encoded, is_hit = self._encoded.look_up(source.key, lambda: self._encode(source))
        self.monitoring.cache_lookups.labels("hit" if is_hit else "miss").inc()
        return encoded, is_hit

    def _encode(self, source: FMRISource) -> EncodedFMRI:
        outputs = self.model.query_outputs(source.betas(), self.voxels(source))
        head = self.model.encoder.head
        return EncodedFMRI(head.tokens(head.embed(outputs))[0], outputs[0])

    def context(self, source: FMRISource) -> SubjectContext:
        """Alignment of the subject of a scan, by its trials and without labels."""
        return self._contexts.get(source.group, lambda: self._make_context(source))

    @torch.no_grad()
    def _make_context(self, source: FMRISource) -> SubjectContext:
        model = self.model
        assert model.encoding_model is not None
        rows = evenly_spaced(source.count, MAX_ALIGNMENT_TRIALS).numpy()
        size = max(BETAS_AT_ONCE // (4 * len(source.masker)), 1)
        voxels = self.voxels(source)
        outputs = torch.cat(
            [
                model.query_outputs(source.read(rows[start : start + size]), voxels)
                for start in range(0, len(rows), size)
            ]
        )
        transform = model.adaptations.get(source.subject or "")
        if transform is None:
            transform = model.encoding_model.subject_transform(outputs)
        return SubjectContext(transform, rows, outputs)

    @torch.no_grad()
    def evidence(
        self, source: FMRISource, embeddings: Tensor, n_shuffled: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Evidence of a scan for texts, and that of other trials for the last of them.

        Parameters
        ----------
        source : FMRISource
        embeddings : Tensor of shape (n_texts, embedding_dim)
        n_shuffled : int
            Other trials, at most.

        Returns
        -------
        evidence : Tensor of shape (n_texts,)
        shuffled : Tensor of shape (n_other_trials,)
        """
        assert self.model.encoding_model is not None
        context = self.context(source)
        own_outputs = self.encode(source)[0].query_outputs[None]
        evidence = self.model.encoding_model.evidence(own_outputs, context.transform, embeddings)[0]
        others = select_others(source, context.rows)
        others = others[evenly_spaced(len(others), n_shuffled)] if n_shuffled else others[:0]
        if not len(others):
            return evidence, evidence[:0]
        outputs = context.query_outputs[others]
        shuffled = self.model.encoding_model.evidence(outputs, context.transform, embeddings[-1:])
        return evidence, shuffled[:, 0]


def select_others(source: FMRISource, rows: np.ndarray) -> np.ndarray:
    """Positions in `rows` of other trials, of other stimuli where these are known."""
    is_other = rows != source.index
    if source.stimuli is not None:
        is_other &= source.stimuli[rows] != source.stimuli[source.index]
    return np.flatnonzero(is_other)


def volume_source(scan: Scan, volume: int) -> FMRISource:
    """A volume of an uploaded scan."""
    betas = scan.betas
    return FMRISource(
        f"scan {scan.id}",
        volume,
        len(betas),
        scan.masker,
        lambda rows: np.array(betas[rows], np.float32),
    )
