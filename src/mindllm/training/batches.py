"""Drawn trials to inputs of a loss: voxels and betas by subject, texts or tokenized prompts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mindllm.data.conversations import ConversationDataset
from mindllm.data.sampler import SubjectBatch, TrialBatch
from mindllm.data.store import Store
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.modeling import MindLLM
from mindllm.training.augmentation import jitter_coordinates
from mindllm.training.configuration import Stage, TrainConfig
from mindllm.training.losses import AlignmentBatch, InstructionBatch, MixedTrials

N_LONGEST = 16  # conversations that are tokenized before a training


def check_longest_conversations(model: MindLLM, conversations: ConversationDataset) -> None:
    """Check before a training that the language model can read the longest conversations.

    Parameters
    ----------
    model : MindLLM
    conversations : ConversationDataset
        The longest by number of characters are tokenized.

    Raises
    ------
    InputError
        If one has more tokens than the language model has positions.
    """
    turns = conversations.table["turns"]
    lengths = [sum(len(turn["content"]) for turn in conversation) for conversation in turns]
    for row in np.argsort(lengths)[-N_LONGEST:]:
        model.processor(turns.iloc[int(row)])


class BatchBuilder:
    """Makes the inputs of `MindLLMLoss` from batches of trials.

    Parameters
    ----------
    store : Store
        Holds the betas.
    subjects : sequence of str
        Subjects that batches may hold.
    model : MindLLM
        Its encoder prepares voxels, its processor conversations.
    conversations : ConversationDataset
    config : TrainConfig
    """

    def __init__(
        self,
        store: Store,
        subjects: Sequence[str],
        model: MindLLM,
        conversations: ConversationDataset,
        config: TrainConfig,
    ) -> None:
        self.store, self.model, self.config = store, model, config
        self.conversations = conversations
        self.voxels = {s: model.encoder.prepare_voxels(store.masker(s)) for s in subjects}

    def build(
        self, stage: Stage, batch: TrialBatch, rng: np.random.Generator | None = None
    ) -> AlignmentBatch | InstructionBatch:
        """Make the inputs of a stage's loss.

        Parameters
        ----------
        stage : {"alignment", "instruction_tuning"}
        batch : TrialBatch
        rng : numpy.random.Generator, optional
            Draws the conversations of a training batch, whose coordinates are jittered. Without
            it nothing is random, and each sample has its first conversation.

        Returns
        -------
        AlignmentBatch or InstructionBatch
        """
        if stage == "alignment":
            return self.build_alignment_batch(batch, self.config.max_negatives, rng is not None)
        trials = self.load_trials(batch, rng is not None)
        conversations = self.conversations.sample_conversations(batch, rng)
        return InstructionBatch(trials, [self.model.processor(turns) for turns in conversations])

    def build_alignment_batch(
        self, batch: TrialBatch, max_negatives: int, jitter: bool = False
    ) -> AlignmentBatch:
        """Inputs of the alignment loss, with all texts as candidates if there are few enough."""
        trials = self.load_trials(batch, jitter)
        candidates, positive_mask = self.conversations.candidate_texts(batch.stimuli, max_negatives)
        device = self.model.device
        return AlignmentBatch(trials, candidates.to(device), positive_mask.to(device))

    def load_trials(self, batch: TrialBatch, jitter: bool) -> MixedTrials:
        """Voxels and betas of a batch's subjects, on the model's device."""
        groups = [
            (self.select_voxels(part, jitter), self.load_betas(part)) for part in batch.subjects
        ]
        return MixedTrials(groups, batch.mixing_weights.to(self.model.device))

    def load_betas(self, part: SubjectBatch) -> Tensor:
        """Standardized betas (n_trials, n_kept_voxels) of a subject's part of a batch."""
        betas = self.store.betas(part.subject, part.trial_indices, standardize=True)
        return torch.from_numpy(betas[:, part.voxel_indices]).to(self.model.device)

    def select_voxels(self, part: SubjectBatch, jitter: bool) -> VoxelFeatures:
        """A subject's voxels that voxel dropout kept; a voxel index cannot be jittered."""
        voxels = self.voxels[part.subject]
        voxels = voxels[torch.from_numpy(part.voxel_indices).to(self.model.device)]
        if not jitter or self.model.encoder.config.coordinate_system == "voxel":
            return voxels
        c = self.config
        return jitter_coordinates(voxels, c.coord_jitter_mm, c.affine_jitter_sd)
