"""Models, stores and running servers of the tests of the server."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from openai import OpenAI

from mindllm.data.store import Store
from mindllm.fmri.masker import VoxelMasker
from mindllm.language.hub import DEFAULT_SENTENCE_ENCODER
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.encoding_fit import SubjectFeatures, fit_encoding_model
from mindllm.model.language_model import load_language_model
from mindllm.model.model_card import ModelCard
from mindllm.model.modeling import MindLLM
from mindllm.serve.app import create_app
from mindllm.serve.configuration import ServeConfig
from mindllm.serve.server import make_uvicorn_config
from tests.conftest import REGIONS, TEXTS, TINY_CONFIG

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


def make_model(language_model: Path, store: Store, *, with_evidence: bool = True) -> MindLLM:
    """A random model with an encoding model of the store's first subject."""
    torch.manual_seed(0)
    names = {atlas: list(parcels.values()) for atlas, parcels in REGIONS.items()}
    model = MindLLM(TINY_CONFIG, names, load_language_model(language_model)).eval()
    model.maskers = {"sub-01": store.masker("sub-01")}
    if with_evidence:
        embeddings = torch.from_numpy(embed_sentences(TEXTS, DEFAULT_SENTENCE_ENCODER))
        numbers = torch.arange(len(TEXTS)).repeat(8)
        response = torch.randn(len(TEXTS), TINY_CONFIG.num_queries)
        features = {
            f"sub-0{n}": SubjectFeatures(response[numbers] + torch.randn(48, 16), numbers)
            for n in (1, 2)
        }
        model.encoding_model = fit_encoding_model(features, embeddings)
        model.sentence_encoder = DEFAULT_SENTENCE_ENCODER
    model.model_card = ModelCard(
        name="tiny", subjects=["sub-01"], answers=dict.fromkeys(TEXTS[:5], 4), store="tiny"
    )
    return model


@dataclass(frozen=True)
class RunningServer:
    """A server that runs in a thread of the tests."""

    url: str
    config: ServeConfig
    app: FastAPI

    def http(self, token: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def openai(self, token: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    model: MindLLM, store: Store | None, options: Mapping[str, object] | None = None
) -> Iterator[RunningServer]:
    """Run a server until the block ends."""
    config = ServeConfig(port=free_port(), **(options or {}))  # type: ignore[arg-type]
    app = create_app(model, store, config)
    server = uvicorn.Server(make_uvicorn_config(app, config))
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind((config.host, config.port))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [port]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.started
        yield RunningServer(f"http://127.0.0.1:{config.port}", config, app)
    finally:
        server.should_exit = True
        thread.join(60)
        port.close()
        assert not thread.is_alive()


def scan_files(
    masker: VoxelMasker, n_volumes: int = 10, seed: int = 0
) -> dict[str, tuple[str, bytes]]:
    """A scan and its mask, as they are sent."""
    betas = np.random.default_rng(seed).normal(size=(n_volumes, len(masker))).astype(np.float32)
    images = {
        "volume": masker.inverse_transform(betas),
        "mask": masker.inverse_transform(np.ones(len(masker), np.uint8)),
    }
    return {name: (f"{name}.nii", img.to_bytes()) for name, img in images.items()}


def ask(reference: Mapping[str, object], text: str = "What is it?", **others: object) -> dict:
    """A chat request about a scan."""
    content = [{"type": "text", "text": text}, {"type": "fmri", "fmri": dict(reference)}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **others}


TRIAL = {"subject": "sub-01", "trial": 2}
