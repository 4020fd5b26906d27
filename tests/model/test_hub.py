"""save_pretrained, from_pretrained, push_to_hub: through folders, and a hub on a local server."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mindllm import InputError, MindLLM
from mindllm.model.model_card import ConvertedFrom, MeasuredScore, ModelCard
from tests.conftest import make_space, update_manifests

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Row:
    subject: str = "all"
    condition: str = "fmri"
    metric: str = "identification_top1"
    value: float | None = 0.425
    ci_low: float | None = 0.292
    ci_high: float | None = 0.558
    chance_level: float | None = 0.017
    n_trials: int = 240


@pytest.fixture
def saved(tiny_model: MindLLM, tmp_path: Path) -> Path:
    masker = make_space("sub-01")
    tiny_model.maskers = {"sub-01": masker}
    tiny_model.model_card = ModelCard(subjects=["sub-01"], question="What is seen?", seed=3)
    tiny_model.add_results([Row(), Row(condition="shuffled_trials", value=0.017)])
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_equal_tokens_after_a_round_trip(tiny_model: MindLLM, saved: Path) -> None:
    again = MindLLM.from_pretrained(saved)
    masker = again.maskers["sub-01"]
    betas = np.random.default_rng(0).normal(size=(2, len(masker))).astype(np.float32)
    original = tiny_model.encode(betas, tiny_model.maskers["sub-01"])
    assert torch.equal(again.encode(betas, masker), original)
    assert again.model_card == tiny_model.model_card
    assert not again.training
    again.save_pretrained(saved.parent / "twice")
    names = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    twice = saved.parent / "twice"
    assert names == {p.relative_to(twice).as_posix() for p in twice.rglob("*") if p.is_file()}
    assert (twice / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()


def test_the_model_card_has_the_measured_results(saved: Path) -> None:
    text = (saved / "README.md").read_text(encoding="utf-8")
    header = text.split("---")[1]
    assert "library_name: mindllm" in header
    assert "base_model:" in header
    assert "| all | fmri | identification_top1 | 0.425 | 0.292 to 0.558 | 0.017 | 240 |" in text
    assert "shuffled_trials" in text
    assert "| Training subjects | sub-01 |" in text


def test_a_model_card_keeps_all_parts() -> None:
    card = ModelCard(
        validation_subjects=[],
        split={"name": "default"},
        started_from=ModelCard(converted_from=ConvertedFrom("model.ckpt", "0", {"a": [2, 3]}, [])),
        results=[MeasuredScore("all", "fmri", "bleu", 3, value=0.5)],
    )
    content = json.loads(json.dumps(card.to_dict()))
    assert set(content) == {"validation_subjects", "split", "started_from", "results"}
    assert ModelCard.from_dict(content) == card
    assert ModelCard.from_dict({"question": None, "started_from": None}) == ModelCard()
    assert (card.split_name, ModelCard().split_name) == ("default", None)


def test_a_model_card_with_unknown_entries(saved: Path) -> None:
    content = json.loads((saved / "config.json").read_text())
    content["model_card"]["normalization"] = {}
    (saved / "config.json").write_text(json.dumps(content))
    update_manifests(saved)
    with pytest.raises(InputError, match=r"model_card.normalization: Unexpected keyword"):
        MindLLM.from_pretrained(saved)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model"])
def test_what_is_no_model(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*expected a model"):
        MindLLM.from_pretrained(name)


def test_a_missing_library_is_told(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    def absent(*args: Any, **kwargs: Any) -> None:
        raise ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", absent)
    with pytest.raises(InputError, match="needs a library that is not installed"):
        MindLLM.from_pretrained(saved, quantization_config=object())


def test_options_reach_the_language_model(saved: Path) -> None:
    model = MindLLM.from_pretrained(
        saved, dtype="bfloat16", attn_implementation="eager", device_map="cpu"
    )
    assert model.language_model.model.dtype == torch.bfloat16
    assert model.language_model.model.config._attn_implementation == "eager"
    assert model.projector.weight.dtype == torch.float32


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot and a commit need; `files` is the repository."""

    files: dict[str, bytes]
    uploaded: dict[str, bytes]

    def log_message(self, *args: Any) -> None:
        pass

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/lab/model/resolve/"):
            name = path.split("/", 5)[5]
            headers = {"ETag": f'"{len(self.files[name])}-{name}"', "X_Repo_Commit": COMMIT}
            self.reply(self.files[name], **headers)
        elif "/tree/" in path:
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": "0" * 40}
                for n, b in self.files.items()
            ]
            self.reply(tree)
        elif path.startswith("/api/models/lab/model"):
            siblings = [{"rfilename": name} for name in self.files]
            self.reply({"id": "lab/model", "sha": COMMIT, "siblings": siblings})
        else:
            self.reply({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        path = self.path.split("?")[0]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/repos/create":
            self.reply({"url": f"http://{self.headers['Host']}/lab/model", "name": "lab/model"})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif path == "/api/models/lab/model/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply({"files": [{"path": name, **modes} for name in names]})
        elif path == "/api/models/lab/model/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.uploaded[line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/lab/model/commit/{COMMIT}"
            self.reply(
                {"commitUrl": url, "commitOid": COMMIT, "commitMessage": "", "success": True}
            )
        else:
            self.reply({"error": f"not found: {path}"}, 404)


class LocalHub(NamedTuple):
    """Address of a local server, and the files that a push has sent to it."""

    endpoint: str
    uploaded: dict[str, bytes]


@pytest.fixture
def hub(saved: Path) -> Iterator[LocalHub]:
    files = {p.relative_to(saved).as_posix(): p.read_bytes() for p in saved.rglob("*.*")}
    handler: Any = type("Handler", (Hub,), {"files": files, "uploaded": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield LocalHub(f"http://127.0.0.1:{server.server_address[1]}", handler.uploaded)
    server.shutdown()


def run(code: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python against a hub of one's own: importing huggingface_hub reads the endpoint."""
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )


def test_a_model_comes_from_the_hub(hub: LocalHub, saved: Path, tmp_path: Path) -> None:
    code = (
        "from mindllm import MindLLM\n"
        "model = MindLLM.from_pretrained('lab/model', revision='main')\n"
        f"model.save_pretrained({str(tmp_path / 'copy')!r})\n"
    )
    result = run(code, hub.endpoint, tmp_path / "home")
    assert result.returncode == 0, result.stderr
    copy = tmp_path / "copy" / "model.safetensors"
    assert copy.read_bytes() == (saved / "model.safetensors").read_bytes()
    missing = run(
        "from mindllm import MindLLM; MindLLM.from_pretrained('lab/none')",
        hub.endpoint,
        tmp_path / "home",
    )
    assert "there is no folder lab/none, and no model of that name that can be" in missing.stderr


def test_a_push_uploads_every_file(hub: LocalHub, saved: Path, tmp_path: Path) -> None:
    code = (
        "from mindllm import MindLLM\n"
        f"MindLLM.from_pretrained({str(saved)!r}).push_to_hub('lab/model', token='hf_test')\n"
    )
    result = run(code, hub.endpoint, tmp_path / "home")
    assert result.returncode == 0, result.stderr
    expected = {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()}
    assert set(hub.uploaded) == expected
    assert hub.uploaded["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert b"library_name: mindllm" in hub.uploaded["README.md"]
