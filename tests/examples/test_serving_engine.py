"""The client example against a server that continues the embeddings it is sent."""

import base64
import io
import json
import runpy
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mindllm.model.prompt_export import export_language_model

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "11_serve_with_vllm.py"


class Engine(BaseHTTPRequestHandler):
    """Completions from prompt embeddings, of one language model."""

    folder: Path
    received: list[torch.Tensor]
    written: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = base64.b64decode(body["prompt_embeds"], validate=True)
        embeds = torch.load(io.BytesIO(data), weights_only=True)
        self.received.append(embeds)
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        ids = model.generate(
            inputs_embeds=embeds[None].float(),
            max_new_tokens=body["max_tokens"],
            eos_token_id=body["stop_token_ids"],
            do_sample=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        text = tokenizer.decode(ids[0], skip_special_tokens=True)
        self.written.append(text.strip())
        answer = json.dumps({"model": body["model"], "choices": [{"text": text}]}).encode()
        self.send_response(200 if self.path == "/v1/completions" else 404)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def engine(desk: Path, tmp_path: Path) -> Iterator[str]:
    export_language_model(desk / "runs/demo/model", tmp_path / "served", dtype=torch.float32)
    Engine.folder, Engine.received, Engine.written = tmp_path / "served", [], []
    server = HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_engine_reads_what_the_model_reads(
    engine: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("ENGINE", engine)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    variables = runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == [f"volume-{n} {text}".strip() for n, text in enumerate(Engine.written)]
    assert len(lines) == 3
    for sent, prompt in zip(Engine.received, variables["prompts"], strict=True):
        assert sent.dtype == torch.bfloat16
        assert torch.equal(sent, prompt.prompt)
