"""MindLLM: betas to fMRI tokens, and fMRI tokens into a frozen language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from mindllm.fmri.inputs import FMRIInputs
from mindllm.fmri.masker import VoxelMasker
from mindllm.language.conversation import Conversation, build_conversation
from mindllm.model import candidates
from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures
from mindllm.model.encoding_model import EncodingModel
from mindllm.model.evidence import Betas, EvidenceModule
from mindllm.model.generation import generate_texts
from mindllm.model.language_model import FrozenLanguageModel
from mindllm.model.model_card import ModelCard
from mindllm.model.pretrained import drop_language_model, ignore_language_model
from mindllm.model.processing import IGNORE_INDEX, MindLLMProcessor
from mindllm.model.subject_alignment import SubjectTransform
from mindllm.model.text_reader import TextReader
from mindllm.utils.errors import InputError
from mindllm.utils.validation import check_finite, check_values


@dataclass
class MindLLMOutput(ModelOutput):
    """Output of `MindLLM.forward`.

    Parameters
    ----------
    loss : Tensor, optional
        Mean cross-entropy over the labels, in nats per token.
    logits : Tensor of shape (batch_size, L, vocab_size)
        Prediction scores of the language model.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class MindLLM(EvidenceModule):
    """An fMRI encoder, a projector, and the frozen language model that reads its tokens.

    Parameters
    ----------
    config : MindLLMConfig
        Sizes and variants of the encoder.
    parcel_names : mapping from str to sequence of str
        Atlas name to parcel names; parcel number n is the n-th name, 0 is no parcel.
    language_model : FrozenLanguageModel
        Made by `load_language_model`. `state_dict` leaves it out; `to`, `half` and `train` do not.
    chat_template : str, optional
        A named conversation format; by default the tokenizer's own chat template.

    Attributes
    ----------
    maskers : dict of str to VoxelMasker
        Masker of each training subject.
    processor : MindLLMProcessor
        Conversations to model inputs.
    model_card : ModelCard
        How the model was trained, and on what.
    null_tokens : Tensor of shape (num_fmri_tokens, token_dim)
        Mean fMRI tokens of the training trials.
    adaptations : dict of str to SubjectTransform
        Of subjects that the model was adapted to; see `adapt_subject`.
    encoding_model : EncodingModel or None
        How brains respond to a text; None: not fitted.
    text_reader : TextReader or None
        Generates texts from what the evidence says of a trial; None: not trained.
    sentence_encoder : str or None
        Hub id or folder of the sentence encoder that `encoding_model` reads texts with.

    References
    ----------
    Qiu et al., MindLLM, ICML 2025, arXiv 2502.15786.

    Examples
    --------
    >>> from mindllm import MindLLM, Store
    >>> model = MindLLM.from_pretrained("model")  # doctest: +SKIP
    >>> betas = Store("store").betas("sub-03", [0, 1], standardize=True)  # doctest: +SKIP
    >>> model.decode(betas, model.maskers["sub-03"])  # doctest: +SKIP
    ['a man plays a guitar', 'two dogs run on a beach']
    """

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
        init_projector(self.projector, language_model)
        self.register_buffer("null_tokens", torch.zeros(config.num_fmri_tokens, config.token_dim))
        self.to(language_model.model.device)
        self.language_model = language_model
        self.register_state_dict_post_hook(drop_language_model)
        self.register_load_state_dict_post_hook(ignore_language_model)
        self.processor = MindLLMProcessor(
            language_model.tokenizer,
            config.num_fmri_tokens,
            chat_template,
            language_model.max_length,
            language_model.pad_id,
        )
        self.chat_template = chat_template
        self.model_card = ModelCard()
        self.maskers: dict[str, VoxelMasker] = {}
        self.adaptations: dict[str, SubjectTransform] = {}
        self._checked_maskers: dict[int, VoxelMasker] = {}
        self.encoding_model: EncodingModel | None = None
        self.text_reader: TextReader | None = None
        self.sentence_encoder: str | None = None

    @property
    def device(self) -> torch.device:
        """Device of the encoder and of the language model's inputs."""
        return self.projector.weight.device

    # Betas to fMRI tokens.

    @torch.no_grad()
    def encode(self, betas: Betas, masker: VoxelMasker | VoxelFeatures) -> Tensor:
        """fMRI tokens of one subject's trials, before the projector.

        Parameters
        ----------
        betas : ndarray or Tensor of shape (n_trials, n_voxels) or (n_voxels,)
            Standardized betas, in the order of the masker's voxels.
        masker : VoxelMasker
            The subject's voxels (or what `encoder.prepare_voxels` made of them).

        Returns
        -------
        Tensor of shape (n_trials, num_fmri_tokens, token_dim)

        Raises
        ------
        InputError
            If the shape does not fit, or a beta is NaN or infinite.
        """
        return self.encoder([self._prepare_inputs(betas, masker)])

    @torch.no_grad()
    def query_outputs(self, betas: Betas, masker: VoxelMasker | VoxelFeatures) -> Tensor:
        """Query outputs of the attention over one subject's voxels.

        Parameters
        ----------
        betas, masker
            As for `encode`.

        Returns
        -------
        Tensor of shape (n_trials, num_queries)
        """
        return self.encoder.attend(*self._prepare_inputs(betas, masker))

    def _prepare_inputs(
        self, betas: Betas, masker: VoxelMasker | VoxelFeatures
    ) -> tuple[VoxelFeatures, Tensor]:
        """Voxels and checked betas (n_trials, n_voxels), as the encoder reads them."""
        if isinstance(masker, VoxelFeatures):
            voxels, name = masker, "these voxels"
        else:
            self._check_coverage(masker)
            voxels, name = self.encoder.prepare_voxels(masker), masker.subject
        array = np.atleast_2d(torch.as_tensor(betas).cpu().numpy())
        check_values(array, len(voxels.coords), name)
        check_finite(array, f"values of {name}")
        dtype = self.projector.weight.dtype
        return voxels, torch.as_tensor(array, dtype=dtype, device=self.device)

    def get_fmri_features(self, betas: Betas, masker: VoxelMasker | VoxelFeatures) -> Tensor:
        """What the language model reads: projected fMRI tokens.

        Parameters
        ----------
        betas, masker
            As for `encode`.

        Returns
        -------
        Tensor of shape (n_trials, num_fmri_tokens, hidden_size)
        """
        with torch.no_grad():
            return self.projector(self.encode(betas, masker))

    def encode_inputs(self, fmri: FMRIInputs | tuple[Betas, VoxelMasker]) -> Tensor:
        """Encode a batch with gradients.

        Parameters
        ----------
        fmri : FMRIInputs, or tuple of (betas, masker)
            Trials are mixed after the attention, which is linear in them.

        Returns
        -------
        Tensor of shape (batch_size, num_fmri_tokens, token_dim)
            fMRI tokens, before the projector.
        """
        if isinstance(fmri, tuple):
            fmri = FMRIInputs((fmri[1],), (torch.atleast_2d(torch.as_tensor(fmri[0])),))
        dtype = self.projector.weight.dtype
        query_outputs = torch.cat(
            [
                self.encoder.attend(
                    self.encoder.prepare_voxels(masker), betas.to(self.device, dtype)
                )
                for masker, betas in zip(fmri.maskers, fmri.betas, strict=True)
            ]
        )
        if fmri.mixing_weights is not None:
            query_outputs = fmri.mixing_weights.to(self.device, dtype) @ query_outputs
        return self.encoder.head.tokens(self.encoder.head.embed(query_outputs))

    # fMRI tokens to text.

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        fmri: FMRIInputs | tuple[Betas, VoxelMasker] | None = None,
        labels: Tensor | None = None,
        fmri_token_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> MindLLMOutput:
        """Logits of conversations about trials, and their loss.

        Parameters
        ----------
        input_ids : Tensor of shape (batch_size, L)
            Token ids, with the placeholder `<fMRI>` at the positions of fMRI tokens.
        attention_mask : Tensor of shape (batch_size, L), optional
        fmri : FMRIInputs, or tuple of (betas, masker), optional
            One trial, or mix of trials, per row; None: conversations without a scan.
        labels : Tensor of shape (batch_size, L), optional
            Token ids where the loss counts, -100 elsewhere.
        fmri_token_positions : Tensor of shape (batch_size, num_fmri_tokens), optional
            By default where the placeholders are.
        **kwargs
            Passed on to the language model's forward.

        Returns
        -------
        MindLLMOutput
            Loss (if labels are passed) and logits, as the language model's own head gives them.

        Raises
        ------
        InputError
            If placeholders and fMRI tokens differ in number.
        """
        if fmri is None:
            fmri_tokens = self.null_tokens.new_zeros((len(input_ids), 0, self.null_tokens.shape[1]))
        else:
            fmri_tokens = self.encode_inputs(fmri)
        if fmri_token_positions is None:
            fmri_token_positions = self.find_placeholders(input_ids)
        embeds = self.prepare_inputs_embeds(input_ids, fmri_token_positions, fmri_tokens)
        logits = self.language_model.model(
            inputs_embeds=embeds, attention_mask=attention_mask, **kwargs
        ).logits
        loss = None
        if labels is not None:
            shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
            loss = F.cross_entropy(
                logits.flatten(0, 1).float(), shifted.flatten(), ignore_index=IGNORE_INDEX
            )
        return MindLLMOutput(loss=loss, logits=logits)

    def find_placeholders(self, input_ids: Tensor) -> Tensor:
        """Find the placeholders `<fMRI>`.

        Parameters
        ----------
        input_ids : Tensor of shape (batch_size, L)

        Returns
        -------
        Tensor of shape (batch_size, n), int64
            Their positions.

        Raises
        ------
        InputError
            If rows differ in the number of placeholders.
        """
        is_placeholder = input_ids == self.processor.fmri_token_id
        counts = is_placeholder.sum(1)
        if (counts != counts[0]).any():
            raise InputError(
                f"rows of input_ids hold {counts.min()} to {counts.max()} placeholders for fMRI "
                "tokens; expected the same number in each. Make them with model.processor."
            )
        return is_placeholder.nonzero()[:, 1].view(len(input_ids), -1)

    def prepare_inputs_embeds(
        self, input_ids: Tensor, fmri_token_positions: Tensor, fmri_tokens: Tensor
    ) -> Tensor:
        """Embed token ids, with projected fMRI tokens at their positions.

        Parameters
        ----------
        input_ids : Tensor of shape (n, L)
        fmri_token_positions : Tensor of shape (n, num_fmri_tokens)
        fmri_tokens : Tensor of shape (n, num_fmri_tokens, token_dim)
            Before the projector.

        Returns
        -------
        Tensor of shape (n, L, hidden_size)

        Raises
        ------
        InputError
            If positions and fMRI tokens differ in number.
        """
        if fmri_token_positions.shape != fmri_tokens.shape[:2]:
            raise InputError(
                f"{tuple(fmri_token_positions.shape)} places for fMRI tokens, "
                f"but fMRI tokens of shape {tuple(fmri_tokens.shape)}."
            )
        pad_id, placeholder = self.language_model.pad_id, self.processor.fmri_token_id
        ids = input_ids.masked_fill(input_ids == placeholder, pad_id)
        embeds = self.language_model.model.get_input_embeddings()(ids)
        projected = self.projector(fmri_tokens).to(embeds.dtype)
        return embeds.scatter(1, fmri_token_positions[..., None].expand_as(projected), projected)

    def build_conversation(
        self, question: str | None = None, answer: str | None = None
    ) -> Conversation:
        """Build a conversation about a trial in the model's format.

        Parameters
        ----------
        question : str, optional
            By default the question that the model was trained with.
        answer : str, optional
            By default the conversation ends on the question.

        Returns
        -------
        Conversation
        """
        template = self.processor.chat_template
        asked = question or self.model_card.question or template.question
        return build_conversation(asked, answer, fmri_first=template.fmri_first)

    def decode(
        self,
        betas: Betas,
        masker: VoxelMasker | VoxelFeatures,
        question: str | None = None,
        *,
        batch_size: int = 16,
        **generate_options: Any,
    ) -> list[str]:
        """Decode trials into text.

        Parameters
        ----------
        betas, masker
            As for `encode`.
        question : str, optional
            By default the question that the model was trained with.
        batch_size : int
            Trials that the language model reads at once.
        **generate_options
            Arguments of transformers' ``generate``, such as max_new_tokens or do_sample.

        Returns
        -------
        list of str
            One text per trial.
        """
        texts: list[str] = []
        for batch in self.encode(betas, masker).split(batch_size):
            conversations = [self.build_conversation(question)] * len(batch)
            texts += self.generate(batch, conversations, **generate_options)
        return texts

    def log_likelihood(
        self,
        betas: Betas,
        masker: VoxelMasker | VoxelFeatures,
        texts: Sequence[str],
        question: str | None = None,
        *,
        batch_size: int = 8,
    ) -> Tensor:
        """Log-likelihood of texts, as answers, given trials.

        Parameters
        ----------
        betas, masker, question, batch_size
            As for `decode`.
        texts : sequence of str
            Without chat template.

        Returns
        -------
        Tensor of shape (n_trials, n_texts)
            log p(text | trial, question) in nats, summed over the text's tokens and the end of
            the turn.
        """
        return self.score_candidates(self.encode(betas, masker), texts, question, batch_size)

    def score_candidates(
        self,
        fmri_tokens: Tensor,
        texts: Sequence[str],
        question: str | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """Log-likelihood of texts given fMRI tokens; see `mindllm.model.candidates`.

        Parameters
        ----------
        fmri_tokens : Tensor of shape (n, num_fmri_tokens, token_dim)
        texts, question, batch_size
            As for `log_likelihood`.

        Returns
        -------
        Tensor of shape (n, n_texts)
        """
        return candidates.score_candidates(self, fmri_tokens, texts, question, batch_size)

    @torch.no_grad()
    def log_likelihood_ratio(
        self, fmri_tokens: Tensor, conversations: Sequence[Conversation]
    ) -> Tensor:
        """log p(answer | fMRI tokens) - log p(answer | null tokens), in nats.

        Parameters
        ----------
        fmri_tokens : Tensor of shape (n, num_fmri_tokens, token_dim)
        conversations : sequence of Conversation
            One per row, each ending on an assistant turn, which is cut where the language model
            has no more positions.

        Returns
        -------
        Tensor of shape (n,)
        """
        prompts = [self.processor(turns, cut=True) for turns in conversations]
        null_tokens = self.null_tokens.expand_as(fmri_tokens)
        with_fmri, _ = candidates.prompt_log_likelihood(self, fmri_tokens, prompts)
        without, _ = candidates.prompt_log_likelihood(self, null_tokens, prompts)
        return with_fmri - without

    def generate(
        self,
        fmri_tokens: Tensor,
        conversations: Sequence[Conversation],
        on_text: Callable[[str], None] | None = None,
        **options: Any,
    ) -> list[str]:
        """Generate the next assistant turn of each conversation, without teacher forcing.

        Parameters
        ----------
        fmri_tokens : Tensor of shape (n, num_fmri_tokens, token_dim)
        conversations : sequence of Conversation
            One per trial, each ending on a user turn.
        on_text : callable, optional
            Receives text as it is generated, for a single trial.
        **options
            Arguments of transformers' ``generate``, such as a ``streamer``; greedy, at most 48 new
            tokens by default.

        Returns
        -------
        list of str
            One text per conversation.
        """
        return generate_texts(self, fmri_tokens, conversations, on_text, **options)


def init_projector(projector: nn.Linear, language_model: FrozenLanguageModel) -> None:
    """Start with fMRI tokens as large as word embeddings, whatever the language model."""
    count = language_model.num_embeddings
    ids = torch.arange(0, count, max(1, count // 1024), device=language_model.model.device)
    sample = language_model.model.get_input_embeddings()(ids)
    size = float(sample.float().square().mean().sqrt())
    nn.init.normal_(projector.weight, std=size * (3 / projector.in_features) ** 0.5)
