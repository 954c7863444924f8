"""Prompts and answers from files and the hub: the presets' columns, other forms of rows, refusals, whole runs."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from launch import ROOT, TINY, composed, train
from test_data import _own_cache, write_parquet  # noqa: F401  a fixture that every test here uses

from hylo.cli.main import SESSION, single_cell
from hylo.core.errors import ConfigError
from hylo.data.base import Message, Split
from hylo.data.sources.hub_instructions import HubInstructionsConfig
from hylo.data.sources.instruction_files import InstructionFilesConfig
from hylo.data.threads import threads
from hylo.data.tokens import documents_identity
from hylo.runs.cell import check
from hylo.runs.fingerprint import fingerprint
from hylo.runs.layout import AUDIT
from hylo.runs.record import RunRecord
from hylo.runs.store import read_study
from hylo.studies.choices import condition


def turns(document: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in document.messages]


def hub(name: str, repo: Path, *overrides: str) -> HubInstructionsConfig:
    data = composed(f"data={name}", f"data.repo={repo}", "model=tiny_llama", *overrides).data
    assert isinstance(data, HubInstructionsConfig)
    return data


# --- the presets, in the columns of their repositories ---


def write_metamathqa(repo: Path) -> None:
    rows = [
        {
            "type": f"GSM_{kind}",
            "query": f"Problem {number}, {kind}?",
            "original_question": f"Problem {number}?",
            "response": f"It is {number}.\nThe answer is: {number}",
        }
        for number in range(60)
        for kind in ("Rephrased", "AnsAug")
    ]
    repo.mkdir()
    (repo / "MetaMathQA-395K.json").write_text(json.dumps(rows))


def write_alpaca(repo: Path) -> None:
    rows = [
        {"output": f"Answer {number}", "input": "a text" if number % 3 == 0 else "", "instruction": f"Do {number // 2}"}
        for number in range(120)
    ]
    rows[7]["output"] = ""
    repo.mkdir()
    (repo / "alpaca_data_cleaned.json").write_text(json.dumps(rows))


def write_oasst(repo: Path) -> None:
    """Trees of up to four messages; the best answer is not the first row, and one tree has no answer."""

    def row(tree: int, identity: str, parent: str | None, role: str, text: str, rank: float | None = None) -> Any:
        return {
            "message_id": f"{tree}-{identity}",
            "parent_id": parent and f"{tree}-{parent}",
            "text": f"{tree}: {text}",
            "role": role,
            "lang": "de" if tree % 7 == 1 else "en",
            "rank": rank,
            "message_tree_id": f"{tree}-root",
            "deleted": False,
        }

    rows = []
    for tree in range(80):
        rows.append(row(tree, "root", None, "prompter", "question"))
        if tree == 3:
            continue
        rows += [
            row(tree, "b", "root", "assistant", "second answer", 1.0),
            row(tree, "a", "root", "assistant", "best answer", 0.0),
            row(tree, "c", "a", "prompter", "and then?"),
        ]
        if tree % 2:
            rows.append(row(tree, "d", "c", "assistant", "then this"))
    table: Any = pd.DataFrame(rows)
    half = table["message_tree_id"].str.split("-").str[0].astype(int) < 60
    write_parquet(repo / "data", {"train": table[half], "validation": table[~half]}, shards=2)


PRESETS: dict[str, Any] = {"metamathqa": write_metamathqa, "alpaca_cleaned": write_alpaca, "oasst1": write_oasst}


def test_every_preset_is_tried():
    schema = "/schema/data@_here_: hub_instructions"
    assert {path.stem for path in (ROOT / "conf" / "data").glob("*.yaml") if schema in path.read_text()} == {*PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_in_its_repositorys_columns(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every row lands in one split, and rows that belong together in the same one."""
    PRESETS[name](tmp_path / "repo")
    data = hub(name, tmp_path / "repo", "data.held_out=0.1")
    found = {split: data.documents(split) for split in Split}
    assert all(found.values())
    conversations = [turns(document) for documents in found.values() for document in documents]
    groups = [{key(name, document) for document in documents} for documents in found.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)), "a group in two splits"
    said = capsys.readouterr().out
    if name == "metamathqa":
        assert len(conversations) == 120
        assert [("user", "Problem 9, AnsAug?"), ("assistant", "It is 9.\nThe answer is: 9")] in conversations
    elif name == "alpaca_cleaned":
        assert len(conversations) == 119
        assert [("user", "Do 3\n\na text"), ("assistant", "Answer 6")] in conversations
        assert [("user", "Do 2"), ("assistant", "Answer 4")] in conversations
        assert said == "data=alpaca_cleaned: 1 train conversations are left out: empty response\n"
    else:
        assert len(conversations) == 80 - 12 - 1, "one per English tree with an answer"
        best = [("user", "5: question"), ("assistant", "5: best answer")]
        assert [*best, ("user", "5: and then?"), ("assistant", "5: then this")] in conversations
        assert [("user", "4: question"), ("assistant", "4: best answer")] in conversations, "nothing answers the last"
        assert said == "data=oasst1: 1 train conversations are left out: no response\n"


def key(name: str, document: Any) -> str:
    """What a preset splits by, read from the conversation."""
    first = document.messages[0].content
    return first.split({"metamathqa": ",", "alpaca_cleaned": "\n", "oasst1": ":"}[name])[0]


def test_a_limit_takes_the_first_conversations(tmp_path: Path):
    write_metamathqa(tmp_path / "repo")
    every = hub("metamathqa", tmp_path / "repo").documents(Split.train)
    assert hub("metamathqa", tmp_path / "repo", "data.max_documents=5").documents(Split.train) == every[:5]


# --- local files ---

PAIRS = [{"prompt": f"Question {number}?", "response": f"Answer {number}."} for number in range(8)]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Ein."},
]


def files(folder: Path, rows: Any, name: str = "x.jsonl", **settings: Any) -> InstructionFilesConfig:
    path = folder / name
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return InstructionFilesConfig(name="x", train_files=[str(path)], **settings)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_prompt_and_response_from_a_file(tmp_path: Path, name: str):
    documents = files(tmp_path, PAIRS, name).documents(Split.train)
    assert [document.name for document in documents] == [f"{tmp_path / name}:{number}" for number in range(1, 9)]
    assert turns(documents[3]) == [("user", "Question 3?"), ("assistant", "Answer 3.")]
    assert documents[3].text == "Question 3?\n\nAnswer 3.", "what is compared between splits"


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_messages_from_a_file(tmp_path: Path, name: str):
    (document,) = files(tmp_path, [{"messages": CHAT}], name, messages_column="messages").documents(Split.train)
    assert turns(document) == [("system", "Be brief."), ("user", "One?"), ("assistant", "Ein.")]


@pytest.mark.parametrize(("identity", "said"), [("a", "that of x:1"), ("", "empty"), (None, "empty")])
def test_a_thread_without_an_end_is_refused(identity: str | None, said: str):
    """A message that answers itself, or several without a name of their own."""
    rows = [{"id": "a", "parent": None}, {"id": identity, "parent": "a"}]
    with pytest.raises(ConfigError, match=f"in x:2 it is {said}"):
        list(threads([(f"x:{number}", row) for number, row in enumerate(rows, 1)], "id", "parent", "rank"))


def test_messages_in_sharegpts_words(tmp_path: Path):
    chat = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Ein."}, {"from": "human", "value": "Two?"}]
    keys = {"messages_column": "conversations", "role": "from", "content": "value", "system": "Be brief."}
    (document,) = files(tmp_path, [{"conversations": chat}], **keys).documents(Split.train)
    assert turns(document) == [("system", "Be brief."), ("user", "One?"), ("assistant", "Ein.")]


REFUSED: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "empty response": ([*PAIRS, {"prompt": "a", "response": " \n"}], {}, ["x.jsonl:9 = 'empty", "skip_empty"]),
    "no response": ([{"prompt": "a", "response": None}], {}, ["x.jsonl:1 = 'empty response'"]),
    "empty prompt": ([{"prompt": "", "response": "a"}], {}, ["x.jsonl:1 = 'empty prompt'"]),
    "no answer": ([{"m": CHAT[:2]}], {"messages_column": "m"}, ["x.jsonl:1 = 'no response'"]),
    "unknown column": (PAIRS, {"response_column": "output"}, ["data.response_column = 'output'", "prompt, response"]),
    "unknown filter": (PAIRS, {"where": {"lang": "en"}}, ["data.where = 'lang'", "prompt, response"]),
    "numbers": ([{"prompt": "a", "response": 3}], {}, ["data.response_column = 'response'", "a column of text"]),
    "no list": (PAIRS, {"messages_column": "prompt"}, ["data.messages_column = 'prompt'", "a list of messages"]),
    "unknown role": (
        [{"m": [{"role": "tool", "content": "a"}]}], {"messages_column": "m"}, ["data.role", "prompter", "x.jsonl:1"]
    ),
    "no rows": (["a"], {}, ["x.jsonl, row 1", "JSON objects"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str):
    rows, settings, parts = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        files(tmp_path, rows, **settings).documents(Split.train)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt', "line 2"),
        ("x.json", "{}", "no list of rows"),
        ("x.parquet", "no parquet", "Parquet"),
        ("x.csv", "prompt,response", ".jsonl, .json, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: str, reason: str):
    (tmp_path / name).write_text(content)
    data = InstructionFilesConfig(name="x", train_files=[str(tmp_path / name)])
    with pytest.raises(ConfigError, match=r"data\.train_files = ") as caught:
        data.documents(Split.train)
    assert reason in str(caught.value)


def test_empty_rows_can_be_left_out_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [*PAIRS, {"prompt": "a", "response": ""}, {"prompt": "", "response": "b"}, {"prompt": "c", "response": ""}]
    assert len(files(tmp_path, rows, skip_empty=True).documents(Split.train)) == len(PAIRS)
    assert capsys.readouterr().out.splitlines() == [
        "data=x: 2 train conversations are left out: empty response",
        "data=x: 1 train conversations are left out: empty prompt",
    ]


def test_what_a_conversation_is_is_part_of_its_identity(tmp_path: Path):
    """The same words said by others are other data."""
    (document,) = files(tmp_path, PAIRS[:1]).documents(Split.train)
    swapped = type(document)(document.name, document.text, tuple(
        Message(role, message.content) for role, message in zip(("assistant", "user"), document.messages, strict=True)
    ))  # fmt: skip
    assert documents_identity([document]) != documents_identity([swapped])


# --- whole runs ---


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Overrides of a cell on pairs whose prompts are longer than their responses; the context is 64."""
    monkeypatch.chdir(tmp_path)
    overrides = [text for text in TINY if "context" not in text]
    overrides += ["data=instructions", "data.context_length=64", "trainer.steps=4", "method=lora"]
    for split in ("train", "test"):
        rows = [{"prompt": f"{split} {n}?", "response": f"{n * n} {'!' * n}"} for n in range(24)]
        if split == "train":
            rows.append({"prompt": "?", "response": "too long " * 8})
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides.append(f"data.{split}_files=[{tmp_path / split}.jsonl]")
    return tuple(overrides)


def run(*overrides: str) -> RunRecord:
    """The record of one cell."""
    assert train(*overrides, "cell=one") == 0
    return read_study(Path("outputs/runs")).cells["one"][0]


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_on_prompts_and_answers(chats: tuple[str, ...], packed: bool):
    """Evaluated on responses alone, one sample per window, whether it was trained on packed windows or not."""
    record, config = run(*chats, f"data.pack_samples={packed}"), composed(*chats)
    windows = SESSION.eval_windows(config.data, config.model)
    assert record.windows["document"].tolist() == windows.document.tolist()
    sums: Any = record.eval.groupby("window")[["tokens", "bytes"]].sum()
    assert sums["tokens"].tolist() == windows.predicted.tolist()
    numbers = [int(name.split(":")[1]) - 1 for name in windows.document]
    assert sums["bytes"].tolist() == [len(f"{n * n} {'!' * n}") for n in numbers]
    assert sums["tokens"].tolist() == [size + 1 for size in sums["bytes"]], "and the token that ends a response"
    data = record.result["data"]
    assert (data["protocol"], data["pack_samples"]) == ("samples", packed)
    assert data["truncated"] == {"test": 0, "train": 1}
    assert data["left_out"] == {"test": 0, "train": 0}
    checks = {finding["check"] for finding in json.loads((record.folder / AUDIT).read_text())}
    assert ("packing" in checks) == packed
    assert record.result["audit"]["failed"] == []


def test_what_a_fingerprint_depends_on(chats: tuple[str, ...]):
    def marks(*overrides: str) -> list[str]:
        cells = [*chats, *overrides]
        return [fingerprint(composed(*cells, f"method={name}"), SESSION) for name in ("none", "lora")]

    untuned, tuned = marks()
    for setting in ("data.loss_on_prompt=true", "data.pack_samples=true"):
        assert marks(setting)[0] == untuned, "it cannot change the numbers of a base model"
        assert marks(setting)[1] != tuned
    plain = marks("data.chat_template=plain")
    assert plain == [untuned, tuned], "the byte tokenizer has no template of its own"


def test_trials_know_the_template(chats: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    config = composed(*chats)
    cell = single_cell(config, chats, "lora")
    before, mark = condition(cell, [], SESSION), fingerprint(config, SESSION)
    monkeypatch.setattr(SESSION, "template", lambda data, model: "{{ another }}")
    assert condition(cell, [], SESSION) != before
    monkeypatch.setattr(SESSION, "_kept", {key: value for key, value in SESSION._kept.items() if "finger" not in key})
    assert fingerprint(config, SESSION) != mark


def test_copies_between_splits_are_refused_however_short(chats: tuple[str, ...]):
    """Texts shorter than a window are not looked at elsewhere: here each is a sample."""
    lines = Path("test.jsonl").read_text().splitlines()
    with Path("train.jsonl").open("a") as file:
        file.write(lines[3] + "\n")
    assert train(*chats) == 2
    config = composed(*chats)
    SESSION._kept.clear()
    with pytest.raises(ConfigError, match="is also trained on"):
        check(single_cell(config, chats, "lora"), SESSION)


BAD: dict[str, tuple[list[str], list[str]]] = {
    "cut": (["data.protocol=packed"], ["data.protocol = 'packed'", "conversations are neither cut"]),
    "lines": (["data.protocol=lines"], ["data.protocol = 'lines'"]),
    "sequence pooling": (
        ["data.pack_samples=true", "method=landmark_original", "method.landmark.pooling=sequence"],
        ["data.pack_samples = True", "reads the whole window"],
    ),
    "context too short": (["data.context_length=16"], ["data.context_length = 16", "something to predict"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(chats: tuple[str, ...], case: str, capsys: pytest.CaptureFixture[str]):
    overrides, parts = BAD[case]
    assert train(*chats, *overrides) == 2
    message = capsys.readouterr().err
    assert [part for part in parts if part not in message] == []
    assert not Path("outputs").exists()


def test_text_is_packed_too(tiny: tuple[str, ...]):
    """With the ends of documents that fill no window; the evaluation stays as it is."""
    plain, packed = (composed(*tiny, *more).data for more in ((), ("data.pack_samples=true",)))
    model = composed(*tiny).model
    cut, joined = (SESSION.windows(data, model, Split.train) for data in (plain, packed))
    assert joined.tokens > cut.tokens
    (document,) = SESSION.documents(plain, Split.train)
    assert joined.tokens == len(document.text.encode())
    assert SESSION.eval_windows(packed, model).ids.tolist() == SESSION.eval_windows(plain, model).ids.tolist()


@pytest.mark.parametrize("setting", ["loss_on_prompt", "loss_on_padding"])
def test_text_has_no_prompts(setting: str, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert train(*tiny, f"data.{setting}=true") == 2
    assert f"data.{setting} = True" in capsys.readouterr().err
