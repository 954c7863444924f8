"""Notebooks run on records alone, say what the records say, and are kept without outputs."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from recorded import write_recorded_study

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELLS = {"some": 10.0, "more": 30.0}


def _texts(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path: Path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


@pytest.mark.slow
def test_ablation_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = write_recorded_study(tmp_path / "tiny", CELLS, [0, 1, 2], np.random.default_rng(0), windows=12, length=64)
    before = sorted(study.rglob("*"))
    monkeypatch.setenv("HYLO_STUDY", str(study))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    notebook = nbformat.read(ROOT / "notebooks" / "ablation.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = "\n".join(text for cell in cells for text in _texts(cell, "text/markdown"))
    assert "Does it help?" in shown
    assert "## Against the previous row" in shown
    assert "more against some: perplexity is lower" in shown
    assert sum(len(_texts(cell, "image/png")) for cell in cells) == 3
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "stream"]  # no warnings
    assert sorted(study.rglob("*")) == before
