"""Sweeps and studies: names, rows, seeds, every override, every shipped file."""

import json
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
from hydra import initialize_config_dir
from launch import ROOT, composed, train
from omegaconf import OmegaConf

import hylo.runs.run
import hylo.studies.spec
from hylo.cli.main import SESSION, compose
from hylo.data.base import data_problems
from hylo.runs.store import read_study
from hylo.studies.choices import condition
from hylo.studies.plan import plan_study
from hylo.studies.spec import ALL, EXPERIMENTS, key_of, read_study_file, study_names
from hylo.studies.tuning import VALIDATION, arms_of
from hylo.training.config import trainer_problems

CONF = ROOT / "conf"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep_folder() -> Path:
    (folder,) = Path("outputs").glob("sweep-*")
    return folder


def test_a_sweep_as_written(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "method=landmark_pa,landmark_learnable", *tiny, figures=True) == 0
    study = read_study(sweep_folder())
    assert list(study.cells) == ["none", "landmark_pa", "landmark_learnable"]
    printed = capsys.readouterr().out
    assert printed.count("RANDOM WEIGHTS") == 2, "both tables say that the weights are random"
    assert "Against the previous row" in printed
    summary = pd.read_csv(sweep_folder() / "summary.csv")
    assert list(summary["cell"]) == ["none", "landmark_pa", "landmark_learnable", "landmark_learnable"]
    assert (sweep_folder() / "summary.md").exists()
    assert {path.name for path in (sweep_folder() / "figures").iterdir()} >= {"improvement.png", "ppl_by_position.png"}


@pytest.mark.parametrize(
    ("swept", "bases"),
    [
        ("data.context_length=16,32", ["none,data.context_length=16", "none,data.context_length=32"]),
        pytest.param(
            "model=tiny_llama,tiny_gpt2", ["none,model=tiny_llama", "none,model=tiny_gpt2"], marks=pytest.mark.slow
        ),
        pytest.param(
            "trainer.precision=float32,bfloat16",
            ["none,trainer.precision=float32", "none,trainer.precision=bfloat16"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_job_has_its_base_model(swept: str, bases: list[str], tiny: tuple[str, ...]) -> None:
    """Jobs that run one after the other name it by themselves, and the report finds it."""
    key = swept.partition("=")[0]
    assert train("-m", "method=lora", *(text for text in tiny if key not in text), swept) == 0
    study = read_study(sweep_folder())
    cells = [name.replace("none", "lora", 1) for name in bases]
    assert list(study.cells) == [name for pair in zip(bases, cells, strict=True) for name in pair]
    assert [study.base_of(cell) for cell in cells] == bases
    assert len(list(sweep_folder().glob("*/result.json"))) == 4


@pytest.mark.slow
def test_seeds_share_a_row_and_the_base_model_runs_once(tiny: tuple[str, ...]) -> None:
    assert train("-m", *tiny, "method=lora,rslora", "seed=0,1,2") == 0
    study = read_study(sweep_folder())
    assert {cell: [run.seed for run in runs] for cell, runs in study.cells.items()} == {
        "none": [0], "lora": [0, 1, 2], "rslora": [0, 1, 2]
    }  # fmt: skip
    summary = pd.read_csv(sweep_folder() / "summary.csv")
    assert set(summary.query("cell != 'none'")["seeds"]) == {3}


@pytest.mark.slow
def test_names_hold_what_is_swept_and_nothing_else(tiny: tuple[str, ...]) -> None:
    arguments = ("method.low_rank.rank=2,4", "trainer.learning_rate=1e-3,1e-4", "method=lora")
    assert train(*arguments, "-m", *tiny) == 0
    names = list(read_study(sweep_folder()).cells)
    assert names[0] == "none"
    assert names[1:] == [f"lora,low_rank.rank={r},trainer.learning_rate={lr}" for r in (2, 4) for lr in (0.001, 0.0001)]


@pytest.mark.slow
def test_an_unexpected_error_ends_a_sweep(
    tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra warns of errors in callbacks, and would run the jobs by itself, one after the other in this process."""
    monkeypatch.setattr("hylo.cli.sweep.freeze", lambda plan, session: 1 / 0)
    assert train("-m", "method=lora,rslora", *tiny) == 1
    said = capsys.readouterr()
    assert "ZeroDivisionError" in said.err
    assert "Launching" not in said.out + said.err
    assert not [*Path("outputs").glob("*/lora*")]


def test_a_sweep_asked_for_again_runs_nothing(tiny: tuple[str, ...]) -> None:
    sweep = ("-m", *tiny, "method=lora,none")
    assert train(*sweep) == 0
    with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
        assert train(*sweep) == 0
        assert train("-m", "method=lora,none", *tiny, "hydra.verbose=false") == 0
    assert len(list(Path("outputs").glob("sweep-*"))) == 1


def test_a_component_is_switched_off_by_an_override(tiny: tuple[str, ...]) -> None:
    """Leave-one-out needs no new file; hylorada without its additions is rslora and has the same fingerprint."""
    assert train("-m", *tiny, "method=rslora") == 0
    with mock.patch.object(hylo.runs.run, "execute", side_effect=AssertionError("ran again")):
        assert train(*tiny, "method=hylorada", "method.landmark=null", "method.position_bias=null") == 0


@pytest.mark.slow
def test_every_method_runs(tiny: tuple[str, ...]) -> None:
    """Found by glob, so a new YAML file is tested automatically."""
    assert train("-m", "method=glob(*)", *tiny, "model=tiny_gpt2", "trainer.steps=2") == 0
    cells = read_study(sweep_folder()).cells
    assert set(cells) == {path.stem for path in (CONF / "method").glob("*.yaml")}
    assert all(run.complete for runs in cells.values() for run in runs)


@pytest.mark.parametrize("path", sorted(CONF.glob("*/**/*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_shipped_choice_composes(path: Path) -> None:
    mandatory = ["model.folder=/somewhere"] if path.stem == "folder" else []
    group = path.parent.relative_to(CONF).as_posix()
    config = composed(f"{group}={path.stem}", *mandatory)
    assert attrgetter(group.replace("/", "."))(config) is not None
    keys = [line.split(":")[0].strip() for line in path.read_text().splitlines()]
    text = path.read_text().splitlines()
    for number, line in enumerate(text):
        if line and not line.startswith((" ", "#", "defaults", "{")) and line.split(":")[1].strip():
            assert text[number - 1].lstrip().startswith("#"), f"{path.name}: {keys[number]} does not say why"


SMALL = {"trainer.steps": 2, "trainer.batch_size": 1}
"""Settings of a run of hardly any training."""
SMALLER = {"data.context_length": 6, "data.eval_windows": 4, "trainer.steps": 12, "trainer.warmup_steps": 12}
"""Settings of a shipped study's cells, and what they are divided by."""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which studies find the finished runs of one another."""
    return tmp_path_factory.mktemp("outputs")


def smaller(name: str, to: Path) -> None:
    """Writes a shipped study to another folder of studies: the same cells, with shorter texts and fewer steps."""
    study: Any = OmegaConf.load(EXPERIMENTS / name / "study.yaml")
    for texts in study.get("cells", {}).values():
        for place, text in enumerate(texts):
            if (divisor := SMALLER.get(key_of(text))) is not None:
                texts[place] = f"{key_of(text)}={max(1, int(text.partition('=')[2]) // divisor)}"
        if "data=kv_retrieval" in texts:
            texts.append("data.train_documents=40")
    (to / name).mkdir()
    OmegaConf.save(study, to / name / "study.yaml")
    (to / "claims.csv").write_text((EXPERIMENTS / "claims.csv").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_every_study_runs(
    name: str, tiny: tuple[str, ...], outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model, with shorter texts and fewer steps; all other settings of cells are kept."""
    smaller(name, tmp_path)
    monkeypatch.setattr(hylo.studies.spec, "EXPERIMENTS", tmp_path)
    shipped = read_study_file(name)
    own = {key_of(text) for texts in shipped.all_cells().values() for text in texts}
    shared = [text for text in tiny if key_of(text) not in own and ("data" not in own or "_files" not in text)]
    if "probe=kv" in shipped.overrides:
        shared += ["probe=kv", "probe.facts=[5]", "probe.lists=2"]
    if "probe=needle_long" in shipped.overrides:
        shared += ["probe=needle_long", "probe.tokens=[400]", "probe.depths=3", "probe.haystacks=2"]
    small = [f"{key}={value}" for key, value in SMALL.items() if key not in own]
    small += ["model.context=4096", "seeds=[0]", "tune=off", f"outputs={outputs}"]
    assert train(f"study={name}", *shared, *small) == 0
    (folder,) = (path.parent for path in outputs.glob(f"{name}*/summary.md"))
    study = read_study(folder)
    assert [cell for cell in study.cells if cell in shipped.all_cells()] == list(shipped.all_cells())
    assert all(run.complete for runs in study.cells.values() for run in runs)
    contrasts = pd.read_csv(folder / "contrasts.csv")
    assert len(contrasts) == len(shipped.contrasts)


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_shipped_studies_at_their_full_size(name: str) -> None:
    """No setting of a cell conflicts with another; every cell that trains is tuned or named as fixed; a grid starts
    inside the range of its key.
    """
    study = read_study_file(name)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config, _ = compose([f"study={name}"])
        plan = plan_study(config, [], compose)
    for cell in plan.cells:
        assert not [*data_problems(cell.config.data), *trainer_problems(cell.config.trainer)]
    if study.tuning is None:
        return
    arms = [arm.cell for arm in arms_of(plan, study.tuning)]
    trained = {cell.name for cell in plan.cells if cell.config.components}
    assert set(arms) == (trained if study.tuning.cells == ALL else set(study.tuning.cells)) - {*study.tuning.fixed}


@pytest.mark.slow
def test_a_study_with_other_seeds(tiny: tuple[str, ...]) -> None:
    assert train("study=ablation", *tiny, "seeds=[3,4]") == 0
    (folder,) = (path.parent for path in Path("outputs").glob("*/study.json"))
    assert [run.seed for run in read_study(folder).cells["rslora"]] == [3, 4]
    assert len(read_study(folder).cells["base"]) == 1


@pytest.mark.slow
def test_the_ablation_and_leave_one_out_share_their_finished_runs(tiny: tuple[str, ...]) -> None:
    """A run is found by its fingerprint, whichever study asks for it."""
    assert train("study=ablation", *tiny) == 0
    with mock.patch.object(hylo.runs.run, "execute", wraps=hylo.runs.run.execute) as execute:
        assert train("study=leave_one_out", *tiny, "workers=1") == 0
    ran = [call.args[0].name for call in execute.call_args_list]
    assert ran == ["rslora_pb", "landmark_pa", "hylorada", "hylorada_dora_without_rs", "hylorada_dora_without_pb"]
    (folder,) = Path("outputs").glob("leave_one_out*")
    assert list(read_study(folder).cells) == list(read_study_file("leave_one_out").cells)


TRIALS = [
    path
    for pattern in ("*/trials/tuning.json", "*/records/study.json")
    for path in sorted(EXPERIMENTS.glob(pattern))
    if '"condition"' in path.read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("path", TRIALS, ids=lambda path: path.parts[-3])
def test_shipped_trials_hold_for_this_code(path: Path) -> None:
    """They took hours. A new setting that changes nothing about them must not make them stale."""
    name = path.parts[-3]
    recorded = {entry["cell"]: entry["condition"] for entry in json.loads(path.read_text())["tuning"]}
    tuning = read_study_file(name).tuning
    assert tuning is not None
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config, _ = compose([f"study={name}"])
        texts = [VALIDATION, *tuning.overrides]
        plan = plan_study(config, texts, compose, seeds=tuning.seeds, chosen={}, only=recorded)
    found = {cell.name: condition(cell, [*tuning.grids(cell.name)], SESSION) for cell in plan.cells}
    assert found == recorded
