"""What training minimizes: the two stages' losses of a batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.config import TrainConfig
from mindllm.encoder import Voxels
from mindllm.model import MindLLM
from mindllm.prompt import Prompt

Stage = Literal["align", "language"]
Group = tuple[Voxels, Tensor]


class Objective(nn.Module):
    """The loss of either stage, as a module, so that Accelerate can spread it over devices."""

    def __init__(self, model: MindLLM, texts: Sequence[str], config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        targets = text_targets(model.llm.embed(texts), model.encoder.head.code_width)
        self.register_buffer("targets", targets, persistent=False)
        self.log_temperature = nn.Parameter(torch.tensor(10.0, device=targets.device).log())

    def code(self, people: Sequence[Group], mix: Tensor) -> Tensor:
        """Codes (B, code width) of mixed trials. Attention is linear in the values, so trials are mixed after it."""
        seen = mix @ torch.cat([self.model.encoder.look(voxels, values) for voxels, values in people])
        if self.training:
            seen = seen + self.config.noise * seen.detach().std() * torch.randn_like(seen)
        return self.model.encoder.head.code(seen)

    def similarity(self, code: Tensor, candidates: Tensor) -> Tensor:
        """Scaled cosine (B, C) between codes and candidate texts."""
        return F.normalize(code, dim=-1) @ self.targets[candidates].T * self.log_temperature.exp().clamp(max=100)

    def align(self, people: Sequence[Group], mix: Tensor, candidates: Tensor, right: Tensor) -> Tensor:
        """Cross-entropy of finding the texts about the stimulus (right: (B, C), 1 or 0) among candidate texts."""
        near = torch.log_softmax(self.similarity(self.code(people, mix), candidates), -1)
        return -(near * right).sum(-1).div(right.sum(-1)).mean()

    def language(self, people: Sequence[Group], mix: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Cross-entropy per token of what the assistant says, with the scans' tokens before the language model."""
        total, counts = self.model.log_likelihood(self.model.encoder.head.tokens(self.code(people, mix)), prompts)
        return -(total.sum() / counts.sum())

    def forward(self, stage: Stage, *batch: object) -> Tensor:
        return self.align(*batch) if stage == "align" else self.language(*batch)  # type: ignore[arg-type]

    def trained(self, stage: Stage) -> dict[str, nn.Parameter]:
        """The parameters that a stage trains. The second one leaves alone what the first has aligned."""
        head = self.model.encoder.head
        second = {id(p) for part in (head.leave, self.model.projector) for p in part.parameters()}
        return {name: p for name, p in self.named_parameters() if (id(p) in second) == (stage == "language")}


def text_targets(embedded: Tensor, width: int) -> Tensor:
    """Unit vectors (texts, width) from text embeddings: their principal components, fully whitened.

    Embeddings of short answers share most of their variance; whitened, every difference between texts counts alike.
    """
    left, size, _ = torch.linalg.svd((embedded - embedded.mean(0)).double(), full_matrices=False)
    kept = left[:, size > size[0] * 1e-3][:, :width]
    return F.normalize(F.pad(kept, (0, width - kept.shape[1])), dim=-1).float()
