"""JSON and YAML of any origin: marks, half characters, bombs and pipes."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from mindllm.training.configuration import read_config
from mindllm.utils.errors import InputError
from mindllm.utils.files import read_json
from mindllm.utils.sorting import natural_sorted
from mindllm.utils.text_files import parse_json, read_text, read_yaml

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (r'"\ud83d"', "\ufffd"),
        (r'"\uD83D\uDE00"', "😀"),
        (r'"\ude00\ud83d"', "\ufffd\ufffd"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd😀"),
        (r'"\\ud83d"', r"\ud83d"),
        (r'"\\\ud83d\n"', "\\\ufffd\n"),
        (r'{"\ud83d": ["\udfff"]}', {"\ufffd": ["\ufffd"]}),
    ],
)
def test_half_a_surrogate_pair_becomes_the_replacement_character(
    content: str, expected: object
) -> None:
    value = parse_json(content, Path("x.json"), "")
    assert value == expected
    json.dumps(value, ensure_ascii=False).encode()


def test_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(file, "a store") == {"a": 1}
    file.write_text("seed: 3", encoding="utf-8-sig")
    assert read_config(file, {}).seed == 3


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{", ""])
def test_damaged_json_is_one_sentence_at_once(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"x\.json is damaged.*Make a store anew") as caught:
        read_json(tmp_path / "x.json", "a store")
    assert time.monotonic() - start < 2
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1: 2", "line 1: the key 1 is no text"),
        ("seed: 1\nyes: 2", "line 2: the key yes is no text"),
        ("alignment: {null: 2}", "the key null is no text"),
        ("? [a]\n: 2", "the key a list or mapping is no text"),
        ("seed: 1\nseed: 2", "line 2: the key seed comes twice"),
        (BOMB, r"line 5: with its aliases .* more than 10000"),
        ("a: &a [*a]", r"line 1: with its aliases .* or itself"),
        ("a: &a {b: {c: *a}}", r"line 1: with its aliases .* or itself"),
        ("a: " + "[" * 100_000, "nested more than 50 deep"),
        ("\n".join(" " * n + f"k{n}:" for n in range(1000)), "nested more than 50 deep"),
        ("a: [", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system [true]", "cannot be read as YAML"),
        ("[1]", "holds list; expected keys and values"),
        ("text", "holds str; expected keys and values"),
        ("a: 2020-99-99", "cannot be read as YAML"),
    ],
)
def test_bad_configurations_are_one_sentence_at_once(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "x.yaml").write_text(content)
    start = time.monotonic()
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path / "x.yaml", {})
    assert time.monotonic() - start < 2
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_aliases_stand_for_what_they_name(tmp_path: Path) -> None:
    stage = {"max_steps": 3}
    content = yaml.safe_dump({"alignment": stage, "instruction_tuning": stage})
    assert "*id001" in content
    (tmp_path / "x.yaml").write_text(content)
    config = read_config(tmp_path / "x.yaml", {})
    assert config.alignment.max_steps == config.instruction_tuning.max_steps == 3
    (tmp_path / "x.yaml").write_text("a: &a {b: 1, c: 2}\nd:\n  <<: *a\n  c: 3\n")
    assert read_yaml(tmp_path / "x.yaml", "options")["d"] == {"b": 1, "c": 3}


def test_an_empty_configuration_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "x.yaml", "the configuration") == {}


def test_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device; expected the table"):
        read_text(tmp_path / "pipe", "the table")
    with pytest.raises(InputError, match="is a folder; expected the table"):
        read_text(tmp_path, "the table")
    with pytest.raises(InputError, match=r"there is no file .*: expected the table"):
        read_text(tmp_path / "nothing", "the table")


def test_labels_are_sorted_by_their_numbers() -> None:
    labels = ["sub-10", "sub-2", "sub-1", "sub-01", "sub-B", "sub-", "10", "9", "x9y10", "x9y2"]
    assert natural_sorted(labels) == [
        "9", "10", "sub-", "sub-01", "sub-1", "sub-2", "sub-10", "sub-B", "x9y2", "x9y10",
    ]  # fmt: skip
