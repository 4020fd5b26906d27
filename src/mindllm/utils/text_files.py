"""Text files of any origin, read within bounds: plain text, JSON and YAML."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mindllm.utils.errors import InputError

MAX_DEPTH = 50  # of nested values in a configuration file
MAX_VALUES = 10_000  # in a configuration file
TEXT_TAG, MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
# An escape in JSON: a pair of surrogates, a lone one (the group), or any other.
ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"
    r"|(u[dD][89a-fA-F][\da-fA-F]{2})|.)",
    re.DOTALL,
)


def check_regular_file(file: Path, what: str) -> None:
    """Check that a path is a file, and neither a folder nor a pipe, which might never end.

    Parameters
    ----------
    file : Path
        The path.
    what : str
        What is expected there, for the message ("the design table").

    Raises
    ------
    InputError
        If there is nothing, or something else.
    """
    if file.is_file():
        return
    if not file.exists():
        raise InputError(f"there is no file {file}: expected {what}.")
    kind = "a folder" if file.is_dir() else "a pipe or a device"
    raise InputError(f"{file} is {kind}; expected {what} in a regular file.")


def read_bytes(file: Path, what: str) -> bytes:
    """Read a file.

    Parameters
    ----------
    file : Path
        The file.
    what : str
        What it is, for the message ("the design table").

    Returns
    -------
    bytes
        Its content.

    Raises
    ------
    InputError
        If there is no such file, or it cannot be read.
    """
    check_regular_file(file, what)
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): expected {what}.") from error


def read_text(file: Path, what: str) -> str:
    """Read a text file, its line breaks as they are, without a byte order mark.

    Parameters
    ----------
    file : Path
        The file, in UTF-8.
    what : str
        What it is, for the message ("the design table").

    Returns
    -------
    str
        Its content.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, or it is no UTF-8.
    """
    content = read_bytes(file, what)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is no text in UTF-8 ({error.reason} at byte {error.start}). "
            f"Save {what} as UTF-8, or fetch it again if it is damaged."
        ) from error


def read_corpus(file: Path) -> list[str]:
    """Read texts from a file, one per line.

    Parameters
    ----------
    file : Path
        In UTF-8; lines without text are left out.

    Returns
    -------
    list of str

    Raises
    ------
    InputError
        If it cannot be read or holds no text.
    """
    lines = [
        " ".join(line.split())
        for line in read_text(file, "a corpus of one text per line").splitlines()
    ]
    texts = [line for line in lines if line]
    if not texts:
        raise InputError(f"{file} holds no text; expected a corpus of one text per line.")
    return texts


def parse_json(
    text: str,
    file: Path,
    remedy: str,
    pairs_hook: Callable[[Sequence[tuple[str, Any]]], Mapping[str, Any]] | None = None,
) -> Any:
    r"""Parse JSON; half a surrogate pair, which no text can hold, becomes U+FFFD.

    Parameters
    ----------
    text : str
        Content of the file.
    file : Path
        The file, for the message.
    remedy : str
        What to do about a damaged file, for the message.
    pairs_hook : callable, optional
        Called with the members of every object, in place of `dict`.

    Returns
    -------
    object
        The value.

    Raises
    ------
    InputError
        If it is no JSON or nested too deeply.

    Examples
    --------
    >>> parse_json('["cut \\ud83d"]', Path("texts.json"), "Fetch it again.")
    ['cut �']
    """
    if "\\ud" in text or "\\uD" in text:
        text = ESCAPE.sub(lambda match: r"\ufffd" if match[1] else match[0], text)
    try:
        return json.loads(text, object_pairs_hook=pairs_hook)
    except RecursionError as error:
        raise InputError(f"{file} is damaged: its JSON is nested too deeply. {remedy}") from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{file} is damaged and cannot be read as JSON ({error}). {remedy}"
        ) from error


def read_yaml(file: Path, what: str) -> dict[str, object]:
    """Read a YAML file of keys and values.

    Parameters
    ----------
    file : Path
        The file; an empty one has no keys.
    what : str
        What it is, for the message ("the configuration file").

    Returns
    -------
    dict of str to object
        Its content.

    Raises
    ------
    InputError
        If it is no YAML or no mapping, is nested too deeply, is huge or endless with its aliases
        written out, or has a key that is no text or comes twice.
    """
    text = read_text(file, what)
    try:
        check_yaml_depth(text, file)
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            check_yaml_node(node, file, {})
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        message = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read as YAML ({message}). Mend {what}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{file} holds {type(content).__name__}; expected keys and values in {what}."
        )
    return content


def check_yaml_depth(text: str, file: Path) -> None:
    """Refuse nesting beyond MAX_DEPTH, before anything is built of it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise InputError(
                f"{file}, line {line}: values are nested more than {MAX_DEPTH} deep; "
                "expected a few levels of keys and values."
            )


def check_yaml_node(node: yaml.Node, file: Path, sizes: dict[int, int]) -> int:
    """Refuse keys that are no text or come twice, and aliases that make a file huge or endless.

    Parameters
    ----------
    node : yaml.Node
        A value and all that is in it; an alias (`*name`) is the node that it stands for.
    file : Path
        The file, for the message.
    sizes : dict of int to int
        Number of values in the nodes that were checked before, by their identity; 0: in those that
        are being checked.

    Returns
    -------
    int
        Number of values in the node, aliases written out.
    """
    line = node.start_mark.line + 1
    if id(node) in sizes and sizes[id(node)]:
        return sizes[id(node)]
    size = MAX_VALUES + 1 if id(node) in sizes else 1  # a part of itself has no end
    if size == 1 and isinstance(node, yaml.CollectionNode):
        sizes[id(node)] = 0
        children = list(node.value)
        if isinstance(node, yaml.MappingNode):
            check_yaml_keys([key for key, _ in node.value], file)
            children = [value for _, value in node.value]
        for child in children:
            size += check_yaml_node(child, file, sizes)
    if size > MAX_VALUES:
        raise InputError(
            f"{file}, line {line}: with its aliases (*name) written out, a value holds more than "
            f"{MAX_VALUES} others or itself; expected a few options."
        )
    sizes[id(node)] = size
    return size


def check_yaml_keys(keys: Sequence[yaml.Node], file: Path) -> None:
    """Refuse keys of a mapping that are no text, or that come twice."""
    names: set[str] = set()
    for key in keys:
        line = key.start_mark.line + 1
        if key.tag not in (TEXT_TAG, MERGE_TAG):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise InputError(
                f"{file}, line {line}: the key {shown} is no text; expected the name of an option."
            )
        if key.value in names:
            raise InputError(f"{file}, line {line}: the key {key.value} comes twice; keep one.")
        names.add(key.value)
