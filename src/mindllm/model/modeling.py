"""fMRI tokens in the language model: the loss, generated text, and the likelihood of given answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from mindllm.fmri.masker import VoxelMasker
from mindllm.language.conversation import FMRI_TOKEN, Conversation, build_conversation
from mindllm.model.candidates import TokenTrie
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures
from mindllm.model.generation import CallbackStreamer
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.processing import IGNORE_INDEX, EncodedPrompt, MindLLMProcessor, collate
from mindllm.utils.errors import InputError
from mindllm.utils.validation import check_finite, check_values


class MindLLM(nn.Module):
    """An encoder, a projector to the language model's width, and the language model, which stays frozen."""

    language_model: FrozenLanguageModel
    null_tokens: Tensor

    def __init__(
        self,
        config: MindLLMConfig,
        parcel_names: Mapping[str, Sequence[str]],
        language_model: FrozenLanguageModel,
        chat_template: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = FMRIEncoder(config, parcel_names)
        self.projector = nn.Linear(config.token_dim, language_model.hidden_size)
        # Tokens start as large as words are, whatever the language model.
        words = language_model.model.get_input_embeddings().weight[
            :: max(1, language_model.model.config.vocab_size // 1024)
        ]
        size = float(words.float().square().mean().sqrt())
        nn.init.normal_(self.projector.weight, std=size * (3 / config.token_dim) ** 0.5)
        self.__dict__["language_model"] = (
            language_model  # not a submodule: it is named, never saved or trained here
        )
        # The mean fMRI tokens of the training trials.
        self.register_buffer("null_tokens", torch.zeros(config.num_fmri_tokens, config.token_dim))
        self.processor = MindLLMProcessor(
            language_model.tokenizer,
            config.num_fmri_tokens,
            chat_template,
            language_model.max_length,
        )
        self.chat_template = chat_template
        self.model_card: dict[str, Any] = {}  # what the model folder says about its training
        self.maskers: dict[str, VoxelMasker] = {}  # voxel spaces that travel in the model folder
        self.to(language_model.model.device)

    # Scans -> fMRI tokens.

    @torch.no_grad()
    def encode(self, betas: np.ndarray | Tensor, masker: VoxelMasker | VoxelFeatures) -> Tensor:
        """fMRI tokens (B, T, width) of normalized values (B, V) in a subject's voxel space."""
        voxels = (
            masker if isinstance(masker, VoxelFeatures) else self.encoder.prepare_voxels(masker)
        )
        array = np.atleast_2d(torch.as_tensor(betas).cpu().numpy())
        check_values(array, len(voxels.coords), getattr(masker, "subject", "these voxels"))
        check_finite(array, f"values of {getattr(masker, 'subject', 'these voxels')}")
        return self.encoder(
            [(voxels, torch.as_tensor(array, dtype=torch.float32, device=voxels.coords.device))]
        )

    def decode(
        self,
        betas: np.ndarray | Tensor,
        masker: VoxelMasker | VoxelFeatures,
        question: str | None = None,
        *,
        batch_size: int = 16,
        **options: Any,
    ) -> list[str]:
        """What each trial of normalized values (B, V) says: one answer to `question` per trial. See `generate`."""
        parts = self.encode(betas, masker).split(batch_size)
        answers = [
            self.generate(some, [self.build_conversation(question)] * len(some), **options)
            for some in parts
        ]
        return [text for some in answers for text in some]

    # fMRI tokens -> the language model.

    def build_conversation(
        self, question: str | None = None, answer: str | None = None
    ) -> Conversation:
        """A conversation of one question, or the one the model was trained with, put as its format puts questions."""
        form = self.processor.chat_template
        return build_conversation(
            question or self.model_card.get("question") or form.question,
            answer,
            fmri_first=form.fmri_first,
        )

    def prepare_inputs_embeds(
        self, input_ids: Tensor, fmri_token_positions: Tensor, tokens: Tensor
    ) -> Tensor:
        """The language model's input (B, L, width): word embeddings, with fMRI tokens (B, T, width) at `places` (B, T)."""
        if fmri_token_positions.shape != tokens.shape[:2]:
            raise InputError(
                f"{tuple(fmri_token_positions.shape)} places for fMRI tokens, but fMRI tokens of shape {tuple(tokens.shape)}."
            )
        words = self.language_model.model.get_input_embeddings()
        embedded = words(
            input_ids.masked_fill(
                input_ids == self.processor.fmri_token_id, self.language_model.pad_id
            )
        )
        projected = self.projector(tokens).to(embedded.dtype)
        return embedded.scatter(1, fmri_token_positions[..., None].expand_as(projected), projected)

    def log_likelihood(
        self, tokens: Tensor, prompts: Sequence[EncodedPrompt]
    ) -> tuple[Tensor, Tensor]:
        """Summed log probability (B,) of what the assistant says in each prompt, and the number of its tokens (B,)."""
        batch = self.tensors(prompts)
        shared = int(
            (batch["ids"] == batch["ids"][:1]).all(0).cumprod(0)[: int(batch["places"].min())].sum()
        )
        past = self.prefill_prefix(batch["ids"][:1, :shared], len(prompts)) if shared else None
        inputs = self.prepare_inputs_embeds(batch["ids"], batch["places"], tokens)[:, shared:]
        hidden = self.language_model.model.base_model(
            inputs_embeds=inputs, attention_mask=batch["attention"], past_key_values=past
        ).last_hidden_state
        return self.sum_token_log_probs(hidden[:, :-1], batch["labels"][:, shared + 1 :])

    @torch.no_grad()
    def prefill_prefix(self, input_ids: Tensor, times: int) -> DynamicCache:
        """What the language model keeps of a text (1, L) that stands before every scan of a batch, for `times` rows."""
        cache = self.language_model.model.base_model(
            input_ids=input_ids, use_cache=True
        ).past_key_values
        cache.batch_repeat_interleave(times)
        return cache

    def sum_token_log_probs(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Log probability of the labels (B, L) from hidden states (B, L, width), summed over the tokens that count."""
        counts = labels != IGNORE_INDEX
        logits = self.language_model.model.get_output_embeddings()(
            hidden[counts]
        ).float()  # only where it counts
        each = -F.cross_entropy(logits, labels[counts], reduction="none")
        rows = counts.nonzero()[:, 0]
        return torch.zeros(len(labels), device=each.device).index_add(0, rows, each), counts.sum(1)

    @torch.no_grad()
    def score_candidates(
        self,
        tokens: Tensor,
        candidates: Sequence[str],
        question: str | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """Log-likelihood (B, C) of each candidate answer given each scan's fMRI tokens (B, T, width).

        The prompt is read once per scan. The candidates are read as one tree, where a beginning that several share stands
        once: a node attends to the prompt and its ancestors, and an answer's likelihood is the sum along its path.
        """
        prompts = [
            self.processor(self.build_conversation(question, answer)) for answer in candidates
        ]
        first = min(int((p.labels != IGNORE_INDEX).argmax()) for p in prompts)
        tree = TokenTrie(
            [p.labels[first:][p.labels[first:] != IGNORE_INDEX].tolist() for p in prompts]
        )
        ids, places = (
            torch.as_tensor(a, device=self.language_model.model.device)[None]
            for a in (prompts[0].input_ids[:first], prompts[0].fmri_token_positions)
        )
        words, ancestors, depth = (
            t.to(self.language_model.model.device)
            for t in (tree.tokens, tree.ancestors, tree.depth)
        )
        body, head = (
            self.language_model.model.base_model,
            self.language_model.model.get_output_embeddings(),
        )
        out = []
        for some in tokens.split(batch_size):
            n = len(some)
            context = body(
                inputs_embeds=self.prepare_inputs_embeds(
                    ids.expand(n, -1), places.expand(n, -1), some
                ),
                use_cache=True,
            )
            visible = torch.cat([ancestors.new_ones(len(words), first), ancestors], 1).expand(
                n, 1, -1, -1
            )
            hidden = body(
                input_ids=words.expand(n, -1),
                attention_mask=visible,
                position_ids=(first + depth).expand(n, -1),
                past_key_values=context.past_key_values,
            ).last_hidden_state
            before = torch.cat([context.last_hidden_state[:, -1:], hidden], 1)[:, tree.parents + 1]
            each = torch.stack(
                [-F.cross_entropy(head(row).float(), words, reduction="none") for row in before]
            )
            out.append((each @ ancestors[tree.ends].float().T).cpu())
        return torch.cat(out)

    @torch.no_grad()
    def log_likelihood_ratio(self, tokens: Tensor, conversations: Sequence[Conversation]) -> Tensor:
        """Log p(what the assistant says | scan) - log p(it | no brain) in nats (B,): a conversation per scan of `tokens` (B, T, width)."""
        prompts = [self.processor(turns) for turns in conversations]
        given = self.log_likelihood(tokens, prompts)[0]
        return given - self.log_likelihood(self.null_tokens.expand_as(tokens), prompts)[0]

    def generate(
        self,
        tokens: Tensor,
        conversations: Sequence[Conversation],
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Free-running answers to conversations that end on a user turn, one per scan of `tokens` (B, T, width).

        `options` go to transformers' generate; greedy and at most 48 new tokens unless they say otherwise.
        `stream` is called with each piece of text as it comes, for a single scan.
        """
        streamer = CallbackStreamer(self.language_model.tokenizer, on_text) if on_text else None
        ids = self.generate_ids(tokens, conversations, streamer, **options)
        texts = self.language_model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.replace(FMRI_TOKEN, "").strip() for text in texts]

    @torch.no_grad()
    def generate_ids(
        self,
        tokens: Tensor,
        conversations: Sequence[Conversation],
        streamer: CallbackStreamer | None = None,
        **options: Any,
    ) -> Tensor:
        """The token ids (B, L) of such answers, filled up behind the end of the shorter ones."""
        batch = self.tensors(
            [self.processor(turns, generate=True) for turns in conversations], left=True
        )
        inputs = self.prepare_inputs_embeds(batch["ids"], batch["places"], tokens)
        # Sampling settings that come with a language model would warn under greedy decoding.
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        settings = {"max_new_tokens": 48, "pad_token_id": self.language_model.pad_id}
        settings |= ({} if options.get("do_sample") else greedy) | options
        return self.language_model.model.generate(
            inputs_embeds=inputs, attention_mask=batch["attention"], streamer=streamer, **settings
        )

    def tensors(self, prompts: Sequence[EncodedPrompt], left: bool = False) -> dict[str, Tensor]:
        """Prompts as padded tensors on the language model's device."""
        arrays = collate(prompts, self.language_model.pad_id, left=left)
        return {
            name: torch.as_tensor(array, device=self.language_model.model.device)
            for name, array in arrays.items()
        }
