"""The retrieval probe: its prompts, what a model answers, and how a complete run gets it without training again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from adapters import METHODS, adapt, declared_dead, method, perturb
from launch import composed, train

import hylo.run
from hylo.adapters.model import AdaptedModel
from hylo.cell import Cell
from hylo.cli import SESSION, name_sweep, single_cell
from hylo.data.kv_text import PROBE_CODES, TRAINING_CODES
from hylo.data.kv_words import PROBE_WORDS, TRAINING_WORDS
from hylo.errors import RecordError, TrainingDiverged
from hylo.fingerprint import fingerprint, probe_mark
from hylo.models.tiny import TinyArchitecture, TinyModelConfig
from hylo.probe.kv import KvProbeConfig, Prompts, depth_places, make_prompts
from hylo.probe.measure import ask, cached_logits, full_logits, graded
from hylo.probe.score import ends_minus_middle
from hylo.records import PROBE, PROBE_COLUMNS, RESULT, RunRecord, add_probe, read_run, read_study
from hylo.report.retrieval import ends_minus_middle as difference_table
from hylo.report.retrieval import interval, retrieval_contrast, retrieval_table
from hylo.run import run_cell, taken_up
from hylo.runtime import accelerator_for
from hylo.side_by_side import operations
from hylo.study import plan_study

PROBED = ("probe=kv", "probe.facts=[5,6]", "probe.lists=3")
"""A probe that takes a fraction of a second."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def prompts() -> list[Prompts]:
    return make_prompts(KvProbeConfig(facts=[5, 8], lists=2), TinyModelConfig(name="tiny").tokenizer())


def tiny_model(architecture: TinyArchitecture, name: str, *overrides: str) -> AdaptedModel:
    """A method on a tiny model, with no tensor of it at its start."""
    model = adapt(TinyModelConfig(name="tiny", architecture=architecture).load(), method(name, *overrides))
    perturb(model)
    return model


def text_of(prompts: Prompts, depth: int) -> str:
    tokenizer = TinyModelConfig(name="tiny").tokenizer()
    return str(tokenizer.decode(np.concatenate([prompts.prefix, prompts.tails[depth]]).tolist()))


def test_words_and_codes_are_not_those_of_training() -> None:
    assert not set(PROBE_WORDS) & set(TRAINING_WORDS)
    assert len(set(PROBE_WORDS)) == len(PROBE_WORDS) >= 60
    assert len(set(TRAINING_WORDS)) == len(TRAINING_WORDS)
    assert not set(PROBE_CODES) & set(TRAINING_CODES)
    assert len(PROBE_CODES) + len(TRAINING_CODES) == 9_000
    for codes in (PROBE_CODES, TRAINING_CODES):  # every digit at every place, so none is new in the probe
        for place in range(4):
            assert set(codes // 10**place % 10) == set(range(place == 3, 10))


def test_depths_go_from_the_first_fact_to_the_last() -> None:
    assert depth_places(60, 5).tolist() == [0, 15, 30, 44, 59]
    assert depth_places(5, 5).tolist() == [0, 1, 2, 3, 4]
    for facts in range(5, 80):
        places = depth_places(facts, 5)
        assert places[0] == 0
        assert places[-1] == facts - 1
        assert (np.diff(places) > 0).all()


def test_a_question_asks_for_the_fact_at_its_place(prompts: list[Prompts]) -> None:
    """The text as a reader sees it, from its tokens; lists are asked in turn, so that the time left can be told."""
    assert [(one.facts, one.number) for one in prompts] == [(5, 0), (8, 0), (5, 1), (8, 1)]
    for one in prompts:
        for depth, place in enumerate(one.places):
            listed, _, asked = text_of(one, depth).partition("\n\n")
            lines = listed.splitlines()
            assert len(lines) == one.facts
            fact = lines[place].removesuffix(".")
            word = fact.split()[3]
            assert asked == f"Question: what is the code for {word}?\nAnswer: {fact}"
            assert one.answer_tokens[depth] == 4, "a token a byte"
            assert word in PROBE_WORDS
            assert int(fact.split()[-1]) in PROBE_CODES


def test_lists_depend_on_the_seed_of_the_probe_alone(prompts: list[Prompts]) -> None:
    tokenizer = TinyModelConfig(name="tiny").tokenizer()
    more = make_prompts(KvProbeConfig(facts=[8], lists=3), tokenizer)
    assert [text_of(one, 0) for one in more[:2]] == [text_of(one, 0) for one in prompts if one.facts == 8]
    other = make_prompts(KvProbeConfig(facts=[8], lists=3, seed=1), tokenizer)
    assert text_of(other[0], 0) != text_of(more[0], 0)


@pytest.mark.parametrize("name", METHODS)
def test_reading_a_list_once_is_the_full_pass(name: str, prompts: list[Prompts]) -> None:
    """For every method whose cached decoding the audit allows; the others are asked by full passes."""
    allowed = not any("cached_decoding" in config.breaks for config in method(name).values())
    for architecture in TinyArchitecture:
        model = tiny_model(architecture, name)
        with torch.no_grad():
            for one in prompts[:2]:
                cached, full = cached_logits(model, one), full_logits(model, one)
                for depth, tail in enumerate(one.tails):  # what lies behind a shorter tail is padding
                    difference = (cached - full)[depth, : len(tail)].abs().max()
                    assert not allowed or difference < 1e-4 * full.std()


def test_a_leaking_method_is_asked_by_full_passes(prompts: list[Prompts]) -> None:
    model = tiny_model(TinyArchitecture.llama, "landmark_original", "method.landmark.pooling=sequence")
    with torch.no_grad():
        assert (cached_logits(model, prompts[0]) - full_logits(model, prompts[0])).abs().max() > 1e-4
    assert declared_dead(model) == []


@pytest.mark.parametrize("answer", [0, 1, 2, 3])
def test_exact_is_what_greedy_decoding_says(answer: int, prompts: list[Prompts]) -> None:
    """Targets are what the model itself generates, right up to one token, or throughout."""
    model = tiny_model(TinyArchitecture.llama, "lora")
    accelerator = accelerator_for(composed("model=tiny_llama").trainer.device, composed().trainer.precision)
    one = prompts[0]
    tails, expected = [], []
    for depth, tail in enumerate(one.tails):
        question = torch.from_numpy(np.concatenate([one.prefix, tail[:-4]]).astype(np.int64))[None]
        generated = question
        for _ in range(4):
            generated = torch.cat([generated, model(input_ids=generated).logits[:, -1:].argmax(-1)], dim=1)
        said = generated[0, -4:].numpy().astype(np.int32)
        right = depth % 2 == 0
        said[answer] = said[answer] if right else (said[answer] + 1) % 257
        tails.append(np.concatenate([tail[:-4], said]))
        expected.append(int(right))
    known = dataclasses.replace(one, tails=tails)
    for cached in (True, False):
        answers = ask(model, [known], accelerator, cached=cached, label="test")
        table: Any = answers.table
        assert table["exact"].tolist() == expected
        with torch.no_grad():
            for depth, tail in enumerate(tails):
                whole = torch.from_numpy(np.concatenate([one.prefix, tail]).astype(np.int64))[None]
                log_probs = model(input_ids=whole).logits[0, :-1].double().log_softmax(-1)
                true = sum(float(log_probs[-4 + i, tail[-4 + i]]) for i in range(4))
                assert table["answer_logprob"][depth] == pytest.approx(true, abs=1e-4)


def test_a_number_that_is_not_finite_is_refused(prompts: list[Prompts]) -> None:
    model = tiny_model(TinyArchitecture.llama, "lora")
    next(iter(model.flat().values())).data.fill_(float("nan"))
    config = composed("model=tiny_llama")
    with pytest.raises(TrainingDiverged, match="list 0 of 5 facts"):
        ask(model, prompts, accelerator_for(config.trainer.device, config.trainer.precision), cached=True, label="test")


def test_graded_by_hand() -> None:
    """Two tokens of an answer, of which the second is not the likeliest."""
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.6, 0.4], [0.9, 0.1]]))
    exact, logprob = graded(logits, np.array([0, 0, 1, 1]), 2)
    assert (exact, logprob) == (False, pytest.approx(np.log(0.75 * 0.4)))
    exact, logprob = graded(logits, np.array([0, 0, 1, 0]), 2)
    assert (exact, logprob) == (True, pytest.approx(np.log(0.75 * 0.6)))


def test_ends_minus_middle() -> None:
    assert ends_minus_middle(np.array([1.0, 0.0, 0.3, 0.0, 0.8])) == pytest.approx(0.9 - 0.1)


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
    """What training and evaluation left in a record."""
    names = [path for path in run.folder.rglob("*") if path.is_file() and path.name not in (PROBE, RESULT, ".lock")]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in names}


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("nothing is trained or evaluated again")

    for name in ("train", "evaluate"):
        monkeypatch.setattr(hylo.run, name, refuse)


@pytest.mark.parametrize("name", ["none", "hylorada", "full", "peft_vera"])
def test_a_complete_run_gets_a_probe_without_training(
    name: str, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its other files keep their bits, and the answers are those that a run with the probe from the start has."""
    config = composed(*tiny, f"method={name}", *PROBED)
    bare = run_cell(Cell("runs", name, composed(*tiny, f"method={name}")), SESSION)
    before = files_of(bare)
    assert bare.probe.empty
    assert list(bare.probe.columns) == PROBE_COLUMNS
    fresh = run_cell(Cell("runs", name, dataclasses.replace(config, outputs="fresh")), SESSION)
    untuned = run_cell(Cell("runs", name, config).untuned("none"), SESSION)
    no_training(monkeypatch)
    run = run_cell(Cell("runs", name, config), SESSION)
    assert files_of(run) == before
    assert {key: value for key, value in run.result.items() if key != "probe"} == bare.result
    pd.testing.assert_frame_equal(run.probe, fresh.probe)
    assert list(run.probe.columns) == PROBE_COLUMNS
    assert len(run.probe) == 2 * 3 * 5
    if name != "none":
        assert not np.allclose(run.probe["answer_logprob"], untuned.probe["answer_logprob"]), "no adapter was read"


def test_the_section_of_a_record(tiny: tuple[str, ...]) -> None:
    run = run_cell(Cell("runs", "none", composed(*tiny, "method=none", *PROBED)), SESSION)
    section, config = run.result["probe"], composed(*tiny, *PROBED).asked
    assert config is not None
    assert section["mark"] == run.probe_mark == probe_mark(config)
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
    real, seen = hylo.run.ask, []
    monkeypatch.setattr(hylo.run, "ask", lambda *a, **named: seen.append(named["cached"]) or real(*a, **named))
    overrides = ("method=landmark_original", f"method.landmark.pooling={pooling}")
    run_cell(Cell("runs", pooling, composed(*tiny, *overrides, *PROBED)), SESSION)
    assert seen == [cached]


def test_a_probe_is_asked_once_and_kept(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete with its probe, a cell is taken up; without asking for one, too; another probe replaces it."""
    cell, bare, other = (
        Cell("runs", "lora", composed(*tiny, "method=lora", *more)) for more in (PROBED, (), (*PROBED, "probe.seed=1"))
    )
    first = run_cell(cell, SESSION)
    no_training(monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hylo.run, "ask", None)
        assert taken_up(cell, SESSION)
        assert taken_up(bare, SESSION)
        assert run_cell(bare, SESSION).result == run_cell(cell, SESSION).result == first.result
    assert not taken_up(other, SESSION)
    assert fingerprint(cell.config, SESSION) == fingerprint(other.config, SESSION)
    found = run_cell(other, SESSION)
    assert found.result["probe"]["config"]["seed"] == 1
    assert not taken_up(cell, SESSION)
    (found.folder / PROBE).unlink()
    assert read_run(found.folder).probe.empty
    assert not taken_up(other, SESSION)


def test_a_run_of_another_group_is_taken_with_its_probe(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two complete copies the one with the answers is the source, whichever is found first."""
    asked = Cell("b", "lora", composed(*tiny, "method=lora", *PROBED))
    bare = Cell("a", "lora", composed(*tiny, "method=lora"))
    run_cell(bare, SESSION)
    no_training(monkeypatch)
    run_cell(asked, SESSION)
    monkeypatch.setattr(hylo.run, "ask", None)
    wanted = dataclasses.replace(asked, group="a")
    assert taken_up(wanted, SESSION)
    assert not read_run(wanted.folder(fingerprint(wanted.config, SESSION))).probe.empty
    third = dataclasses.replace(asked, group="c")
    assert len(run_cell(third, SESSION).probe) == 30
    own = dataclasses.replace(bare, group="c")
    assert len(run_cell(own, SESSION).probe) == 30, "nobody asks for a probe: what is there stays"


def test_an_interrupted_probe_costs_only_itself(
    tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped while it is asked, and while its answers are written."""
    cell = Cell("runs", "lora", composed(*tiny, "method=lora", *PROBED))

    def stopped(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hylo.run, "ask", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, SESSION)
    no_training(monkeypatch)
    run = run_cell(cell, SESSION)
    table, section = run.probe, run.result["probe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", stopped)
        with pytest.raises(KeyboardInterrupt):
            add_probe(run.folder, table, section | {"mark": "other"})
    assert read_run(run.folder).complete
    assert read_run(run.folder).probe.empty, "a table without its section is nobody's answer"
    assert run_cell(cell, SESSION).result["probe"]["mark"] == section["mark"]


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_an_adapter_that_cannot_be_read_is_named(damage: str, tiny: tuple[str, ...]) -> None:
    run = run_cell(Cell("runs", "lora", composed(*tiny, "method=lora", "trainer.save_adapter=true")), SESSION)
    path = run.folder / "adapter" / "adapter.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(b"x")
    with pytest.raises(RecordError, match=r"adapter\.safetensors cannot be read"):
        run_cell(Cell("runs", "lora", composed(*tiny, "method=lora", *PROBED)), SESSION)
    assert read_run(run.folder).complete


def test_sweeps_studies_and_cells_have_their_names_without_the_probe() -> None:
    sweep = ["-m", "method=lora,rslora"]
    assert name_sweep([*sweep, *PROBED])[-2].startswith("hydra.sweep.dir=")
    assert name_sweep([*sweep, *PROBED])[-2] == name_sweep(sweep)[-2]
    assert single_cell(composed("method=lora", *PROBED), ["method=lora", *PROBED], "lora").name == "lora"
    plan = plan_study(composed("study=ablation"), [*PROBED, "study=ablation"], lambda texts: (composed(*texts), ""))
    assert plan.group == "ablation"
    assert all(cell.config.asked for cell in plan.cells)


def test_a_probe_that_fails_is_told(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A command whose probe was not answered does not end as if it was."""
    assert train(*tiny, "method=none") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hylo.run, "ask", None)
        assert train(*tiny, "method=none", *PROBED) == 1
    assert "none: failed: TypeError" in capsys.readouterr().err
    assert train(*tiny, "method=none", *PROBED) == 0


def test_operations_of_a_probe(tiny: tuple[str, ...]) -> None:
    bare, asked = (Cell("runs", "lora", composed(*tiny, "method=lora", *more)) for more in ((), PROBED))
    weights = SESSION.skeleton(bare.config.model).num_parameters()
    assert asked.config.asked is not None
    tokens = sum(one.tokens for one in SESSION.prompts(asked.config.asked, asked.config.model))
    assert operations(asked, SESSION) - operations(bare, SESSION) == 2 * weights * tokens


def write_answers(run: RunRecord, rng: np.random.Generator, ends: float, middle: float, mark: str = "m") -> None:
    """Answers on 200 lists, right with these probabilities."""
    shares = [ends, middle, middle, middle, ends]
    rows = [
        (60, number, depth, place, int(rng.random() < shares[depth]), -1.0 - depth, 4)
        for number in range(200)
        for depth, place in enumerate(depth_places(60, 5))
    ]
    add_probe(run.folder, pd.DataFrame(rows, columns=pd.Index(PROBE_COLUMNS)), {"mark": mark, "facts": {}})


@pytest.fixture
def answered(study: Path) -> Path:
    """The synthetic study with answers: the untuned model and one cell lost in the middle, and one that is not."""
    rng = np.random.default_rng(0)
    for cell, runs in read_study(study).cells.items():
        for run in runs:
            if cell != "same":
                write_answers(run, rng, 0.9, 0.9 if cell == "high" else 0.1)
    return study


def test_the_table_of_retrieval(answered: Path) -> None:
    table: Any = retrieval_table(read_study(answered))
    assert table["cell"].unique().tolist() == ["untuned", "low", "high"]
    assert len(table) == 3 * 5
    high: Any = table[table["cell"] == "high"]
    assert high["place"].tolist() == [0, 15, 30, 44, 59]
    assert high["seeds"].tolist() == [3] * 5
    assert high["accuracy"].to_numpy() == pytest.approx(0.9, abs=0.05)
    assert ((high["accuracy_low"] < high["accuracy"]) & (high["accuracy"] < high["accuracy_high"])).all()
    assert (table["accuracy_high"] <= 1).all()
    assert high["logprob"].tolist() == [-1, -2, -3, -4, -5]
    pd.testing.assert_frame_equal(table, retrieval_table(read_study(answered)))


def test_ends_minus_middle_of_cells(answered: Path) -> None:
    table: Any = difference_table(read_study(answered)).set_index("cell")
    assert table["seeds"].to_dict() == {"untuned": 1, "low": 3, "high": 3}
    assert table["value"].to_dict() == pytest.approx({"untuned": 0.8, "low": 0.8, "high": 0.0}, abs=0.05)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()


def test_contrasts_are_paired_by_seed_and_list(answered: Path) -> None:
    study = read_study(answered)
    difference, accuracy = retrieval_contrast(study, "high", "untuned", 60)
    assert difference.shape == accuracy.shape == (3, 200)
    assert interval(difference, "a").value == pytest.approx(-0.8, abs=0.06)
    assert interval(accuracy, "a").value == pytest.approx(0.6 * 0.8, abs=0.06)
    untuned = study.cells["untuned"][0].probe.pivot(index="list", columns="depth", values="exact").to_numpy()
    one = study.cells["high"][2].probe.pivot(index="list", columns="depth", values="exact").to_numpy()
    assert accuracy[2] == pytest.approx((one - untuned).mean(axis=1))
    assert difference[2] == pytest.approx(ends_minus_middle(one) - ends_minus_middle(untuned))
    between, _ = retrieval_contrast(study, "high", "low", 60)
    assert between.shape == (3, 200)
    assert interval(between[:1], "a").low < -0.6
    assert np.all(retrieval_contrast(study, "low", "low", 60)[0] == 0)


def test_what_cannot_be_compared_is_named(answered: Path) -> None:
    study = read_study(answered)
    with pytest.raises(RecordError, match=r"'same' was not asked of 60 facts; run it with probe=kv"):
        retrieval_contrast(study, "same", "untuned", 60)
    write_answers(study.cells["same"][0], np.random.default_rng(1), 0.5, 0.5, mark="other")
    with pytest.raises(RecordError, match="different probes"):
        retrieval_table(read_study(answered))
    run = study.cells["same"][0]
    (run.folder / PROBE).write_bytes(b"x")
    with pytest.raises(RecordError, match=f"delete {run.folder / PROBE} and"):
        _ = read_run(run.folder).probe


def test_a_study_without_probes_has_empty_tables(recorded: Path) -> None:
    study = read_study(recorded)
    assert retrieval_table(study).empty
    assert difference_table(study).empty
