"""One training step, or decoding, of any size, followed on tensors without content.

The step is made of the modules that train: the encoder's attention and head, the projector, the
shared beginning of the conversation read once, the language model's own forward, logits where
there is loss, the gradients and the optimizer.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM

from mindllm.model.configuration import MindLLMConfig
from mindllm.model.encoder import FMRIEncoder, VoxelFeatures
from mindllm.model.logits import forward_logits, read_prefix
from mindllm.training.configuration import LoraOptions, Stage, StageConfig
from mindllm.training.lora import add_adapter, is_adapter_weight
from mindllm.training.memory_trace import ACTIVATIONS, MemoryTrace, StorageTracker, trace_memory
from mindllm.training.optimization import create_optimizer
from mindllm.utils.errors import InputError

WEIGHTS, ENCODER, BETAS = "language model", "encoder", "betas"
GRADIENTS, OPTIMIZER, LOGITS, CACHE = "gradients", "optimizer", "logits", "keys and values"


@dataclass(frozen=True)
class StepShape:
    """Sizes of a step.

    Parameters
    ----------
    language_model : transformers.PretrainedConfig
    encoder : MindLLMConfig
    n_voxels : int
        Voxels of a subject that are read.
    n_atlases : int
        Atlases, of 400 parcels each.
    dtype : torch.dtype
        Of the language model.
    trials_per_sample : float
        Trials that are read for a sample, mixed ones and those of noise included.
    n_texts : int
        Texts that fMRI embeddings are compared with in alignment.
    prefix_tokens : int
        Tokens before the scan, which are read once for a batch.
    text_tokens : int
        Other tokens of a sample, question and answer; without the fMRI tokens.
    answer_tokens : int
        Those of them that have a loss.
    lora : LoraOptions or None
    gradient_checkpointing : bool
        Whether activations within a layer are computed again instead of kept.
    """

    language_model: Any
    encoder: MindLLMConfig
    n_voxels: int
    n_atlases: int
    dtype: torch.dtype
    trials_per_sample: float
    n_texts: int
    prefix_tokens: int
    text_tokens: int
    answer_tokens: int
    lora: LoraOptions | None
    gradient_checkpointing: bool


class StepModules(nn.Module):
    """Encoder, projector and language model of a step, of the type of the current mode.

    Parameters
    ----------
    shape : StepShape
    """

    model: Any  # of parts whose types are those of the mode

    def __init__(self, shape: StepShape) -> None:
        super().__init__()
        parcels = {f"atlas{i}": [str(n) for n in range(400)] for i in range(shape.n_atlases)}
        self.model = nn.Module()  # names as in MindLLMLoss
        self.model.encoder = FMRIEncoder(shape.encoder, parcels)
        hidden_size = int(shape.language_model.get_text_config(decoder=True).hidden_size)
        self.model.projector = nn.Linear(shape.encoder.token_dim, hidden_size)
        try:
            llm = AutoModelForCausalLM.from_config(shape.language_model, dtype=shape.dtype)
        except ValueError as error:
            raise InputError(f"this is no causal language model ({error}).") from error
        self.model.language_model = llm.requires_grad_(False).eval()
        if shape.lora:
            add_adapter(llm, shape.lora, 0, "of this shape")
            for name, parameter in llm.requires_grad_(False).named_parameters():
                if is_adapter_weight(name):
                    parameter.data = parameter.data.float()
        if shape.gradient_checkpointing:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                # Its new name is not in all versions that are allowed.
                llm.gradient_checkpointing_enable({"use_reentrant": False})

    def trained_parameters(
        self, stage: Stage, is_aligned: bool, has_lora: bool
    ) -> dict[str, nn.Parameter]:
        """Parameters that a stage trains; see `MindLLMLoss.trainable_parameters`."""
        parameters = dict(self.named_parameters())
        adapter = {n: p for n, p in parameters.items() if has_lora and is_adapter_weight(n)}
        others = {n: p for n, p in parameters.items() if ".language_model." not in n}
        if stage == "alignment":
            return others
        if is_aligned:
            parts = (".token_proj.", ".projector.")
            others = {n: p for n, p in others.items() if any(part in n for part in parts)}
        return others | adapter


def create_modules(shape: StepShape) -> StepModules:
    """Create the modules of a step with tensors of the current `FakeTensorMode`.

    They are made on the meta device first, where adapters can be added.
    """
    with torch.device("meta"):
        modules = StepModules(shape)
    memo: dict[int, Any] = {}
    for module in modules.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in memo:
                    content = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    memo[id(tensor)] = nn.Parameter(content) if is_parameter else content
                if tensor is not None:
                    tensors[name] = memo[id(tensor)]
    return modules.requires_grad_(False)


@contextmanager
def traced(modules: StepModules) -> Iterator[tuple[MemoryTrace, StorageTracker]]:
    """Follow operations; the modules' weights are there before."""
    llm = modules.model.language_model
    in_llm = {id(parameter) for parameter in llm.parameters()}
    tensors = [*modules.parameters(), *modules.buffers()]
    resident = {
        WEIGHTS: [t for t in tensors if id(t) in in_llm],
        ENCODER: [t for t in tensors if id(t) not in in_llm],
    }
    vocab_size = llm.get_input_embeddings().num_embeddings

    def name_part(tensor: Tensor) -> str | None:
        return LOGITS if tensor.dim() > 1 and tensor.shape[-1] == vocab_size else None

    with trace_memory(resident, name_part) as pair:
        yield pair


@dataclass(frozen=True)
class StepTrace:
    """What a step needs.

    Parameters
    ----------
    passes : Counter of str
        Bytes by part when most is in memory during the forward and backward pass.
    optimizer : Counter of str
        Likewise during the step of the optimizer.
    flops : int
        Floating-point operations of the matrix products of one micro batch.
    """

    passes: Counter[str]
    optimizer: Counter[str]
    flops: int


class StepTracer:
    """Follows steps of one shape with any batch size.

    Parameters
    ----------
    shape : StepShape
    """

    def __init__(self, shape: StepShape) -> None:
        self.shape, self.mode = shape, FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            self.modules = create_modules(shape)

    def train(
        self, stage: Stage, options: StageConfig, batch_size: int, is_aligned: bool
    ) -> StepTrace:
        """Follow one optimizer step, which is not the first: the optimizer's state is there.

        Parameters
        ----------
        stage : {"alignment", "instruction_tuning"}
        options : StageConfig
            Of the stage; its batch size is not used.
        batch_size : int
            Samples that are read at once.
        is_aligned : bool
            Whether there is an alignment stage, after which the encoder is left as it is.

        Returns
        -------
        StepTrace
        """
        modules, shape = self.modules.train(), self.shape
        modules.model.language_model.train(shape.gradient_checkpointing)
        parameters = modules.trained_parameters(stage, is_aligned, shape.lora is not None)
        with self.mode:
            for parameter in modules.requires_grad_(False).parameters():
                parameter.requires_grad_(
                    any(parameter is trained for trained in parameters.values())
                )
                parameter.grad = None
            optimizer = create_optimizer(parameters, options)
            with traced(modules) as (trace, tracker):
                trace.part = OPTIMIZER
                for parameter in parameters.values():
                    parameter.grad = torch.zeros_like(parameter)
                    tracker.rename(parameter.grad, GRADIENTS)
                optimizer.step()
                if options.gradient_accumulation_steps == 1:
                    optimizer.zero_grad()
                tracker.reset_peak()
                trace.flops = 0
                loss_fn = alignment_loss if stage == "alignment" else language_modeling_loss
                loss = loss_fn(modules, shape, options, batch_size, trace)
                trace.part = ACTIVATIONS
                hooks = name_gradients(parameters, tracker)
                loss.backward()
                del loss
                passes = trace.peak
                tracker.reset_peak()
                trace.part = OPTIMIZER
                optimizer.step()
                for hook in hooks:
                    hook.remove()
        return StepTrace(passes, trace.peak, trace.flops)

    def decode(self, batch_size: int, new_tokens: int) -> StepTrace:
        """Follow the reading of a batch's prompts; keys and values are those of all tokens then.

        Parameters
        ----------
        batch_size : int
            Trials that are decoded at once.
        new_tokens : int
            Tokens that are generated.

        Returns
        -------
        StepTrace
            With the operations of the reading alone.
        """
        modules, shape = self.modules.eval(), self.shape
        with self.mode, torch.no_grad(), traced(modules) as (trace, _):
            options = StageConfig(max_steps=1, batch_size=batch_size)
            outputs = query_outputs(modules, shape, options, batch_size, trace)
            head = modules.model.encoder.head
            tokens = head.tokens(head.embed(outputs))
            del outputs
            trace.part = ACTIVATIONS
            embeds, mask = embed_prompt(modules, shape, tokens)
            before, llm = trace.current[ACTIVATIONS], modules.model.language_model
            inputs = {"inputs_embeds": embeds, "attention_mask": mask, "use_cache": True}
            last = torch.tensor([embeds.shape[1] - 1])
            logits, cache = forward_logits(llm, last, **inputs)
            assert cache is not None
            held = trace.current[ACTIVATIONS] - before
            peak = Counter(trace.peak)
            peak[ACTIVATIONS] = max(0, peak[ACTIVATIONS] - held)
            peak[CACHE] = round(held * (1 + new_tokens / embeds.shape[1]))
            del logits
        return StepTrace(peak, Counter(), trace.flops)


def name_gradients(
    parameters: dict[str, nn.Parameter], tracker: StorageTracker
) -> list[RemovableHandle]:
    """Count the gradients of parameters as such once they are added up, until hooks are removed."""

    def rename(parameter: Tensor) -> None:
        if parameter.grad is not None:
            tracker.rename(parameter.grad, GRADIENTS)

    return [p.register_post_accumulate_grad_hook(rename) for p in parameters.values()]


def query_outputs(
    modules: StepModules,
    shape: StepShape,
    options: StageConfig,
    batch_size: int,
    trace: MemoryTrace,
) -> Tensor:
    """Query outputs (batch_size, num_queries) of the trials of several subjects."""
    n_trials = max(1, round(shape.trials_per_sample * batch_size))
    n_subjects = min(options.subjects_per_batch, n_trials)
    encoder, outputs = modules.model.encoder, []
    for i in range(n_subjects):
        count = n_trials // n_subjects + (i < n_trials % n_subjects)
        trace.part = BETAS
        voxels = VoxelFeatures(
            torch.zeros(shape.n_voxels, 3),
            torch.zeros(shape.n_voxels, shape.n_atlases, dtype=torch.int64),
        )
        betas = torch.zeros(count, shape.n_voxels)
        trace.part = ENCODER
        outputs.append(encoder.attend(voxels, betas))
    return torch.zeros(batch_size, n_trials) @ torch.cat(outputs)


def alignment_loss(
    modules: StepModules,
    shape: StepShape,
    options: StageConfig,
    batch_size: int,
    trace: MemoryTrace,
) -> Tensor:
    """Loss of the first stage, as `MindLLMLoss.alignment_loss` computes it."""
    outputs = query_outputs(modules, shape, options, batch_size, trace)
    embeddings = F.normalize(modules.model.encoder.head.embed(outputs), dim=-1)
    texts = torch.zeros(shape.n_texts, embeddings.shape[1])
    positives = torch.zeros(batch_size, shape.n_texts)
    log_probs = torch.log_softmax(embeddings @ texts.T, -1)
    return -(log_probs * positives).sum(-1).div(positives.sum(-1)).mean()


def language_modeling_loss(
    modules: StepModules,
    shape: StepShape,
    options: StageConfig,
    batch_size: int,
    trace: MemoryTrace,
) -> Tensor:
    """Loss of the second stage, as `MindLLMLoss.language_modeling_loss` computes it."""
    outputs = query_outputs(modules, shape, options, batch_size, trace)
    head = modules.model.encoder.head
    tokens = head.tokens(head.embed(outputs))
    trace.part = ACTIVATIONS
    embeds, mask = embed_prompt(modules, shape, tokens)
    llm, shared = modules.model.language_model, shape.prefix_tokens
    logits, _ = forward_logits(
        llm,
        torch.arange(embeds.shape[1] - shape.answer_tokens, embeds.shape[1]) - shared,
        inputs_embeds=embeds[:, shared:],
        attention_mask=mask,
        use_cache=not shape.gradient_checkpointing,
        past_key_values=read_prefix(llm, embeds, shared),
    )
    labels = torch.zeros(batch_size * shape.answer_tokens, dtype=torch.int64)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels)


def embed_prompt(modules: StepModules, shape: StepShape, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of prompts with fMRI tokens, and their attention mask."""
    n, length = len(tokens), shape.prefix_tokens + tokens.shape[1] + shape.text_tokens
    llm = modules.model.language_model
    embeds = llm.get_input_embeddings()(torch.zeros(n, length, dtype=torch.int64))
    projected = modules.model.projector(tokens).to(embeds.dtype)
    positions = torch.zeros(n, tokens.shape[1], 1, dtype=torch.int64).expand_as(projected)
    return embeds.scatter(1, positions, projected), torch.ones(n, length, dtype=torch.int64)
