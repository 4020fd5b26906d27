"""The house: imports go down only, the path from scan to text is short, and nothing unpickles."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "mindllm"
PATH = (
    "fmri/masker",
    "model/encoder",
    "model/token_heads",
    "model/processing",
    "model/language_model",
    "model/modeling",
    "model/decode",
)


def test_a_file_imports_only_from_lower_floors() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_every_file_stands_on_a_floor() -> None:
    named = set(
        re.findall(r"mindllm\.(\w+)", (ROOT / "pyproject.toml").read_text().split("layers = [")[1])
    )
    there = {
        p.stem
        for p in SOURCE.iterdir()
        if not p.name.startswith("_") and (p.is_dir() or p.suffix == ".py")
    }
    assert named == there


def count_code_lines(source: str) -> int:
    tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    docstrings = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    skipped = {n for d in docstrings for n in range(d.lineno, (d.end_lineno or d.lineno) + 1)}
    return sum(bool(x.strip()) and n not in skipped for n, x in enumerate(source.splitlines(), 1))


def test_the_path_from_scan_to_text_can_be_read_in_one_sitting() -> None:
    """Lines of code: docstrings, which name every argument, and blank lines do not count."""
    lines = {name: count_code_lines((SOURCE / f"{name}.py").read_text()) for name in PATH}
    assert sum(lines.values()) <= 800, lines
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"^src/mindllm/(\S+)\.py +★", readme, re.M)) == set(PATH)


def test_no_file_is_called_utils() -> None:
    assert not [p for p in SOURCE.rglob("*.py") if "util" in p.stem]


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_nothing_unpickles(path: Path) -> None:
    text = path.read_text()
    if path.name == "pickles.py":  # whose files are pickles: what they may name is listed there
        assert "pickle.load" not in text
        assert "def find_class" in text
        text = text.replace("import pickle\n", "")
    assert not re.search(
        r"(import|from) (pickle|dill)\b|joblib import (load|dump)|joblib\.(load|dump)"
        r"|read_pickle|allow_pickle=True",
        text,
    )
    assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^)]*\)", text))
