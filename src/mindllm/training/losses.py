"""The two losses: alignment with text, and language modeling through the frozen language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.logits import PrefixCache
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import EncodedPrompt
from mindllm.model.text_embeddings import embed_texts, whitened_text_embeddings
from mindllm.training.augmentation import add_embedding_noise, add_query_noise
from mindllm.training.configuration import Stage, TrainConfig
from mindllm.training.lora import is_adapter_weight
from mindllm.utils.progress import Advance

MAX_LOGIT_SCALE = 100.0
INIT_LOGIT_SCALE = 10.0


@dataclass(frozen=True)
class MixedTrials:
    """Trials of some subjects and the samples that are mixed of them.

    Parameters
    ----------
    groups : list of (VoxelFeatures, Tensor)
        For each subject the voxels and standardized betas (n_trials, n_voxels).
    mixing_weights : Tensor of shape (batch_size, n_trials_in_all)
        Weight of every trial in every sample.
    """

    groups: list[tuple[VoxelFeatures, Tensor]]
    mixing_weights: Tensor


@dataclass(frozen=True)
class AlignmentBatch:
    """Inputs of the alignment loss.

    Parameters
    ----------
    trials : MixedTrials
    candidates : Tensor of shape (n_candidates,)
        Indices of the texts to choose among.
    positive_mask : Tensor of shape (batch_size, n_candidates)
        1 where a text is about the sample's stimulus, else 0.
    """

    trials: MixedTrials
    candidates: Tensor
    positive_mask: Tensor


@dataclass(frozen=True)
class InstructionBatch:
    """Inputs of the language-modeling loss.

    Parameters
    ----------
    trials : MixedTrials
    prompts : list of EncodedPrompt
        One tokenized conversation per sample.
    """

    trials: MixedTrials
    prompts: list[EncodedPrompt]


class MindLLMLoss(nn.Module):
    """The loss of either stage, as a module, so that Accelerate can distribute it over devices.

    Parameters
    ----------
    model : MindLLM
    texts : sequence of str
        All texts that trials are aligned with.
    config : TrainConfig
    advance : callable, optional
        Told how many more texts are embedded.

    Attributes
    ----------
    text_embeddings : Tensor of shape (n_texts, embedding_dim)
        Whitened unit vectors.
    """

    text_embeddings: Tensor

    def __init__(
        self,
        model: MindLLM,
        texts: Sequence[str],
        config: TrainConfig,
        advance: Advance | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config = model, config
        embeddings = embed_texts(model.language_model, texts, advance=advance)
        targets = whitened_text_embeddings(embeddings, model.encoder.head.embedding_dim)
        self.register_state_dict_post_hook(keep_trained_weights)
        self.register_buffer("text_embeddings", targets, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(INIT_LOGIT_SCALE, device=targets.device).log())
        # Beginnings of conversations stay as they are read while the language model does.
        is_frozen = not (config.lora or config.train_language_model)
        self.prefixes = PrefixCache() if is_frozen else None

    def embed(self, trials: MixedTrials) -> Tensor:
        """fMRI embeddings (batch_size, embedding_dim) of mixed trials.

        The attention is linear in the betas, so trials are mixed after it.
        """
        query_outputs = trials.mixing_weights @ torch.cat(
            [self.model.encoder.attend(voxels, betas) for voxels, betas in trials.groups]
        )
        if self.training:
            query_outputs = add_query_noise(query_outputs, self.config.query_noise_sd)
        return self.model.encoder.head.embed(query_outputs)

    def similarity(self, embeddings: Tensor, candidates: Tensor) -> Tensor:
        """Scaled cosine (batch_size, n_candidates) between fMRI embeddings and candidate texts."""
        cosine = F.normalize(embeddings, dim=-1) @ self.text_embeddings[candidates].T
        return cosine * self.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)

    def full_precision(self) -> torch.autocast:
        """Compute in float32, whatever the launcher asks for.

        In bfloat16 a position in the brain is off by millimeters.
        """
        return torch.autocast(self.text_embeddings.device.type, enabled=False)

    def alignment_loss(self, batch: AlignmentBatch) -> Tensor:
        """Cross-entropy of finding the texts about the stimulus among the candidates.

        Parameters
        ----------
        batch : AlignmentBatch

        Returns
        -------
        Tensor
            Scalar, in nats; the mean over positives, then over samples.

        Notes
        -----
        A batch is what is read at once. Where there are more texts than `max_negatives`, the
        negatives of a sample come from its own micro batch, so that accumulated gradients are
        those of a larger batch only up to the number of negatives; otherwise they are equal.

        References
        ----------
        Khosla et al. 2020, Supervised contrastive learning, arXiv 2004.11362.
        """
        with self.full_precision():
            similarity = self.similarity(self.embed(batch.trials), batch.candidates)
        log_probs = torch.log_softmax(similarity, -1)
        positives = batch.positive_mask
        return -(log_probs * positives).sum(-1).div(positives.sum(-1)).mean()

    def language_modeling_loss(self, batch: InstructionBatch) -> Tensor:
        """Cross-entropy of the assistant's turns, with the fMRI tokens in the prompt.

        Parameters
        ----------
        batch : InstructionBatch

        Returns
        -------
        Tensor
            Scalar, in nats per token.
        """
        with self.full_precision():
            embeddings = self.embed(batch.trials)
            if self.training:
                scale = self.config.embedding_noise_scale
                embeddings = add_embedding_noise(embeddings, self.text_embeddings, scale)
            fmri_tokens = self.model.encoder.head.tokens(embeddings)
        is_mixed = self.config.mixed_precision == "bf16"
        with torch.autocast(fmri_tokens.device.type, torch.bfloat16, enabled=is_mixed):
            log_likelihoods, counts = prompt_log_likelihood(
                self.model, fmri_tokens, batch.prompts, self.prefixes
            )
        return -(log_likelihoods.sum() / counts.sum())

    def forward(self, batch: AlignmentBatch | InstructionBatch) -> Tensor:
        """Loss of a batch of either stage."""
        if isinstance(batch, AlignmentBatch):
            return self.alignment_loss(batch)
        return self.language_modeling_loss(batch)

    def trainable_parameters(self, stage: Stage) -> dict[str, nn.Parameter]:
        """Parameters that a stage trains.

        Instruction tuning leaves alone what alignment, if there was one, has aligned: it trains
        the layer that makes the tokens, and the projector; and the LoRA adapter or the language
        model, if that is asked for.

        Parameters
        ----------
        stage : {"alignment", "instruction_tuning"}

        Returns
        -------
        dict of str to Parameter
        """
        parameters = {
            name: parameter
            for name, parameter in self.named_parameters()
            if ".language_model." not in name
        }
        if stage == "alignment":
            return parameters
        of_language_model = {
            name: parameter
            for name, parameter in self.named_parameters()
            if is_trained_weight(name, self.config)
        }
        if not self.config.alignment.max_steps:
            return parameters | of_language_model
        tuned = {
            id(parameter)
            for part in (self.model.encoder.head.token_proj, self.model.projector)
            for parameter in part.parameters()
        }
        return {n: p for n, p in parameters.items() if id(p) in tuned} | of_language_model


def is_trained_weight(name: str, config: TrainConfig) -> bool:
    """Whether a parameter of a loss is one of the language model's that instruction tuning trains.

    Parameters
    ----------
    name : str
    config : TrainConfig

    Returns
    -------
    bool
    """
    if config.lora:
        return is_adapter_weight(name)
    return config.train_language_model and ".language_model." in name


def keep_trained_weights(module: MindLLMLoss, state_dict: Any, prefix: str, metadata: Any) -> None:
    """State-dict hook: what is trained of the language model is kept, unlike the rest of it."""
    for name, parameter in module.named_parameters():
        if is_trained_weight(name, module.config):
            state_dict[prefix + name] = parameter.detach()
