# lm-eval is an extra
# pyright: reportMissingImports=false
"""The task probe (lm-eval): answers, their scores, and what is refused. Tasks are files of a few rows."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import adapt, method, perturb
from launch import composed, train

pytest.importorskip("lm_eval", reason="the extra hylo[tasks] is not installed")

from lm_eval.api.metrics import mean_stderr
from lm_eval.models.huggingface import HFLM

from hylo.adapters.model import AdaptedModel
from hylo.cli.main import SESSION
from hylo.core import extras
from hylo.core.devices import Device, Precision, accelerator_for
from hylo.core.errors import ConfigError, HyloError, MissingDependency
from hylo.evaluation.probes.tasks import TasksProbeConfig
from hylo.evaluation.tasks import loading
from hylo.evaluation.tasks.columns import COLUMNS
from hylo.evaluation.tasks.language_model import Asked
from hylo.evaluation.tasks.loading import loaded, prepared
from hylo.models.tiny import TinyArchitecture, TinyModelConfig, byte_tokenizer
from hylo.runs.cell import Cell
from hylo.runs.fingerprint import probe_fingerprint
from hylo.runs.run import run_cell

WORDS = ["sun", "a long walk", "rain", "night falls", "the sea", "an old house"]
CHOICE = """
task: tiny_choice
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: mcc, aggregation: matthews_corrcoef, higher_is_better: true}
"""
ANSWER = """
task: tiny_answer
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: text
generation_kwargs: {until: ["z"], max_gen_toks: 6, do_sample: false, temperature: 1}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
TEXT = """
task: tiny_text
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded.cache_clear()


def write_task(folder: Path, yaml: str, extra: str = "", rows: int = 5) -> str:
    """Writes a task file and its data, and returns the file's path."""
    name = yaml.split()[1]
    data = folder / f"{name}.jsonl"
    docs = [
        {
            "question": f"Which of them is number {place}? " * (1 + place % 3),
            "choices": [WORDS[(place + shift) % 6] for shift in range(4)],
            "answer": place % 4,
            "text": WORDS[place],
        }
        for place in range(rows)
    ]
    data.write_text("\n".join(json.dumps(doc) for doc in docs))
    kwargs = f"{{data_files: {{test: '{data}'}}, cache_dir: '{folder}'}}"
    path = folder / f"{name}.yaml"
    path.write_text(f"{yaml}dataset_path: json\ndataset_kwargs: {kwargs}\n{extra}")
    return str(path)


def asked(model: AdaptedModel, rows: int, *, cached: bool = True, longest: int | None = None) -> Asked:
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    named: dict[str, Any] = {"longest": longest, "cached": cached, "batch_size": rows, "memory_gib": 1.0}
    return Asked(model, byte_tokenizer(), accelerator, label="test", **named)


def tiny_model(architecture: TinyArchitecture, name: str) -> AdaptedModel:
    model = adapt(TinyModelConfig(name="tiny", architecture=architecture).load(), method(name))
    with torch.no_grad():  # logits that differ between tokens, so that an answer is more than one token repeated
        for parameter in model.base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)), alpha=0.3)
    perturb(model)
    return model


def requests_of(path: str) -> list[Any]:
    (task,) = loaded((path,), None, None).tasks.values()
    return task.instances


def test_a_run_records_a_score_for_every_item(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """From the command line; the scores are those of a loop over choices, and errors those of lm-eval."""
    files = [write_task(tmp_path, yaml) for yaml in (CHOICE, ANSWER, TEXT)]
    overrides = ("probe=tasks", f"probe.tasks=[{','.join(files)}]")
    assert train(*tiny, "method=lora", *overrides) == 0
    run = run_cell(Cell("runs", "lora", composed(*tiny, "method=lora", *overrides)), SESSION)
    table: Any = run.probe
    assert list(table.columns) == COLUMNS
    metrics = {
        "tiny_choice": ["acc", "acc_norm"],
        "tiny_answer": ["exact_match"],
        "tiny_text": ["word_perplexity_nats"],
    }
    assert table.groupby("task")["metric"].unique().map(list).to_dict() == metrics
    assert (table.groupby(["task", "metric"]).size() == 5).all()
    section = run.result["probe"]["tasks"]["tiny_choice"]
    assert section["left_out"] == ["mcc"]
    assert section["main"] == "acc"

    config = composed(*tiny, "method=lora")
    base = config.model.load()
    with torch.no_grad():
        model = AdaptedModel(base, config.components, context_length=32, seed=0)
        model.load(run.folder / "adapter")
        right = []
        for line in (tmp_path / "tiny_choice.jsonl").read_text().splitlines():
            doc, found = json.loads(line), []
            for choice in doc["choices"]:
                ids = torch.tensor([byte_tokenizer().encode(f"{doc['question']} {choice}")])
                log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
                answer = len(f"  {choice}")  # spaces belong to the answer
                found.append(float(log_probs.gather(1, ids[0, 1:, None])[-answer:].sum()))
            right.append(float(np.argmax(found) == doc["answer"]))
        model.detach()
    own: Any = table[(table["task"] == "tiny_choice") & (table["metric"] == "acc")]
    assert own["value"].tolist() == right
    assert section["metrics"]["acc"]["standard_error"] == pytest.approx(mean_stderr(right))


@pytest.mark.parametrize("name", ["none", "hylorada", "landmark_attention"])
@pytest.mark.parametrize("architecture", list(TinyArchitecture))
def test_answers_of_a_batch_are_those_of_one_at_a_time(
    architecture: TinyArchitecture, name: str, tmp_path: Path
) -> None:
    """Generated greedily with and without the cache: left padding and batch-mates change nothing."""
    model, given = tiny_model(architecture, name), requests_of(write_task(tmp_path, ANSWER))
    expected = asked(model, 1, cached=False).generate_until(given)
    assert len(set(expected)) > 1
    for rows, cached in ((1, True), (3, True), (50, True), (50, False)):
        assert asked(model, rows, cached=cached).generate_until(given) == expected


@pytest.mark.parametrize("architecture", list(TinyArchitecture))
def test_scores_and_answers_are_those_of_lm_eval_for_the_base_model(
    architecture: TinyArchitecture, tmp_path: Path
) -> None:
    model = tiny_model(architecture, "none")
    class_of_theirs: Any = HFLM
    theirs = class_of_theirs(pretrained=model.base, tokenizer=byte_tokenizer(), batch_size=2)
    for yaml, kind in ((CHOICE, "loglikelihood"), (ANSWER, "generate_until"), (TEXT, "loglikelihood_rolling")):
        given = requests_of(write_task(tmp_path, yaml))
        own, expected = getattr(asked(model, 4), kind)(given), getattr(theirs, kind)(given, disable_tqdm=True)
        if kind == "loglikelihood":
            assert [greedy for _, greedy in own] == [greedy for _, greedy in expected]
            own, expected = [each[0] for each in own], [each[0] for each in expected]
        if kind == "generate_until":
            assert own == expected
        else:
            np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_the_task_that_ships_needs_no_file(tiny: tuple[str, ...]) -> None:
    run = run_cell(Cell("runs", "none", composed(*tiny, "method=none", "probe=tasks", "probe.limit=2")), SESSION)
    section = run.result["probe"]["tasks"]["shakespeare_next_line"]
    assert section["metrics"]["acc"]["items"] == 2
    assert (section["fewshot"], section["version"], section["cut"]) == (0, 1, 0)


def test_contexts_are_cut_where_asked_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_task(tmp_path, CHOICE)
    config = TasksProbeConfig(tasks=[path], longest=40)
    probe = config.build(byte_tokenizer())
    assert probe.longest == 40
    whole = TasksProbeConfig(tasks=[path]).build(byte_tokenizer())
    assert whole.longest == 3 * len("Which of them is number 2? ") + len(" an old house") > 40
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    model = tiny_model(TinyArchitecture.llama, "none")
    answers = probe.ask(model, accelerator, cached=True, label="test")
    cut = sum(length > 40 for length in whole.measured["tiny_choice"].lengths)
    assert answers.section["tasks"]["tiny_choice"]["cut"] == cut > 0
    assert answers.said[-1] == f"tiny_choice: {cut} of 20 contexts were cut to 40 tokens"
    (task,) = whole.loaded.tasks.values()
    found = asked(model, 1, longest=40).loglikelihood(task.instances)
    for request, (logprob, _) in zip(task.instances, found, strict=True):
        ids = torch.tensor([byte_tokenizer().encode("".join(request.args))[-40:]])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1).gather(1, ids[0, 1:, None])
        spaces = len(request.args[0]) - len(request.args[0].rstrip())
        assert logprob == pytest.approx(float(log_probs[-len(request.args[1]) - spaces :].sum()), abs=1e-4)


def test_few_shot_examples_are_the_same_for_every_cell(tmp_path: Path) -> None:
    probe = TasksProbeConfig(tasks=[write_task(tmp_path, CHOICE)], fewshot=2).build(byte_tokenizer())
    (task,) = probe.loaded.tasks.values()
    before = [request.args for request in task.instances]
    assert before[0][0].count("Which of them") == 2 + 1 or before[0][0].count("\n\n") == 2
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    model = tiny_model(TinyArchitecture.llama, "none")
    first, second = (probe.ask(model, accelerator, cached=True, label="test").table for _ in range(2))
    assert [request.args for request in task.instances] == before
    assert first.equals(second)


def test_global_random_states_are_left_alone() -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = random.random(), np.random.random()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    with prepared({}):
        random.random()
        np.random.random()  # noqa: NPY002
    assert (random.random(), np.random.random()) == expected  # noqa: NPY002


def test_the_fingerprint_is_of_what_is_asked_wherever_it_lies(tmp_path: Path) -> None:
    def found(folder: str, yaml: str = CHOICE, rows: int = 5, **settings: Any) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = write_task(tmp_path / folder, yaml, rows=rows)
        loaded.cache_clear()
        return TasksProbeConfig(tasks=[path], **settings).content()

    first = found("one")
    assert found("two") == first
    assert found("two", rows=4) != first
    assert found("three", CHOICE.replace("acc_norm", "acc_bytes")) != first
    assert found("one", fewshot=1) != first
    config = TasksProbeConfig(tasks=[write_task(tmp_path, CHOICE)])
    before = probe_fingerprint(config)
    write_task(tmp_path, CHOICE, rows=3)
    loaded.cache_clear()
    assert probe_fingerprint(config) != before


@pytest.mark.parametrize(
    ("extra", "settings", "texts"),
    [
        ("unsafe_code: true\n", {}, ["tiny_choice", "does not run what the model writes"]),
        ("metric_list: [{metric: rouge, hf_evaluate: true}]\n", {}, ["rouge would be code from the hub"]),
        ("num_fewshot: 0\n", {"fewshot": 2}, ["probe.fewshot = 2", "fixes it at 0"]),
        ("doc_to_text: '{{question'\n", {}, ["a task that loads (TemplateSyntaxError"]),
        ("test_split: nowhere\n", {}, ["a task that loads (KeyError"]),
        ("doc_to_text: !function absent.text\n", {}, ["needs a library that is not installed"]),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_asked_is_refused(
    extra: str, settings: dict[str, Any], texts: list[str], tmp_path: Path
) -> None:
    key = extra.partition(":")[0]
    head, _, metrics = CHOICE.partition("metric_list")
    lines = [line for line in head.splitlines() if not line.startswith(key)]
    yaml = "\n".join([*lines, ""]) + (f"metric_list{metrics}" if key != "metric_list" else "")
    with pytest.raises(HyloError) as raised:
        TasksProbeConfig(tasks=[write_task(tmp_path, yaml, extra)], **settings).build(byte_tokenizer())
    assert [text for text in texts if text not in str(raised.value)] == []


def test_answers_are_never_drawn(tmp_path: Path) -> None:
    path = write_task(tmp_path, ANSWER.replace("do_sample: false", "do_sample: true"))
    with pytest.raises(ConfigError, match="a task that decodes greedily"):
        TasksProbeConfig(tasks=[path]).build(byte_tokenizer())
    path = write_task(tmp_path, ANSWER)
    loaded.cache_clear()
    with pytest.raises(ConfigError, match=r"probe.longest = 6\n.*more than 6, the tokens that tiny_answer generates"):
        TasksProbeConfig(tasks=[path], longest=6).build(byte_tokenizer())


def test_names_files_and_data_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="a file that exists"):
        TasksProbeConfig(tasks=["absent.yaml"]).content()
    index = type("Manager", (), {"task_index": {"arc_easy": None}, "all_tasks": ["arc_easy", "gsm8k"]})
    monkeypatch.setattr(loading, "TaskManager", lambda **options: index())
    with pytest.raises(ConfigError, match=r"probe.tasks = 'arc_eazy'\n.*shakespeare_next_line.*\n.*fix: +arc_easy"):
        TasksProbeConfig(tasks=["arc_eazy"]).content()
    monkeypatch.undo()
    path = write_task(tmp_path, CHOICE)
    Path(path).write_text(CHOICE + "dataset_path: nobody/has_this\n")
    with pytest.raises(MissingDependency, match=r"the data of .* are not here(.|\n)*unset HF_HUB_OFFLINE"):
        TasksProbeConfig(tasks=[path]).content()


def test_nothing_runs_before_a_problem_is_named(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line: exit code 2, one message, no records."""
    path = write_task(tmp_path, CHOICE)
    long = path.replace("tiny_choice.yaml", "long.yaml")
    Path(long).write_text(Path(path).read_text().replace("{{question}}", "{{question * 9}}"))
    for overrides, said in (
        ((f"probe.tasks=[{path},{path}]",), "each once"),
        (("probe.tasks=[]",), "one or more tasks"),
        ((f"probe.tasks=[{long}]",), "questions that fit tiny_llama: 512 tokens"),
        (("probe.tasks=[absent.yaml]",), "a file that exists"),
    ):
        assert train(*tiny, "method=none", "probe=tasks", *overrides) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert train(*tiny, "method=none", "probe=tasks") == 2
    message = capsys.readouterr().err
    assert "probe=tasks needs the library lm_eval, which is not installed" in message
    assert "pip install 'hylo[tasks]'" in message
    assert not Path("outputs").exists()


def test_a_task_with_a_metric_of_its_own(tmp_path: Path) -> None:
    """As LongBench's: a function beside the file makes the scores of an item. It is part of the fingerprint."""
    code = tmp_path / "own.py"
    code.write_text("def scored(doc, results):\n    return {'score': len(results[0]) / 6, 'half': 0.5}\n")
    head, _, _ = ANSWER.partition("metric_list")
    named = [f"  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n" for name in ("score", "half")]
    path = write_task(tmp_path, f"{head}metric_list:\n{''.join(named)}process_results: !function own.scored\n")
    config = TasksProbeConfig(tasks=[path], memory_gib=1e-9)
    model = tiny_model(TinyArchitecture.gpt2, "lora")
    accelerator = accelerator_for(Device.cpu, Precision.float32)
    answers = config.build(byte_tokenizer()).ask(model, accelerator, cached=True, label="test")
    section = answers.section["tasks"]["tiny_answer"]
    assert section["main"] == "score"
    assert section["metrics"]["half"] == {"items": 5, "value": 0.5, "standard_error": 0.0}
    said = asked(model, 5).generate_until(requests_of(path))
    table: Any = answers.table
    assert table[table["metric"] == "score"]["value"].tolist() == pytest.approx([len(text) / 6 for text in said])
    before = config.content()
    code.write_text(code.read_text().replace("0.5", "0.25"))
    loaded.cache_clear()
    assert config.content() != before
