import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 300_000  # bytes
NOISE = ("/tmp/", "/home/", "/root/", f"{ROOT}/", "Warning", "it/s]")


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def executed(path):
    """Outputs of a notebook that is run anew."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return outputs_of(notebook)


def noise_in(outputs):
    """What a reader needn't see: errors, what is written to stderr, warnings, progress bars, paths of a machine."""
    found = [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    text = json.dumps(outputs)
    return [*found, *(word for word in NOISE if word in text)]


def pictures(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_draws(path):
    outputs, kept = executed(path), outputs_of(nbformat.read(path, as_version=4))
    assert pictures(outputs) == pictures(kept) > 0
    assert ("mIoU" in json.dumps(outputs)) is ("mIoU" in json.dumps(kept))
    assert noise_in(outputs) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_outputs_small_and_without_noise(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert noise_in(outputs_of(notebook)) == []
    assert path.stat().st_size < LARGEST
