"""Needles in a haystack: what is asked, from which text, and a run's answers in its record and report."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from launch import train
from tokenizers.processors import TemplateProcessing

from hylo.analysis.retrieval import retrieval_table
from hylo.core.errors import ConfigError
from hylo.data.base import Split
from hylo.data.shakespeare import SHAKESPEARE
from hylo.evaluation.probes.depths import DepthProbe, Prompts
from hylo.evaluation.probes.needle import NeedleProbeConfig
from hylo.models.tiny import END_OF_TEXT, TinyModelConfig
from hylo.runs.store import read_study

TOKENIZER = TinyModelConfig(name="tiny").tokenizer()
SHORT = {"tokens": [700, 1000], "depths": 3, "haystacks": 3}
"""In tokens of the tiny models, which are bytes."""


def built(**settings: object) -> DepthProbe:
    return NeedleProbeConfig(**{**SHORT, **settings}).build(TOKENIZER)  # pyright: ignore[reportArgumentType]


def text_of(prompts: Prompts, depth: int) -> str:
    return str(TOKENIZER.decode(np.concatenate([prompts.prefix, prompts.tails[depth]]).tolist()))


def test_haystacks_are_held_out_text_with_a_needle_at_each_depth():
    plays = [document.text for document in SHAKESPEARE.documents(Split.test)]
    probe = built()
    assert [(one.length, one.number) for one in probe.prompts] == [(n, k) for k in range(3) for n in (700, 1000)]
    for one in probe.prompts:
        text, _, _ = text_of(one, 0).partition("\n\nQuestion")
        needles = [line for line in f"{text}\n".splitlines() if line.startswith("The code for ")]
        assert len(needles) == 3
        hay = f"{text}\n"
        for needle in needles:
            hay = hay.replace(f"{needle}\n", "")
        assert any(hay.removesuffix("\n") in play for play in plays), (
            "the text without needles is one stretch of a play"
        )
        assert text.startswith(needles[0])
        assert text.endswith(needles[-1])
        for depth, needle in enumerate(needles):
            asked = text_of(one, depth)
            before, _, answer = asked.rpartition("Answer: ")
            assert f"{answer}." == needle
            assert before.startswith(text)
            count = len(TOKENIZER(text[: text.index(needle)], add_special_tokens=False)["input_ids"])
            assert one.places[depth] == count


def test_places_count_the_token_that_begins_a_text():
    """It takes one token of the room, and moves every needle by one."""
    tokenizer: Any = TinyModelConfig(name="tiny").tokenizer()
    tokenizer.bos_token = END_OF_TEXT
    begins = TemplateProcessing(single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begins
    needle = TOKENIZER("The code for", add_special_tokens=False)["input_ids"]
    for one in NeedleProbeConfig(tokens=[700], depths=3, haystacks=2).build(tokenizer).prompts:
        assert one.prefix[0] == tokenizer.bos_token_id
        assert one.longest <= one.length
        whole = np.concatenate([one.prefix, one.tails[0]])
        assert [whole[place : place + len(needle)].tolist() for place in one.places] == [needle] * 3


def test_none_is_longer_than_asked_and_none_much_shorter():
    for one in built(haystacks=8).prompts:
        assert one.length - 120 < one.longest <= one.length


def test_haystacks_depend_on_the_probe_alone():
    texts = [text_of(one, 0) for one in built().prompts]
    assert len(set(texts)) == len(texts)
    assert [text_of(one, 0) for one in built(haystacks=5).prompts][: len(texts)] == texts, "more keep the first ones"
    assert [text_of(one, 0) for one in built(tokens=[1000]).prompts] == texts[1::2]
    assert not {text_of(one, 0) for one in built(seed=1).prompts} & set(texts)


def test_text_of_ones_own(tmp_path: Path):
    """Its content is part of what the answers depend on; its place is not what is read."""
    path = tmp_path / "own.txt"
    path.write_text("".join(f"Line {number} of my own text.\n" for number in range(200)))
    config = NeedleProbeConfig(tokens=[700], depths=3, haystacks=2, files=[str(tmp_path / "*.txt")])
    before, (one, _) = config.content(), config.build(TOKENIZER).prompts
    assert "of my own text" in text_of(one, 0)
    path.write_text("".join(f"Verse {number} of my own text.\n" for number in range(200)))
    assert config.content() != before
    assert "Verse" in text_of(config.build(TOKENIZER).prompts[0], 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": [120]}, r"probe\.tokens = 120\n *allowed: more than \d+ \(3 needles"),
        ({"tokens": [10**7]}, "and a text that long"),
        ({"files": ["no/such/*.txt"]}, r"probe\.files = 'no/such"),
    ],
)
def test_what_cannot_be_asked(settings: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        built(**settings)


@pytest.mark.parametrize("tokens", ["[]", "[512,512]", "[0]"])
def test_lengths_are_checked_before_anything_runs(
    tokens: str, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    assert train(*tiny, "method=lora", "probe=needle", f"probe.tokens={tokens}") == 2
    assert "one or more numbers above 0, each once" in capsys.readouterr().err


def test_longer_than_the_model(tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert train(*tiny, "method=lora", "probe=needle", "probe.tokens=[600]", "probe.depths=3") == 2
    said = capsys.readouterr().err
    assert "probe.tokens = [600]" in said
    assert "fewer tokens" in said


@pytest.mark.parametrize(("content", "said"), [(b"caf\xe9", "readable UTF-8 text"), (b" \n", "this one is blank")])
def test_files_that_hold_no_text_are_refused(
    content: bytes, said: str, tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.txt").write_bytes(content)
    files = f"probe.files=[{tmp_path / 'text.txt'}]"
    assert train(*tiny, "method=lora", "probe=needle", "probe.tokens=[400]", "probe.depths=3", files) == 2
    message = capsys.readouterr().err
    assert "probe.files = " in message
    assert said in message


def test_a_run_is_asked_and_its_report_shows_the_grid(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    overrides = ("probe=needle", "probe.tokens=[400,500]", "probe.depths=3", "probe.haystacks=2")
    assert train("-m", *tiny, "method=lora,rslora", *overrides, f"outputs={tmp_path}") == 0
    assert "400 tokens: accuracy by depth" in capsys.readouterr().out
    (sweep,) = tmp_path.glob("sweep-*")
    table = retrieval_table(read_study(sweep))
    assert table["unit"].unique().tolist() == ["tokens"]
    assert table.groupby(["cell", "length"]).size().unique().tolist() == [3]
    assert table["cell"].unique().tolist() == ["none", "lora", "rslora"]
    assert pd.read_csv(sweep / "retrieval.csv")["length"].unique().tolist() == [400, 500]
