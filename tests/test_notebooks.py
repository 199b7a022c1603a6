"""The notebooks run, and are kept as they are before they have run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))}
# that each of them draws
PICTURES = {"compress": 3, "diarize": 4, "what-survives": 4}


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


# trains, or attaches gates to a large model
LONG = {"compress", "what-survives"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in PICTURES])
def test_runs(name, tmp_path):
    notebook = read(name)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    # commands that fail do not stop a notebook
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[name]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_all_are_run():
    assert NOTEBOOKS.keys() == PICTURES.keys()
