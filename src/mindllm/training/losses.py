"""What training minimizes: the two stages' losses of a batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.candidates import prompt_log_likelihood
from mindllm.model.encoder import VoxelFeatures
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import EncodedPrompt
from mindllm.model.text_embeddings import embed_texts, whitened_text_embeddings
from mindllm.model.token_heads import AssociativeMemory
from mindllm.training.configuration import TrainConfig

Stage = Literal["alignment", "instruction_tuning"]
Group = tuple[VoxelFeatures, Tensor]


class MindLLMLoss(nn.Module):
    """The loss of either stage, as a module, so that Accelerate can spread it over devices."""

    text_embeddings: Tensor

    def __init__(self, model: MindLLM, texts: Sequence[str], config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        targets = whitened_text_embeddings(
            embed_texts(model.language_model, texts), model.encoder.head.embedding_dim
        )
        self.register_buffer("text_embeddings", targets, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(10.0, device=targets.device).log())

    def embed(self, groups: Sequence[Group], mixing_weights: Tensor) -> Tensor:
        """Codes (B, code width) of mixed trials. Attention is linear in the values, so trials are mixed after it."""
        seen = mixing_weights @ torch.cat(
            [self.model.encoder.attend(voxels, values) for voxels, values in groups]
        )
        if self.training:
            seen = seen + self.config.query_noise_sd * seen.detach().std() * torch.randn_like(seen)
        return self.model.encoder.head.embed(seen)

    def similarity(self, embedding: Tensor, candidates: Tensor) -> Tensor:
        """Scaled cosine (B, C) between codes and candidate texts."""
        return (
            F.normalize(embedding, dim=-1)
            @ self.text_embeddings[candidates].T
            * self.logit_scale.exp().clamp(max=100)
        )

    def alignment_loss(
        self,
        groups: Sequence[Group],
        mixing_weights: Tensor,
        candidates: Tensor,
        positive_mask: Tensor,
    ) -> Tensor:
        """Cross-entropy of finding the texts about the stimulus (right: (B, C), 1 or 0) among candidate texts."""
        near = torch.log_softmax(
            self.similarity(self.embed(groups, mixing_weights), candidates), -1
        )
        return -(near * positive_mask).sum(-1).div(positive_mask.sum(-1)).mean()

    @torch.no_grad()
    def init_memory_from_text(self, answers: Sequence[int], texts: Sequence[str]) -> None:
        """Begin the head's memory as answers: a code like a text's recalls the embeddings of that text's first words.

        A language model can read its own words, so it understands the tokens before it is trained with them.
        """
        model, recall = self.model, self.model.encoder.head.token_proj
        length = model.encoder.config.num_fmri_tokens
        spelled = torch.tensor(
            [model.processor.encode_text(texts[i], length) for i in answers],
            device=self.text_embeddings.device,
        )
        words = model.language_model.model.get_input_embeddings()(
            spelled
        ).float()  # (entries, T, width)
        mean = words.mean((0, 1))
        _, _, directions = torch.linalg.svd((words - mean).flatten(0, 1), full_matrices=True)
        directions = directions[: model.encoder.config.token_dim]
        model.projector.weight.zero_()[:, : len(directions)] = directions.T
        model.projector.bias.copy_(mean)
        assert isinstance(recall, AssociativeMemory)
        recall.keys.copy_(self.text_embeddings[list(answers)])
        recall.values.zero_().unflatten(1, (length, -1))[..., : len(directions)] = (
            words - mean
        ) @ directions.T

    def language_modeling_loss(
        self, groups: Sequence[Group], mixing_weights: Tensor, prompts: Sequence[EncodedPrompt]
    ) -> Tensor:
        """Cross-entropy per token of what the assistant says, with the scans' tokens before the language model."""
        tokens = self.model.encoder.head.tokens(
            self.add_embedding_noise(self.embed(groups, mixing_weights))
        )
        total, counts = prompt_log_likelihood(self.model, tokens, prompts)
        return -(total.sum() / counts.sum())

    def add_embedding_noise(self, embedding: Tensor) -> Tensor:
        """Codes with noise, in training: those of people never seen point less surely at their text."""
        if not self.training:
            return embedding
        # Noise among the directions in which texts differ, not in those that no text uses.
        away = F.normalize(
            torch.randn(len(embedding), len(self.text_embeddings), device=embedding.device)
            @ self.text_embeddings,
            dim=-1,
        )
        length = embedding.norm(dim=-1, keepdim=True) * torch.rand(
            len(embedding), 1, device=embedding.device
        )
        return embedding + self.config.embedding_noise_scale * length * away

    def forward(self, stage: Stage, *batch: object) -> Tensor:
        loss = self.alignment_loss if stage == "alignment" else self.language_modeling_loss
        return loss(*batch)  # type: ignore[arg-type]

    def trainable_parameters(self, stage: Stage) -> dict[str, nn.Parameter]:
        """The parameters that a stage trains. The second one leaves alone what the first, if there was one, has aligned."""
        head = self.model.encoder.head
        second = {
            id(p) for part in (head.token_proj, self.model.projector) for p in part.parameters()
        }
        return {
            name: p
            for name, p in self.named_parameters()
            if ".language_model." not in name
            and (stage == "alignment" or not self.config.alignment.max_steps or id(p) in second)
        }
