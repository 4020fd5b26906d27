"""The encoding model of a trained encoder, fitted to its training trials."""

import logging
from collections import defaultdict

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.sampler import iter_eval_batches
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.encoding_model import EncodingModel, EncodingModelConfig
from mindllm.model.modeling import MindLLM
from mindllm.training.batches import BatchBuilder
from mindllm.training.callbacks import EVAL_BATCH_SIZE
from mindllm.training.trials import TrainingData
from mindllm.utils.errors import InputError
from mindllm.utils.progress import Advance, progress_bar, spinner

logger = logging.getLogger(__name__)


def fit_to_training_trials(
    model: MindLLM,
    data: TrainingData,
    batches: BatchBuilder,
    config: EncodingModelConfig,
    sentence_encoder: str,
    progress: Progress | None = None,
) -> EncodingModel | None:
    """Fit the encoding model to the training trials' query outputs.

    Stimuli with the same first text are one text; the embeddings of a text's paraphrases are
    averaged.

    Parameters
    ----------
    model : MindLLM
    data : TrainingData
    batches : BatchBuilder
        Loads the betas.
    config : EncodingModelConfig
    sentence_encoder : str
        Hub ids or folders, separated by commas.
    progress : rich.progress.Progress, optional
        Bars to add one per part to.

    Returns
    -------
    EncodingModel or None
        None, with a warning, if the trials are too few.
    """
    trials = data.trials_for_stage("alignment", data.training)
    stimuli, texts, embeddings = embed_stimuli(
        trials, data.conversations, sentence_encoder, progress
    )
    with progress_bar(progress, "encoding model: trials", len(trials)) as advance:
        features = collect_features(model, trials, batches, stimuli, advance)
    try:
        with spinner(progress, "encoding model: fit"):
            return fit_encoding_model(features, embeddings, texts, config)
    except InputError as reason:
        logger.warning("no encoding model, and no evidence for texts: %s", reason)
        return None


def embed_stimuli(
    trials: TrialDataset,
    conversations: ConversationDataset,
    sentence_encoder: str,
    progress: Progress | None = None,
) -> tuple[dict[str, int], Tensor, Tensor]:
    """Embed the texts of stimuli.

    Parameters
    ----------
    trials : TrialDataset
    conversations : ConversationDataset
    sentence_encoder : str
        Hub ids or folders, separated by commas.
    progress : rich.progress.Progress, optional

    Returns
    -------
    stimuli : dict of str to int
        Number of each stimulus.
    texts : Tensor of int64, shape (n_stimuli,)
        Number of its text.
    embeddings : Tensor of shape (n_texts, embedding_dim)
    """
    paraphrases: dict[int, set[int]] = defaultdict(set)
    stimuli = sorted(set(trials.table["stimulus"]))
    for stimulus in stimuli:
        indices = conversations.text_indices[stimulus]
        paraphrases[indices[0]].update(indices)
    used = sorted(set().union(*paraphrases.values()))
    with progress_bar(progress, "encoding model: texts", len(used)) as advance:
        used_texts = [conversations.texts[i] for i in used]
        vectors = embed_sentences(used_texts, sentence_encoder, advance=advance)
    by_index = dict(zip(used, vectors, strict=True))
    means = [np.mean([by_index[i] for i in sorted(group)], 0) for group in paraphrases.values()]
    numbers = {first: number for number, first in enumerate(paraphrases)}
    texts = torch.tensor([numbers[conversations.text_indices[s][0]] for s in stimuli])
    return {s: i for i, s in enumerate(stimuli)}, texts, torch.from_numpy(np.stack(means))


@torch.no_grad()
def collect_features(
    model: MindLLM,
    trials: TrialDataset,
    batches: BatchBuilder,
    numbers: dict[str, int],
    advance: Advance,
) -> dict[str, SubjectFeatures]:
    """Query outputs of each subject's trials, with the number of each trial's stimulus."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    stimuli: dict[str, list[int]] = defaultdict(list)
    for batch in iter_eval_batches(trials, EVAL_BATCH_SIZE):
        (part,) = batch.subjects
        values = model.encoder.attend(batches.voxels[part.subject], batches.load_betas(part))
        outputs[part.subject].append(values.cpu())
        stimuli[part.subject] += [numbers[stimulus] for stimulus in batch.stimuli]
        advance(len(batch.stimuli))
    return {
        subject: SubjectFeatures(torch.cat(values), torch.tensor(stimuli[subject]))
        for subject, values in outputs.items()
    }
