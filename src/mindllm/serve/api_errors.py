"""Errors in OpenAI's format: a status, one sentence, and nothing of the server's inside."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from mindllm.utils.errors import InputError, shorten

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
MAX_SHOWN = 200  # characters of a value in a message
logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What is wrong with a request."""

    message: str
    """One or two sentences."""
    type: str
    """Kind of error, such as invalid_request_error."""
    param: str | None = None
    """The field that is wrong."""
    code: str | None = None
    """A word for programs, such as model_not_found."""


class ErrorResponse(BaseModel):
    """Answer to a request that failed."""

    error: ErrorDetail


class APIError(HTTPException):
    """A request cannot be answered.

    Parameters
    ----------
    status : int
        HTTP status.
    message : str
    code : str
        A word for programs.
    param : str, optional
        The field that is wrong.
    headers : mapping from str to str, optional
        Of the answer, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param

    def response(self) -> JSONResponse:
        """The answer."""
        return error_response(self.status_code, self.detail, self.code, self.param, self.headers)


def error_response(
    status: int,
    message: str,
    code: str | None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer in OpenAI's format."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=message, type=kind, param=param, code=code)
    content = ErrorResponse(error=detail).model_dump()
    return JSONResponse(content, status, dict(headers or {}))


def input_error(
    error: InputError, code: str = "invalid_input", param: str | None = None
) -> APIError:
    """A request that the model refuses."""
    return APIError(400, str(error), code, param)


def client_gone() -> APIError:
    """A request that nobody waits for any more."""
    return APIError(499, "the client has gone.", "client_gone")


def not_found(what: str, code: str, param: str | None = None) -> APIError:
    """Something that there is not, or that belongs to another user."""
    return APIError(404, what, code, param)


def install_handlers(app: FastAPI) -> None:
    """Answer every error in OpenAI's format, without a stack trace."""
    app.add_exception_handler(APIError, answer_api_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(Exception, answer_unexpected)


async def answer_api_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of this package."""
    assert isinstance(error, APIError)
    return error.response()


async def answer_http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the web framework, such as 404 and 405."""
    assert isinstance(error, HTTPException)
    codes = {404: "route_not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    return error_response(error.status_code, str(error.detail), code, headers=error.headers)


async def answer_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer a request whose fields are other than documented: the first of them is named."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = shorten(".".join(where), MAX_SHOWN) or None
    message = f"{param}: {first['msg']}." if param else f"{first['msg']}."
    return error_response(400, shorten(message, 2 * MAX_SHOWN), "invalid_request", param)


async def answer_unexpected(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that is the server's fault; its place goes to the log, not its content."""
    log_unexpected(error)
    return error_response(500, "the server failed; its log says where.", "server_failed")


def log_unexpected(error: BaseException) -> None:
    """Log type and place of an error; its message might hold data of a user."""
    trace, lines = error.__traceback__, []
    while trace is not None:
        lines.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    logger.error("unexpected %s at %s", type(error).__name__, " < ".join(reversed(lines[-6:])))
