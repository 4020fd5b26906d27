"""Images of betas to one of several answers, by the language model's likelihood of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.model.decode import read_betas
from mindllm.model.modeling import MindLLM
from mindllm.model.scan_voxels import resolve_masker
from mindllm.utils.errors import InputError


@dataclass(frozen=True, slots=True)
class ChosenVolume:
    """Answers to a question about one volume, and how likely they are.

    Parameters
    ----------
    volume : int
        Number of the volume in the image, from 0.
    log_likelihoods : tuple of float
        log p(answer | fMRI tokens, question) of each answer, in nats.
    log_likelihood_ratios : tuple of float
        The same minus log p(answer | null tokens, question): what the scan adds.
    probabilities : tuple of float
        Of the answers by their log-likelihoods, one of them being right.
    """

    volume: int
    log_likelihoods: tuple[float, ...]
    log_likelihood_ratios: tuple[float, ...]
    probabilities: tuple[float, ...]


def choose_by_likelihood(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    answers: Sequence[Sequence[str]],
    atlases: Mapping[str, Image] | None = None,
    *,
    question: str | None = None,
    volumes: Sequence[int] | None = None,
    standardize_with: Image | None = None,
    standardized: bool = False,
    batch_size: int = 8,
) -> list[ChosenVolume]:
    """Choose among answers by their likelihood after a question about each volume.

    Parameters
    ----------
    model, img, mask_or_masker, atlases, question, volumes, standardize_with, standardized
        As for `mindllm.model.decode.decode`.
    answers : sequence of sequence of str
        Wordings of each answer, whose probabilities are added up; at least two answers.
    batch_size : int
        Volumes that the language model reads at once.

    Returns
    -------
    list of ChosenVolume
        In the order of `volumes`.

    Raises
    ------
    InputError
        If there are fewer than two answers, or an image cannot be read.

    Examples
    --------
    >>> choose_by_likelihood(
    ...     model, "betas.nii.gz", "mask.nii.gz", [["yes"], ["no"]], question="Is there a dog?"
    ... )  # doctest: +SKIP
    [ChosenVolume(volume=0, log_likelihoods=(-0.2, -1.9), ...)]
    """
    if len(answers) < 2:
        raise InputError(
            f"{len(answers)} answers to choose from by likelihood; expected two or more, such as "
            "yes and no."
        )
    masker = resolve_masker(model, mask_or_masker, atlases or {})
    betas = read_betas(masker, img, volumes, standardize_with, standardized)
    texts = [text for wordings in answers for text in wordings]
    scored = model.log_likelihood(betas, masker, texts, question, batch_size=batch_size)
    null = model.score_candidates(model.null_tokens[None], texts, question)
    log_likelihoods = add_wordings(scored, answers)
    ratios = log_likelihoods - add_wordings(null, answers)
    indices = range(len(betas)) if volumes is None else volumes
    rows = zip(
        indices,
        log_likelihoods.tolist(),
        ratios.tolist(),
        log_likelihoods.softmax(1).tolist(),
        strict=True,
    )
    return [ChosenVolume(int(i), tuple(a), tuple(b), tuple(c)) for i, a, b, c in rows]


def add_wordings(log_likelihoods: Tensor, answers: Sequence[Sequence[str]]) -> Tensor:
    """Log-likelihood (n, n_answers) of answers from that of their wordings (n, n_texts).

    Examples
    --------
    >>> add_wordings(torch.tensor([[0.25, 0.25, 0.5]]).log(), [["a", "b"], ["c"]]).exp()
    tensor([[0.5000, 0.5000]])
    """
    parts = log_likelihoods.split([len(wordings) for wordings in answers], dim=1)
    return torch.stack([part.logsumexp(1) for part in parts], 1)
