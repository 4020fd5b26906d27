"""The command: what it refuses, what it opens, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from mindllm.data.store import Store
from mindllm.model.modeling import MindLLM
from tests.serve.serving import TRIAL, ask, free_port, scan_files

# Refuses, in every process that is started with it, all sockets but the chosen port's.
GUARD = """
import os, sys
port, log = int(os.environ["GUARDED_PORT"]), os.environ["GUARD_LOG"]
ALLOWED = {"socket.bind": {port}}
def refuse(event, arguments):
    if event in ("socket.bind", "socket.connect", "socket.sendto", "socket.getaddrinfo",
                 "socket.gethostbyname", "socket.sendmsg"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[:2]
        is_port = isinstance(address, tuple) and address[1] == port
        if event in ("socket.bind", "socket.getaddrinfo") and is_port:
            return
        with open(log, "a") as file:
            print(event, address, file=file)
        raise OSError(f"refused: {event} {address}")
sys.addaudithook(refuse)
"""


@contextmanager
def command(
    folder: Path, model: Path, store: Path, port: int, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mindllm serve` with guarded sockets."""
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "refused.txt").touch()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), *filter(None, sys.path)]),
        "GUARDED_PORT": str(port),
        "GUARD_LOG": str(folder / "refused.txt"),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder),
    }
    code = "from mindllm.cli import main; main()"
    words = ["serve", str(model), "--store", str(store), "--port", str(port), *options]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=output, stderr=output, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(output.read_text())


@pytest.mark.slow
def test_only_the_port_is_opened_and_running_requests_are_finished(
    tmp_path: Path, served_model: MindLLM, tiny_store: Store
) -> None:
    served_model.save_pretrained(tmp_path / "model")
    port = free_port()
    url, refused = f"http://127.0.0.1:{port}", tmp_path / "refused.txt"
    with command(tmp_path, tmp_path / "model", tiny_store.path, port) as process:
        wait_for(url, process, tmp_path / "output.txt")
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
            sent = http.post("/v1/scans", files=scan_files(tiny_store.masker("sub-01")))
            assert sent.status_code == 201, sent.text
            body = {"model": "tiny", "fmri": TRIAL, "text": "a dog"}
            assert http.post("/v1/explain/evidence", json=body).status_code == 200
        create = OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions.create
        stream = create(**ask({"scan": sent.json()["id"]}, max_tokens=150, stream=True))
        next(stream)
        process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert chunks[-1].mindllm["evidence"] is not None
        assert process.wait(30) == 143
    output = (tmp_path / "output.txt").read_text()
    assert "running requests were finished" in output
    assert "Traceback" not in output
    assert refused.read_text() == ""
    assert not list(tmp_path.glob("mindllm-serve-*"))


def test_the_guard_of_the_test_above_notices(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GUARD)
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path), "GUARDED_PORT": "1", "GUARD_LOG": str(tmp_path / "log"),
    }  # fmt: skip
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode != 0
    assert "socket.getaddrinfo ('127.0.0.1', 9)" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "a token is needed"),
        (["--token", "short"], "expected 16 or more"),
        (["--store", "nowhere"], "there is no store nowhere"),
        (["--host", "192.0.2.1", "--token", "0123456789abcdef"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(
    tmp_path: Path, served_model: MindLLM, options: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from mindllm import cli

    served_model.save_pretrained(tmp_path / "model")
    monkeypatch.delenv("MINDLLM_TOKEN", raising=False)
    words = ["mindllm", "serve", str(tmp_path / "model"), "--port", str(free_port()), *options]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())
