"""The command ablate: keys of the attention with and without positions and regions."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import (
    StoreFolder,
    Subjects,
    bars,
    claim_output,
    console,
    parse_list,
)

app = typer.Typer()
AblationFolder = Annotated[
    Path,
    typer.Option(
        help="Folder for key_ablation.md, key_ablation.tsv and key_ablation.png. What an "
        "interrupted run has computed is kept there, and taken up by the same command."
    ),
]
KeyVariants = Annotated[
    str | None,
    typer.Option(
        help="Variants beside `both`: position, regions, the name of an atlas (its regions "
        "alone), shuffled (betas shuffled over voxels), not trained. Default: all."
    ),
]


@app.command()
def ablate(
    store: StoreFolder,
    subjects: Subjects = None,
    out: AblationFolder = Path("key-ablation"),
    left_out: Annotated[
        str | None,
        typer.Option(help="Subjects that are left out in turn. Default: all that take part."),
    ] = None,
    keys: KeyVariants = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON file of training options; see `mindllm config`."),
    ] = None,
    n_seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Trainings of each variant, which are averaged.")
    ] = 1,
) -> None:
    """Ablate the keys of the attention: position, regions, both; trained anew for every subject.

    Every subject is left out of training in turn, and its trials are identified by evidence.
    """
    from mindllm.data.store import Store
    from mindllm.evaluation.cache import clear_cache
    from mindllm.evaluation.key_ablation import KeyAblation
    from mindllm.report.key_ablation import key_ablation_table, write_key_ablation
    from mindllm.training.configuration import read_config

    claim_output(out, inputs=[store], resumable=("key_ablation.tsv", "partial"))
    ablation = KeyAblation(
        Store(store),
        out,
        read_config(config, {}),
        subjects=parse_list(subjects),
        left_out=parse_list(left_out),
        names=parse_list(keys),
        n_seeds=n_seeds,
    )
    with bars() as progress:
        rows = ablation.run(progress)
    write_key_ablation(rows, ablation.variants, out)
    clear_cache(out)
    console.print(key_ablation_table(rows, ablation.variants))
    console.print(f"tables: {out / 'key_ablation.md'}")
