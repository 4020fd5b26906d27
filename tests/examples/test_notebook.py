"""The notebook runs from its first cell to its last, with a tiny language model."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "fmriprep_to_text.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs(tiny_llm_folder: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = f"LANGUAGE_MODEL = {str(tiny_llm_folder)!r}\nSTEPS = (4, 2)"
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    correlations = [float(line.split()[1]) for line in text.splitlines() if line[:4] == "sub-"]
    assert len(correlations) == 4
    assert min(correlations) > 0.7, "the planted responses come back"
    data = [output.get("data", {}) for output in outputs]
    assert sum("image/png" in part for part in data) == 2
    table = next(part["text/plain"] for part in data if "top 1" in part.get("text/plain", ""))
    assert "fmri" in table
    assert "shuffled" in table
