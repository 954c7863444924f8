"""Study files: the shipped ones are valid, and errors are refused by name before anything runs."""

from pathlib import Path

import pytest
from launch import train

import hylo.studies.spec
from hylo.analysis.claims import read_claims
from hylo.core.errors import ConfigError
from hylo.studies.spec import EXPERIMENTS, StudyConfig, read_study_file, study_names

STUDY = """
question: Does it help?
protocol: The same for all.
cells:
  base: [method=none]
  small: [method=lora]
  large: [method=rslora]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiments folder with only the published claims."""
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", tmp_path)
    (tmp_path / "claims.csv").write_text((EXPERIMENTS / "claims.csv").read_text())
    (tmp_path / "mine").mkdir()
    return tmp_path


def refusal(folder: Path, text: str) -> str:
    """The error message for a study file."""
    (folder / "mine" / "study.yaml").write_text(STUDY + text)
    with pytest.raises(ConfigError) as caught:
        read_study_file("mine")
    return str(caught.value)


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_is_right(name: str) -> None:
    study = read_study_file(name)
    assert study.question.endswith("?")
    assert study.contrasts, "a study that compares nothing decides nothing"


def test_every_claim_is_tested_by_a_study() -> None:
    """A claim that no study tests would silently be missing from the reports."""
    tested = [claim for name in study_names() for claim in read_study_file(name).claims]
    assert set(tested) == {claim.id for claim in read_claims(EXPERIMENTS)}
    for claim in read_claims(EXPERIMENTS):
        assert claim.id in read_study_file(claim.study).claims, "the study that it was published by"


def test_a_right_file_is_read(folder: Path) -> None:
    (folder / "mine" / "study.yaml").write_text(STUDY + "contrasts:\n  - {cell: large, reference: small}\n")
    (contrast,) = read_study_file("mine").contrasts
    assert (contrast.cell, contrast.reference, contrast.component) == ("large", "small", None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("contrasts:\n  - {cell: lrage, reference: small}\n", ["contrasts[0].cell", "lrage", "base, small, large"]),
        ("contrasts:\n  - {cell: large, reference: none}\n", ["contrasts[0].reference", "none", "base, small, large"]),
        ("contrasts:\n  - {cell: large, reference: large}\n", ["large is compared with itself"]),
        ("contrasts:\n  - {cell: large, refrence: small}\n", ["refrence"]),
        ("contrasts:\n  - {cell: large, reference: small, comparison: sideways}\n", ["sideways"]),
        ("contrasts:\n  - {cell: large, reference: small, way: added}\n", ["`way` is now its `comparison`"]),
        ("claims: [Z9]\n", ["Z9", "A1, A2"]),
        ("claims: [A3]\n", ["claim A3", "rslora_dora", "base, small, large"]),
        ("seeds: []\n", ["at least one cell and one seed"]),
        ("sedes: [0]\n", ["sedes"]),
        ("seeds: [a]\n", ["seeds"]),
        ("tuning: {keys: {trainer.learning_rate: [1e-3, 1e-2]}, cells: [lage]}\n", ["tuning.cells", "lage"]),
        ("tuning: {keys: {method: [1e-3, 1e-2]}, cells: [large]}\n", ["large sets method itself"]),
        ("tuning: {keys: {trainer.learning_rate: []}, cells: [large]}\n", ["two different numbers or more"]),
        ("factorial: {stack: [method=dora], without: {a: [], b: []}, nothing: base}\n", ["base", "name them once"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(folder: Path, text: str, named: list[str]) -> None:
    message = refusal(folder, text)
    assert all(part in message for part in ["study.yaml", *named]), message


def test_a_factorial_makes_every_combination(folder: Path) -> None:
    text = "factorial: {stack: [method=hylorada], without: {a: [x=1], b: [y=2]}, nothing: plain}\n"
    (folder / "mine" / "study.yaml").write_text(STUDY + text)
    study = read_study_file("mine")
    assert list(study.all_cells()) == ["base", "small", "large", "plain", "a", "b", "a+b"]
    assert study.all_cells()["plain"] == ["method=hylorada", "x=1", "y=2"]
    assert study.all_cells()["b"] == ["method=hylorada", "x=1"]
    assert study.all_cells()["a+b"] == ["method=hylorada"]


def test_a_typo_in_a_cell_names_the_cell_before_anything_runs(
    folder: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine" / "study.yaml").write_text(STUDY + "  wrong: [method=lora, method.low_rank.rnak=4]\n")
    monkeypatch.chdir(folder)
    assert train("study=mine", *tiny) == 2
    said = capsys.readouterr().err
    assert "cell wrong" in said
    assert "rnak" in said
    assert not (folder / "outputs").exists()


def test_the_documented_study_is_right(folder: Path) -> None:
    page = (EXPERIMENTS.parent / "docs" / "write-a-study.md").read_text()
    (folder / "mine" / "study.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    study = read_study_file("mine")
    assert list(study.cells) == ["rslora", "four", "sixteen"]
    assert [contrast.component for contrast in study.contrasts] == ["four landmarks", "twelve more landmarks"]
    keys = set(StudyConfig.__dataclass_fields__)
    assert all(f"`{key}`" in page for key in keys)
