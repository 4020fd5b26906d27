"""Progress bars, and the callbacks that move them."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOG_INTERVAL_SECONDS = 30  # between log lines that replace a bar where there is no terminal
logger = logging.getLogger(__name__)


class Advance(Protocol):
    """Callback of a step: how many more items are done and, optionally, a new description."""

    def __call__(self, count: int, words: str | None = None, /) -> None: ...


def make_progress(console: Console, transient: bool = False) -> Progress:
    """Create progress bars with counts, time elapsed and time left.

    Parameters
    ----------
    console : rich.console.Console
        Where to draw.
    transient : bool
        Whether the bars vanish at the end.

    Returns
    -------
    rich.progress.Progress
        To be entered as a context manager.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=transient)


@contextmanager
def progress_bar(
    progress: Progress | None, title: str, total: int, done: int = 0
) -> Iterator[Advance]:
    """Show a bar with the time left, or a log line every 30 seconds where there is no terminal.

    Parameters
    ----------
    progress : rich.progress.Progress or None
        Bars to add one to; None: show nothing.
    title : str
        Description of the bar.
    total : int
        Number of items.
    done : int
        Number of items that are done already.

    Yields
    ------
    Advance
        Callback that moves the bar by a number of items.
    """
    task = progress.add_task(title, total=total, completed=done) if progress else None
    last_log, n_done = time.monotonic(), done

    def advance(count: int, words: str | None = None) -> None:
        nonlocal last_log, n_done
        n_done += count
        if progress and task is not None:
            progress.update(task, advance=count, description=words)
            is_due = time.monotonic() - last_log > LOG_INTERVAL_SECONDS
            if not progress.console.is_terminal and is_due:
                last_log = time.monotonic()
                logger.info("%s: %d of %d", title, n_done, total)

    yield advance


@contextmanager
def spinner(progress: Progress | None, title: str) -> Iterator[None]:
    """Show a bar without a total for a step that cannot be counted.

    Parameters
    ----------
    progress, title
        As for `progress_bar`.
    """
    task = progress.add_task(title, total=None) if progress else None
    yield
    if progress and task is not None:
        progress.update(task, total=1, completed=1)
