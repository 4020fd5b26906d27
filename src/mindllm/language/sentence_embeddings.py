"""Sentences as vectors of their meaning, by a sentence encoder."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from mindllm.language.hub import (
    DEFAULT_SENTENCE_ENCODER,
    load_local_first,
    model_not_found_message,
    quiet_transformers,
)
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance
from mindllm.utils.weights import check_finite_weights

TOKENIZE_OPTIONS = {
    "padding": True,
    "truncation": True,
    "max_length": 256,  # what the default encoder was trained to read
    "return_tensors": "pt",
}


@torch.no_grad()
def embed_sentences(
    texts: Sequence[str],
    name: str = DEFAULT_SENTENCE_ENCODER,
    batch_size: int = 64,
    advance: Advance | None = None,
) -> np.ndarray:
    """Embed sentences: the encoder's last layer, averaged over the tokens of each text.

    Parameters
    ----------
    texts : sequence of str
        Cut at 256 tokens.
    name : str
        Hub id or folder of the encoder.
    batch_size : int
        Texts that are read at once.
    advance : Advance, optional
        Called with the number of texts after each batch.

    Returns
    -------
    ndarray of shape (n_texts, hidden_size), float32
        Unit vectors.

    Raises
    ------
    InputError
        If the encoder cannot be loaded; the message says how to get it.

    References
    ----------
    Reimers & Gurevych 2019, Sentence-BERT, arXiv 1908.10084.
    """
    tokenizer, model = load_sentence_encoder(name)
    # Texts of similar length are read together.
    order = np.argsort([len(text) for text in texts], kind="stable")
    embeddings = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(texts), batch_size):
        batch = order[start : start + batch_size]
        encoded = tokenizer([texts[i] for i in batch], **TOKENIZE_OPTIONS)
        mask = encoded["attention_mask"][..., None]
        hidden = model(**encoded).last_hidden_state
        embeddings[batch] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        if advance:
            advance(len(batch))
    return embeddings


@lru_cache(maxsize=1)
def load_sentence_encoder(name: str) -> tuple[Any, Any]:
    """Tokenizer and encoder; InputError, saying how to get it, where it cannot be loaded."""

    def load(location: str) -> tuple[Any, Any]:
        tokenizer = AutoTokenizer.from_pretrained(location)
        return tokenizer, AutoModel.from_pretrained(location).eval()

    try:
        with quiet_transformers():
            tokenizer, model = load_local_first(name, load)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(model_not_found_message(name, reason)) from error
    check_finite_weights(model.named_parameters(), f"sentence encoder {name}")
    return tokenizer, model


def cluster_embeddings(embeddings: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Cluster the embeddings of stimuli by k-means.

    Parameters
    ----------
    embeddings : ndarray of shape (n_stimuli, hidden_size)
    n_clusters : int
    seed : int
        Of the first centers; the best of 10 runs is taken.

    Returns
    -------
    ndarray of shape (n_stimuli,)
        Number of each stimulus's cluster, from 0.

    Raises
    ------
    InputError
        If there are fewer than 2 clusters, or more than stimuli.

    Examples
    --------
    >>> import numpy as np
    >>> labels = cluster_embeddings(np.array([[0.0], [0.1], [9.0]]), n_clusters=2, seed=0)
    >>> bool(labels[0] == labels[1] != labels[2])
    True
    """
    if not 1 < n_clusters <= len(embeddings):
        raise InputError(
            f"{n_clusters} clusters of {len(embeddings)} stimuli: "
            f"expected from 2 to {len(embeddings)}."
        )
    return KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(embeddings)


def nearest_similarity(
    embeddings: np.ndarray, references: np.ndarray, batch_size: int = 1024
) -> np.ndarray:
    """Highest cosine similarity of each embedding with any reference.

    Parameters
    ----------
    embeddings : ndarray of shape (n, hidden_size)
        Unit vectors.
    references : ndarray of shape (m, hidden_size)
        Unit vectors.
    batch_size : int
        Embeddings that are compared at once.

    Returns
    -------
    ndarray of shape (n,)

    Examples
    --------
    >>> import numpy as np
    >>> nearest_similarity(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]])).item()
    0.6
    """
    batches = [embeddings[i : i + batch_size] for i in range(0, len(embeddings), batch_size)]
    return np.concatenate([(batch @ references.T).max(1) for batch in batches])
