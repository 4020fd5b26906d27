"""Commands about finished stores: show and check one, verify its files, split one anew."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from mindllm.cli.options import (
    MAX_COUNT,
    Seed,
    SplitScheme,
    StoreFolder,
    Subjects,
    bars,
    claim_output,
    console,
    parse_list,
)
from mindllm.utils.errors import InputError
from mindllm.utils.progress import progress_bar

if TYPE_CHECKING:
    from mindllm.report.store_report import StoreReport, TextTable

app = typer.Typer()


@app.command()
def qc(
    store: StoreFolder,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for a page (index.html) with tables, checks and figures."),
    ] = None,
    split_scheme: SplitScheme = None,
    seed: Seed = 0,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compute the checksum of every file, betas too.")
    ] = False,
) -> None:
    """Show what a store holds, check that it looks right, and draw figures of it."""
    from mindllm.data.store import Store
    from mindllm.report.store_report import inspect_store, write_store_report

    if verify:
        verify_files([store])
    data = Store(store, split_scheme)
    if out is not None:
        claim_output(out, inputs=[store])
    with bars() as progress:
        report = inspect_store(data, seed, progress)
    print_report(report)
    if out is not None:
        print_line(f"page: {escape(str(write_store_report(report, data, out)))}")


@app.command(name="verify")
def verify_files(
    folders: Annotated[
        list[Path], typer.Argument(help="Stores, models, reports, or folders that hold some.")
    ],
    update: Annotated[
        bool,
        typer.Option("--update", help="Accept the files as they are: write their checksums anew."),
    ] = False,
) -> None:
    """Compare every file of stores, models and reports with its checksum in manifest.json.

    All that differ are named. Files that a manifest does not list, such as notes, do not matter.
    """
    from mindllm.utils.manifest import find_manifests

    manifests = [manifest for folder in folders for manifest in find_manifests(folder)]
    changes: list[str] = []
    n_bytes = sum(entry.size for m in manifests for entry in m.content.files.values())
    with (
        bars() as progress,
        progress_bar(progress, "computing checksums", n_bytes) as advance,
    ):
        for manifest in manifests:  # those of subfolders first, since others list them
            if update:
                manifest.update(advance)
            else:
                changes += manifest.list_changes(advance)
    if changes:
        raise InputError("\n".join(changes))
    n_files = sum(len(manifest.content.files) for manifest in manifests)
    done = "have new checksums" if update else "are as they were written"
    console.print(f"{n_files} files ({n_bytes / 2**20:.1f} MiB) {done}")


def print_line(markup: str = "") -> None:
    """Print a line of rich markup that the terminal wraps, so that it can be copied whole."""
    console.print(markup, highlight=False, soft_wrap=True)


def print_report(report: "StoreReport") -> None:
    """Print the tables, sample conversations and checks of a report about a store."""
    for label, text in report.info.items():
        print_line(f"[bold]{label}[/bold]  {escape(text)}")
    for table in report.tables:
        print_table(table)
    for sample in report.samples:
        print_line(f"\n[dim]{escape(f'{sample.source}, {sample.about}')}[/dim]")
        for turn in sample.turns:
            print_line(f"[bold]{escape(turn['role'])}[/bold]  {escape(turn['content'])}")
    print_line()
    for check in report.checks:
        mark = "[green]pass[/green]" if check.passed else "[bold red]warn[/bold red]"
        subject = f"{check.subject}: " if check.subject else ""
        print_line(f"{mark}  {escape(check.name)}  [dim]{escape(subject + check.message)}[/dim]")


def print_table(table: "TextTable") -> None:
    """Print one table below its title."""
    title = f"{table.title} ({table.note})" if table.note else table.title
    if not table.rows:
        print_line(f"{table.title}: none")
        return
    screen = Table(
        *(Column(escape(name), overflow="fold") for name in table.columns),
        title=escape(title),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for row in table.rows:
        screen.add_row(*map(escape, row))
    console.print(screen)


SplitName = Annotated[str, typer.Argument(help="Name of the new split.")]
SplitRule = Annotated[
    str, typer.Option(help="stimulus, cluster (of similar meaning), subject, or sessions.")
]
TestPart = Annotated[
    str | None,
    typer.Option(
        help="A fraction of the stimuli, e.g. 0.2; by subject: subjects, e.g. sub-03,sub-10."
    ),
]
ValPart = Annotated[str | None, typer.Option(help="Likewise, to choose the checkpoint with.")]
StartSplit = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="By subject or sessions: another split to start from. Default: that of `prepare`.",
    ),
]
NumClusters = Annotated[int, typer.Option(min=2, help="By cluster: number of clusters.")]
TrainSessions = Annotated[
    int, typer.Option(min=1, help="By sessions: how many are trained on (one is about an hour).")
]
SessionSubjects = Annotated[
    str | None, typer.Option(help="By sessions: of these subjects, comma-separated. Default: all.")
]


@app.command()
def split(
    store: StoreFolder,
    name: SplitName,
    by: SplitRule,
    test: TestPart = None,
    val: ValPart = None,
    clusters: NumClusters = 40,
    sessions: TrainSessions = 1,
    subjects: SessionSubjects = None,
    start: StartSplit = None,
    seed: Seed = 0,
) -> None:
    """Make another split of a store; `train` and `evaluate` take it as --split-scheme NAME."""
    from mindllm.data.resplit import By, create_split
    from mindllm.data.splits import describe_split
    from mindllm.data.store import Store

    if by not in get_args(By):
        raise InputError(f"--by {by}: expected stimulus, cluster, subject or sessions.")
    parts = {part: text for part, text in (("test", test), ("val", val)) if text}
    by_stimuli = by in ("stimulus", "cluster")
    with bars() as progress:
        new_store = create_split(
            Store(store, start),
            name,
            by,  # type: ignore[arg-type] # checked above
            fractions=parse_fractions(parts) if by_stimuli else {},
            subjects_by_split={part: parse_list(text) or [] for part, text in parts.items()},
            sessions=sessions,
            subjects=parse_list(subjects),
            clusters=clusters,
            seed=seed,
            progress=progress,
        )
    counts = ", ".join(f"{count} {part}" for part, count in new_store.split["trials"].items())
    print_line(f"{escape(describe_split(new_store.split))}: {counts} trials")


@app.command()
def export_webdataset(
    store: StoreFolder,
    out: Annotated[Path, typer.Argument(help="New folder for the shards.")],
    subjects: Subjects = None,
    shard_size: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Trials in each shard.")
    ] = 1000,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize", help="Write betas as a training reads them, not as measured."
        ),
    ] = False,
    split_scheme: SplitScheme = None,
) -> None:
    """Write a store as WebDataset shards (tar files), for clusters that stream their data.

    An interrupted export goes on with the same command.
    """
    from mindllm.data.store import Store
    from mindllm.data.webdataset_export import export_webdataset as export

    with bars() as progress:
        index = export(
            Store(store, split_scheme),
            out,
            subjects=parse_list(subjects),
            shard_size=shard_size,
            standardize=standardize,
            progress=progress,
        )
    n_trials = sum(shard.n_trials for shard in index.shards)
    print_line(f"{escape(str(out))}: {n_trials} trials in {len(index.shards)} shards")


def parse_fractions(texts: dict[str, str]) -> dict[str, float]:
    """Return fractions of the stimuli as numbers."""
    expected = "expected fractions of the stimuli, e.g. --test 0.2 --val 0.1."
    try:
        fractions = {part: float(text) for part, text in texts.items()}
    except ValueError as error:
        raise InputError(f"{error}: {expected}") from error
    for part, fraction in fractions.items():
        if not 0 <= fraction < 1:  # not for NaN either
            raise InputError(f"--{part} {texts[part]}: {expected}")
    return fractions
