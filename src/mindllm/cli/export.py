"""Commands that write what a serving engine such as vLLM reads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mindllm.cli.decode import Question, load_model
from mindllm.cli.options import (
    LanguageModelPath,
    MaskThreshold,
    MaxNewTokens,
    ModelFolder,
    check_model,
    claim_output,
    console,
    errors,
    locks,
)
from mindllm.cli.scans import (
    Atlases,
    Mask,
    MaskerSubject,
    Scan,
    ScanOptions,
    Standardized,
    StandardizeWith,
    Volumes,
)
from mindllm.utils.files import check_not_exists
from mindllm.utils.locks import lock_output

app = typer.Typer()

Dtype = Annotated[
    Literal["bfloat16", "float16", "float32"],
    typer.Option(help="The dtype that the engine serves the language model in."),
]


ServedName = Annotated[
    str | None, typer.Option(help="Name that the engine serves. Default: the language model's.")
]
ServingApi = Annotated[
    Literal["completions", "chat"], typer.Option(help="Which of the engine's APIs to ask.")
]


@app.command()
def export_prompts(
    model: ModelFolder,
    scan: Scan,
    out: Annotated[
        Path, typer.Option(help="File to write: .jsonl (requests) or .safetensors (tensors).")
    ],
    mask: Mask = None,
    mask_threshold: MaskThreshold = None,
    subject: MaskerSubject = None,
    atlas: Atlases = None,
    volumes: Volumes = None,
    question: Question = None,
    standardize_with: StandardizeWith = None,
    standardized: Standardized = False,
    served_name: ServedName = None,
    api: ServingApi = "completions",
    max_new_tokens: MaxNewTokens = 48,
    dtype: Dtype = "bfloat16",
    llm: LanguageModelPath = None,
) -> None:
    """Write prompts about the volumes of a scan, as embeddings that vLLM continues."""
    import torch

    from mindllm.model.prompt_export import RequestOptions, check_suffix, embed_scan, write_prompts

    check_suffix(out)
    options = ScanOptions(
        scan, mask, mask_threshold, subject, atlas or [], volumes, standardize_with, standardized
    )
    check_model(model, llm)
    options.check()
    check_not_exists(out)
    locks.enter_context(lock_output(out))
    loaded = load_model(model, llm, 0)
    data = options.open(loaded, model)
    with errors.status("embedding prompts"):
        prompts = embed_scan(
            loaded,
            data.scan,
            data.masker,
            question=question,
            dtype=getattr(torch, dtype),
            **data.reading,
        )
    name = served_name or loaded.language_model.name
    write_prompts(loaded, prompts, out, RequestOptions(name, api, max_new_tokens))
    console.print(f"{out}: {len(prompts)} prompts in {dtype}", highlight=False)


@app.command()
def export_language_model(
    model: ModelFolder,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    dtype: Dtype = "bfloat16",
    llm: LanguageModelPath = None,
) -> None:
    """Write a model's language model as a transformers folder, its LoRA adapter merged into it."""
    import torch

    from mindllm.model.prompt_export import export_language_model as export

    check_model(model, llm)
    claim_output(out, inputs=[model])
    with errors.status("merging"):
        is_merged = export(model, out, llm, getattr(torch, dtype))
    adapter = "with the LoRA adapter merged into it" if is_merged else "without an adapter"
    console.print(f"{out}: the language model in {dtype}, {adapter}", highlight=False)
