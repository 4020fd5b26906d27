"""What a training leaves in the model: its card, its maskers and the mean fMRI tokens."""

from collections import Counter
from dataclasses import asdict, dataclass

import torch
import transformers

from mindllm.data.sampler import iter_eval_batches
from mindllm.model.modeling import MindLLM
from mindllm.training.batches import BatchBuilder
from mindllm.training.callbacks import EVAL_BATCH_SIZE
from mindllm.training.configuration import TrainConfig
from mindllm.training.trials import TrainingData
from mindllm.utils.versions import package_version


@dataclass(frozen=True)
class ModelCard:
    """How a model was trained, and on what.

    Parameters
    ----------
    subjects, validation_subjects : list of str
        Subjects trained on, also those of the model that it started from; subjects that chose the
        checkpoint.
    stimuli : list of str or None
        Training stimuli; None: unknown, because those of the model that it started from are.
    answers : dict of str to int
        First answer of each training trial's stimulus to its number of trials, most frequent first.
    question : str or None
        The question of the conversations, if they all have the same.
    sources : list of str
        Sources of conversations.
    store : str
        Name of the data set.
    split : mapping
        Name of the split and how it was made.
    seed, steps : int
    standardized_with : dict of str to str
        Subject to what the betas were standardized with.
    started_from : mapping or None
        Model card of the model that it started from.
    versions : dict of str to str
        Of the libraries.
    config : mapping
        All training options.
    """

    subjects: list[str]
    validation_subjects: list[str]
    stimuli: list[str] | None
    answers: dict[str, int]
    question: str | None
    sources: list[str]
    store: str
    split: dict[str, object]
    seed: int
    steps: int
    standardized_with: dict[str, str]
    started_from: dict[str, object] | None
    versions: dict[str, str]
    config: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """JSON content; unknown stimuli are left out."""
        content = asdict(self)
        if self.stimuli is None:
            del content["stimuli"]
        return content


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
    is_complete = not earlier or "stimuli" in earlier
    return ModelCard(
        subjects=sorted({*training.subjects, *earlier.get("subjects", [])}),
        validation_subjects=data.validation.subjects if data.validation else [],
        stimuli=sorted(stimuli.union(earlier.get("stimuli", []))) if is_complete else None,
        answers=dict(answers.most_common()),
        question=questions.pop() if len(questions) == 1 else None,
        sources=sorted({*conversations.sources, *earlier.get("sources", [])}),
        store=store.meta["name"],
        split=store.split,
        seed=config.seed,
        steps=n_steps,
        standardized_with={s: store.standardized_with(s) for s in training.subjects},
        started_from=earlier or None,
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
