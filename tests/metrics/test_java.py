"""Java that does not run, dies, hangs or loses lines: one sentence, and the other scores stay."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.evaluation.question_answering import try_score
from mindllm.metrics import captions, java
from mindllm.metrics.tasks import score
from mindllm.utils.errors import InputError

Fake = Callable[[str], None]
PREDICTIONS, REFERENCES = {"a": "a dog runs"}, {"a": ["a dog runs fast", "the dog ran"]}
REAL = shutil.which("java")
needs_java = pytest.mark.skipif(java.java_problem() is not None, reason="no Java that runs")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a shell script called java first on the PATH."""
    monkeypatch.setattr(java, "START_SECONDS", 1)
    monkeypatch.setattr(java, "LIMIT_SECONDS", 1)

    def write(script: str) -> None:
        (tmp_path / "java").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "java").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return write


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", r"exit code 1: Unable to locate"),
        ("sleep 60", "said nothing in 1 seconds"),
        ("kill -9 $$", "exit code -9"),
    ],
)
def test_a_java_that_does_not_run_is_told_at_once(fake: Fake, script: str, message: str) -> None:
    fake(script)
    start = time.monotonic()
    assert captions.java_unavailable_reason() is not None
    with pytest.raises(InputError, match=rf"METEOR and SPICE\): .*{message}.* Install a Java"):
        score(PREDICTIONS, REFERENCES, "caption")
    assert time.monotonic() - start < 10


@needs_java
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Could not reserve enough space for object heap' >&2; exit 1", "exit code 1: Could"),
        ("sleep 60", "said nothing in .* seconds and was stopped"),
        ("sleep 60 & wait", "said nothing in .* seconds and was stopped"),
        ("exit 0", "exit code 0"),
        ("while read line; do echo; done", "exit code"),
        ("read line; echo 1 2 3; exit 3", "exit code 3"),
    ],
)
def test_without_meteor_the_other_scores_stay(
    fake: Fake, caplog: pytest.LogCaptureFixture, script: str, message: str
) -> None:
    fake(f'case "$*" in *meteor*) {script};; *) exec {REAL} "$@";; esac')
    start = time.monotonic()
    for _ in range(2):  # it is not begun again
        result = score(PREDICTIONS, REFERENCES, "caption")
        assert set(result.values) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
        assert set(result.per_item) == set(result.values)
        assert result.values["BLEU-1"] > 50
    assert time.monotonic() - start < 20
    (record,) = {r.getMessage() for r in caplog.records if "METEOR is left out" in r.getMessage()}
    assert re.search(rf"METEOR's Java program died \(.*{message}", record)
    assert caplog.text.count("METEOR is left out") == 2


@needs_java
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", r"the PTB tokenizer's Java program died \(exit code 1\)"),
        ("sleep 60", "the PTB tokenizer's Java program did not end in"),
        ("cat > /dev/null; echo only one", "the PTB tokenizer's Java program gave 1 lines for 2"),
    ],
)
def test_a_tokenizer_that_dies_is_told(fake: Fake, script: str, message: str) -> None:
    fake(f'case "$*" in *PTBTokenizer*) {script};; *) exec {REAL} "$@";; esac')
    with pytest.raises(InputError, match=message):
        score(PREDICTIONS, REFERENCES, "caption")


@needs_java
def test_accuracies_and_answers_are_kept_where_the_tokenizer_dies(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    fake(f'case "$*" in *PTBTokenizer*) exit 1;; *) exec {REAL} "$@";; esac')
    right = {"x": {"answers": ["2"] * 10, "explanation": "there are two"}}
    assert score({"x": "two. Because."}, right, "vqa-e").values == {"accuracy": 100}
    assert "left out: BLEU-1" in caplog.text
    result = try_score(PREDICTIONS, REFERENCES, "caption")
    assert (result.values, result.keys) == ({}, ["a"])
    assert "the answers are kept without scores" in caplog.text


@needs_java
def test_texts_with_the_mark_between_texts() -> None:
    right = {"a": ["a dog ||| runs", "a cat"], "b": ["x"], "c": [""]}
    result = score({"a": "||| a dog", "b": "|||", "c": ""}, right, "caption")
    assert result.per_item["METEOR"].shape == (3,)
    assert result.per_item["METEOR"][0] > 10


@needs_java
def test_the_command_prints_the_other_scores(fake: Fake, tmp_path: Path) -> None:
    fake(f'case "$*" in *meteor*) exit 1;; *) exec {REAL} "$@";; esac')
    (tmp_path / "p.json").write_text(json.dumps(PREDICTIONS))
    (tmp_path / "r.json").write_text(json.dumps(REFERENCES))
    result = CliRunner().invoke(
        app, ["score", str(tmp_path / "p.json"), str(tmp_path / "r.json"), "--json"]
    )
    assert result.exit_code == 0
    assert "METEOR" not in json.loads(result.stdout)["scores"]


def test_a_program_that_a_library_starts_is_ended_in_time() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)", "spice-1.0.jar"]
    begun = time.monotonic()
    with pytest.raises(subprocess.CalledProcessError), java.time_limit("spice", 0.5):
        subprocess.check_call(command)
    assert time.monotonic() - begun < 30
