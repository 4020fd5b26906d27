"""The token head's memory before training: texts that the language model can read."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mindllm.model.modeling import MindLLM
from mindllm.model.token_heads import AssociativeMemory


@torch.no_grad()
def init_memory_from_text(model: MindLLM, texts: Sequence[str], text_embeddings: Tensor) -> None:
    """Set keys and values of the associative memory, and the projector, from texts.

    An fMRI embedding like a text's embedding recalls the word embeddings of the first
    `num_fmri_tokens` tokens of that text, which the language model reads without training.

    Parameters
    ----------
    model : MindLLM
        Changed in place. Its memory has one entry per text.
    texts : sequence of str
        One per entry, such as the first answer about each stimulus.
    text_embeddings : Tensor of shape (n_texts, embedding_dim)
        Whitened embeddings of the texts: the keys.
    """
    memory, config = model.encoder.head.token_proj, model.encoder.config
    assert isinstance(memory, AssociativeMemory)
    length = config.num_fmri_tokens
    token_ids = torch.tensor(
        [model.processor.encode_text(text, length) for text in texts],
        device=text_embeddings.device,
    )
    word_embeddings = model.language_model.model.get_input_embeddings()
    words = word_embeddings(token_ids).float()  # (n_texts, num_fmri_tokens, hidden_size)
    mean = words.mean((0, 1))
    _, _, components = torch.linalg.svd((words - mean).flatten(0, 1), full_matrices=True)
    components = components[: config.token_dim]
    model.projector.weight.zero_()[:, : len(components)] = components.T
    model.projector.bias.copy_(mean)
    memory.keys.copy_(text_embeddings)
    values = memory.values.zero_().unflatten(1, (length, -1))
    values[..., : len(components)] = (words - mean) @ components.T
