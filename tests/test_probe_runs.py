"""Probes of runs: asked with the run or added to a complete one without training again; errors and damage."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from launch import composed, train

import hylo.runs.run
from hylo.cli.main import SESSION, name_sweep, single_cell
from hylo.core.errors import RecordError
from hylo.core.sums import SUMS
from hylo.evaluation.probes.depths import DepthProbe
from hylo.evaluation.probes.score import GRIDS
from hylo.launch.local import operations
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import fingerprint, probe_fingerprint
from hylo.runs.layout import PROBE, RESULT
from hylo.runs.record import RunRecord
from hylo.runs.reuse import reuse_finished
from hylo.runs.run import run_cell
from hylo.runs.store import add_probe, read_run
from hylo.studies.plan import plan_study

PROBED = ("probe=kv", "probe.facts=[5,6]", "probe.lists=3")
"""A probe that takes a fraction of a second."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (["probe.facts=[8,130]"], ["probe.facts = 130", "5 (probe.depths) to 120 (words", "probe.facts=[120]"]),
        (["probe.facts=[4]"], ["probe.facts = 4", "5 (probe.depths)"]),
        (["probe.facts=[]"], ["probe.facts = []", "probe.facts=[8,24,60]"]),
        (["probe.facts=[8,60]"], ["probe.facts = [8, 60]", "512 tokens", "fewer facts"]),
        (["probe.lists=1"], ["probe.lists = 1", ">= 2", "probe.lists=20"]),
        (["probe.facts=[many]"], ["probe.facts", "many"]),
        (["trainer.save_adapter=false"], ["trainer.save_adapter = False", "reads the recorded adapter"]),
        (["method=peft_prefix", "method.peft.kwargs.num_virtual_tokens=300"], ["probe.facts", "a smaller prefix"]),
    ],
)  # fmt: skip
def test_a_probe_that_cannot_be_asked_is_refused(
    overrides: list[str], texts: list[str], tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*tiny, "method=lora", *PROBED[:1], "probe.facts=[5,6]", *overrides) == 2
    message = capsys.readouterr().err
    assert [text for text in texts if text not in message] == []
    assert not Path("outputs").exists()


def test_a_probe_without_a_choice_is_an_unknown_key(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*tiny, "probe.lists=3") == 2
    assert "probe.lists is not a key" in capsys.readouterr().err


def files_of(run: RunRecord) -> dict[str, bytes]:
    """A record's files from training and evaluation."""
    names = [path for path in run.folder.rglob("*") if path.is_file() and path.name not in (PROBE, RESULT, SUMS)]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in names}


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("nothing is trained or evaluated again")

    for name in ("train", "evaluate"):
        monkeypatch.setattr(hylo.runs.run, name, refuse)


@pytest.mark.parametrize("name", ["none", "hylorada", "full", "peft_vera"])
def test_a_complete_run_gets_a_probe_without_training(
    name: str, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other files are unchanged, and the answers equal those of a run that had the probe from the start."""
    config = composed(*tiny, f"method={name}", *PROBED)
    bare = run_cell(Cell("runs", name, composed(*tiny, f"method={name}")), SESSION)
    before = files_of(bare)
    assert bare.probe.empty
    fresh = run_cell(Cell("runs", name, dataclasses.replace(config, outputs="fresh")), SESSION)
    untuned = run_cell(Cell("runs", name, config).base_cell(), SESSION)
    no_training(monkeypatch)
    run = run_cell(Cell("runs", name, config), SESSION)
    assert files_of(run) == before
    assert {key: value for key, value in run.result.items() if key != "probe"} == bare.result
    pd.testing.assert_frame_equal(run.probe, fresh.probe)
    assert list(run.probe.columns) == GRIDS["kv"].columns
    assert len(run.probe) == 2 * 3 * 5
    if name != "none":
        assert not np.allclose(run.probe["answer_logprob"], untuned.probe["answer_logprob"]), "no adapter was read"


def test_the_section_of_a_record(tiny: tuple[str, ...]) -> None:
    run = run_cell(Cell("runs", "none", composed(*tiny, "method=none", *PROBED)), SESSION)
    section, config = run.result["probe"], composed(*tiny, *PROBED).probe_config
    assert config is not None
    assert section["name"] == run.probe_name == "kv"
    assert section["fingerprint"] == run.probe_fingerprint == probe_fingerprint(config)
    assert section["config"] == {"facts": [5, 6], "depths": 5, "lists": 3, "seed": 0}
    assert set(section["facts"]) == {"5", "6"}
    for facts, found in section["facts"].items():
        own: Any = run.probe[run.probe["facts"] == int(facts)]
        assert found["accuracy_by_depth"] == own.groupby("depth")["exact"].mean().tolist()
        assert found["logprob_by_depth"] == pytest.approx(own.groupby("depth")["answer_logprob"].mean().tolist())
        assert set(found) >= {"accuracy", "ends_minus_middle", "seconds"}


@pytest.mark.parametrize(("pooling", "cached"), [("sequence", False), ("causal", True)])
def test_the_audit_decides_how_lists_are_read(
    pooling: str, cached: bool, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = DepthProbe.ask, []
    monkeypatch.setattr(DepthProbe, "ask", lambda *a, **named: seen.append(named["cached"]) or real(*a, **named))
    overrides = ("method=landmark_original", f"method.landmark.pooling={pooling}")
    run_cell(Cell("runs", pooling, composed(*tiny, *overrides, *PROBED)), SESSION)
    assert seen == [cached]


def test_a_probe_is_asked_once_and_kept(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell complete with its probe is reused, also if no probe is asked for; another probe replaces it."""
    cell, bare, other = (
        Cell("runs", "lora", composed(*tiny, "method=lora", *more)) for more in (PROBED, (), (*PROBED, "probe.seed=1"))
    )
    first = run_cell(cell, SESSION)
    no_training(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthProbe, "ask", None)
        assert reuse_finished(cell, SESSION)
        assert reuse_finished(bare, SESSION)
        assert run_cell(bare, SESSION).result == run_cell(cell, SESSION).result == first.result
    assert not reuse_finished(other, SESSION)
    assert fingerprint(cell.config, SESSION) == fingerprint(other.config, SESSION)
    found = run_cell(other, SESSION)
    assert found.result["probe"]["config"]["seed"] == 1
    assert not reuse_finished(cell, SESSION)
    (found.folder / PROBE).unlink()
    assert read_run(found.folder).probe.empty
    assert not reuse_finished(other, SESSION)


def test_a_run_of_another_group_is_taken_with_its_probe(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two complete copies, the one with the answers is used, whichever is found first."""
    asked = Cell("b", "lora", composed(*tiny, "method=lora", *PROBED))
    bare = Cell("a", "lora", composed(*tiny, "method=lora"))
    run_cell(bare, SESSION)
    no_training(monkeypatch)
    run_cell(asked, SESSION)
    monkeypatch.setattr(DepthProbe, "ask", None)
    wanted = dataclasses.replace(asked, group="a")
    assert reuse_finished(wanted, SESSION)
    assert not read_run(wanted.folder(fingerprint(wanted.config, SESSION))).probe.empty
    third = dataclasses.replace(asked, group="c")
    assert len(run_cell(third, SESSION).probe) == 30
    own = dataclasses.replace(bare, group="c")
    assert len(run_cell(own, SESSION).probe) == 30, "nobody asks for a probe: what is there stays"


def test_an_interrupted_probe_costs_only_itself(
    tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted while asking, and while writing the answers."""
    cell = Cell("runs", "lora", composed(*tiny, "method=lora", *PROBED))

    def stopped(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthProbe, "ask", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, SESSION)
    no_training(monkeypatch)
    run = run_cell(cell, SESSION)
    table, section = run.probe, run.result["probe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", stopped)
        with pytest.raises(KeyboardInterrupt):
            add_probe(run.folder, table, section | {"fingerprint": "other"})
    assert read_run(run.folder).complete
    assert read_run(run.folder).probe.empty, "a table without its section is nobody's answer"
    assert run_cell(cell, SESSION).result["probe"]["fingerprint"] == section["fingerprint"]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_adapter_that_cannot_be_read_is_named(
    damage: str, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_cell(Cell("runs", "lora", composed(*tiny, "method=lora", "trainer.save_adapter=true")), SESSION)
    path = run.folder / "adapter" / "adapter.safetensors"
    probed = Cell("runs", "lora", composed(*tiny, "method=lora", *PROBED))
    if damage == "missing":  # deleted to save space: the record is still good
        path.unlink()
        with pytest.raises(RecordError, match=r"adapter\.safetensors cannot be read"):
            run_cell(probed, SESSION)
        assert read_run(run.folder).complete
    else:
        before = path.read_bytes()
        path.write_bytes(b"x")
        assert len(run_cell(probed, SESSION).probe) > 0
        assert f"{path} is damaged" in capsys.readouterr().err
        assert path.read_bytes() == before, "the run was repeated"


def test_sweeps_studies_and_cells_have_their_names_without_the_probe() -> None:
    sweep = ["-m", "method=lora,rslora"]
    assert name_sweep([*sweep, *PROBED])[-2].startswith("hydra.sweep.dir=")
    assert name_sweep([*sweep, *PROBED])[-2] == name_sweep(sweep)[-2]
    assert single_cell(composed("method=lora", *PROBED), ["method=lora", *PROBED], "lora").name == "lora"
    plan = plan_study(composed("study=ablation"), [*PROBED, "study=ablation"], lambda texts: (composed(*texts), ""))
    assert plan.group == "ablation"
    assert all(cell.config.probe_config for cell in plan.cells)


def test_a_probe_that_fails_is_told(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A command whose probe failed must not exit as if it had succeeded."""
    assert train(*tiny, "method=none") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DepthProbe, "ask", None)
        assert train(*tiny, "method=none", *PROBED) == 1
    assert "none: failed: TypeError" in capsys.readouterr().err
    assert train(*tiny, "method=none", *PROBED) == 0


def test_operations_of_a_probe(tiny: tuple[str, ...]) -> None:
    bare, asked = (Cell("runs", "lora", composed(*tiny, "method=lora", *more)) for more in ((), PROBED))
    weights = SESSION.skeleton(bare.config.model).num_parameters()
    assert asked.config.probe_config is not None
    tokens = SESSION.probe(asked.config.probe_config, asked.config.model).tokens
    assert operations(asked, SESSION) - operations(bare, SESSION) == 2 * weights * tokens
