"""Host names, origins, tokens, and how much a request may hold."""

import socket
import time

import pytest

from mindllm.model.modeling import MindLLM
from mindllm.serve.access import AccessRules
from mindllm.serve.api_errors import APIError
from mindllm.serve.configuration import ServeConfig
from mindllm.utils.errors import InputError
from tests.serve.serving import ALICE, TRIAL, RunningServer, ask, running


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1.attacker.example:80", ""])
def test_a_request_by_another_name_is_refused(server: RunningServer, host: str) -> None:
    with server.http() as http:
        answer = http.get("/v1/models", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("origin", ["https://attacker.example", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/scans"])
def test_a_page_of_another_site_is_refused(server: RunningServer, origin: str, path: str) -> None:
    with server.http() as http:
        answer = http.post(path, headers={"Origin": origin}, json=ask(TRIAL))
        preflight = http.options(
            path, headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
        )
        same = http.get("/v1/models", headers={"Origin": server.url})
    assert (answer.status_code, preflight.status_code) == (403, 403)
    assert same.status_code == 200
    for response in (answer, preflight, same):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_everything_but_health_and_schema_needs_a_token(token_server: RunningServer) -> None:
    with token_server.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
        for path, operations in paths.items():
            for method in operations:
                url = path.replace("{", "").replace("}", "")
                status = http.request(method, url).status_code
                assert status == (200 if path == "/health" else 401), (method, path)
    for token in ("wrong", ALICE[:-1], ALICE + "0"):
        with token_server.http(token) as http:
            answer = http.get("/v1/models")
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
    with token_server.http(ALICE) as http:
        assert http.get("/v1/models").status_code == 200
        assert b"mindllm_requests_total" in http.get("/metrics").content


def test_a_server_for_others_needs_a_token() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(InputError, match="a token is needed"):
            ServeConfig(host=host).check()
    with pytest.raises(InputError, match="expected 16 or more"):
        ServeConfig(host="0.0.0.0", tokens=("short",)).check()
    with pytest.raises(InputError, match="given twice"):
        ServeConfig(tokens=(ALICE, ALICE)).check()
    assert ServeConfig(host="0.0.0.0", tokens=(ALICE,)).check().port == 8000


def test_names_of_a_server_for_others() -> None:
    rules = AccessRules(
        ServeConfig(host="0.0.0.0", tokens=(ALICE,), allowed_hosts=("scans.lab.example",))
    )
    for host in ("scans.lab.example:8000", "192.0.2.7:8000", "[2001:db8::1]:80", "localhost"):
        rules.check_host({"host": host})
    assert rules.is_known_host(socket.gethostname())
    with pytest.raises(APIError):
        rules.check_host({"host": "rebound.example"})


def test_large_requests_are_refused_before_and_while_they_come(server: RunningServer) -> None:
    def pieces():
        for _ in range(40):
            yield b" " * 2**17

    with server.http() as http:
        for content in (b" " * (2**20 + 1), pieces()):
            answer = http.post(
                "/v1/chat/completions",
                content=content,
                headers={"Content-Type": "application/json"},
            )
            assert answer.status_code == 413, answer.text
            assert answer.json()["error"]["code"] == "request_too_large"
        upload = {"volume": ("v.nii", b"0" * (2**22)), "mask": ("m.nii", b"0")}
        assert http.post("/v1/scans", files=upload).status_code == 413


@pytest.mark.parametrize("content", [b"[" * 500_000, b'{"a":' * 100_000, b"\xff\xfe", b"NaN", b""])
def test_malformed_json_is_refused_without_a_trace(server: RunningServer, content: bytes) -> None:
    with server.http() as http:
        answer = http.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text


def test_a_request_that_does_not_arrive_is_given_up(served_model: MindLLM) -> None:
    with running(served_model, None, {"body_seconds": 0.3}) as server:
        address = (server.config.host, server.config.port)
        with socket.create_connection(address, timeout=10) as client:
            start = time.monotonic()
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
            answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 5
