"""Hub data sets, read from folders in the hub's format, for every file of conf/data/ that names one."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import config, disable_progress_bars, enable_progress_bars
from launch import ROOT, composed

from hylo.core.errors import ConfigError, MissingDependency
from hylo.data.base import Document, Split
from hylo.data.lines import split_lines
from hylo.data.sources.hub_dataset import HubDatasetConfig

SPLITS = [split.name for split in Split]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`datasets` copies what it loads to its cache, which must not be the user's."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    disable_progress_bars()
    yield
    enable_progress_bars()


def hub(name: str, repo: Path, *overrides: str) -> HubDatasetConfig:
    """conf/data/<name>.yaml, typed, with a local folder for the repository."""
    data = composed(f"data={name}", f"data.repo={repo}", "model=tiny_llama", *overrides).data
    assert isinstance(data, HubDatasetConfig)
    return data


def write_parquet(folder: Path, tables: dict[str, pd.DataFrame], shards: int = 1) -> None:
    """Writes splits as the hub names them: train-00000-of-00002.parquet and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in tables.items():
        for shard in range(shards):
            part = table.iloc[shard * len(table) // shards : (shard + 1) * len(table) // shards]
            part.to_parquet(folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet", index=False)


def write_card(repo: Path, folders: dict[str, str]) -> None:
    """Writes README.md, whose front matter lists configurations and their files."""
    lines = ["---", "configs:"]
    for subset, folder in folders.items():
        lines += [f"- config_name: {subset}", "  data_files:"]
        lines += [line for split in SPLITS for line in (f"  - split: {split}", f"    path: {folder}/{split}-*")]
    (repo / "README.md").write_text("\n".join([*lines, "---", "# A data set", ""]))


# --- WikiText: rows are lines, an article begins at its title ---


def article(title: str) -> list[str]:
    """An article's rows. Blank lines are empty rows; a table key and a formula begin like a title."""
    return [
        f" = {title} = \n", "", f" {title} is a small bird . \n", "",
        " = = Habitat = = \n", "", " It lives in marshes , seen from 1 @,@ 200 m . \n", " Key \n",
        " = National record \n", " For a wing of span \n", " = 1 m and of area S = \n", " the lift is small . \n", "",
        " = = = Songs = = = \n", "", f" {title} does not sing . \n", "", "",
    ]  # fmt: skip


TITLES = {
    "train": ["Green Heron", "Grey <unk>", "7 ( album )"],
    "validation": ["Du Fu"],
    "test": ["... Years Later", "D"],
}


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    """A repository like Salesforce/wikitext, where each split begins with an empty row."""
    repo = tmp_path / "wikitext"
    for subset in ("wikitext-2-raw-v1", "wikitext-103-raw-v1"):
        marked = {split: [f"{title} {subset}" for title in titles] for split, titles in TITLES.items()}
        rows = {split: ["", *itertools.chain(*map(article, titles))] for split, titles in marked.items()}
        write_parquet(repo / subset, {split: pd.DataFrame({"text": part}) for split, part in rows.items()}, shards=2)
    write_card(repo, {subset: subset for subset in ("wikitext-103-raw-v1", "wikitext-2-raw-v1")})
    return repo


@pytest.mark.parametrize(
    ("name", "subset"), [("wikitext2", "wikitext-2-raw-v1"), ("wikitext103", "wikitext-103-raw-v1")]
)
@pytest.mark.parametrize("split", list(Split))
def test_articles_are_joined_exactly(wikitext: Path, name: str, subset: str, split: Split):
    """Every row is a line, blank ones too. Splitting at every row that looks like a title would cut articles at table
    keys and formulas, and turn the empty first row into a document."""
    documents = hub(name, wikitext).documents(split)
    articles = [article(f"{title} {subset}") for title in TITLES[split.name]]
    articles[0].insert(0, "")  # the split's first row
    expected = ["".join(row or "\n" for row in rows) for rows in articles]
    assert [document.text for document in documents] == expected
    assert [document.name for document in documents] == [f"document-{index}" for index in range(len(expected))]
    shipped = pd.concat(map(pd.read_parquet, sorted((wikitext / subset).glob(f"{split.name}-*"))))
    assert "".join(document.text for document in documents) == "".join(row or "\n" for row in shipped["text"])


@pytest.mark.parametrize("overrides", [(), ("data.document_start=null",)])
def test_every_row_is_a_sample_line_by_line(wikitext: Path, overrides: tuple[str, ...]):
    """Including blank rows, a third or more of all. They have no line ending, so plain joining would lose them."""
    data = hub("wikitext2_lines", wikitext, *overrides)
    documents = data.documents(Split.train)
    rows = ["", *itertools.chain(*(article(f"{title} wikitext-2-raw-v1") for title in TITLES["train"]))]
    found = [line for document in documents for line in split_lines(document.text)]
    assert found == [row.removesuffix("\n") for row in rows]
    assert found.count("") > len(rows) / 3
    if overrides:
        evaluated = [document.text for document in data.documents(Split.test)]
        assert all(text.strip() for text in evaluated), "a setting of training changed what is evaluated"


def test_documents_of_a_stream_are_the_first_ones(wikitext: Path):
    every = hub("wikitext2", wikitext).documents(Split.train)
    for count in (1, 2, 50):
        assert hub("wikitext2", wikitext, f"data.max_documents={count}").documents(Split.train) == every[:count]


# --- every data set of conf/data/, in the columns of its repository ---


def texts(split: str, count: int) -> list[str]:
    return [f"{split} {index}: a text\nof two lines 🙂" for index in range(count)]


def write_pg19(repo: Path) -> None:
    tables = {
        split: pd.DataFrame(
            {"short_book_title": "A book", "publication_date": 1870, "url": "x", "text": texts(split, 60)}
        )
        for split in SPLITS
    }
    write_parquet(repo / "data", tables)
    write_card(repo, {"default": "data"})


def write_arxiv(repo: Path) -> None:
    for subset in ("section", "document"):
        tables = {
            split: pd.DataFrame(
                {"article": [f"{subset} {text}" for text in texts(split, 6)], "abstract": "An abstract"}
            )
            for split in SPLITS
        }
        write_parquet(repo / subset, tables)
    write_card(repo, {"document": "document", "section": "section"})


def write_longbench(repo: Path) -> None:
    repo.mkdir()
    rest = dict.fromkeys(("domain", "sub_domain", "difficulty", "length", "question", "choice_A", "answer"), "A word")
    rows = [{"_id": str(index), **rest, "context": text} for index, text in enumerate(texts("train", 50))]
    (repo / "data.json").write_text(json.dumps(rows))


LAYOUTS: dict[str, Any] = {
    "pg19": (write_pg19, {split: texts(split, 50) for split in SPLITS}),
    "arxiv": (write_arxiv, {split: [f"section {text}" for text in texts(split, 6)] for split in SPLITS}),
    "longbench": (
        write_longbench,
        {
            "train": texts("train", 50)[:40],
            "validation": texts("train", 50)[40:45],
            "test": texts("train", 50)[45:],
        },
    ),
}


def test_every_hub_data_set_of_conf_is_tried():
    schema = "/schema/data@_here_: hub_dataset"
    found = {path.stem for path in (ROOT / "conf" / "data").glob("*.yaml") if schema in path.read_text()}
    assert found == LAYOUTS.keys() | {"wikitext2", "wikitext103"}, "write its repository's layout above"


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_set_in_its_repositorys_layout(name: str, tmp_path: Path):
    write, expected = LAYOUTS[name]
    write(tmp_path / "repo")
    data = hub(name, tmp_path / "repo")
    found = {split.name: [document.text for document in data.documents(split)] for split in Split}
    assert found == expected


def test_a_slice_with_a_limit(tmp_path: Path):
    """A stream cannot be sliced, so `data=longbench data.max_documents=3` must not be one."""
    write_longbench(tmp_path / "repo")
    data = hub("longbench", tmp_path / "repo", "data.max_documents=3")
    assert [document.text for document in data.documents(Split.test)] == texts("train", 50)[45:48]


# --- other formats, and what is refused ---


def write_lines(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """Writes a folder of JSON lines, one file per split."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    rows = {split: [{"text": f"{split} {index}", "stars": index} for index in range(4)] for split in SPLITS}
    return write_lines(tmp_path / "lines", **rows)


@pytest.mark.parametrize("limit", [None, 2])
def test_json_lines(lines: Path, limit: int | None):
    data = HubDatasetConfig(name="lines", repo=str(lines), max_documents=limit)
    assert data.documents(Split.test) == [Document(f"row-{index}", f"test {index}") for index in range(4)][:limit]


def test_rows_without_text_are_no_documents(tmp_path: Path):
    """Names keep the row's number, so that a record points to the row."""
    rows = [{"text": text} for text in ("one", None, " \n", "two")]
    data = HubDatasetConfig(name="x", repo=str(write_lines(tmp_path / "x", train=rows)))
    assert data.documents(Split.train) == [Document("row-0", "one"), Document("row-3", "two")]


def test_a_folder_below_the_users_home(lines: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(lines.parent))
    assert len(HubDatasetConfig(name="x", repo="~/lines").documents(Split.train)) == 4


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown column": ({"text_column": "body"}, ["data.text_column = 'body'", "(text)"]),
    "column of numbers": ({"text_column": "stars"}, ["data.text_column = 'stars'", "(text)"]),
    "unknown split": ({"splits": {"train": "trian"}}, ["trian", "['train', 'validation', 'test']"]),
    "no split": ({"splits": {"test": "test"}}, ["data.splits.train", "+data.splits.train=train"]),
    "one split for two": (
        {"splits": {"train": "test", "test": "test"}},
        ["data.splits.train = 'test'", "data.splits.test"],
    ),
    "unknown subset": ({"subset": "raw"}, ["'raw'", "['default']", "data.subset"]),
    "empty slice": ({"splits": {"train": "train[:0]"}}, ["train[:0]", "data.splits"]),
    "broken expression": ({"document_start": "^ = ["}, ["data.document_start = '^ = ['", "unterminated"]),
}


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(lines: Path, case: str, limit: int | None):
    settings, parts = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        HubDatasetConfig(name="lines", repo=str(lines), max_documents=limit, **settings).documents(Split.train)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize("limit", [None, 10**6])
@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"text": " "}\n',
        '{"text": "cut o',
        (json.dumps({"text": "one " * 25_000}) + "\n") * 120 + '{"text": "cut o',
    ],
    ids=["empty", "blank", "damaged", "damaged late"],
)
def test_files_without_documents(tmp_path: Path, content: str, limit: int | None):
    """Files are read in blocks of 10 MB: damage further down shows up while streaming, not on opening."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=r"data\.(repo|splits\.train|text_column) = "):
        HubDatasetConfig(name="x", repo=str(tmp_path / "x"), max_documents=limit).documents(Split.train)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_split_without_text(tmp_path: Path, limit: int | None):
    tables = {"train": ["one"], "validation": ["", " \n"]}
    write_parquet(tmp_path / "x", {split: pd.DataFrame({"text": rows}) for split, rows in tables.items()})
    for start in (None, "^o"):
        data = HubDatasetConfig(name="x", repo=str(tmp_path / "x"), max_documents=limit, document_start=start)
        assert [document.text for document in data.documents(Split.train)] == ["one\n" if start else "one"]
        with pytest.raises(ConfigError, match=r"data\.splits\.validation = 'validation'\n.*a split with documents"):
            data.documents(Split.validation)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_data_sets_code_does_not_run(tmp_path: Path, limit: int | None):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises((ConfigError, MissingDependency)):
        HubDatasetConfig(name="x", repo=str(tmp_path / "x"), max_documents=limit).documents(Split.train)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["wikitext2", "pg19"])
def test_offline(name: str):
    """HF_HUB_OFFLINE is set for all tests, and the data set is not cached. pg19 is streamed."""
    data = composed(f"data={name}", "model=tiny_llama").data
    assert isinstance(data, HubDatasetConfig)
    with pytest.raises(MissingDependency) as caught:
        data.documents(Split.test)
    parts = [f"data.repo = {data.repo!r}", "HF_HUB_OFFLINE", "data=shakespeare", "data=text", "data.repo=<folder>"]
    assert [part for part in parts if part not in str(caught.value)] == []
