"""Texts as vectors, by the language model's hidden states."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mindllm.language.chat_templates import DataTokenizer
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.utils.progress import Advance

MIN_SINGULAR_VALUE = 1e-3  # of a component that is kept, relative to the largest


def whitened_text_embeddings(embeddings: Tensor, embedding_dim: int) -> Tensor:
    """Whiten text embeddings: project on their principal components, each with unit variance.

    Embeddings of short answers share most of their variance; whitened, every difference between
    texts counts alike.

    Parameters
    ----------
    embeddings : Tensor of shape (n_texts, hidden_size)
    embedding_dim : int
        Components at most; zeros are appended where there are fewer.

    Returns
    -------
    Tensor of shape (n_texts, embedding_dim), float32
        Unit vectors.

    Examples
    --------
    >>> whitened_text_embeddings(torch.eye(3), embedding_dim=4).norm(dim=1).allclose(torch.ones(3))
    True
    """
    # On the CPU, because not every device has double precision.
    centered = (embeddings - embeddings.mean(0)).double().cpu()
    left, singular_values, _ = torch.linalg.svd(centered, full_matrices=False)
    is_kept = singular_values > singular_values[0] * MIN_SINGULAR_VALUE
    components = left[:, is_kept][:, :embedding_dim]
    padded = F.pad(components, (0, embedding_dim - components.shape[1]))
    return F.normalize(padded, dim=-1).float().to(embeddings.device)


@torch.no_grad()
def embed_texts(
    language_model: FrozenLanguageModel,
    texts: Sequence[str],
    batch_size: int = 32,
    advance: Advance | None = None,
) -> Tensor:
    """Embed texts: the hidden layer at two thirds of the depth, averaged over the tokens.

    Later layers turn from the meaning of a text to its next word.

    Parameters
    ----------
    language_model : FrozenLanguageModel
    texts : sequence of str
        Without chat template.
    batch_size : int
        Texts that the language model reads at once.
    advance : callable, optional
        Told how many more texts are embedded.

    Returns
    -------
    Tensor of shape (n_texts, hidden_size), float32
        On the language model's device.
    """
    model, tokenizer = language_model.model, DataTokenizer(language_model.tokenizer)
    embeddings = []
    for start in range(0, len(texts), batch_size):
        encoded = [
            torch.from_numpy(tokenizer.tokenize(text)[0])
            for text in texts[start : start + batch_size]
        ]
        ids = torch.nn.utils.rnn.pad_sequence(
            encoded, batch_first=True, padding_value=language_model.pad_id
        )
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(e) for e in encoded])[:, None]
        ids, mask = ids.to(model.device), mask.to(model.device)
        outputs = model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        layers = outputs.hidden_states  # the word embeddings first
        hidden = layers[2 * (len(layers) - 1) // 3].float()
        embeddings.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        if advance:
            advance(len(encoded))
    return torch.cat(embeddings)
