"""The command report: show a finished report."""

import typer

from mindllm.cli.evaluate import ResultFolder, show_report
from mindllm.cli.options import OpenPage
from mindllm.utils.errors import InputError

app = typer.Typer()


@app.command()
def report(folder: ResultFolder, open_in_browser: OpenPage = False) -> None:
    """Show a finished report: summary and scores here, and the page in the browser with --open."""
    from mindllm.evaluation.results import EvaluationResult

    result = EvaluationResult.load(folder)
    page = folder / "report.html"
    if not page.is_file():
        raise InputError(
            f"{folder} holds a result and no page report.html. Expected a folder that "
            "`mindllm evaluate` wrote; write the page with mindllm.report.write.write_report."
        )
    show_report(result, page, open_in_browser)
