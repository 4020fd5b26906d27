"""Images of betas to text, chosen among texts by the evidence of the encoding model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.model.choices import answer_evidence, find_answers
from mindllm.model.decode import read_betas
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import RankedText, rank_texts
from mindllm.model.scan_voxels import resolve_masker
from mindllm.model.subject_alignment import SubjectTransform


@dataclass(frozen=True, slots=True)
class RankedVolume:
    """Texts that one volume may be about.

    Parameters
    ----------
    volume : int
        Number of the volume in the image, from 0.
    texts : tuple of RankedText
        The best first.
    """

    volume: int
    texts: tuple[RankedText, ...]


@dataclass(frozen=True, slots=True)
class AnsweredVolume:
    """Answers to a question about one volume.

    Parameters
    ----------
    volume : int
        Number of the volume in the image, from 0.
    evidence : tuple of float
        log p(volume | answer) - log p(volume) of each answer, in nats. Of a single answer: then
        of its absence.
    probabilities : tuple of float
        Of the answers, which are equally likely beforehand.
    """

    volume: int
    evidence: tuple[float, ...]
    probabilities: tuple[float, ...]


def decode_by_evidence(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    texts: Sequence[str],
    atlases: Mapping[str, Image] | None = None,
    *,
    volumes: Sequence[int] | None = None,
    standardize_with: Image | None = None,
    standardized: bool = False,
    n_best: int = 5,
) -> list[RankedVolume]:
    """Choose among texts, known or new, by the evidence of each volume of an image of betas.

    The subject is aligned by all volumes of `standardize_with`, or of `img`, without labels, where
    there are 40 or more.

    Parameters
    ----------
    model : MindLLM
        With an encoding model.
    img, mask_or_masker, atlases, volumes, standardize_with, standardized
        As for `decode`.
    texts : sequence of str
        Proposals, equally likely beforehand; see `mindllm.model.proposals.sample_texts`.
    n_best : int
        Texts per volume.

    Returns
    -------
    list of RankedVolume
        In the order of `volumes`.

    Raises
    ------
    InputError
        If the model has no encoding model, or an image cannot be read.
    """
    evidence, embeddings = scan_evidence(
        model, img, mask_or_masker, texts, atlases, volumes, standardize_with, standardized
    )
    assert model.encoding_model is not None
    centred = embeddings - model.encoding_model.text_center
    ranked = rank_texts(texts, evidence, centred, n_best)
    indices = range(len(evidence)) if volumes is None else volumes
    return [RankedVolume(int(i), tuple(best)) for i, best in zip(indices, ranked, strict=True)]


def answer_by_evidence(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    texts: Sequence[str],
    answers: Sequence[Sequence[str]],
    atlases: Mapping[str, Image] | None = None,
    *,
    volumes: Sequence[int] | None = None,
    standardize_with: Image | None = None,
    standardized: bool = False,
) -> list[AnsweredVolume]:
    """Decide a question with given answers by the evidence of each volume of an image of betas.

    Parameters
    ----------
    model, img, mask_or_masker, texts, atlases, volumes, standardize_with, standardized
        As for `decode_by_evidence`.
    answers : sequence of sequence of str
        Words that name each answer; see `mindllm.model.choices.answer_evidence`.

    Returns
    -------
    list of AnsweredVolume
        In the order of `volumes`.

    Raises
    ------
    InputError
        As `decode_by_evidence`, and if no text names an answer.
    """
    find_answers(texts, answers)  # refused before the scan is read
    evidence, _ = scan_evidence(
        model, img, mask_or_masker, texts, atlases, volumes, standardize_with, standardized
    )
    for_answers = answer_evidence(texts, evidence, answers)
    probabilities = for_answers.softmax(1)
    indices = range(len(evidence)) if volumes is None else volumes
    return [
        AnsweredVolume(int(i), tuple(e.tolist()), tuple(p.tolist()))
        for i, e, p in zip(indices, for_answers, probabilities, strict=True)
    ]


def scan_evidence(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    texts: Sequence[str],
    atlases: Mapping[str, Image] | None,
    volumes: Sequence[int] | None,
    standardize_with: Image | None,
    standardized: bool,
) -> tuple[Tensor, Tensor]:
    """Evidence (n_volumes, n_texts) of volumes for texts, and the texts' embeddings."""
    embeddings = model.embed_texts(texts)
    outputs, subject = read_scan(
        model, img, mask_or_masker, atlases, volumes, standardize_with, standardized
    )
    assert model.encoding_model is not None
    return model.encoding_model.evidence(outputs, subject, embeddings), embeddings


def read_scan(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    atlases: Mapping[str, Image] | None,
    volumes: Sequence[int] | None,
    standardize_with: Image | None,
    standardized: bool,
) -> tuple[Tensor, SubjectTransform]:
    """Query outputs (n_volumes, num_queries) of volumes, and the subject's transform."""
    masker = resolve_masker(model, mask_or_masker, atlases or {})
    betas = read_betas(masker, img, volumes, standardize_with, standardized)
    outputs = model.query_outputs(betas, masker)
    if masker.subject in model.adaptations:
        return outputs, model.subject_transform(masker)
    if volumes is None and standardize_with is None:
        assert model.encoding_model is not None
        return outputs, model.encoding_model.subject_transform(outputs)
    source = img if standardize_with is None else standardize_with
    others = read_betas(masker, source, None, None, standardized)
    return outputs, model.subject_transform(masker, others)
