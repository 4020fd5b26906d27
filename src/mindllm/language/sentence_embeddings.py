"""What sentences mean, as vectors: a sentence encoder from the hub, a folder, or the package that carries it."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from mindllm.language.hub import SENTENCES, model_not_found_message, resolve_model_id
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

MAX_TOKENS = 256  # what the default encoder was trained to read


@torch.no_grad()
def embed_sentences(
    texts: Sequence[str],
    name: str = SENTENCES,
    batch_size: int = 64,
    advance: Advance | None = None,
) -> np.ndarray:
    """Unit vectors (texts, width) float32: the encoder's last layer, averaged over the tokens of each text.

    Source: Reimers & Gurevych 2019, arXiv 1908.10084.  advance: is told how many more texts were read.
    Raises InputError, saying how to get it, for an encoder that is not to be had.
    """
    try:
        place = resolve_model_id(name)
        tokenizer, model = (
            AutoTokenizer.from_pretrained(place),
            AutoModel.from_pretrained(place).eval(),
        )
    except (OSError, ValueError) as error:
        raise InputError(
            model_not_found_message(name, f"{type(error).__name__}: {error}")
        ) from error
    order = np.argsort(
        [len(text) for text in texts], kind="stable"
    )  # texts of a length are read together
    rows = np.empty((len(texts), model.config.hidden_size), np.float32)
    for start in range(0, len(texts), batch_size):
        some = order[start : start + batch_size]
        read = tokenizer(
            [texts[i] for i in some],
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        mask = read["attention_mask"][..., None]
        hidden = model(**read).last_hidden_state
        rows[some] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        if advance:
            advance(len(some))
    return rows


def cluster_embeddings(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """(n,) numbers of k-means clusters of vectors (n, width). Raises InputError for more clusters than vectors."""
    if not 1 < clusters <= len(vectors):
        raise InputError(
            f"{clusters} clusters of {len(vectors)} stimuli: expected from 2 to {len(vectors)}."
        )
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(vectors)


def nearest_similarity(some: np.ndarray, others: np.ndarray, block: int = 1024) -> np.ndarray:
    """(n,) the highest cosine of each of `some` (n, width) with any of `others` (m, width), all unit vectors."""
    return np.concatenate(
        [(some[i : i + block] @ others.T).max(1) for i in range(0, len(some), block)]
    )
