"""Folders are written and replaced as a whole; an interrupted replacement is finished."""

from pathlib import Path

import pytest

from mindllm.utils import folders as module
from mindllm.utils.errors import InputError
from mindllm.utils.folders import previous_path, recover_directory, replace_directory
from mindllm.utils.locks import lock_path
from mindllm.utils.manifest import Manifest


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """An earlier report, with another output below it that is not part of it."""
    report = tmp_path / "report"
    write(report, "old")
    (report / "permuted-pairs").mkdir()
    (report / "permuted-pairs" / "weights").write_text("long trained")
    (report / "notes.txt").write_text("of the user")
    return report


def write(path: Path, text: str) -> None:
    with replace_directory(path) as folder:
        (folder / "figures").mkdir()
        (folder / "figures" / f"{text}.png").write_text(text)
        (folder / "result.json").write_text(text)


def contents(path: Path) -> set[str]:
    Manifest.read(path, "a report", "Evaluate anew.").check_all(full=True)
    return {str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()}


KEPT = {"permuted-pairs/weights", "notes.txt", "manifest.json", "result.json"}
OLD, NEW = KEPT | {"figures/old.png"}, KEPT | {"figures/new.png"}


def test_a_set_of_files_is_replaced_and_what_is_not_of_it_is_kept(report: Path) -> None:
    assert contents(report) == OLD
    write(report, "new")
    assert contents(report) == NEW
    assert (report / "result.json").read_text() == "new"
    assert [f.name for f in report.parent.iterdir()] == ["report"]


def test_an_error_keeps_the_earlier_set(report: Path) -> None:
    with pytest.raises(TypeError), replace_directory(report) as folder:
        (folder / "result.json").write_text(3)  # type: ignore[arg-type]
    assert contents(report) == OLD
    assert [f.name for f in report.parent.iterdir()] == ["report"]


class Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up after it."""


@pytest.mark.parametrize("n_renames", [0, 1, 2, 3])
def test_a_kill_at_any_moment_leaves_the_old_set_or_the_new_one(
    report: Path, monkeypatch: pytest.MonkeyPatch, n_renames: int
) -> None:
    rename, renames = Path.replace, []

    def killed_rename(self: Path, target: Path) -> Path:
        if self.parent == report.parent or self.parent == previous_path(report):
            renames.append(self)
            if len(renames) > n_renames:
                raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", killed_rename)
    monkeypatch.setattr(module.shutil, "rmtree", lambda *args, **options: None)
    with pytest.raises(Killed):
        write(report, "new")
    monkeypatch.undo()
    recover_directory(report)
    assert contents(report) == (OLD if n_renames < 2 else NEW)
    write(report, "new")
    assert contents(report) == NEW
    assert [f.name for f in report.parent.iterdir()] == ["report"]


def test_a_folder_that_another_process_replaces_is_not_recovered(report: Path) -> None:
    report.rename(previous_path(report))
    lock_path(report).write_text("1\nsomewhere.else\n")
    with pytest.raises(InputError, match=r"being written by process 1 on somewhere\.else"):
        recover_directory(report)
    lock_path(report).unlink()
    recover_directory(report)
    assert contents(report) == OLD
