"""Images of betas to text that a text reader generates, ranked by the evidence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.model.decode_by_evidence import RankedVolume, read_scan
from mindllm.model.modeling import MindLLM
from mindllm.model.proposals import RankedText, rank_texts
from mindllm.model.sampling import MAX_NEW_TOKENS
from mindllm.model.subject_alignment import SubjectTransform
from mindllm.model.text_reader import TextReader, expected_embeddings, quote_sentences
from mindllm.utils.errors import InputError

TEMPERATURE = 1.0
N_SAMPLES = 16  # texts of a trial
ROWS_AT_ONCE = 64  # texts that are written at once


def decode_by_reader(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    atlases: Mapping[str, Image] | None = None,
    *,
    texts: Sequence[str] = (),
    volumes: Sequence[int] | None = None,
    standardize_with: Image | None = None,
    standardized: bool = False,
    question: str | None = None,
    n_samples: int = N_SAMPLES,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    n_best: int = 5,
    seed: int = 0,
    on_volume: Callable[[int], None] | None = None,
) -> list[RankedVolume]:
    """Generate texts about each volume of an image of betas, and rank them by its evidence.

    Parameters
    ----------
    model : MindLLM
        With a text reader.
    img, mask_or_masker, atlases, volumes, standardize_with, standardized
        As for `decode_by_evidence`.
    texts : sequence of str
        Further texts to choose among.
    question : str, optional
        By default the question that the model was trained with.
    n_samples, temperature, max_new_tokens, n_best, seed
        As for `read_trials`.
    on_volume : callable, optional
        Called with the number of volumes that are decoded.

    Returns
    -------
    list of RankedVolume
        In the order of `volumes`.

    Raises
    ------
    InputError
        If the model has no text reader, or an image cannot be read.
    """
    require_reader(model)
    outputs, subject = read_scan(
        model, img, mask_or_masker, atlases, volumes, standardize_with, standardized
    )
    ranked: list[RankedVolume] = []
    for row in range(len(outputs)):
        (best,) = read_trials(
            model,
            outputs[row : row + 1],
            subject,
            texts=texts,
            question=question,
            n_samples=n_samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            n_best=n_best,
            seed=seed + row,
        )
        volume = row if volumes is None else int(volumes[row])
        ranked.append(RankedVolume(volume, tuple(best)))
        if on_volume:
            on_volume(len(ranked))
    return ranked


def read_trials(
    model: MindLLM,
    query_outputs: Tensor,
    subject: SubjectTransform,
    *,
    texts: Sequence[str] = (),
    question: str | None = None,
    n_samples: int = N_SAMPLES,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    n_best: int = 5,
    seed: int = 0,
) -> list[list[RankedText]]:
    """Generate texts about trials, and rank those of each trial by its evidence.

    Parameters
    ----------
    model : MindLLM
        With a text reader.
    query_outputs : Tensor of shape (n_trials, num_queries)
    subject : SubjectTransform
    texts, question
        As for `decode_by_reader`.
    n_samples : int
        Texts that are sampled about each trial.
    temperature : float
        Of the samples.
    max_new_tokens : int
        Tokens of a text, at most.
    n_best : int
        Texts per trial.
    seed : int
        Of the samples.

    Returns
    -------
    list of list of RankedText
        The best of each trial, the best first; see `mindllm.model.proposals.rank_texts`.

    Raises
    ------
    InputError
        If the model has no text reader, or generates nothing.
    """
    require_reader(model)
    assert model.encoding_model is not None
    expected = expected_embeddings(model.encoding_model, query_outputs, subject)
    sampled = sample_readings(
        model, expected, question, n_samples, temperature, max_new_tokens, seed
    )
    ranked = []
    for row, generated in enumerate(sampled):
        candidates = list(dict.fromkeys([*(text for text in generated if text), *texts]))
        if not candidates:
            raise InputError(
                "the text reader has generated empty texts alone. Train it for more steps, or "
                "decode by evidence."
            )
        embeddings = model.embed_texts(candidates).double()
        evidence = model.encoding_model.evidence(query_outputs[row : row + 1], subject, embeddings)
        centred = embeddings - model.encoding_model.text_center
        ranked += rank_texts(candidates, evidence, centred, n_best)
    return ranked


@torch.no_grad()
def sample_readings(
    model: MindLLM,
    expected: Tensor,
    question: str | None = None,
    n_samples: int = N_SAMPLES,
    temperature: float = TEMPERATURE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
) -> list[list[str]]:
    """Texts that a text reader generates of expected embeddings.

    Parameters
    ----------
    model : MindLLM
        With a text reader.
    expected : Tensor of shape (n_trials, embedding_dim)
    question, n_samples, temperature, max_new_tokens, seed
        As for `read_trials`; of one sample, the likeliest tokens are taken.

    Returns
    -------
    list of list of str
        `n_samples` of each trial.
    """
    reader = require_reader(model)
    tokens = reader(expected.to(model.device)).to(model.null_tokens)
    conversation = model.build_conversation(question)
    nearest = reader.nearest_sentences(expected)
    with_sentences = [quote_sentences(conversation, sentences) for sentences in nearest]
    rows = torch.arange(len(expected)).repeat_interleave(n_samples)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    if n_samples > 1:
        options |= {"do_sample": True, "temperature": temperature}
    texts: list[str] = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for part in rows.split(ROWS_AT_ONCE):
            conversations = [with_sentences[row] for row in part.tolist()]
            texts += model.generate(tokens[part.to(tokens.device)], conversations, **options)
    return [texts[i : i + n_samples] for i in range(0, len(texts), n_samples)]


def require_reader(model: MindLLM) -> TextReader:
    """The text reader of a model; InputError if it has none."""
    if model.text_reader is None:
        raise InputError(
            "this model has no text reader. Teach it one (mindllm train-reader), or decode by "
            "evidence."
        )
    return model.text_reader
