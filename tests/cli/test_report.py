"""The command report, and pages that are opened in a browser."""

import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mindllm.cli import app
from mindllm.report.write import write_report
from mindllm.utils.errors import InputError
from tests.report.example import make_result


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_report(make_result(), tmp_path / "out").parent


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


def test_a_report_is_shown_and_not_opened_unless_asked(folder: Path, opened: list[str]) -> None:
    output = run(str(folder))
    assert "nearest neighbor" in output
    assert str(folder / "report.html") in output
    assert opened == []


def test_the_page_is_opened(folder: Path, opened: list[str]) -> None:
    output = run(str(folder), "--open")
    assert opened == [(folder / "report.html").as_uri()]
    assert "no browser" not in output


@pytest.mark.parametrize("has_error", [False, True])
def test_without_a_browser_the_address_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_error: bool
) -> None:
    def no_browser(address: str) -> bool:
        if has_error:
            raise webbrowser.Error("could not locate runnable browser")
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    output = run(str(folder), "--open")
    assert f"open the page elsewhere: {(folder / 'report.html').as_uri()}" in output


def test_what_is_no_report_is_refused(tmp_path: Path, opened: list[str]) -> None:
    with pytest.raises(InputError, match=r"result\.json"):
        run(str(tmp_path), "--open")
    make_result().save(tmp_path / "result")
    with pytest.raises(InputError, match=r"no page report\.html"):
        run(str(tmp_path / "result"), "--open")
    assert opened == []
