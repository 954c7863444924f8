"""Notebooks run on the shipped records, agree with them, and are stored without outputs."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from hylo.report import claim_sentences, component_sentences, study_figures, summarize
from hylo.runs.store import read_study

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _shown(cells: list[Any], kind: str) -> list[str]:
    return [output["data"][kind] for cell in cells for output in cell.outputs if kind in output.get("data", {})]


@EACH
def test_kept_without_outputs(path: Path):
    cells = _code(nbformat.read(path, as_version=4))
    assert cells
    assert [(cell.outputs, cell.execution_count) for cell in cells] == [([], None)] * len(cells)


@pytest.mark.slow
@EACH
def test_executes_on_shipped_records(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Conclusions match the records, figures are drawn, nothing is written, and there are no warnings."""
    notebook: Any = nbformat.read(path, as_version=4)
    (default,) = re.findall(r'"HYLO_STUDY", "([^"]+)"', "".join(cell.source for cell in _code(notebook)))
    records = (path.parent / default).resolve()
    before = sorted(records.rglob("*"))
    monkeypatch.delenv("HYLO_STUDY", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()

    cells, study = _code(notebook), read_study(records)
    told = "\n".join(_shown(cells, "text/markdown"))
    assert study.manifest["question"] in told
    for sentence in [*claim_sentences(study), *component_sentences(study)]:
        assert f"- {sentence}" in told
    drawn = [cell.source for cell in cells if "figure(" in cell.source or "figures[" in cell.source]
    named = [name for name, _ in study_figures(study, summarize(study)) if f'figures["{name}"]' in drawn]
    assert len(_shown(cells, "image/png")) == len(drawn) >= len(named) >= 3
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "stream"]  # no warnings
    assert sorted(records.rglob("*")) == before
