"""The code's own rules: length of lines and functions, typed results, names, docstrings."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mindllm

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "mindllm"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted({file.parent for file in FILES if file.parent != SOURCE})
LINE_LENGTH, FUNCTION_LENGTH = 100, 50
VAGUE = {
    "found", "said", "told", "some", "odd", "own", "each", "place", "places", "given", "wanted",
    "people", "persons", "whose", "mine", "theirs", "whole", "seen", "named", "talk", "thing",
}  # fmt: skip


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first = node.body[0]
    documented = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def files_of(room: Path) -> list[Path]:
    return sorted(room.glob("*.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_no_line_is_longer_than_100_characters(room: Path) -> None:
    long = [
        f"{file.relative_to(ROOT)}:{number} ({len(line)})"
        for file in files_of(room)
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1)
        if len(line) > LINE_LENGTH
    ]
    assert not long, long


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_no_function_is_longer_than_50_lines(room: Path) -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.name} ({length(node)})"
        for file in files_of(room)
        for node in functions(file)
        if length(node) > FUNCTION_LENGTH
    ]
    assert not long, long


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_variables_and_arguments_have_names_of_their_content(room: Path) -> None:
    vague = []
    for file in files_of(room):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = (
                node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                else node.arg if isinstance(node, ast.arg) else ""
            )  # fmt: skip
            if name in VAGUE:
                vague.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    assert not vague, vague


def test_results_are_typed() -> None:
    loose = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1)
        if re.search(r"dict\[str, Any\]", line)
    ]
    assert len(loose) <= 5, loose


def public_callables() -> Iterator[tuple[str, object]]:
    for name in sorted(mindllm.__all__):
        value = getattr(mindllm, name)
        if inspect.isclass(value):
            yield name, value
            for method, member in vars(value).items():
                function = (
                    member.__func__ if isinstance(member, classmethod | staticmethod) else member
                )
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{name}.{method}", function
        elif inspect.isfunction(value):
            yield name, value


@pytest.mark.parametrize(
    ("name", "value"), list(public_callables()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_public_docstrings_are_numpydoc(name: str, value: object) -> None:
    text = inspect.getdoc(value) or ""
    if inspect.isfunction(value):
        arguments = [a for a in inspect.signature(value).parameters if a not in ("self", "cls")]
        for argument in arguments:
            assert re.search(rf"(^|\W)\*{{0,2}}{argument}\b", text), (
                f"{name}: {argument} is not described"
            )
        if arguments:
            assert "Parameters\n----------" in text, f"{name} has no section Parameters"
        returns = inspect.signature(value).return_annotation
        if returns not in (None, "None", inspect.Signature.empty):
            assert re.search(r"(Returns\n-------|Yields\n------)", text), (
                f"{name} has no section Returns"
            )
    if "." not in name:
        assert "Examples\n--------" in text, f"{name} has no example"
