"""Prompts with fMRI tokens as requests to a serving engine, and the language model to serve.

A serving engine such as vLLM reads prompts as embeddings, so a scan can be decoded by it: here the
prompt is embedded as `MindLLM.generate` embeds it, and the engine continues it.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor

from mindllm.fmri.masker import VoxelMasker
from mindllm.fmri.nifti import Image
from mindllm.language.chat_templates import NO_THINKING
from mindllm.language.conversation import FMRI_TOKEN, Conversation
from mindllm.language.hub import offline
from mindllm.model.checkpoint import REMEDY, CheckpointParts, load_checkpoint
from mindllm.model.decode import read_betas
from mindllm.model.generation import end_token_ids
from mindllm.model.language_model import FrozenLanguageModel, load_language_model
from mindllm.model.modeling import MindLLM
from mindllm.model.pretrained import resolve_checkpoint
from mindllm.model.sampling import MAX_NEW_TOKENS
from mindllm.model.scan_voxels import resolve_masker
from mindllm.utils.errors import InputError
from mindllm.utils.files import atomic_write, check_not_exists, describe_read_errors
from mindllm.utils.folders import atomic_directory

Api = Literal["completions", "chat"]
URLS: dict[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
SUFFIXES = (".jsonl", ".safetensors")


@dataclass(frozen=True, slots=True)
class PromptEmbeds:
    """One prompt as a serving engine reads it.

    Parameters
    ----------
    custom_id : str
        Name of the request, such as "volume-0".
    conversation : Conversation
        Ends on a user turn.
    prompt : Tensor of shape (L, hidden_size)
        The templated conversation up to the opened answer, embedded.
    content : Tensor of shape (L_content, hidden_size)
        The turn that holds the fMRI tokens alone, without the template around it.
    """

    custom_id: str
    conversation: Conversation
    prompt: Tensor
    content: Tensor


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What all requests of an export have in common.

    Parameters
    ----------
    served_name : str
        Name under which the engine serves the language model.
    api : {"completions", "chat"}
        Of OpenAI. To completions the complete prompt is sent; to chat the turn with the fMRI
        tokens, around which the engine puts its chat template.
    max_tokens : int
        Tokens at most, of each answer.
    """

    served_name: str
    api: Api = "completions"
    max_tokens: int = MAX_NEW_TOKENS


@torch.no_grad()
def embed_prompts(
    model: MindLLM,
    fmri_tokens: Tensor,
    conversations: Sequence[Conversation],
    dtype: torch.dtype = torch.bfloat16,
) -> list[PromptEmbeds]:
    """Embed prompts with fMRI tokens as the model's own forward reads them.

    Parameters
    ----------
    model : MindLLM
    fmri_tokens : Tensor of shape (n, num_fmri_tokens, token_dim)
    conversations : sequence of Conversation
        One per row, each ending on a user turn.
    dtype : torch.dtype
        That of the served language model.

    Returns
    -------
    list of PromptEmbeds

    Raises
    ------
    InputError
        If a conversation is malformed, or the tokenizer joins the text of a turn with the chat
        template around it.

    Examples
    --------
    >>> prompts = embed_prompts(
    ...     model, model.encode(betas, masker), [model.build_conversation()] * len(betas)
    ... )  # doctest: +SKIP
    >>> prompts[0].prompt.shape  # doctest: +SKIP
    torch.Size([41, 576])
    """
    prompts = []
    for row, conversation in zip(range(len(fmri_tokens)), conversations, strict=True):
        encoded = model.processor(conversation, generate=True)
        embeds = model.prepare_inputs_embeds(
            torch.as_tensor(encoded.input_ids, device=model.device)[None],
            torch.as_tensor(encoded.fmri_token_positions, device=model.device)[None],
            fmri_tokens[row : row + 1].to(model.device),
        )[0].to("cpu", dtype)
        start, stop = locate_content(model, conversation, encoded.input_ids.tolist())
        prompts.append(
            PromptEmbeds(f"volume-{row}", conversation, embeds, embeds[start:stop].clone())
        )
    return prompts


def embed_scan(
    model: MindLLM,
    img: Image,
    mask_or_masker: Image | VoxelMasker,
    atlases: Mapping[str, Image] | None = None,
    *,
    volumes: Sequence[int] | None = None,
    question: str | None = None,
    standardize_with: Image | None = None,
    standardized: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> list[PromptEmbeds]:
    """Embed prompts about volumes of an image of betas.

    Parameters
    ----------
    model, img, mask_or_masker, atlases, volumes, question, standardize_with, standardized
        As for `mindllm.model.decode.decode`.
    dtype : torch.dtype
        That of the served language model.

    Returns
    -------
    list of PromptEmbeds
        In the order of `volumes`; the ids name the volumes.
    """
    masker = resolve_masker(model, mask_or_masker, atlases or {})
    betas = read_betas(masker, img, volumes, standardize_with, standardized)
    conversations = [model.build_conversation(question)] * len(betas)
    prompts = embed_prompts(model, model.encode(betas, masker), conversations, dtype)
    indices = range(len(betas)) if volumes is None else volumes
    return [
        replace(prompt, custom_id=f"volume-{index}")
        for index, prompt in zip(indices, prompts, strict=True)
    ]


def locate_content(
    model: MindLLM, conversation: Conversation, input_ids: Sequence[int]
) -> tuple[int, int]:
    """First and last (exclusive) token of the turn that holds the fMRI tokens."""
    (content,) = [turn["content"] for turn in conversation if FMRI_TOKEN in turn["content"]]
    processor = model.processor
    ids: list[int] = []
    for token in processor.chat_template.data_tokenizer.tokenize(content)[0].tolist():
        ids += [token] * (processor.num_fmri_tokens if token == processor.fmri_token_id else 1)
    for start in range(len(input_ids) - len(ids) + 1):
        if list(input_ids[start : start + len(ids)]) == ids:
            return start, start + len(ids)
    raise InputError(
        f"the tokenizer of {model.language_model.name} joins a turn with the chat template around "
        f"it, so it cannot be sent alone: {content[:100]!r}. Begin and end it with a word, or "
        "export for completions."
    )


def encode_tensor(tensor: Tensor) -> str:
    """A tensor as vLLM reads it from JSON: what `torch.save` writes, in base64.

    Parameters
    ----------
    tensor : Tensor of shape (L, hidden_size)

    Returns
    -------
    str

    References
    ----------
    docs.vllm.ai, Prompt Embedding Inputs.
    """
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def build_body(model: MindLLM, prompt: PromptEmbeds, options: RequestOptions) -> dict[str, object]:
    """The JSON body of a request for a greedy answer.

    Parameters
    ----------
    model : MindLLM
        Its template says what ends an answer.
    prompt : PromptEmbeds
    options : RequestOptions

    Returns
    -------
    dict
        To be posted to `URLS[options.api]`.

    Raises
    ------
    InputError
        For chat, if the model has a chat template of its own.
    """
    template = model.processor.chat_template
    body: dict[str, object] = {
        "model": options.served_name,
        "max_tokens": options.max_tokens,
        "temperature": 0,
        "stop": template.stop_strings,
        "stop_token_ids": end_token_ids(model),
    }
    if options.api == "completions":
        return body | {"prompt_embeds": encode_tensor(prompt.prompt)}
    if model.chat_template is not None:
        raise InputError(
            f"the model has the chat template {model.chat_template!r}, which the engine does not "
            "know. Export for completions, where prompts are complete."
        )
    part = {"type": "prompt_embeds", "data": encode_tensor(prompt.content)}
    messages = [
        {**turn, "content": [part]} if FMRI_TOKEN in turn["content"] else turn
        for turn in prompt.conversation
    ]
    return body | {"messages": messages, "chat_template_kwargs": NO_THINKING}


def write_prompts(
    model: MindLLM, prompts: Sequence[PromptEmbeds], out: Path, options: RequestOptions
) -> None:
    """Write prompts as requests, one JSON object per line, or as tensors.

    Parameters
    ----------
    model : MindLLM
    prompts : sequence of PromptEmbeds
    out : Path
        A new file. `.jsonl`: OpenAI's batch format, with custom_id, method, url and body.
        `.safetensors`: the embedded prompts under their ids, for an engine in the same process.
    options : RequestOptions

    Raises
    ------
    InputError
        If the file exists or has another suffix.
    """
    check_suffix(out)
    check_not_exists(out)
    with atomic_write(out) as temporary:
        if out.suffix == ".safetensors":
            save_file({prompt.custom_id: prompt.prompt for prompt in prompts}, temporary)
        else:
            lines = request_lines(model, prompts, options)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def check_suffix(out: Path) -> None:
    """Refuse a file of another format."""
    if out.suffix not in SUFFIXES:
        raise InputError(
            f"{out}: expected a file that ends in {' or '.join(SUFFIXES)}, for requests or tensors."
        )


def request_lines(
    model: MindLLM, prompts: Sequence[PromptEmbeds], options: RequestOptions
) -> Iterator[str]:
    """Requests in OpenAI's batch format."""
    for prompt in prompts:
        request = {"custom_id": prompt.custom_id, "method": "POST", "url": URLS[options.api]}
        yield json.dumps(request | {"body": build_body(model, prompt, options)})


def export_language_model(
    name: str | Path,
    out: Path,
    language_model: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> bool:
    """Write the language model of a model as a transformers folder, a LoRA adapter merged into it.

    Parameters
    ----------
    name : str or Path
        A model folder or hub id.
    out : Path
        A new folder.
    language_model : str or Path, optional
        Where the language model is, if not under the name that the model has for it.
    dtype : torch.dtype
        Of the written weights; they are merged in float32.

    Returns
    -------
    bool
        Whether an adapter was merged.

    Raises
    ------
    InputError
        If the folder exists, or a model cannot be found or read.

    Examples
    --------
    >>> export_language_model("model", Path("merged"))  # doctest: +SKIP
    True
    """
    check_not_exists(out)
    parts = load_checkpoint(resolve_checkpoint(name))
    loaded = load_language_model(language_model or parts.language_model.name, dtype=torch.float32)
    check_fingerprint(loaded, parts, name)
    merged = loaded.model
    if parts.adapter:
        with offline(), describe_read_errors(parts.adapter, REMEDY):
            merged = PeftModel.from_pretrained(merged, parts.adapter).merge_and_unload()
    merged.generation_config.eos_token_id = loaded.end_token_ids
    with atomic_directory(out) as temporary, offline():
        merged.to(dtype).save_pretrained(temporary)
        loaded.tokenizer.save_pretrained(temporary)
    return parts.adapter is not None


def check_fingerprint(
    language_model: FrozenLanguageModel, parts: CheckpointParts, name: str | Path
) -> None:
    """Refuse another language model than the one that a model was trained with."""
    expected = parts.language_model.fingerprint
    if language_model.fingerprint != expected:
        raise InputError(
            f"the language model {language_model.name} is not the one that {name} was trained with "
            f"(fingerprint {language_model.fingerprint}, expected {expected}). Name the right one."
        )
