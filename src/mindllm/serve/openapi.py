"""The schema of the API, as it is: errors in OpenAI's format, events of a stream."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mindllm.serve.schemas import ChatChunk

INVALID = "422"  # which FastAPI announces; what is malformed is answered with 400
UNUSED_SCHEMAS = ("HTTPValidationError", "ValidationError")


def install_schema(app: FastAPI) -> None:
    """Make the application describe itself right."""

    def openapi() -> Any:
        if app.openapi_schema is None:
            app.openapi_schema = correct(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                )
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def correct(schema: Any) -> Any:
    """Remove answers that never come, and add the events of a stream."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop(INVALID, None)
    schemas = schema["components"]["schemas"]
    for name in UNUSED_SCHEMAS:
        schemas.pop(name, None)
    chunk = ChatChunk.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(chunk.pop("$defs"))
    schemas["ChatChunk"] = chunk
    return schema
