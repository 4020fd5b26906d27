"""Who may ask: host names, origins of pages, bearer tokens, and how much a request may hold."""

import asyncio
import hashlib
import hmac
import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mindllm.serve.api_errors import APIError
from mindllm.serve.configuration import LOCAL_NAMES, ServeConfig, is_address
from mindllm.serve.monitoring import Monitoring

LOCAL_USER = "local"
UPLOAD_PATH = "/v1/scans"
API_PATHS = ("/v1", "/metrics")  # everything else is the page, the schema and /health
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AccessRules:
    """Who may ask what.

    Parameters
    ----------
    config : ServeConfig

    Examples
    --------
    >>> rules = AccessRules(ServeConfig())
    >>> rules.user({"authorization": "Bearer whatever"})
    'local'
    >>> rules.is_known_host("localhost:8000"), rules.is_known_host("attacker.example:8000")
    (True, False)
    """

    config: ServeConfig

    def is_known_host(self, host: str) -> bool:
        """Whether a Host header names this server: no name of another site that leads here."""
        name = split_host(host)
        names = {*LOCAL_NAMES, self.config.host, *self.config.allowed_hosts}
        if not self.config.is_local:
            names.add(socket.gethostname().lower())
        # A page of another site has a name, so that an address cannot be one that was rebound.
        return name in names or (not self.config.is_local and is_address(name))

    def check_host(self, headers: Mapping[str, str]) -> None:
        """Refuse a request by another name: a page of that name could read the answers."""
        if not self.is_known_host(headers.get("host", "")):
            raise APIError(
                403,
                "the Host header does not name this server. Add the name with --allowed-host.",
                "unknown_host",
            )

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse a request that a page of another site sends."""
        origin = headers.get("origin")
        if (
            origin is not None
            and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        ):
            raise APIError(
                403, "a page of another site may not use this server.", "cross_origin_request"
            )

    def user(self, headers: Mapping[str, str]) -> str:
        """The user that a bearer token belongs to.

        Raises
        ------
        APIError
            If there is none, or an unknown one.
        """
        if not self.config.tokens:
            return LOCAL_USER
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        digest = hash_token(sent.strip())
        known = [t for t in self.config.tokens if hmac.compare_digest(hash_token(t), digest)]
        if scheme.lower() != "bearer" or not known:
            raise APIError(
                401,
                "a token is needed: send the header `Authorization: Bearer TOKEN`.",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return digest


def hash_token(token: str) -> str:
    """Name of a token's user, from which the token cannot be told."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def split_host(host: str) -> str:
    """Name or address of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


class AccessGuard:
    """Middleware before all routes: checks a request, bounds it, counts it, logs its route.

    Parameters
    ----------
    app : ASGI application
    config : ServeConfig
    monitoring : Monitoring
    """

    def __init__(self, app: ASGIApp, config: ServeConfig, monitoring: Monitoring) -> None:
        self.app, self.config, self.monitoring = app, config, monitoring
        self.rules = AccessRules(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                added = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in added if pair[0] not in names),
                ]
            await send(message)

        try:
            await self.answer(scope, receive, send_with_headers)
        finally:
            self.record(scope, status, time.monotonic() - start)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        path = scope["path"]
        try:
            self.rules.check_host(headers)
            self.rules.check_origin(headers)
            is_api = any(path == p or path.startswith(f"{p}/") for p in API_PATHS)
            user = self.rules.user(headers) if is_api else LOCAL_USER
            limit = self.body_limit(path, scope["method"])
            check_announced_length(headers, limit)
        except APIError as error:
            await error.response()(scope, receive, send)
            return
        scope.setdefault("state", {})["user"] = user
        await self.app(scope, BoundedBody(receive, limit, self.config.body_seconds), send)

    def body_limit(self, path: str, method: str) -> int:
        """Bytes that a request may hold."""
        is_upload = method == "POST" and path == UPLOAD_PATH
        return self.config.max_upload_bytes if is_upload else self.config.max_body_bytes

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request and log it, by its route: ids, and all that was sent, stay out."""
        route = getattr(scope.get("route"), "path", None) or "other"
        method = scope["method"] if scope["method"].isalpha() else "other"
        self.monitoring.requests.labels(route, method[:10], str(status)).inc()
        self.monitoring.request_seconds.labels(route).observe(seconds)
        logger.info("%s %s %d %.3f s", method[:10], route, status, seconds)


def check_announced_length(headers: Mapping[str, str], limit: int) -> None:
    """Refuse a request that announces more than is taken."""
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:20]) > limit:
        raise too_large(limit)


def too_large(limit: int) -> APIError:
    """A request that is larger than is taken."""
    return APIError(413, f"the request is larger than {limit:,} bytes.", "request_too_large")


class BoundedBody:
    """Receives a request's content up to a size and a time; then waits without limit.

    Parameters
    ----------
    receive : ASGI callable
    limit : int
        Bytes.
    seconds : float
    """

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self.receive, self.limit, self.count, self.is_complete = receive, limit, 0, False
        self.deadline = time.monotonic() + seconds

    async def __call__(self) -> Message:
        """The next part of a request."""
        if self.is_complete:  # what comes is that the client has gone
            return await self.receive()
        try:
            remaining = max(self.deadline - time.monotonic(), 0)
            message = await asyncio.wait_for(self.receive(), remaining)
        except TimeoutError:
            raise APIError(408, "the request did not arrive in time.", "request_timeout") from None
        self.count += len(message.get("body", b""))
        if self.count > self.limit:
            raise too_large(self.limit)
        self.is_complete = not message.get("more_body", False)
        return message
