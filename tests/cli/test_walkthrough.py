"""The command walkthrough writes a new folder and leaves what exists as it is."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.utils.errors import InputError


def test_the_page_is_written_into_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mindllm.report.walkthrough_page.plan_figures", lambda _: {"keys": lambda: b"PNG"}
    )
    command = ["walkthrough", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    page = tmp_path / "out" / "walkthrough.md"
    assert f"page: {page}" in result.output
    assert "| features | 12,000 × 35, 15,000 × 35 |" in page.read_text(encoding="utf-8")
    assert (tmp_path / "out" / "figures" / "walkthrough" / "keys.png").read_bytes() == b"PNG"
    before = page.read_bytes()
    with pytest.raises(InputError):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert page.read_bytes() == before
