"""Drawn trials to inputs of a loss: voxels and betas by subject, texts or tokenized prompts."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mindllm.data.conversations import ConversationDataset
from mindllm.data.sampler import SubjectBatch, TrialBatch, split_batch
from mindllm.data.store import Store
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt
from mindllm.training.augmentation import jitter_coordinates
from mindllm.training.configuration import Stage, TrainConfig
from mindllm.training.losses import AlignmentBatch, InstructionBatch, MixedTrials
from mindllm.utils.bounded_cache import BoundedCache

MAX_VOXEL_BYTES = 2**29  # of subjects' voxels that are held, on the model's device
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


@dataclass(frozen=True)
class MicroBatch:
    """A part of a step's samples that is read at once.

    Parameters
    ----------
    trials : TrialBatch
    prompts : list of EncodedPrompt, optional
        Tokenized conversations of the samples, in instruction tuning.
    weight : float
        Fraction of the step's loss: of its samples in alignment, of its answers' tokens in
        instruction tuning. Losses are means over these.
    index : int
        Number within the step.
    """

    trials: TrialBatch
    prompts: list[EncodedPrompt] | None
    weight: float
    index: int


class SubjectVoxels:
    """Voxels of subjects as the encoder reads them; those of the subjects used last are held.

    Parameters
    ----------
    store : Store
    model : MindLLM
    """

    def __init__(self, store: Store, model: MindLLM) -> None:
        self.store, self.model = store, model
        self._held = BoundedCache[str, VoxelFeatures](
            MAX_VOXEL_BYTES, lambda voxels: voxels.coords.nbytes + voxels.parcel_ids.nbytes
        )

    def __getitem__(self, subject: str) -> VoxelFeatures:
        prepare = self.model.encoder.prepare_voxels
        return self._held.get(subject, lambda: prepare(self.store.masker(subject)))


class BatchBuilder:
    """Makes the inputs of `MindLLMLoss` from batches of trials.

    Parameters
    ----------
    store : Store
        Holds the betas.
    model : MindLLM
        Its encoder prepares voxels, its processor conversations.
    conversations : ConversationDataset
    config : TrainConfig
    """

    def __init__(
        self,
        store: Store,
        model: MindLLM,
        conversations: ConversationDataset,
        config: TrainConfig,
    ) -> None:
        self.store, self.model, self.config = store, model, config
        self.conversations = conversations
        self.voxels = SubjectVoxels(store, model)

    def split(self, stage: Stage, batch: TrialBatch, rng: np.random.Generator) -> list[MicroBatch]:
        """Split a step's batch into the micro batches of a stage.

        Parameters
        ----------
        stage : {"alignment", "instruction_tuning"}
        batch : TrialBatch
        rng : numpy.random.Generator
            Draws the conversations, for all samples in order: they are those of the batch as one.

        Returns
        -------
        list of MicroBatch
            Their weights sum to one.
        """
        options, size = self.config.stage(stage), len(batch.stimuli)
        num_parts = options.gradient_accumulation_steps
        if size < 2 * num_parts:  # few trials; single ones cannot be normalized over a batch
            num_parts = -(-size // options.batch_size)  # rounded up
        parts = split_batch(batch, num_parts)
        if stage == "alignment":
            sizes = np.array([len(part.stimuli) for part in parts])
            prompts: list[list[EncodedPrompt] | None] = [None] * len(parts)
        else:
            conversations = [self.conversations.sample_conversations(part, rng) for part in parts]
            encoded = [[self.model.processor(turns) for turns in part] for part in conversations]
            sizes = np.array(
                [sum((p.labels[1:] != IGNORE_INDEX).sum() for p in part) for part in encoded]
            )
            prompts = list(encoded)
        weights = (sizes / sizes.sum()).tolist()
        rows = zip(parts, prompts, weights, strict=True)
        return [MicroBatch(*row, index) for index, row in enumerate(rows)]

    def build_micro_batch(self, part: MicroBatch) -> AlignmentBatch | InstructionBatch:
        """Inputs of the loss of a micro batch; torch's generator draws the jitter."""
        if part.prompts is None:
            return self.build_alignment_batch(part.trials, self.config.max_negatives, jitter=True)
        return InstructionBatch(self.load_trials(part.trials, jitter=True), part.prompts)

    def build(self, stage: Stage, batch: TrialBatch) -> AlignmentBatch | InstructionBatch:
        """Make the inputs of a stage's loss without anything random, for a validation.

        Parameters
        ----------
        stage : {"alignment", "instruction_tuning"}
        batch : TrialBatch
            In instruction tuning, each sample has its first conversation.

        Returns
        -------
        AlignmentBatch or InstructionBatch
        """
        if stage == "alignment":
            return self.build_alignment_batch(batch, self.config.max_negatives)
        conversations = self.conversations.sample_conversations(batch, None)
        prompts = [self.model.processor(turns) for turns in conversations]
        return InstructionBatch(self.load_trials(batch, jitter=False), prompts)

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
