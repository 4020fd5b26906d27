"""What the tables of bad input share: good input, copied for every case, and the check of one."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mindllm.data import quality_control
from tests.cli.bad_input import Case, checksums, make_inputs, run_command
from tests.conftest import update_manifests


@pytest.fixture(scope="session")
def good_inputs(tmp_path_factory: pytest.TempPathFactory, tiny_llm_folder: Path) -> Path:
    """A folder with a store, a model, two reports, a scan and its mask."""
    folder = tmp_path_factory.mktemp("good")
    make_inputs(folder, tiny_llm_folder)
    return folder


@pytest.fixture
def refuse(
    good_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Case, str], None]:
    """Check that a command refuses changed input in one line, and that it changes nothing."""

    def check(case: Case, words: str) -> None:
        folder = case.file.split("/")[0]
        shutil.copytree(good_inputs / folder, tmp_path / folder)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(quality_control, "grey_matter_probability", lambda mm: mm[:, 0] < 1e9)
        for name in ("scan.nii", "mask.nii"):
            shutil.copy(good_inputs / name, tmp_path)
        case.change(tmp_path / case.file)
        update_manifests(tmp_path / folder)
        before = checksums(tmp_path)
        status, error = run_command(words, monkeypatch, capsys)
        message = error.splitlines()[-1]  # after bars
        assert (status, message[:7]) == (1, "error: "), error
        assert is_named(case, message), message
        assert re.search(case.message, message), message
        assert checksums(tmp_path) == before

    return check


def is_named(case: Case, message: str) -> bool:
    """Whether a message names the file; a store's or report's format is that of its folder."""
    folder, name = case.file.split("/")[0], Path(case.file).name
    others = (
        f"{folder} format",
        f"{folder}: ",
        "model.safetensors",
        "predictions.jsonl",
        "candidate_",
    )
    return name in message or any(other in message for other in others)
