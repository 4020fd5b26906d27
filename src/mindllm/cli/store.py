"""Commands about finished stores: look inside, and split anew."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from mindllm.cli.options import Seed, SplitScheme, StoreFolder, bars, console, parse_list
from mindllm.utils.errors import InputError

app = typer.Typer()


@app.command()
def qc(
    store: StoreFolder,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for a page (index.html) with the tables, checks and pictures."),
    ] = None,
    split_scheme: SplitScheme = None,
    seed: Seed = 0,
) -> None:
    """Show what a store holds, check that it looks right, and draw pictures of it."""
    from mindllm.data.store import Store
    from mindllm.report.store_report import inspect_store as run
    from mindllm.report.store_report import write_page
    from mindllm.utils.files import check_not_exists

    data = Store(store, split_scheme)
    if out is not None:
        check_not_exists(out)
    with bars() as progress:
        found = run(data, seed, progress)
    for name, value in found.about.items():
        console.print(f"[bold]{name}[/bold]  {value}", highlight=False, soft_wrap=True)
    for title, content in found.tables.items():
        columns = (Column(str(name), overflow="fold") for name in content.columns)
        table = Table(
            *columns,
            title=title,
            title_justify="left",
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for row in content.itertuples(index=False):
            table.add_row(*map(str, row))
        console.print(table if len(content) else f"{title}: none")
    for about, source, turns in found.samples:
        console.print(f"\n[dim]{source}, {about}[/dim]", highlight=False)
        for turn in turns:
            console.print(
                f"[bold]{turn['role']}[/bold]  {turn['content']}", highlight=False, soft_wrap=True
            )
    console.print()
    for check in found.checks:
        mark = "[green]fine[/green]" if check.passed else "[bold red]look[/bold red]"
        whose = f"{check.subject}: " if check.subject else ""
        console.print(
            f"{mark}  {check.name}  [dim]{whose}{check.message}[/dim]",
            highlight=False,
            soft_wrap=True,
        )
    if out is not None:
        console.print(f"page: {write_page(found, data, out)}")


@app.command()
def split(
    store: StoreFolder,
    name: Annotated[str, typer.Argument(help="What the new split is to be called.")],
    by: Annotated[
        str, typer.Option(help="stimulus, cluster (of like meaning), subject, or sessions.")
    ],
    test: Annotated[
        str | None,
        typer.Option(
            help="A share of the stimuli, e.g. 0.2; by subject: who is tested, e.g. sub-03,sub-10."
        ),
    ] = None,
    val: Annotated[
        str | None, typer.Option(help="Likewise, to choose the checkpoint with.")
    ] = None,
    clusters: Annotated[int, typer.Option(help="By cluster: how many.")] = 40,
    sessions: Annotated[
        int, typer.Option(min=1, help="By sessions: how many train (an hour is about one).")
    ] = 1,
    subjects: Annotated[
        str | None, typer.Option(help="By sessions: whose, comma-separated. Default: everybody's.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="By subject or sessions: another split to start from. Default: that of `prepare`.",
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make another split of a store, kept beside the data: `train` and `evaluate` take it as --split-scheme NAME."""
    from mindllm.data.resplit import create_split
    from mindllm.data.splits import describe_split
    from mindllm.data.store import Store

    if by not in ("stimulus", "cluster", "subject", "sessions"):
        raise InputError(f"--by {by}: expected stimulus, cluster, subject or sessions.")
    asked = {"test": test, "val": val}
    people = {part: parse_list(who) or [] for part, who in asked.items() if who}
    with bars() as progress:
        made = create_split(
            Store(store, start), name, by,  # type: ignore[arg-type] # checked above
            fractions={} if by in ("subject", "sessions") else split_fractions(asked), subjects_by_split=people, sessions=sessions, subjects=parse_list(subjects),
            clusters=clusters, seed=seed, progress=progress,
        )  # fmt: skip
    counts = ", ".join(f"{count} {part}" for part, count in made.split["trials"].items())
    console.print(f"{describe_split(made.split)}: {counts} trials", highlight=False, soft_wrap=True)


def split_fractions(asked: dict[str, str | None]) -> dict[str, float]:
    """Shares of the stimuli, told as numbers."""
    try:
        return {part: float(share) for part, share in asked.items() if share}
    except ValueError as error:
        raise InputError(
            f"{error}: expected shares of the stimuli, e.g. --test 0.2 --val 0.1."
        ) from error
