"""What a training leaves in the model: its card, its maskers and the mean fMRI tokens."""

from collections import Counter

import torch
import transformers

from mindllm.data.sampler import iter_eval_batches
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.training.batches import BatchBuilder
from mindllm.training.callbacks import EVAL_BATCH_SIZE
from mindllm.training.configuration import TrainConfig
from mindllm.training.trials import TrainingData
from mindllm.utils.versions import package_version


def create_model_card(
    model: MindLLM, data: TrainingData, config: TrainConfig, n_steps: int
) -> ModelCard:
    """Describe a training that has ended.

    Parameters
    ----------
    model : MindLLM
        With the card of the model that it started from, if it did.
    data : TrainingData
    config : TrainConfig
    n_steps : int
        Steps taken, over both stages.

    Returns
    -------
    ModelCard
    """
    earlier, training, conversations = model.model_card, data.training, data.conversations
    store, trial_stimuli = training.store, training.table["stimulus"]
    stimuli, first_answer = set(trial_stimuli), conversations.first_answer
    answers = Counter(first_answer[s] for s in trial_stimuli if s in first_answer)
    questions = conversations.questions(stimuli)
    is_first = earlier == ModelCard()
    is_complete = is_first or earlier.stimuli is not None
    return ModelCard(
        subjects=sorted({*training.subjects, *(earlier.subjects or [])}),
        validation_subjects=data.validation.subjects if data.validation else [],
        stimuli=sorted(stimuli.union(earlier.stimuli or [])) if is_complete else None,
        answers=dict(answers.most_common()),
        question=questions.pop() if len(questions) == 1 else None,
        sources=sorted({*conversations.sources, *(earlier.sources or [])}),
        store=store.meta["name"],
        split=store.split,
        seed=config.seed,
        steps=n_steps,
        standardized_with={s: store.standardized_with(s) for s in training.subjects},
        started_from=None if is_first else earlier,
        versions={
            "mindllm": package_version("mindllm"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        config=config.model_dump(mode="json"),
    )


@torch.no_grad()
def measure_null_tokens(model: MindLLM, data: TrainingData, batches: BatchBuilder) -> None:
    """Set the model's null tokens: the mean fMRI tokens of all training trials."""
    sums = [
        model.encoder([(batches.voxels[part.subject], batches.load_betas(part))]).sum(0)
        for batch in iter_eval_batches(data.training, EVAL_BATCH_SIZE)
        for part in batch.subjects
    ]
    model.null_tokens.copy_(torch.stack(sums).sum(0) / len(data.training))
