"""Running studies: settings tuned on validation, seeds until decided, a factorial, several contexts."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from launch import train

import hylo.runs.run
import hylo.studies.spec
import hylo.studies.tuning
from hylo.core.devices import Device, Precision, has_bfloat16
from hylo.core.errors import TrainingDiverged
from hylo.publish import publish
from hylo.runs.cell import Cell
from hylo.runs.store import read_run, read_study
from hylo.studies.part import part_of
from hylo.studies.plan import Plan
from hylo.studies.spec import EXPERIMENTS, read_study_file

HEAD = "question: Does it help?\nprotocol: The same for all.\n"
CELLS = "cells:\n  base: [method=none]\n  small: [method=lora]\n  large: [method=lora, method.low_rank.rank=16]\n"
CONTRASTS = "contrasts:\n  - {cell: large, reference: small, component: rank}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an empty experiments folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", tmp_path / "experiments")
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    (tmp_path / "experiments" / "claims.csv").write_text((EXPERIMENTS / "claims.csv").read_text())
    return tmp_path


def write_study(text: str) -> None:
    Path("experiments/mine/study.yaml").write_text(HEAD + text)


def manifest() -> dict[str, Any]:
    (path,) = Path("outputs").glob("mine*/study.json")
    return json.loads(path.read_text())


TUNING = "tuning:\n  cells: [large]\n  keys: {trainer.learning_rate: [1.0e-4, 1.0e-3, 1.0e-2]}\n  trials: 4\n"


@pytest.mark.slow
def test_a_setting_is_chosen_on_validation_and_nowhere_else(tiny: tuple[str, ...]) -> None:
    write_study(CELLS + CONTRASTS + TUNING)
    assert train("study=mine", *tiny, "seeds=[0,1]") == 0
    (trials,) = Path("outputs").glob("tuning-of-*")
    records = [read_run(path.parent) for path in trials.glob("*/result.json")]
    assert {record.result["data"]["eval_split"] for record in records} == {"validation"}
    assert {record.seed for record in records} == {100, 101}, "no reported run may be one that was chosen by its luck"
    (told,) = manifest()["tuning"]
    found = {tuple(each["values"]): each["ppl"] for each in told["tried"]}
    assert len(found) == 4
    assert told["trials"] == len(records) == 8
    best = min(found, key=lambda setting: found[setting][0] * found[setting][1])
    assert tuple(told["chosen"]) == best
    assert told["at_an_end"] == ["trainer.learning_rate"] * (best in {min(found), max(found)})
    (folder,) = (path.parent for path in Path("outputs").glob("mine*/study.json"))
    study = read_study(folder)
    trials_table: Any = study.trials
    sums = trials_table.groupby(["setting", "seed"])[["nll_sum", "tokens"]].sum()
    ppl = np.exp(sums["nll_sum"] / sums["tokens"]).to_numpy().reshape(4, 2)
    assert ppl == pytest.approx(np.array(list(found.values())))
    overrides = {cell: runs[0].result["overrides"] for cell, runs in study.cells.items()}
    assert f"trainer.learning_rate={best[0]!r}" in overrides["large"]
    assert not [text for text in overrides["small"] if text.startswith("trainer.learning_rate")]
    assert {run.result["data"]["eval_split"] for runs in study.cells.values() for run in runs} == {"test"}
    assert "Chosen on the validation split" in (folder / "summary.md").read_text()
    overrides = [text for text in tiny if not text.startswith("tracking=")]
    assert manifest()["overrides"] == overrides
    assert f"run with {' '.join(overrides)}" in (folder / "summary.md").read_text().replace("\\", "")
    with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
        assert train("study=mine", *tiny, "seeds=[0,1]") == 0


@pytest.mark.slow
def test_published_trials_are_not_run_again_where_they_hold(
    tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(CELLS + CONTRASTS + TUNING)
    assert train("study=mine", *tiny, "seeds=[0,1]") == 0
    (folder,) = (path.parent for path in Path("outputs").glob("mine*/study.json"))
    (trials,) = Path("outputs").glob("tuning-of-*")
    kept = shutil.copytree(trials, "trials")
    with mock.patch("hylo.publish._absolute_paths", return_value=[]):  # those of the test's own text files
        publish(folder, Path("experiments/mine"))
    (first,) = manifest()["tuning"]
    shutil.rmtree("outputs")
    assert train("study=mine", *tiny, "seeds=[0]") == 0
    assert "8 trials, 8 of them published with a study" in capsys.readouterr().out
    assert not [*Path("outputs").glob("tuning-of-*")]
    assert manifest()["tuning"] == [first | {"recorded": 4}]
    assert len(read_study(next(Path("outputs").glob("mine*"))).trials) == 4 * 2 * 6
    shutil.copytree("experiments/mine", "experiments/other")
    Path("experiments/mine/study.yaml").write_text(
        Path("experiments/mine/study.yaml").read_text().replace("large", "big")
    )
    shutil.rmtree("experiments/mine/records")
    assert train("study=mine", *tiny, "seeds=[0]") == 0
    assert "big: " in (said := capsys.readouterr().out)
    assert "8 trials, 8 of them published with a study" in said, "another study's, of a cell of another name"
    write_study(CELLS + CONTRASTS + TUNING)
    for change in ("tune=again", "trainer.steps=5"):
        ran = mock.patch.object(hylo.studies.tuning, "run_pending", side_effect=RuntimeError("ran"))
        with ran, pytest.raises(RuntimeError, match="ran"):
            train("study=mine", *tiny, "seeds=[0]", change)
    assert train("study=mine", *tiny, "seeds=[0]", "tune=off") == 0
    told = [json.loads(path.read_text()) for path in Path("outputs").glob("mine*/study.json")]
    untuned = [[text for text in each["overrides"] if text.startswith("tune")] for each in told if "tuning" not in each]
    assert untuned == [["tune=off"]]

    notes = json.loads((Path(kept) / "tuning.json").read_text())
    notes["tuning"][0]["tried"] = notes["tuning"][0]["tried"][:2]  # as if a search had been interrupted and committed
    shutil.rmtree("experiments/other")
    Path("experiments/mine/trials").mkdir()
    Path("experiments/mine/trials/tuning.json").write_text(json.dumps(notes))
    shutil.copy("trials/trials.parquet", "experiments/mine/trials/trials.parquet")
    shutil.rmtree("outputs")
    assert train("study=mine", *tiny, "seeds=[0]") == 0
    assert "8 trials, 4 of them published with a study" in capsys.readouterr().out
    assert manifest()["tuning"] == [first | {"recorded": 2}]


@pytest.mark.slow
def test_every_arm_gets_the_same_number_of_trials_and_its_own_keys(tiny: tuple[str, ...]) -> None:
    """Diverged trials count as tried, and are not run again."""
    write_study(
        "cells:\n  base: [method=none]\n  plain: [method=lora]\n"
        "  pa: [method=landmark_pa]\n  old: [method=landmark_pa]\n"
        "contrasts:\n  - {cell: pa, reference: plain, component: landmarks}\n"
        "tuning:\n  cells: all\n  fixed: [old]\n  trials: 5\n  keys: {trainer.learning_rate: [1.0e-4, 1.0e-3]}\n"
        "  own: {pa: {method.landmark.learning_rate_multiplier: [1, 8]}}\n"
    )
    train_cell = hylo.runs.run.train

    def failing(model: object, *arguments: Any, **options: Any) -> object:
        if arguments[1].learning_rate < 3e-4:
            raise TrainingDiverged("step 1: loss nan")
        return train_cell(model, *arguments, **options)  # pyright: ignore[reportArgumentType]

    with mock.patch.object(hylo.runs.run, "train", failing):
        assert train("study=mine", *tiny, "seeds=[0,1]", "workers=1") == 0
        choices = {choice["cell"]: choice for choice in manifest()["tuning"]}
        assert {name: choice["trials"] for name, choice in choices.items()} == {"plain": 10, "pa": 10}
        assert [None, None] in [each["ppl"] for each in choices["plain"]["tried"]]
        assert choices["pa"]["keys"] == ["trainer.learning_rate", "method.landmark.learning_rate_multiplier"]
        with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
            assert train("study=mine", *tiny, "seeds=[0,1]", "workers=1") == 0


@pytest.mark.slow
def test_a_component_is_searched_from_what_was_chosen_for_its_reference(
    tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """So the reference's rate is one of its settings; a key that only one of the two has keeps its grid."""
    write_study(
        "cells:\n  base: [method=none]\n  both: [method=landmark_pa]\n  plain: [method=rslora]\n"
        "  own: [method=landmark_pa, method.low_rank=null]\n"
        "contrasts:\n  - {cell: both, reference: plain, component: landmarks}\n"
        "  - {cell: both, reference: own, component: matrices}\n"
        "tuning:\n  start: compared\n  trials: 5\n  keys: {trainer.learning_rate: [1.0e-3, 2.0e-3, 4.0e-3]}\n"
        "  own:\n    both: {method.landmark.learning_rate_multiplier: [1, 8]}\n"
        "    own: {trainer.learning_rate: [1.0e-2, 1.0e-1]}\n"
    )
    assert train("study=mine", *tiny, "seeds=[0]", "workers=1") == 0
    choices = {choice["cell"]: choice for choice in manifest()["tuning"]}
    values = {name: [each["values"] for each in choice["tried"]] for name, choice in choices.items()}
    assert {name: choice["start"] for name, choice in choices.items()} == {"both": "", "plain": "both", "own": "both"}
    assert values["both"][:3] == [[0.001, 1.0], [0.002, 1.0], [0.004, 1.0]]
    chosen = choices["both"]["chosen"][0]
    assert values["plain"][1] == [chosen]
    assert values["plain"][0] == [pytest.approx(chosen / 2, rel=0.01)]
    assert values["own"][:2] == [[0.01], [0.1]], "its own grid is its own"
    assert {len(tried) for tried in values.values()} == {5}
    said = capsys.readouterr().out
    assert "plain: trainer.learning_rate=" in said
    assert "10 trials, starting at the values of both" in said
    (summary,) = Path("outputs").glob("mine*/summary.md")
    assert "10 trials each, 2 searches starting where that of a compared cell ended; trained on" in summary.read_text()


@pytest.mark.slow
def test_a_trial_that_is_lost_is_not_one_that_diverged(
    tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """No setting is chosen without it, and only it runs again."""
    write_study(CELLS + CONTRASTS + TUNING)
    execute = hylo.runs.run.execute

    def failing(cell: Cell, *arguments: Any) -> object:
        if cell.config.seed == 100 and cell.config.trainer.learning_rate == 1e-3:
            raise OSError("no space left")
        return execute(cell, *arguments)

    with mock.patch.object(hylo.runs.run, "execute", failing):
        assert train("study=mine", *tiny, "seeds=[0]", "workers=1") == 2
    said = capsys.readouterr().err
    assert "large,trainer.learning_rate=0.001 (seed 100): failed, OSError: no space left" in said
    assert "(seed 101)" not in said
    assert not [*Path("outputs").glob("*/tuning.json")]
    with mock.patch.object(hylo.runs.run, "execute", wraps=execute) as executed:
        assert train("study=mine", *tiny, "seeds=[0]", "workers=1") == 0
    configs = [call.args[0].config for call in executed.call_args_list if call.args[0].group.startswith("tuning-of")]
    again = [(config.seed, config.trainer.learning_rate) for config in configs]
    assert again[0] == (100, 1e-3)
    assert [seed for seed, _ in again[1:]] == [100, 101], "only one more setting"
    (told,) = manifest()["tuning"]
    assert None not in [ppl for each in told["tried"] for ppl in each["ppl"]]


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        ("keys: {trainer.learning_rate: [1.0e-3]}", "trainer.learning_rate = [0.001]"),
        ("keys: {trainer.learning_rate: [1.0e-3, 0.0]}", "above 0"),
        ("keys: {trainer.lr: [1.0e-3, 1.0e-2]}", "tuning of small: trainer.lr"),
        ("keys: {trainer.lr_scheduler: [1.0e-3, 1.0e-2]}", "tuning of small: trainer.lr_scheduler"),
        ("keys: {trainer.learning_rate: [1.0, 100.0]}", "tuning of small: trainer.learning_rate = 100.0"),
        ("keys: {method.low_rank.rank: [4, 8]}", "the cell large sets method.low_rank.rank itself"),
        ("cells: [smal]\n  keys: {trainer.learning_rate: [1.0e-3, 1.0e-2]}", "tuning.cells.0 = 'smal'"),
        ("cells: [base]\n  keys: {trainer.learning_rate: [1.0e-3, 1.0e-2]}", "tuning = 'base'"),
        ("keys: {trainer.learning_rate: [1.0e-3, 1.0e-2]}\n  seeds: [100]", "tuning.seeds = [100]"),
        ("keys: {trainer.learning_rate: [1.0e-3, 1.0e-2]}\n  seeds: [1, 100]", "tuning.seeds = [1]"),
        ("keys: {trainer.learning_rate: [1.0e-4, 1.0e-3, 1.0e-2]}\n  trials: 2", "tuning.trials = 2"),
        (
            "keys: {trainer.learning_rate: [1.0e-3, 1.0e-2]}\n"
            "  own: {small: {method.landmark.learning_rate_multiplier: [1, 8]}}",
            "tuning of small: method.landmark.learning_rate_multiplier",
        ),
        ("keys: {trainer.learning_rate: [1.0e-3, 1.0e-2]}\n  start: reference", "grid, compared"),
        ("key: trainer.learning_rate\n  values: [1.0e-3, 1.0e-2]", "tuning.keys"),
    ],
)
def test_tuning_that_cannot_work_is_refused(
    tuning: str, said: str, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the cell and the key, and nothing runs."""
    write_study(f"{CELLS}{CONTRASTS}tuning:\n  {tuning}\n")
    assert train("study=mine", *tiny, "seeds=[0,1]") == 2
    assert said in capsys.readouterr().err
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_seeds_are_added_until_the_cap(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Each look has its own level, and the report uses that of the last one."""
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_factorial_reports_shapley_values(tiny: tuple[str, ...]) -> None:
    factors = "{rank_stabilized: [method.low_rank.scaling=standard], bias: [method.position_bias=null]}"
    stack = "[method=hylorada, method.landmark=null]"
    write_study(f"factorial: {{stack: {stack}, without: {factors}, nothing: lora}}\n")
    assert train("study=mine", *tiny, "seeds=[0,1]", figures=True) == 0
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    assert list(read_study(folder).cells) == ["none", "lora", "rank_stabilized", "bias", "rank_stabilized+bias"]
    table = pd.read_csv(folder / "attribution.csv")
    assert dict(zip(table["component"], table["added_params"], strict=True)) == {"rank_stabilized": 0, "bias": 64}
    assert (folder / "figures" / "attribution.svg").exists()


def test_cells_of_several_contexts_have_a_base_model_each(tiny: tuple[str, ...]) -> None:
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
    train_cell = hylo.runs.run.train

    def failing(model: object, *arguments: object, **options: object) -> object:
        if "large" in str(options["label"]):
            raise RuntimeError("out of luck")
        return train_cell(model, *arguments, **options)  # pyright: ignore[reportArgumentType]

    with mock.patch.object(hylo.runs.run, "train", failing):
        assert train("study=mine", *tiny, "workers=1") == 1
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    assert "out of luck" in (folder / "summary.md").read_text()
    assert set(pd.read_csv(folder / "summary.csv")["cell"]) == {"base", "small"}
    assert train("study=mine", *tiny) == 0
    assert set(pd.read_csv(folder / "summary.csv")["cell"]) == {"base", "small", "large"}


def test_nothing_to_decide_is_refused(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Without contrasts, every look would count as "all decided" after three seeds that decide nothing."""
    write_study(CELLS)
    assert train("study=mine", *tiny, "seeds=until_decided") == 2
    assert "no contrast or claim to decide" in capsys.readouterr().err
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_some_cells_are_run_before_the_others(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """With the base model's row and trials of their own; what is left is named, and what is done is not done again."""
    write_study(
        CELLS + CONTRASTS + TUNING.replace("[large]", "all") + "  own: {small: {method.low_rank.alpha: [8, 16]}}\n"
    )
    assert train("study=mine", *tiny, "seeds=[0]", "cells=[large]") == 0
    part = manifest()
    assert [entry["cell"] for entry in part["cells"]] == ["base", "large"]
    assert (part["not_run"], part["contrasts"]) == (["small"], [])
    assert [note["cell"] for note in part["tuning"]] == ["large"]
    assert "not run yet: small" in capsys.readouterr().out
    (folder,) = (path.parent for path in Path("outputs").glob("mine*/study.json"))
    before = {run.name for run in folder.iterdir() if run.is_dir()}
    trials = {run.name for run in next(Path("outputs").glob("tuning-of-*")).iterdir() if run.is_dir()}
    assert {name.partition(",")[0] for name in trials} == {"large"}
    with mock.patch("hylo.publish._absolute_paths", return_value=[]):  # those of the test's own text files
        publish(folder, Path("published"))
    assert read_study(Path("published/records")).manifest["not_run"] == ["small"]

    assert train("study=mine", *tiny, "seeds=[0]") == 0
    whole = manifest()
    assert [entry["cell"] for entry in whole["cells"]] == ["base", "small", "large"]
    assert "not_run" not in whole
    assert [note["cell"] for note in whole["tuning"]] == ["small", "large"]
    assert whole["tuning"][1] == part["tuning"][0]
    assert {run for entry in whole["cells"] for run in entry["runs"] if entry["cell"] != "small"} <= before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["study=mine", "cells=[larg]"], ["cells = ['larg']", "cells of the study: base, small, large"]),
        (["study=mine", "cells=[]"], ["cells = []", "null for all"]),
        (["cells=[large]"], ["cells = ['large']", "null without a study"]),
        (["add=[dora]"], ["add = ['dora']", "null without a study"]),
    ],
)
def test_cells_that_are_none_are_refused(
    tiny: tuple[str, ...], arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(CELLS)
    assert train(*tiny, *arguments) == 2
    message = capsys.readouterr().err
    assert all(text in message for text in said), message
    assert not Path("outputs").exists()


def test_a_part_has_the_base_model_of_its_own_context(tiny: tuple[str, ...]) -> None:
    longer = [text for text in tiny if not text.startswith("data.context_length")]
    write_study(
        "cells:\n"
        "  base_32: [method=none, data.context_length=32]\n  lora_32: [method=lora, data.context_length=32]\n"
        "  base_64: [method=none, data.context_length=64]\n  lora_64: [method=lora, data.context_length=64]\n"
    )
    assert train("study=mine", *longer, "cells=[lora_64]") == 0
    assert [(entry["cell"], entry["base"]) for entry in manifest()["cells"]] == [
        ("base_64", "base_64"),
        ("lora_64", "base_64"),
    ]
    assert manifest()["not_run"] == ["base_32", "lora_32"]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXPERIMENTS.glob("*/study.yaml")))
def test_any_part_of_a_shipped_study_is_a_study(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contrasts, claims and tuning speak of its own cells alone; all cells are the study itself."""
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", EXPERIMENTS)
    study = read_study_file(name)
    names = [*study.all_cells()]
    assert part_of(study, names) == study
    for place in range(len(names)):
        part = part_of(study, names[place : place + 2])
        assert [*part.all_cells()] == names[place : place + 2]
        assert not [*hylo.studies.spec._problems(part)]


def test_a_part_keeps_what_its_cells_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", EXPERIMENTS)
    part = part_of(read_study_file("tuned_ablation"), ["base", "lora", "rslora", "rslora_dora", "rslora_pb"])
    pairs = [(each.cell, each.reference) for each in part.contrasts]
    assert pairs == [("rslora", "lora"), ("rslora_dora", "rslora"), ("rslora_pb", "rslora")]
    assert part.claims == ["A1", "A2", "A3", "W1"]
    assert part.tuning
    assert [*part.tuning.own] == ["rslora_pb"]


@pytest.mark.parametrize(
    ("faster", "given", "expected"),
    [
        (True, [], Precision.bfloat16),
        (False, [], Precision.float32),
        (True, ["trainer.precision=float32"], Precision.float32),
    ],
)
def test_trials_are_narrow_where_that_is_faster(
    tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, faster: bool, given: list[str], expected: Precision
) -> None:
    """Unless the command line says otherwise."""
    write_study(CELLS + TUNING + "  bfloat16: true\n")
    monkeypatch.setattr(hylo.studies.tuning, "has_bfloat16", lambda device: faster)
    ran: list[Plan] = []

    def run_pending(plan: Plan, session: object) -> None:
        ran.append(plan)
        raise RuntimeError("these trials")

    monkeypatch.setattr(hylo.studies.tuning, "run_pending", run_pending)
    with pytest.raises(RuntimeError, match="these trials"):
        train("study=mine", *tiny, *given)
    assert {cell.config.trainer.precision for cell in ran[0].cells} == {expected}


@pytest.mark.parametrize(
    ("instructions", "faster"), [({"avx2": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True)]
)
def test_a_cpu_is_faster_in_bfloat16_with_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, instructions: dict[str, bool], faster: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions | {"cpu_name": "bf16"})
    assert has_bfloat16(Device.cpu) is faster
