"""Shapes of language models from names and files."""

import json
from pathlib import Path

import pytest

from mindllm.language.shapes import read_shape
from mindllm.utils.errors import InputError


def test_a_file_and_its_folder_are_one_shape(tiny_llm_folder: Path) -> None:
    from_folder = read_shape(str(tiny_llm_folder))
    from_file = read_shape(str(tiny_llm_folder / "config.json"))
    assert from_folder.hidden_size == from_file.hidden_size == 32
    assert from_folder.model_type == from_file.model_type == "llama"


@pytest.mark.parametrize("content", [[], {"hidden_size": 3}, {"model_type": "no-such"}])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"config\.json"):
        read_shape(str(path))


def test_an_unknown_name_lists_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindllm.language.hub.is_offline_mode", lambda: True)
    with pytest.raises(InputError, match="vicuna-7b"):
        read_shape("no/such-model")
