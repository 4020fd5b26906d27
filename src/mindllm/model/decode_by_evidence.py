"""Images of betas to text, chosen among texts by the evidence of the encoding model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.model.decode import read_betas
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import RankedText, rank_texts
from mindllm.model.scan_voxels import resolve_masker


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
    embeddings = model.embed_texts(texts)
    assert model.encoding_model is not None
    masker = resolve_masker(model, mask_or_masker, atlases or {})
    betas = read_betas(masker, img, volumes, standardize_with, standardized)
    others = betas
    if volumes is not None or standardize_with is not None:
        source = img if standardize_with is None else standardize_with
        others = read_betas(masker, source, None, None, standardized)
    voxels = model.encoder.prepare_voxels(masker)
    subject = model.encoding_model.subject_transform(model.query_outputs(others, voxels).cpu())
    outputs = model.query_outputs(betas, voxels).cpu()
    evidence = model.encoding_model.evidence(outputs, subject, embeddings)
    centred = embeddings - model.encoding_model.text_center
    ranked = rank_texts(texts, evidence, centred, n_best)
    indices = range(len(betas)) if volumes is None else volumes
    return [RankedVolume(int(i), tuple(best)) for i, best in zip(indices, ranked, strict=True)]
