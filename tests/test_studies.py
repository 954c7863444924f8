"""Studies as they run: settings chosen on validation, seeds until decided, a factorial, several contexts."""

import json
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from launch import train

import hylo.run
import hylo.study_file
from hylo.records import read_run, read_study
from hylo.study_file import EXPERIMENTS

HEAD = "question: Does it help?\nprotocol: The same for all.\n"
CELLS = "cells:\n  base: [method=none]\n  small: [method=lora]\n  large: [method=lora, method.low_rank.rank=16]\n"
CONTRASTS = "contrasts:\n  - {cell: large, reference: small, component: rank}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, and an empty folder of experiments in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hylo.study_file, "EXPERIMENTS", tmp_path / "experiments")
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    (tmp_path / "experiments" / "claims.csv").write_text((EXPERIMENTS / "claims.csv").read_text())
    return tmp_path


def write_study(text: str) -> None:
    Path("experiments/mine/study.yaml").write_text(HEAD + text)


def manifest() -> dict[str, object]:
    (path,) = Path("outputs").glob("mine*/study.json")
    return json.loads(path.read_text())


def test_a_setting_is_chosen_on_validation_and_nowhere_else(tiny: tuple[str, ...]) -> None:
    tuning = "tuning: {key: trainer.learning_rate, values: [1.0e-5, 1.0e-2], cells: [large]}\n"
    write_study(CELLS + CONTRASTS + tuning)
    assert train("study=mine", *tiny, "seeds=[0,1]") == 0
    (trials,) = Path("outputs").glob("tuning-of-*")
    records = [read_run(path) for path in trials.iterdir()]
    assert {record.result["data"]["eval_split"] for record in records} == {"validation"}
    assert {record.seed for record in records} == {100}, "no reported run may be the one that was chosen by its luck"
    ppl = {record.cell.partition("=")[2]: record.result["metrics"]["ppl"] for record in records}
    best = min(ppl, key=lambda value: ppl[value])
    (told,) = manifest()["tuning"]  # pyright: ignore[reportGeneralTypeIssues]
    assert told["chosen"] == float(best)
    assert told["at_an_end_of_the_grid"]
    assert {float(value): one for value, one in told["validation_ppl"].items()} == {float(v): p for v, p in ppl.items()}
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    study = read_study(folder)
    overrides = {cell: runs[0].result["overrides"] for cell, runs in study.cells.items()}
    assert f"trainer.learning_rate={told['chosen']!r}" in overrides["large"]
    assert not [text for text in overrides["small"] if text.startswith("trainer.learning_rate")]
    assert {run.result["data"]["eval_split"] for runs in study.cells.values() for run in runs} == {"test"}
    text = (folder / "summary.md").read_text()
    assert "Chosen on the validation split" in text
    overrides = [text for text in tiny if not text.startswith("tracking=")]
    assert manifest()["overrides"] == overrides
    assert f"run with {' '.join(overrides)}" in text.replace("\\", "")
    with mock.patch.object(hylo.run, "execute", side_effect=AssertionError("ran again")):
        assert train("study=mine", *tiny, "seeds=[0,1]") == 0


def test_seeds_are_added_until_the_cap(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Each look has a level of its own, and the report has the level of the last one."""
    write_study(CELLS + CONTRASTS)
    assert train("study=mine", *tiny, "seeds=until_decided", "most_seeds=4") == 0
    told = capsys.readouterr().out
    looks = [line for line in told.splitlines() if " seeds, intervals of " in line]
    assert len(looks) in (1, 2)
    assert ": 3 seeds, intervals of 98 %" in looks[0]
    assert "every contrast is decided" in looks[-1] or ": 4 seeds" in looks[-1]
    said = manifest()
    assert said["rule"] == "until_decided"
    assert 0.95 < float(str(said["level"])) < 1
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    assert len(read_study(folder).cells["large"]) == (3 if len(looks) == 1 else 4)


def test_it_stops_at_the_cap_undecided(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    write_study(CELLS + CONTRASTS)
    with mock.patch("hylo.stats.decided", return_value=False):
        assert train("study=mine", *tiny, "seeds=until_decided", "most_seeds=4") == 0
    told = capsys.readouterr().out
    assert ": 3 seeds" in told
    assert ": 4 seeds, intervals of 97 %: undecided: large against small" in told


@pytest.mark.parametrize("value", ["[]", "[-1]", "[a]", "sometimes", "[0.5]", "[true]"])
def test_seeds_that_are_none_are_refused(tiny: tuple[str, ...], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(CELLS)
    assert train("study=mine", *tiny, f"seeds={value}") == 2
    said = capsys.readouterr().err
    assert "seeds = " in said
    assert "until_decided with a study" in said


def test_a_factorial_reports_shapley_values(tiny: tuple[str, ...]) -> None:
    factors = "{rank_stabilized: [method.low_rank.scaling=standard], bias: [method.position_bias=null]}"
    stack = "[method=hylorada, method.landmark=null]"
    write_study(f"factorial: {{stack: {stack}, without: {factors}, nothing: lora}}\n")
    assert train("study=mine", *tiny, "seeds=[0,1]") == 0
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    assert list(read_study(folder).cells) == ["none", "lora", "rank_stabilized", "bias", "rank_stabilized+bias"]
    table = pd.read_csv(folder / "attribution.csv")
    assert dict(zip(table["component"], table["added_params"], strict=True)) == {"rank_stabilized": 0, "bias": 64}
    assert (folder / "figures" / "attribution.svg").exists()


def test_cells_of_several_contexts_have_an_untuned_model_each(tiny: tuple[str, ...]) -> None:
    write_study(
        "cells:\n  short: [method=lora, data.context_length=16]\n  long: [method=lora, data.context_length=64]\n"
        "  longer: [method=rslora, data.context_length=64]\n"
        "contrasts:\n  - {cell: longer, reference: long, component: scaling}\n"
    )
    assert train("study=mine", *(text for text in tiny if "context_length" not in text)) == 0
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    summary = pd.read_csv(folder / "summary.csv", keep_default_na=False)
    references = dict(zip(summary["cell"], summary["reference"], strict=False))
    assert references["short"] == "none"
    assert references["none_as_long"] == ""
    rows = list(zip(summary["cell"], summary["reference"], strict=True))
    assert ("long", "none_as_long") in rows
    assert ("longer", "long") in rows
    assert ("long", "short") not in rows, "perplexities on other windows cannot be compared"


def test_one_failing_cell_costs_no_other(tiny: tuple[str, ...]) -> None:
    write_study(CELLS + CONTRASTS)
    train_cell = hylo.run.train

    def failing(model: object, *arguments: object, **options: object) -> object:
        if "large" in str(options["label"]):
            raise RuntimeError("out of luck")
        return train_cell(model, *arguments, **options)  # pyright: ignore[reportArgumentType]

    with mock.patch.object(hylo.run, "train", failing):
        assert train("study=mine", *tiny, "workers=1") == 1
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    assert "out of luck" in (folder / "summary.md").read_text()
    assert set(pd.read_csv(folder / "summary.csv")["cell"]) == {"base", "small"}
    assert train("study=mine", *tiny) == 0
    assert set(pd.read_csv(folder / "summary.csv")["cell"]) == {"base", "small", "large"}


def test_nothing_to_decide_is_refused(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Without contrasts every look would be "all decided", after three seeds that decide nothing."""
    write_study(CELLS)
    assert train("study=mine", *tiny, "seeds=until_decided") == 2
    assert "names no contrast and no claim" in capsys.readouterr().err
    assert not Path("outputs").exists()


def test_a_trial_has_no_seed_of_a_reported_run(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    write_study(CELLS + CONTRASTS + "tuning: {key: trainer.learning_rate, values: [1.0e-3], cells: [large]}\n")
    assert train("study=mine", *tiny, "seeds=[0,100]") == 2
    assert "tuning.seed = 100" in capsys.readouterr().err
    assert not Path("outputs").exists()
