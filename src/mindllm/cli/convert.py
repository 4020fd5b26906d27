"""The command convert."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import NewModel, claim_output, console, finite, parse_list

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
        str, typer.Option(help="Its language model: hub id, folder or .gguf file.")
    ] = "lmsys/vicuna-7b-v1.5",
    trained_on: Annotated[
        str | None,
        typer.Option(help="Subjects it was trained on, if known, e.g. subj01,subj02, for reports."),
    ] = None,
    lora_alpha: Annotated[
        float,
        typer.Option(
            min=0.001,
            max=1e6,
            callback=finite,
            help="Alpha of its LoRA part, which it does not state; the authors use 16.",
        ),
    ] = 16,
) -> None:
    """Convert a published checkpoint to a model folder, to decode, evaluate or train further."""
    from mindllm.convert.mindllm_checkpoint import convert_checkpoint

    claim_output(out, inputs=[checkpoint, roi_dir])
    with console.status(f"reading {checkpoint}"):
        model = convert_checkpoint(
            checkpoint, roi_dir, llm, out, trained_on=parse_list(trained_on), lora_alpha=lora_alpha
        )
    origin = model.model_card.converted_from
    assert origin is not None
    for name, shape in origin.tensors.items():
        console.print(f"[dim]used[/dim] {name} {tuple(shape)}", highlight=False)
    weights = sum(p.numel() for p in [*model.encoder.parameters(), *model.projector.parameters()])
    lora = f", {len(origin.lora)} LoRA tensors" if origin.lora else ""
    console.print(
        f"{out}: {len(origin.tensors)} tensors used, none left over{lora}; {weights:,} weights; "
        f"maskers of {', '.join(model.maskers)}"
    )
