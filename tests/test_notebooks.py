import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
QUICK = "quickstart"


def executed(path):
    """Outputs of a notebook that is run anew."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def test_the_quick_start_runs():
    (path,) = (path for path in NOTEBOOKS if path.stem == QUICK)
    outputs = executed(path)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert "mIoU" in json.dumps(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != QUICK], ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path):
    assert any("image/png" in output.get("data", {}) for output in executed(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_that_are_kept_hold_no_noise(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert "/tmp/" not in json.dumps(outputs)
