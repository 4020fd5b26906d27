"""Sentences as vectors of their meaning, by one or several sentence encoders."""

from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans

from mindllm.language.hub import DEFAULT_SENTENCE_ENCODER
from mindllm.language.sentence_encoders import load_sentence_encoder
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance


def embed_sentences(
    texts: Sequence[str],
    name: str = DEFAULT_SENTENCE_ENCODER,
    batch_size: int = 64,
    advance: Advance | None = None,
) -> np.ndarray:
    """Embed sentences by a sentence encoder, or by several, whose vectors are put side by side.

    The inner product of two vectors is the mean of the encoders' cosines.

    Parameters
    ----------
    texts : sequence of str
        Cut at 256 tokens.
    name : str
        Hub id or folder of the encoder; several are separated by commas. A causal language model
        is an encoder as well, see `LanguageModelEncoder`.
    batch_size : int
        Texts that are read at once.
    advance : Advance, optional
        Called with the number of texts after each batch.

    Returns
    -------
    ndarray of shape (n_texts, embedding_dim), float32
        Unit vectors.

    Raises
    ------
    InputError
        If an encoder cannot be loaded; the message says how to get it.

    References
    ----------
    Reimers & Gurevych 2019, Sentence-BERT, arXiv 1908.10084.
    Jiang et al. 2023, Scaling sentence embeddings with large language models, arXiv 2307.16645.
    """
    encoders = [load_sentence_encoder(part) for part in encoder_names(name)]
    # Texts of similar length are read together.
    order = np.argsort([len(text) for text in texts], kind="stable")
    dim = sum(encoder.embedding_dim for encoder in encoders)
    embeddings = np.empty((len(texts), dim), np.float32)
    for start in range(0, len(texts), batch_size):
        batch = order[start : start + batch_size]
        parts = [encoder.embed([texts[i] for i in batch]).numpy() for encoder in encoders]
        embeddings[batch] = np.concatenate(parts, axis=1) / np.sqrt(len(encoders))
        if advance:
            advance(len(batch))
    return embeddings


def encoder_names(name: str) -> list[str]:
    """Split the names of sentence encoders.

    Parameters
    ----------
    name : str
        Separated by commas.

    Returns
    -------
    list of str

    Raises
    ------
    InputError
        If a name is empty or there twice.

    Examples
    --------
    >>> encoder_names("lab/small, lab/large")
    ['lab/small', 'lab/large']
    """
    names = [part.strip() for part in name.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise InputError(
            f"sentence encoder: {name!r} names none or one twice; expected hub ids or folders, "
            "separated by commas."
        )
    return names


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
