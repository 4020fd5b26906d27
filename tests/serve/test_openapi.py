"""Requests that are made of the API's own schema: what it promises is what it does."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, CheckFunction, GenerationMode, checks

from tests.serve.serving import ALICE, RunningServer

LEAKS = (b"Traceback", b"site-packages", b'File "', b"/tmp/")
CHECKS: list[CheckFunction] = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]


def exercise(
    server: RunningServer, count: int, mode: GenerationMode, used: list[CheckFunction],
    token: str | None = None,
) -> set[str]:  # fmt: skip
    """Send requests of every route; the names of the routes."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    labels = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body and not operation.query:
            continue  # anything is a valid name of a subject or scan

        @settings(
            max_examples=count, deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Case) -> None:
            response = case.call(headers=headers, timeout=60)
            assert not [leak for leak in LEAKS if leak in response.content]
            case.validate_response(response, checks=used, headers=headers)

        send()
        labels.add(operation.label)
    return labels


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_the_api_does_what_its_schema_says(server: RunningServer, mode: GenerationMode) -> None:
    assert len(exercise(server, 2, mode, CHECKS)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_the_api_does_what_its_schema_says_often(
    server: RunningServer, token_server: RunningServer, mode: GenerationMode
) -> None:
    exercise(server, 200, mode, CHECKS)
    exercise(token_server, 50, mode, [*CHECKS, checks.ignored_auth], ALICE)


def test_the_schema_names_what_clients_read(server: RunningServer) -> None:
    with server.http() as http:
        schema = http.get("/openapi.json").json()
    schemas = schema["components"]["schemas"]
    assert {"ChatRequest", "ChatResponse", "ChatChunk", "AnswerEvidence", "ErrorResponse"} <= set(
        schemas
    )
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "422" not in operation["responses"]
            refused = operation["responses"]["400"]["content"]["application/json"]["schema"]
            assert refused["$ref"].endswith("ErrorResponse")
    answered = schema["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(answered) == {"application/json", "text/event-stream"}
    described = schemas["AnswerEvidence"]["properties"]["evidence"]
    assert "nats" in described["description"]
