"""The command plan."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.data.store import Store
from mindllm.utils.errors import InputError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_parts_and_times_are_printed(tiny_store: Store, tiny_llm_folder: Path) -> None:
    output = run(str(tiny_store.path), "--llm", str(tiny_llm_folder), "--price", "2")
    for word in (
        "language model",
        "activations",
        "most that fit",
        "cost",
        "72 trials of 70 voxels",
    ):
        assert word in " ".join(output.split())


def test_json_has_the_same_numbers(tiny_llm_folder: Path) -> None:
    llm = str(tiny_llm_folder / "config.json")
    arguments = ("--llm", llm, "--voxels", "200000", "--batch-size", "4", "--json")
    content = json.loads(run(*arguments, "--memory-gib", "12", "--tflops", "50", "--lora"))
    assert content["hardware"]["memory_bytes"] == 12 * 2**30
    assert content["hardware"]["flops"]["bfloat16"] == 5e13
    alignment, tuning, decoding = content["phases"]
    assert alignment["parts"]["betas"] > 480 * 200_000 * 4
    assert tuning["batch_size"] == 4
    assert decoding["parts"]["keys and values"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "abacus"], "known: a10"),
        (["--answer-tokens", "65"], "give no more"),
        (["--llm", "no-such.json"], "vicuna-7b"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)


def test_sizes_beside_a_store_are_refused(tiny_store: Store) -> None:
    with pytest.raises(InputError, match="leave out --voxels"):
        CliRunner().invoke(
            app, ["plan", str(tiny_store.path), "--voxels", "3"], catch_exceptions=False
        )
