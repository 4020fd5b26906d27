"""Which trials and texts a training uses: to train on, and to choose the checkpoint with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mindllm.data.conversations import ConversationDataset
from mindllm.data.dataset import TrialDataset
from mindllm.data.store import Store
from mindllm.training.configuration import Stage, TrainConfig
from mindllm.utils.errors import InputError


@dataclass(frozen=True)
class TrainingData:
    """Trials of a training and the conversations about them; made by `select_training_data`.

    Parameters
    ----------
    training : TrialDataset
    validation : TrialDataset or None
        Trials that choose the checkpoint.
    conversations : ConversationDataset
        About the trials of both.
    """

    training: TrialDataset
    validation: TrialDataset | None
    conversations: ConversationDataset
    _aligned: dict[int, TrialDataset] = field(default_factory=dict, init=False, repr=False)

    def trials_for_stage(self, stage: Stage, trials: TrialDataset) -> TrialDataset:
        """Trials that a stage can use: alignment needs a text about the stimulus.

        Parameters
        ----------
        stage : {"alignment", "instruction_tuning"}
        trials : TrialDataset
            `training` or `validation`.

        Returns
        -------
        TrialDataset
        """
        if stage == "instruction_tuning":
            return trials
        if id(trials) not in self._aligned:
            self._aligned[id(trials)] = trials.filter_stimuli(self.conversations.text_indices)
        return self._aligned[id(trials)]


def select_training_data(
    store: Store, subjects: Sequence[str], config: TrainConfig
) -> TrainingData:
    """Select the trials of a training and the conversations about them.

    Parameters
    ----------
    store : Store
    subjects : sequence of str
        To train on and, where no trial has the split `val`, to choose validation subjects among.
    config : TrainConfig

    Returns
    -------
    TrainingData

    Raises
    ------
    InputError
        If no trial or no text about a stimulus is left.
    """
    training, validation = choose_trials(store, subjects, config)
    datasets = [training] + ([validation] if validation else [])
    if config.permute_pairs:
        # The validation trials too: with their true pairs they would choose the checkpoint.
        for number, dataset in enumerate(datasets):
            dataset.permute_pairs(config.seed + number)
    conversations = ConversationDataset(store, datasets, config.source_weights)
    if not conversations.texts:
        raise InputError(
            f"{store.path} has conversations about single trials only; a training needs text about "
            "stimuli. Add captions: mindllm prepare instructions."
        )
    return TrainingData(training, validation, conversations)


def choose_trials(
    store: Store, subjects: Sequence[str], config: TrainConfig
) -> tuple[TrialDataset, TrialDataset | None]:
    """Choose trials to train on and trials to choose the checkpoint with.

    The latter are those of the split `val`. If there are none, they are the training trials of
    `num_validation_subjects` subjects, drawn at random, which are not trained on.

    Parameters
    ----------
    store : Store
    subjects : sequence of str
    config : TrainConfig

    Returns
    -------
    training : TrialDataset
    validation : TrialDataset or None
        None if there are no such trials.

    Raises
    ------
    InputError
        If no trial or no training subject is left.
    """
    sources = list(config.source_weights)
    if any((store.trials(subject)["split"] == "val").any() for subject in subjects):
        training = TrialDataset(store, subjects, "train", sources)
        return training, TrialDataset(store, subjects, "val", sources)
    count = config.num_validation_subjects
    if not count:
        return TrialDataset(store, subjects, "train", sources), None
    if count >= len(subjects):
        raise InputError(
            f"num_validation_subjects={count} leaves none of {len(subjects)} subjects to train on."
        )
    rng = np.random.default_rng(config.seed)
    validation_subjects = rng.choice(subjects, count, replace=False).tolist()
    training_subjects = [s for s in subjects if s not in validation_subjects]
    training = TrialDataset(store, training_subjects, "train", sources)
    return training, TrialDataset(store, validation_subjects, "train", sources)
