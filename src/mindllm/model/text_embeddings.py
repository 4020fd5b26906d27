"""What texts mean to the language model, as vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mindllm.model.language_model import FrozenLanguageModel


def whitened_text_embeddings(embeddings: Tensor, width: int) -> Tensor:
    """Unit vectors (texts, width) from text embeddings: their principal components, fully whitened.

    Embeddings of short answers share most of their variance; whitened, every difference between texts counts alike.
    """
    # On the CPU, because not every device has double precision.
    left, size, _ = torch.linalg.svd(
        (embeddings - embeddings.mean(0)).double().cpu(), full_matrices=False
    )
    kept = left[:, size > size[0] * 1e-3][:, :width]
    return (
        F.normalize(F.pad(kept, (0, width - kept.shape[1])), dim=-1).float().to(embeddings.device)
    )


@torch.no_grad()
def embed_texts(
    language_model: FrozenLanguageModel, texts: Sequence[str], batch_size: int = 32
) -> Tensor:
    """What a language model makes of each text: the hidden layer at two thirds of its depth, averaged over the tokens.

    (texts, width) float32. Later layers turn from the meaning of a text to its next word."""
    rows = []
    for start in range(0, len(texts), batch_size):
        encoded = [
            language_model.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in texts[start : start + batch_size]
        ]
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(e) for e in encoded],
            batch_first=True,
            padding_value=language_model.pad_id,
        )
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(e) for e in encoded])[:, None]
        ids, mask = ids.to(language_model.model.device), mask.to(language_model.model.device)
        hidden = language_model.model.base_model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        )
        hidden = hidden.hidden_states[
            2 * language_model.model.config.num_hidden_layers // 3
        ].float()
        rows.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(rows)
