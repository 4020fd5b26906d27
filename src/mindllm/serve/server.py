"""Runs the application on its port until a signal, and finishes what runs."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from mindllm.serve.configuration import ServeConfig
from mindllm.utils.errors import InputError

BACKLOG = 512  # connections that wait to be accepted
KEEP_ALIVE_SECONDS = 15


def run_server(
    app: FastAPI,
    config: ServeConfig,
    port: socket.socket,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an application until SIGINT or SIGTERM, then finish running requests.

    Parameters
    ----------
    app : FastAPI
        Made by `mindllm.serve.app.create_app`.
    config : ServeConfig
    port : socket.socket
        Of `open_port`.
    on_ready : callable
        Called with the server's address once requests are answered.
    """
    Server(make_uvicorn_config(app, config), lambda: on_ready(server_url(config))).run([port])


def make_uvicorn_config(app: FastAPI, config: ServeConfig) -> uvicorn.Config:
    """Options of the web server: no access log, which would hold ids of scans."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=config.shutdown_seconds,
    )


class Server(uvicorn.Server):
    """A server that tells when it is ready.

    Parameters
    ----------
    config : uvicorn.Config
    on_ready : callable
    """

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_ready()


@contextmanager
def open_port(config: ServeConfig) -> Iterator[socket.socket]:
    """Claim the port, before a model is loaded for nothing; nobody can connect yet.

    Yields
    ------
    socket.socket

    Raises
    ------
    InputError
        If it is in use by another program, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        port = socket.socket(family, kind, protocol)
    except OSError as error:
        raise unopened(config, error) from error
    with port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            port.bind(address)
        except OSError as error:
            raise unopened(config, error) from error
        yield port


def unopened(config: ServeConfig, error: OSError) -> InputError:
    """A port that cannot be opened."""
    return InputError(
        f"cannot listen on {config.host}, port {config.port} ({error.strerror or error}). "
        "Choose another with --port, or end the program that uses it."
    )


def server_url(config: ServeConfig) -> str:
    """Address of the server."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}"


@contextmanager
def unwatched_signals() -> Iterator[None]:
    """Let signals end the server in its own time, not after a command's period of grace."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
