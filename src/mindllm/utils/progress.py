"""Progress bars: how they look, and how work that may have none tells them what is done."""

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

EVERY_SECONDS = 30  # between lines that stand for a bar where there is no terminal
logger = logging.getLogger(__name__)


class Advance(Protocol):
    """Is told how many more are done and, where that is worth saying, what is being done now."""

    def __call__(self, count: int, words: str | None = None, /) -> None: ...


def make_progress(console: Console, transient: bool = False) -> Progress:
    """Bars with counts, time gone and time left; `transient` ones vanish at the end."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, transient=transient)


@contextmanager
def progress_bar(
    progress: Progress | None, words: str, total: int, done: int = 0
) -> Iterator[Advance]:
    """Yield a function that is told how many more of `total` are done, and moves a bar with the time left."""
    task = progress.add_task(words, total=total, completed=done) if progress else None
    last, told, title = time.monotonic(), done, words

    def advance(count: int, words: str | None = None) -> None:
        nonlocal last, told
        told += count
        if progress and task is not None:
            progress.update(task, advance=count, description=words)
            if not progress.console.is_terminal and time.monotonic() - last > EVERY_SECONDS:
                last = time.monotonic()
                logger.info("%s: %d of %d", title, told, total)

    yield advance


@contextmanager
def spinner(progress: Progress | None, words: str) -> Iterator[None]:
    """A bar without an end for what cannot be counted."""
    task = progress.add_task(words, total=None) if progress else None
    yield
    if progress and task is not None:
        progress.update(task, total=1, completed=1)
