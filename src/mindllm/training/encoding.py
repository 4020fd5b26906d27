"""The encoding model of a trained encoder, fitted to its training trials."""

import logging

import numpy as np
import torch
from torch import Tensor

from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.encoding_model import (
    EncodingModel,
    EncodingModelConfig,
    SubjectFeatures,
    fit_encoding_model,
)
from mindllm.model.modeling import MindLLM
from mindllm.training.trials import TrainingData
from mindllm.utils.errors import InputError

BATCH_SIZE = 512
logger = logging.getLogger(__name__)


def fit_to_training_trials(
    model: MindLLM, data: TrainingData, config: EncodingModelConfig, sentence_encoder: str
) -> EncodingModel | None:
    """Fit the encoding model to the training trials' query outputs.

    Stimuli with the same first text are one text; the embeddings of a text's paraphrases are
    averaged.

    Parameters
    ----------
    model : MindLLM
    data : TrainingData
    config : EncodingModelConfig
    sentence_encoder : str
        Hub id or folder.

    Returns
    -------
    EncodingModel or None
        None, with a warning, if the trials are too few.
    """
    numbers, embeddings = embed_stimuli(data, sentence_encoder)
    table = data.training.table
    table = table[table["stimulus"].isin(numbers)]
    subjects = {
        str(subject): SubjectFeatures(
            query_outputs(model, data, str(subject), group["row"].to_numpy()),
            torch.tensor([numbers[stimulus] for stimulus in group["stimulus"]]),
        )
        for subject, group in table.groupby("subject")
    }
    try:
        return fit_encoding_model(subjects, embeddings, config)
    except InputError as reason:
        logger.warning("no encoding model, and no evidence for texts: %s", reason)
        return None


def embed_stimuli(data: TrainingData, sentence_encoder: str) -> tuple[dict[str, int], Tensor]:
    """Number of each training stimulus' text, and the texts' embeddings (n_texts, dim)."""
    conversations = data.conversations
    stimuli = sorted(set(data.training.table["stimulus"]) & set(conversations.text_indices))
    paraphrases: dict[int, set[int]] = {}
    for stimulus in stimuli:
        indices = conversations.text_indices[stimulus]
        paraphrases.setdefault(indices[0], set()).update(indices)
    used = sorted(set().union(*paraphrases.values()))
    vectors = embed_sentences([conversations.texts[i] for i in used], sentence_encoder)
    row = {index: i for i, index in enumerate(used)}
    first = {index: n for n, index in enumerate(paraphrases)}
    means = [vectors[[row[i] for i in sorted(group)]].mean(0) for group in paraphrases.values()]
    numbers = {s: first[conversations.text_indices[s][0]] for s in stimuli}
    return numbers, torch.from_numpy(np.stack(means)) if means else torch.zeros(0, 1)


def query_outputs(model: MindLLM, data: TrainingData, subject: str, rows: np.ndarray) -> Tensor:
    """Query outputs (n_trials, num_queries) of a subject's trials."""
    store = data.training.store
    voxels = model.encoder.prepare_voxels(store.masker(subject))
    batches = np.split(rows, range(BATCH_SIZE, len(rows), BATCH_SIZE))
    outputs = [
        model.query_outputs(store.betas(subject, batch, standardize=True), voxels).cpu()
        for batch in batches
    ]
    return torch.cat(outputs)
