"""Questions with given answers, decided by the evidence of the texts that name them.

p(trial | answer) is the mean of p(trial | text) over the proposals that name the answer, so the
evidence for answers follows from that for texts: "is there a dog?" compares the texts that name a
dog with those that do not.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mindllm.utils.errors import InputError


def answer_evidence(
    texts: Sequence[str], evidence: Tensor, answers: Sequence[Sequence[str]]
) -> Tensor:
    """Evidence of trials for answers: log p(trial | answer) - log p(trial), in nats.

    Parameters
    ----------
    texts : sequence of str
        Proposals.
    evidence : Tensor of shape (n_trials, n_texts)
        For the texts, in nats.
    answers : sequence of sequence of str
        Words or phrases that name each answer, as whole words. A single answer is compared with
        its absence: the texts that do not name it are a second answer.

    Returns
    -------
    Tensor of shape (n_trials, n_answers)

    Raises
    ------
    InputError
        If no text names an answer.

    Examples
    --------
    >>> import torch
    >>> texts = ["a dog runs", "two dogs sleep", "a cat sleeps"]
    >>> evidence = torch.tensor([[1.0, 1.0, 0.0]])
    >>> answer_evidence(texts, evidence, [["dog", "dogs"], ["cat"]])
    tensor([[1., 0.]])
    """
    masks = find_answers(texts, answers)
    densities = [evidence[:, mask].logsumexp(1) - mask.sum().log() for mask in masks]
    return torch.stack(densities, 1)


def find_answers(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[Tensor]:
    """Which texts (n_texts,) name each answer; of a single answer, then which do not.

    Raises
    ------
    InputError
        If no text names an answer.
    """
    masks = list(torch.from_numpy(which_names(texts, answers)).T)
    described = [" or ".join(words) for words in answers]
    if len(masks) == 1:
        masks.append(~masks[0])
        described.append(f"anything but {described[0]}")
    for mask, answer in zip(masks, described, strict=True):
        if not mask.any():
            raise InputError(
                f"none of {len(texts)} texts names {answer}, so there is no evidence for it. "
                "Add texts that do to the corpus."
            )
    return masks


def which_names(texts: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Which answers each text names: bool, shape (n_texts, n_answers).

    Examples
    --------
    >>> which_names(["a dog runs"], [["dog", "dogs"], ["cat"]]).tolist()
    [[True, False]]
    """
    is_named = np.array([[names(text, words) for words in answers] for text in texts], bool)
    return is_named.reshape(len(texts), len(answers))


def names(text: str, words: Sequence[str]) -> bool:
    """Whether a text holds one of the words or phrases, as whole words, in any case.

    Examples
    --------
    >>> names("Two dogs run", ["dog"]), names("Two dogs run", ["dog", "dogs"])
    (False, True)
    """
    pattern = "|".join(re.escape(word) for word in words)
    return re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE) is not None
