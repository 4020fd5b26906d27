"""The page about the server says what the server does."""

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from mindllm.serve import api_errors, schemas
from tests.serve.serving import RunningServer

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^<!-- (\w+) -->\n```json\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.mark.parametrize(("name", "content"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_are_of_the_schema(name: str, content: str) -> None:
    kind = getattr(schemas, name, None) or getattr(api_errors, name)
    model = TypeAdapter(kind).validate_json(content)
    assert set(TypeAdapter(dict).validate_json(content)) <= set(type(model).model_fields)


def test_every_example_is_checked() -> None:
    assert len(EXAMPLES) == PAGE.count("```json") >= 6


def test_the_client_of_the_page_works(server: RunningServer) -> None:
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE, re.M | re.S)
    results: dict[str, object] = {}
    exec(code.replace("http://127.0.0.1:8000", server.url), results)
    assert results["evidence"]["log_likelihood_ratio"] is not None  # type: ignore[index]
    assert results["answer"].usage.total_tokens > 0  # type: ignore[attr-defined]


def test_every_route_is_on_the_page(server: RunningServer) -> None:
    with server.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    for path in paths:
        assert f"`{path}" in PAGE or f" {path}" in PAGE, path
