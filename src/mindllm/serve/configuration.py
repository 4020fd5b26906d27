"""Options of the server: where it listens, who may ask, and how much is taken."""

import ipaddress
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from mindllm.utils.errors import InputError

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
MIN_TOKEN_LENGTH = 16
Probability = Annotated[float, Field(ge=0, le=1)]


class ServeConfig(BaseModel):
    """Options of the server.

    Examples
    --------
    >>> ServeConfig(port=9000).host
    '127.0.0.1'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The only port that is opened."""
    tokens: tuple[str, ...] = ()
    """Bearer tokens, one per user; none: anybody on this machine may ask."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names by which the server may be addressed."""
    show_answers: bool = False
    """Whether stimuli and texts of the store's trials are shown."""
    abstain_below: Probability = 0.0
    """Answers less probable than this are marked as abstained, unless a request says otherwise."""
    max_batch: PositiveInt = 16
    """Requests that the language model answers at once."""
    batch_window_seconds: PositiveFloat = 0.005
    """How long the first request of a batch waits for others."""
    max_queue: PositiveInt = 64
    """Requests that wait or are answered; further ones are refused with 429."""
    default_new_tokens: PositiveInt = 48
    """Tokens of an answer, where a request states no limit."""
    max_new_tokens: PositiveInt = 1024
    """Tokens that a request may ask for."""
    max_body_bytes: PositiveInt = 2**20
    """Of a request other than an upload."""
    max_upload_bytes: PositiveInt = 2**29
    """Of an upload: all its files together, as they are sent."""
    max_image_bytes: PositiveInt = 2**31
    """Of an uploaded file, once it is decompressed."""
    max_grid_length: PositiveInt = 512
    """Voxels along a dimension of an uploaded image."""
    max_volumes: PositiveInt = 4096
    """Volumes of an uploaded scan."""
    max_voxels: PositiveInt = 500_000
    """Voxels inside an uploaded mask."""
    body_seconds: PositiveFloat = 120
    """Until the content of a request has arrived."""
    read_seconds: PositiveFloat = 60
    """Until an uploaded scan is read."""
    read_memory_bytes: PositiveInt = 2**32
    """Memory of the process that reads an uploaded scan."""
    max_scans: PositiveInt = 16
    """Uploaded scans that a user may keep."""
    max_scan_bytes: PositiveInt = 2**32
    """Betas of all uploaded scans together, on disk."""
    scan_seconds: PositiveFloat = 4 * 3600
    """Until an uploaded scan is removed."""
    cached_scans: PositiveInt = 1024
    """Trials and volumes whose fMRI tokens are kept."""
    shutdown_seconds: PositiveInt = 120
    """Until running requests are broken off at shutdown."""

    @property
    def is_local(self) -> bool:
        """Whether the server is reached from this machine alone."""
        return is_loopback(self.host)

    def check(self) -> Self:
        """Check that a server that others can reach asks for a token.

        Returns
        -------
        ServeConfig
            The same.

        Raises
        ------
        InputError
            If there is none, or one is too short to be a secret.
        """
        if not self.is_local and not self.tokens:
            raise InputError(
                f"--host {self.host} can be reached from other machines, so a token is needed. "
                "Set the environment variable MINDLLM_TOKEN (or --token), or leave --host out to "
                "serve this machine alone."
            )
        for token in self.tokens:
            is_visible = token.isascii() and token.isprintable() and " " not in token
            if len(token) < MIN_TOKEN_LENGTH or not is_visible:
                raise InputError(
                    f"a token has {len(token)} characters; expected {MIN_TOKEN_LENGTH} or more "
                    "ASCII characters without blanks, e.g. of `openssl rand -hex 32`."
                )
        if len(set(self.tokens)) < len(self.tokens):
            raise InputError("a token was given twice; expected another one for every user.")
        return self


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, and no other can reach it.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def is_address(host: str) -> bool:
    """Whether a host is written as an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
