"""One command per verb."""

import logging
import os
import sys

from rich.logging import RichHandler

from mindllm.cli import models, prepare, scores
from mindllm.cli.common import app, errors
from mindllm.errors import InputError

app.add_typer(prepare.app, name="prepare")
__all__ = ["app", "main", "models", "prepare", "scores"]


def main() -> None:
    """Run a command. Bad input ends in one clear message and exit status 1."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=errors, show_time=False, show_path=False, show_level=True)],
    )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for noisy in ("httpx", "httpcore", "huggingface_hub", "filelock", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        app()
    except InputError as error:
        errors.print(
            f"[bold red]error:[/bold red] {str(error).replace('[', chr(92) + '[')}", highlight=False, soft_wrap=True
        )
        sys.exit(1)
