"""Texts as vectors, by the language model's hidden states."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.language.chat_templates import DataTokenizer
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance

MIN_SINGULAR_VALUE = 1e-3  # of a component that is kept, relative to the largest
logger = logging.getLogger(__name__)


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

    Later layers turn from the meaning of a text to its next word. They are not computed, where the
    layers before can be read without them. Texts of similar length are read together.

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
    encoded = [torch.from_numpy(tokenizer.tokenize(text)[0]) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    embeddings, read = [], read_hidden
    for start in range(0, len(order), batch_size):
        batch = [encoded[i] for i in order[start : start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(
            batch, batch_first=True, padding_value=language_model.pad_id
        )
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(e) for e in batch])[:, None]
        ids, mask = ids.to(model.device), mask.to(model.device)
        hidden = read(model, ids, mask)
        if not start and can_stop_early(model, ids, mask, hidden):
            read = read_hidden_alone
        embeddings.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        if advance:
            advance(len(batch))
    return torch.cat(embeddings)[torch.tensor(order, device=model.device).argsort()]


def read_hidden(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden layer (n, L, hidden_size) at two thirds of the depth, by a complete forward."""
    outputs = model.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    layers = outputs.hidden_states  # the word embeddings first
    return layers[2 * (len(layers) - 1) // 3].float()


def read_hidden_alone(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden layer as `read_hidden` returns it, without the layers after it."""
    layers = find_layers(model)
    if layers is None:
        raise InputError(f"{type(model).__name__} has no list of as many layers as it states.")
    handle = layers[2 * len(layers) // 3].register_forward_pre_hook(stop_forward, with_kwargs=True)
    try:
        model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    except LayerReached as reached:
        return reached.hidden.float()
    finally:
        handle.remove()
    raise InputError(
        f"{type(model).__name__} does not call its layers; expected a forward by them."
    )


class LayerReached(Exception):
    """Ends a forward before a layer, with what the layer would read."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def stop_forward(layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise LayerReached with the layer's input."""
    raise LayerReached(args[0] if args else kwargs["hidden_states"])


def find_layers(model: Any) -> nn.ModuleList | None:
    """Layers of a language model: a list of as many modules as its configuration states."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList)]
    return next((layers for layers in lists if len(layers) == count), None)


def can_stop_early(model: Any, ids: Tensor, mask: Tensor, expected: Tensor) -> bool:
    """Whether a forward that ends before a layer gives the same hidden layer, for some texts."""
    is_sharded = any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
    if is_sharded:
        return False
    try:
        hidden = read_hidden_alone(model, ids, mask)
    except (InputError, KeyError) as error:
        logger.debug("all layers are read to embed texts: %s", error)
        return False
    return hidden.shape == expected.shape and torch.allclose(
        hidden[mask], expected[mask], atol=1e-4
    )
