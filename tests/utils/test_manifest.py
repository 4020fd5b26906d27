"""Manifests: what was damaged, changed or mixed is found; what is replaced stays valid."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindllm.utils import manifest as module
from mindllm.utils.errors import InputError
from mindllm.utils.manifest import MANIFEST, Manifest, find_manifests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, a large array, and a subfolder with a manifest of its own."""
    folder = tmp_path / "store"
    (folder / "part").mkdir(parents=True)
    (folder / "plain").mkdir()
    (folder / "text.json").write_text('{"a": 1}')
    (folder / "plain" / "b.txt").write_text("b")
    (folder / "part" / "c.txt").write_text("c")
    np.save(folder / "betas.npy", np.zeros(10_000))
    Manifest.create(folder / "part")
    Manifest.create(folder)
    return folder


def read(folder: Path) -> Manifest:
    return Manifest.read(folder, "a store", "Prepare it anew.")


def test_files_of_a_folder_and_the_manifests_of_its_parts_are_listed(folder: Path) -> None:
    manifest = read(folder)
    listed = ["betas.npy", "part/manifest.json", "plain/b.txt", "text.json"]
    assert sorted(manifest.content.files) == listed
    manifest.check_all(full=True)
    assert [m.folder for m in find_manifests(folder)] == [folder / "part", folder]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip_a_bit, "its checksum is"), (truncate, "were written"), (Path.unlink, "is missing")],
)
@pytest.mark.parametrize("name", ["text.json", "plain/b.txt", "part/manifest.json"])
def test_what_is_not_the_file_that_was_written_is_refused(
    folder: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder / name)
    with pytest.raises(InputError, match=message) as error:
        read(folder).check_all()
    assert str(folder / name) in str(error.value)
    assert "Prepare it anew." in str(error.value)


def test_large_arrays_are_checked_by_size_and_in_full_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 1000)
    flip_a_bit(folder / "betas.npy")
    read(folder).check_all()
    with pytest.raises(InputError, match=r"betas.npy is not the file that was written"):
        read(folder).check_all(full=True)
    truncate(folder / "betas.npy")
    with pytest.raises(InputError, match="it has 80127 bytes, 80128 were written"):
        read(folder).check_all()


def test_a_file_that_is_not_listed_does_not_belong(folder: Path) -> None:
    (folder / "other.txt").write_text("other")
    with pytest.raises(InputError, match=r"other.txt does not belong to a store"):
        read(folder).check("other.txt")


def test_update_accepts_what_is_there(folder: Path) -> None:
    flip_a_bit(folder / "part" / "c.txt")
    for manifest in find_manifests(folder):
        manifest.update()
    for manifest in find_manifests(folder):
        manifest.check_all(full=True)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"files": {"../x": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"size": 0, "sha256": "0" * 64}}},
        {"files": {"a": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"a": {"size": 0, "sha256": "x"}}},
        {"files": 3},
        {"other": {}},
    ],
)
def test_a_manifest_that_cannot_be_is_one_sentence(folder: Path, content: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=MANIFEST) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_a_replaced_file_is_valid_before_during_and_after(folder: Path) -> None:
    manifest = read(folder)
    with manifest.replace_file("text.json") as temporary:
        temporary.write_text('{"a": 2}')
        read(folder).check_all(full=True)  # the earlier one
    assert (folder / "text.json").read_text() == '{"a": 2}'
    assert "replaced" not in json.loads((folder / MANIFEST).read_text())
    read(folder).check_all(full=True)


@pytest.mark.parametrize("moment", ["before the file", "after the file"])
def test_an_interruption_while_a_file_is_replaced_leaves_a_valid_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write, calls = Manifest.write, []

    def interrupted_write(self: Manifest) -> None:
        if moment == "after the file" and calls:
            raise KeyboardInterrupt
        write(self)
        calls.append(1)
        if moment == "before the file":
            raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "write", interrupted_write)
    for _ in range(2):  # a second interruption builds on what the first has left
        calls.clear()
        with pytest.raises(KeyboardInterrupt), read(folder).replace_file("text.json") as path:
            path.write_text('{"a": 2, "b": 3}')
        read(folder).check_all(full=True)
    monkeypatch.setattr(Manifest, "write", write)
    with read(folder).replace_file("text.json") as path:
        path.write_text("{}")
    read(folder).check_all(full=True)
    assert (folder / "text.json").read_text() == "{}"


def test_every_change_is_listed(folder: Path) -> None:
    flip_a_bit(folder / "text.json")
    (folder / "plain" / "b.txt").unlink()
    sizes: list[int] = []
    changes = read(folder).list_changes(sizes.append)
    assert [Path(change.split(" is ")[0]).name for change in changes] == ["b.txt", "text.json"]
    assert len(sizes) == len(read(folder).content.files)
