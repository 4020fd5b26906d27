"""The command convert."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import NewModel, console, parse_list

app = typer.Typer()


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="A checkpoint of the authors' published format (.ckpt).")
    ],
    roi_dir: Annotated[
        Path, typer.Option(help="Their ROI folder: subj01/nsdgeneral.nii.gz and so on.")
    ],
    out: NewModel,
    llm: Annotated[
        str,
        typer.Option(help="The language model it was trained with: hub id, folder or .gguf file."),
    ] = "lmsys/vicuna-7b-v1.5",
    trained_on: Annotated[
        str | None,
        typer.Option(
            help="The people its weights were trained on, if you know, e.g. subj01,subj02; reports name them."
        ),
    ] = None,
    lora_alpha: Annotated[
        float,
        typer.Option(
            help="Of its LoRA part, if it has one: the checkpoint does not say; the authors use 16."
        ),
    ] = 16,
) -> None:
    """Turn a published checkpoint into a model folder, ready to decode, evaluate or train further."""
    from mindllm.convert.mindllm_checkpoint import convert_checkpoint as run

    with console.status(f"reading {checkpoint}"):
        model = run(
            checkpoint, roi_dir, llm, out, trained_on=parse_list(trained_on), lora_alpha=lora_alpha
        )
    made = model.model_card["converted_from"]
    for name, shape in made["tensors"].items():
        console.print(f"[dim]used[/dim] {name} {tuple(shape)}", highlight=False)
    weights = sum(p.numel() for p in [*model.encoder.parameters(), *model.projector.parameters()])
    lora = f", {len(made['lora'])} LoRA tensors" if made["lora"] else ""
    console.print(
        f"{out}: {len(made['tensors'])} tensors used, none left over{lora}; {weights:,} weights; voxels of {', '.join(model.maskers)}"
    )
