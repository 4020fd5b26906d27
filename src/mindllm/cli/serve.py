"""The command serve."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mindllm.cli.options import (
    LanguageModelPath,
    ModelFolder,
    SplitScheme,
    check_model,
    errors,
    finite,
)
from mindllm.utils.errors import InputError
from mindllm.utils.validation import validate_model

if TYPE_CHECKING:
    from mindllm.serve.configuration import ServeConfig

app = typer.Typer()

ServedStore = Annotated[
    Path | None, typer.Option(help="A prepared store, whose trials may be asked about.")
]
Host = Annotated[
    str, typer.Option(help="Address to listen on; other than this machine's needs a token.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="The only port that is opened.")]
Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        envvar="MINDLLM_TOKEN",
        help="Bearer token of a user, at least 16 characters. Repeatable; a user sees the scans "
        "that were sent with the same token. Others can read a command line: better set the "
        "environment variable.",
    ),
]
AllowedHosts = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", help="Another name of this server. Repeatable."),
]
ShowAnswers = Annotated[
    bool, typer.Option("--show-answers", help="Tell stimuli and texts of the store's trials.")
]
AbstainBelow = Annotated[
    float,
    typer.Option(min=0, max=1, callback=finite, help="Mark answers less probable than this."),
]
MaxBatch = Annotated[int, typer.Option(min=1, max=1024, help="Requests answered at once.")]
MaxQueue = Annotated[
    int, typer.Option(min=1, max=100_000, help="Requests that wait, at most; then 429.")
]
ScanHours = Annotated[
    float,
    typer.Option(min=0.01, max=24 * 365, callback=finite, help="Until a sent scan is removed."),
]


@app.command()
def serve(
    model: ModelFolder,
    store: ServedStore = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Tokens = None,
    allowed_host: AllowedHosts = None,
    show_answers: ShowAnswers = False,
    abstain_below: AbstainBelow = 0.0,
    max_batch: MaxBatch = 16,
    max_queue: MaxQueue = 64,
    scan_hours: ScanHours = 4.0,
    llm: LanguageModelPath = None,
    split_scheme: SplitScheme = None,
) -> None:
    """Serve a model to a browser and to clients of OpenAI's API; data stay on this machine."""
    check_installed()
    from mindllm.serve.configuration import ServeConfig

    options = {
        "host": host,
        "port": port,
        "tokens": tuple(token or ()),
        "allowed_hosts": tuple(name.lower() for name in allowed_host or ()),
        "show_answers": show_answers,
        "abstain_below": abstain_below,
        "max_batch": max_batch,
        "max_queue": max_queue,
        "scan_seconds": scan_hours * 3600,
    }
    config = validate_model(ServeConfig, options, "serve").check()
    check_model(model, llm)
    serve_model(model, store, config, llm, split_scheme)


def check_installed() -> None:
    """Refuse to start where the libraries of the extra `serve` are missing."""
    try:
        import fastapi
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"mindllm serve needs libraries that are not installed ({error}). "
            "Install them: pip install 'mindllm[serve]'"
        ) from error
    assert fastapi
    assert uvicorn


def serve_model(
    model: Path,
    store: Path | None,
    config: "ServeConfig",
    language_model: str | None,
    split_scheme: str | None,
) -> None:
    """Load a model and its store, and answer requests until a signal."""
    from mindllm.evaluation.evaluation_set import open_store
    from mindllm.model.modeling import MindLLM
    from mindllm.serve.app import create_app
    from mindllm.serve.server import open_port, run_server, unwatched_signals

    if store is not None and not store.is_dir():
        raise InputError(f"there is no store {store}. Make one with `mindllm prepare`.")
    with open_port(config) as port:
        with errors.status("loading the model"):
            loaded = MindLLM.from_pretrained(model, language_model=language_model).eval()
            opened = None if store is None else open_store(store, loaded.model_card, split_scheme)
        name = loaded.model_card.name or model.resolve().name
        with unwatched_signals():
            run_server(create_app(loaded, opened, config, name), config, port, show_address)


def show_address(url: str) -> None:
    """Say where the server is."""
    errors.print(f"serving at {url} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
