"""fMRI tokens in the language model: the loss, generated text, and the likelihood of given answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, TextStreamer

from mindllm.config import EncoderConfig
from mindllm.encoder import Encoder, Voxels
from mindllm.errors import InputError
from mindllm.llm import LanguageModel
from mindllm.prompt import IGNORE, QUESTION, Conversation, Prompt, Prompter, ask, collate
from mindllm.voxels import VoxelSpace, check_finite, check_values


class MindLLM(nn.Module):
    """An encoder, a projector to the language model's width, and the language model, which stays frozen."""

    def __init__(
        self,
        config: EncoderConfig,
        regions: Mapping[str, Sequence[str]],
        llm: LanguageModel,
        template: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(config, regions)
        self.projector = nn.Linear(config.token_width, llm.width)
        self.__dict__["llm"] = llm  # not a submodule: it is named, never saved or trained here
        self.register_buffer(
            "no_brain", torch.zeros(config.n_tokens, config.token_width)
        )  # the mean fMRI tokens of the training trials
        self.prompter = Prompter(llm.tokenizer, config.n_tokens, template, llm.max_length)
        self.template = template
        self.card: dict[str, Any] = {}  # what the model folder says about its training
        self.to(llm.model.device)

    # Scans -> fMRI tokens.

    @torch.inference_mode()
    def encode(self, values: np.ndarray | Tensor, space: VoxelSpace | Voxels) -> Tensor:
        """fMRI tokens (B, T, width) of normalized values (B, V) in a subject's voxel space."""
        voxels = space if isinstance(space, Voxels) else self.encoder.locate(space)
        array = np.atleast_2d(torch.as_tensor(values).cpu().numpy())
        check_values(array, len(voxels.positions), getattr(space, "name", "these voxels"))
        check_finite(array, f"values of {getattr(space, 'name', 'these voxels')}")
        return self.encoder([(voxels, torch.as_tensor(array, dtype=torch.float32, device=voxels.positions.device))])

    def decode(
        self,
        values: np.ndarray | Tensor,
        space: VoxelSpace | Voxels,
        question: str = QUESTION,
        *,
        batch_size: int = 16,
        **options: Any,
    ) -> list[str]:
        """What each trial of normalized values (B, V) says: one answer to `question` per trial. See `generate` for the options."""
        tokens = self.encode(values, space)
        return [
            text
            for some in tokens.split(batch_size)
            for text in self.generate(some, [ask(question)] * len(some), **options)
        ]

    # fMRI tokens -> the language model.

    def embeds(self, ids: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
        """The language model's input (B, L, width): word embeddings, with fMRI tokens (B, T, width) at `places` (B, T)."""
        if places.shape != tokens.shape[:2]:
            raise InputError(
                f"{tuple(places.shape)} places for fMRI tokens, but fMRI tokens of shape {tuple(tokens.shape)}."
            )
        words = self.llm.model.get_input_embeddings()
        embedded = words(ids.masked_fill(ids == self.prompter.fmri_id, self.llm.pad_id))
        projected = self.projector(tokens).to(embedded.dtype)
        return embedded.scatter(1, places[..., None].expand_as(projected), projected)

    def log_likelihood(self, tokens: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Summed log probability (B,) of what the assistant says in each prompt, and the number of its tokens (B,)."""
        batch = self.tensors(prompts)
        shared = int((batch["ids"] == batch["ids"][:1]).all(0).cumprod(0)[: int(batch["places"].min())].sum())
        past = self.read(batch["ids"][:1, :shared], len(prompts)) if shared else None
        inputs = self.embeds(batch["ids"], batch["places"], tokens)[:, shared:]
        hidden = self.llm.model.base_model(
            inputs_embeds=inputs, attention_mask=batch["attention"], past_key_values=past
        ).last_hidden_state
        return self.summed(hidden[:, :-1], batch["labels"][:, shared + 1 :])

    @torch.no_grad()
    def read(self, ids: Tensor, times: int) -> DynamicCache:
        """What the language model keeps of a text (1, L) that stands before every scan of a batch, for `times` rows."""
        cache = self.llm.model.base_model(input_ids=ids, use_cache=True).past_key_values
        cache.batch_repeat_interleave(times)
        return cache

    def summed(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of the labels (B, L) from hidden states (B, L, width), summed over the tokens that count."""
        counts = labels != IGNORE
        logits = self.llm.model.get_output_embeddings()(hidden[counts]).float()  # only where it counts
        each = -F.cross_entropy(logits, labels[counts], reduction="none")
        rows = counts.nonzero()[:, 0]
        return torch.zeros(len(labels), device=each.device).index_add(0, rows, each), counts.sum(1)

    @torch.inference_mode()
    def score(self, tokens: Tensor, candidates: Sequence[str], question: str = QUESTION, rows: int = 512) -> Tensor:
        """Log-likelihood (B, C) of each candidate answer given each scan's fMRI tokens (B, T, width).

        The prompt is read once per scan; its keys and values serve every candidate. `rows`: sequences in memory at once.
        """
        prompts = [self.prompter(ask(question, answer)) for answer in candidates]
        first = min(int((p.labels != IGNORE).argmax()) for p in prompts)
        if any((p.ids[:first] != prompts[0].ids[:first]).any() for p in prompts):
            raise InputError(f"the tokenizer writes the question differently before different answers: {question!r}.")
        batch = self.tensors(prompts)
        answers, labels = batch["ids"][:, first - 1 :], batch["labels"][:, first:]
        out = torch.empty(len(tokens), len(candidates))
        chunk = max(1, rows // len(candidates))
        for start in range(0, len(tokens), chunk):
            some = tokens[start : start + chunk]
            context = self.embeds(
                batch["ids"][:1].expand(len(some), -1), batch["places"][:1].expand(len(some), -1), some
            )[:, : first - 1]
            cache = self.llm.model.base_model(inputs_embeds=context, use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(candidates))
            attention = F.pad(batch["attention"][:, first - 1 :], (first - 1, 0), value=1).repeat(len(some), 1)
            words = self.llm.model.get_input_embeddings()(
                answers.masked_fill(answers == self.prompter.fmri_id, self.llm.pad_id)
            )
            hidden = self.llm.model.base_model(
                inputs_embeds=words.repeat(len(some), 1, 1), attention_mask=attention, past_key_values=cache
            ).last_hidden_state
            total, _ = self.summed(hidden[:, :-1], labels.repeat(len(some), 1))
            out[start : start + chunk] = total.view(len(some), -1).cpu()
        return out

    @torch.inference_mode()
    def evidence(self, tokens: Tensor, answers: Sequence[str], question: str = QUESTION) -> Tensor:
        """Log p(answer | scan) - log p(answer | no brain) in nats (B,), for one answer per scan of `tokens` (B, T, width)."""
        prompts = [self.prompter(ask(question, answer)) for answer in answers]
        given = self.log_likelihood(tokens, prompts)[0]
        return given - self.log_likelihood(self.no_brain.expand_as(tokens), prompts)[0]

    @torch.inference_mode()
    def generate(
        self,
        tokens: Tensor,
        conversations: Sequence[Conversation],
        stream: Callable[[str], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Free-running answers to conversations that end on a user turn, one per scan of `tokens` (B, T, width).

        `options` go to transformers' generate; greedy and at most 48 new tokens unless they say otherwise.
        `stream` is called with each piece of text as it comes, for a single scan.
        """
        batch = self.tensors([self.prompter(turns, generate=True) for turns in conversations], left=True)
        inputs = self.embeds(batch["ids"], batch["places"], tokens)
        # Sampling settings that come with a language model would warn under greedy decoding.
        greedy = (
            {} if options.get("do_sample") else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        )
        settings = {"max_new_tokens": 48, "pad_token_id": self.llm.pad_id} | greedy | options
        streamer = Stream(self.llm.tokenizer, stream) if stream else None
        ids = self.llm.model.generate(
            inputs_embeds=inputs, attention_mask=batch["attention"], streamer=streamer, **settings
        )
        return [text.strip() for text in self.llm.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def tensors(self, prompts: Sequence[Prompt], left: bool = False) -> dict[str, Tensor]:
        """Prompts as padded tensors on the language model's device."""
        arrays = collate(prompts, self.llm.pad_id, left=left)
        return {name: torch.as_tensor(array, device=self.llm.model.device) for name, array in arrays.items()}


class Stream(TextStreamer):
    """Hands each finished piece of text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, receive: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.receive = receive

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.receive(text)
