"""The command walkthrough: the method as a page, computed on two made-up subjects."""

from pathlib import Path
from typing import Annotated

import typer

from mindllm.cli.options import bars, claim_output, console, errors

app = typer.Typer()
PageFolder = Annotated[
    Path, typer.Option(help="A new folder for walkthrough.md and figures/walkthrough.")
]


@app.command()
def walkthrough(out: PageFolder = Path("walkthrough")) -> None:
    """Write the method as a page: shapes and pictures of every step, for two made-up subjects.

    The page in the documentation is made by it. Nothing is trained and nothing is read.
    """
    from mindllm.report.walkthrough import compute_walkthrough
    from mindllm.report.walkthrough_page import PAGE, write_walkthrough

    claim_output(out)
    with errors.status("computing the steps"):
        steps = compute_walkthrough()
    with bars() as progress:
        write_walkthrough(steps, out, progress)
    console.print(f"page: {out / PAGE}", highlight=False, soft_wrap=True)
