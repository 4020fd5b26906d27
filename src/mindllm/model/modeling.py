"""fMRI tokens in the language model: the loss, generated text, and the likelihood of given answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from mindllm.fmri.masker import VoxelSpace
from mindllm.language.conversation import FMRI, Conversation, ask
from mindllm.model.candidates import Tree
from mindllm.model.configuration import EncoderConfig
from mindllm.model.encoder import Encoder, Voxels
from mindllm.model.generation import Stream
from mindllm.model.language_model import LanguageModel
from mindllm.model.processing import IGNORE, Prompt, Prompter, collate
from mindllm.utils.errors import InputError
from mindllm.utils.validation import check_finite, check_values


class MindLLM(nn.Module):
    """An encoder, a projector to the language model's width, and the language model, which stays frozen."""

    llm: LanguageModel
    no_brain: Tensor

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
        # Tokens start as large as words are, whatever the language model.
        words = llm.model.get_input_embeddings().weight[:: max(1, llm.model.config.vocab_size // 1024)]
        size = float(words.float().square().mean().sqrt())
        nn.init.normal_(self.projector.weight, std=size * (3 / config.token_width) ** 0.5)
        self.__dict__["llm"] = llm  # not a submodule: it is named, never saved or trained here
        # The mean fMRI tokens of the training trials.
        self.register_buffer("no_brain", torch.zeros(config.n_tokens, config.token_width))
        self.prompter = Prompter(llm.tokenizer, config.n_tokens, template, llm.max_length)
        self.template = template
        self.card: dict[str, Any] = {}  # what the model folder says about its training
        self.spaces: dict[str, VoxelSpace] = {}  # voxel spaces that travel in the model folder
        self.to(llm.model.device)

    # Scans -> fMRI tokens.

    @torch.no_grad()
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
        question: str | None = None,
        *,
        batch_size: int = 16,
        **options: Any,
    ) -> list[str]:
        """What each trial of normalized values (B, V) says: one answer to `question` per trial. See `generate`."""
        parts = self.encode(values, space).split(batch_size)
        answers = [self.generate(some, [self.ask(question)] * len(some), **options) for some in parts]
        return [text for some in answers for text in some]

    # fMRI tokens -> the language model.

    def ask(self, question: str | None = None, answer: str | None = None) -> Conversation:
        """A conversation of one question, or the one the model was trained with, put as its format puts questions."""
        form = self.prompter.format
        return ask(question or self.card.get("question") or form.question, answer, scan_first=form.scan_first)

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

    @torch.no_grad()
    def score(
        self, tokens: Tensor, candidates: Sequence[str], question: str | None = None, batch_size: int = 8
    ) -> Tensor:
        """Log-likelihood (B, C) of each candidate answer given each scan's fMRI tokens (B, T, width).

        The prompt is read once per scan. The candidates are read as one tree, where a beginning that several share stands
        once: a node attends to the prompt and its ancestors, and an answer's likelihood is the sum along its path.
        """
        prompts = [self.prompter(self.ask(question, answer)) for answer in candidates]
        first = min(int((p.labels != IGNORE).argmax()) for p in prompts)
        tree = Tree([p.labels[first:][p.labels[first:] != IGNORE].tolist() for p in prompts])
        ids, places = (
            torch.as_tensor(a, device=self.llm.model.device)[None] for a in (prompts[0].ids[:first], prompts[0].places)
        )
        words, ancestors, depth = (t.to(self.llm.model.device) for t in (tree.tokens, tree.ancestors, tree.depth))
        body, head = self.llm.model.base_model, self.llm.model.get_output_embeddings()
        out = []
        for some in tokens.split(batch_size):
            n = len(some)
            context = body(inputs_embeds=self.embeds(ids.expand(n, -1), places.expand(n, -1), some), use_cache=True)
            visible = torch.cat([ancestors.new_ones(len(words), first), ancestors], 1).expand(n, 1, -1, -1)
            hidden = body(
                input_ids=words.expand(n, -1),
                attention_mask=visible,
                position_ids=(first + depth).expand(n, -1),
                past_key_values=context.past_key_values,
            ).last_hidden_state
            before = torch.cat([context.last_hidden_state[:, -1:], hidden], 1)[:, tree.parents + 1]
            each = torch.stack([-F.cross_entropy(head(row).float(), words, reduction="none") for row in before])
            out.append((each @ ancestors[tree.ends].float().T).cpu())
        return torch.cat(out)

    @torch.no_grad()
    def evidence(self, tokens: Tensor, answered: Sequence[Conversation]) -> Tensor:
        """Log p(what the assistant says | scan) - log p(it | no brain) in nats (B,): a conversation per scan of `tokens` (B, T, width)."""
        prompts = [self.prompter(turns) for turns in answered]
        given = self.log_likelihood(tokens, prompts)[0]
        return given - self.log_likelihood(self.no_brain.expand_as(tokens), prompts)[0]

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
        streamer = Stream(self.llm.tokenizer, stream) if stream else None
        ids = self.generate_ids(tokens, conversations, streamer, **options)
        texts = self.llm.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.replace(FMRI, "").strip() for text in texts]

    @torch.no_grad()
    def generate_ids(
        self, tokens: Tensor, conversations: Sequence[Conversation], streamer: Stream | None = None, **options: Any
    ) -> Tensor:
        """The token ids (B, L) of such answers, filled up behind the end of the shorter ones."""
        batch = self.tensors([self.prompter(turns, generate=True) for turns in conversations], left=True)
        inputs = self.embeds(batch["ids"], batch["places"], tokens)
        # Sampling settings that come with a language model would warn under greedy decoding.
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        settings = {"max_new_tokens": 48, "pad_token_id": self.llm.pad_id}
        settings |= ({} if options.get("do_sample") else greedy) | options
        return self.llm.model.generate(
            inputs_embeds=inputs, attention_mask=batch["attention"], streamer=streamer, **settings
        )

    def tensors(self, prompts: Sequence[Prompt], left: bool = False) -> dict[str, Tensor]:
        """Prompts as padded tensors on the language model's device."""
        arrays = collate(prompts, self.llm.pad_id, left=left)
        return {name: torch.as_tensor(array, device=self.llm.model.device) for name, array in arrays.items()}
