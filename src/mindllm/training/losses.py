"""What training minimizes: the two stages' losses of a batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm.model.encoder import Voxels
from mindllm.model.modeling import MindLLM
from mindllm.model.processing import Prompt
from mindllm.model.text_embeddings import embed, text_targets
from mindllm.model.token_heads import Recall
from mindllm.training.configuration import TrainConfig

Stage = Literal["align", "language"]
Group = tuple[Voxels, Tensor]


class Objective(nn.Module):
    """The loss of either stage, as a module, so that Accelerate can spread it over devices."""

    targets: Tensor

    def __init__(self, model: MindLLM, texts: Sequence[str], config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config
        targets = text_targets(embed(model.llm, texts), model.encoder.head.code_width)
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

    @torch.no_grad()
    def remember(self, answers: Sequence[int], texts: Sequence[str]) -> None:
        """Begin the head's memory as answers: a code like a text's recalls the embeddings of that text's first words.

        A language model can read its own words, so it understands the tokens before it is trained with them.
        """
        model, recall = self.model, self.model.encoder.head.leave
        length = model.encoder.config.n_tokens
        spelled = torch.tensor([model.prompter.spell(texts[i], length) for i in answers], device=self.targets.device)
        words = model.llm.model.get_input_embeddings()(spelled).float()  # (entries, T, width)
        mean = words.mean((0, 1))
        _, _, directions = torch.linalg.svd((words - mean).flatten(0, 1), full_matrices=True)
        directions = directions[: model.encoder.config.token_width]
        model.projector.weight.zero_()[:, : len(directions)] = directions.T
        model.projector.bias.copy_(mean)
        assert isinstance(recall, Recall)
        recall.keys.copy_(self.targets[list(answers)])
        recall.values.zero_().unflatten(1, (length, -1))[..., : len(directions)] = (words - mean) @ directions.T

    def language(self, people: Sequence[Group], mix: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Cross-entropy per token of what the assistant says, with the scans' tokens before the language model."""
        tokens = self.model.encoder.head.tokens(self.blurred(self.code(people, mix)))
        total, counts = self.model.log_likelihood(tokens, prompts)
        return -(total.sum() / counts.sum())

    def blurred(self, code: Tensor) -> Tensor:
        """Codes with noise, in training: those of people never seen point less surely at their text."""
        if not self.training:
            return code
        # Noise among the directions in which texts differ, not in those that no text uses.
        away = F.normalize(torch.randn(len(code), len(self.targets), device=code.device) @ self.targets, dim=-1)
        length = code.norm(dim=-1, keepdim=True) * torch.rand(len(code), 1, device=code.device)
        return code + self.config.code_noise * length * away

    def forward(self, stage: Stage, *batch: object) -> Tensor:
        return self.align(*batch) if stage == "align" else self.language(*batch)  # type: ignore[arg-type]

    def trained(self, stage: Stage) -> dict[str, nn.Parameter]:
        """The parameters that a stage trains. The second one leaves alone what the first, if there was one, has aligned."""
        head = self.model.encoder.head
        second = {id(p) for part in (head.leave, self.model.projector) for p in part.parameters()}
        return {
            name: p
            for name, p in self.named_parameters()
            if stage == "align" or not self.config.align.steps or id(p) in second
        }
