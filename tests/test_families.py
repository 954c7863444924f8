"""Models of many families: what docs/models.md says of each is what comes of trying it."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launch import train
from transformers import AutoModelForCausalLM

from benchmarks.families.__main__ import tried
from benchmarks.families.contract import DESIGNS, Kind, Outcome, outcomes
from benchmarks.families.table import page, reason
from benchmarks.families.tiny import NOT_TINY, families, tiny_config
from hylo.models.tiny import byte_tokenizer
from hylo.runs.store import read_study

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text()
FEW = ["bloom", "deepseek_v3", "jamba", "llama4_text", "mixtral", "phi", "qwen3_next"]
"""Families that differ in what adapters touch: ALiBi and an FFN that adds the residual, latent attention, a hybrid with
state-space layers, attention in chunks, fused experts, an output projection of another name, gated norms."""


def _rows() -> Iterator[tuple[str, list[str]]]:
    """The table of the page: family and cells."""
    for line in PAGE.splitlines():
        family, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("|") and len(cells) == len(DESIGNS) and family not in ("family", "---"):
            yield family, cells


ROWS = dict(_rows())
REASONS = dict(re.findall(r"^(\d+)\. (.*)$", PAGE, re.M))


def test_the_page_holds_every_family_of_the_installed_transformers():
    """A family that transformers gains is found here: python -m benchmarks.families --write."""
    without_row = set(re.findall(r"^- ([\w-]+): ", PAGE, re.M))
    assert ROWS.keys() | without_row == set(families())
    assert NOT_TINY.keys() <= without_row
    assert len(ROWS) > 140


def test_no_family_ends_in_a_traceback_or_a_wrong_number():
    words = {cell.partition(" ")[0] for cells in ROWS.values() for cell in cells if cell}
    assert words == {kind.value for kind in Kind} - {"WRONG", "TRACEBACK"}


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in FEW else [pytest.mark.exhaustive]) for family in ROWS]
)
@pytest.mark.filterwarnings("ignore")  # of models that transformers itself deprecates
def test_a_family_is_as_the_page_says(family: str):
    found = outcomes(family)
    said = {design: cell for design, cell in zip(DESIGNS, ROWS[family], strict=True) if cell}
    for design, outcome in found.items():
        word, number = re.fullmatch(r"(\w+)(?: \((\d+)\))?", said[design]).groups()  # pyright: ignore
        assert outcome.kind.value == word, f"{design}: {outcome}"
        assert number is None or REASONS[number] == reason(outcome)
    assert said.keys() == found.keys()


def test_the_page_names_reasons_once_and_what_was_not_tried():
    refused = Outcome(Kind.refused, "a model with a final norm; FooForCausalLM has no final norm under the names a, b")
    found = {
        "llama": dict.fromkeys(DESIGNS, Outcome(Kind.works)) | {"landmarks": refused, "original": refused},
        "bert": {"base": Outcome(Kind.refused, "a causal model; this one reads later tokens")},
        "git": "has no text",
    }
    text = page(found)
    assert "| llama | yes | yes | yes | no (1) | no (1) | yes |" in text
    assert "\n1. the model has no final norm\n" in text
    assert "- git: has no text" in text
    assert "1 are refused because they read later tokens. Of the other 1," in text.replace("\n", " ")


def test_a_config_that_cannot_be_built_tiny_is_said():
    assert tried("git") == NOT_TINY["git"]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("bloom", ["method=hylorada"]),  # its config names no longest context
        ("hrm_text", ["method=lora"]),  # its layers are in two stacks, whose number the config does not name
        ("jamba", ["method=lora"]),  # its padding, cache and layers differ from one to the next
        ("mamba", ["method=lora", "method.low_rank.target_modules=[in_proj,out_proj]"]),  # no attention, another cache
        ("deepseek_v3", ["method=hylorada"]),  # positions of keys that come from the cache
    ],
)
@pytest.mark.filterwarnings("ignore")  # of models that transformers itself deprecates
def test_a_family_runs_from_its_folder(family: str, overrides: list[str], tiny: tuple[str, ...], tmp_path: Path):
    config = tiny_config(family)
    config.get_text_config().vocab_size = len(byte_tokenizer())
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    folder = ["model=folder", f"model.folder={tmp_path / 'model'}", "model.name=x"]
    assert train(*tiny, *folder, *overrides, "method.low_rank.rank=2", f"outputs={tmp_path / 'outputs'}") == 0
    study = read_study(tmp_path / "outputs" / "runs")
    losses = [run.result["metrics"]["nll_nats_per_token"] for runs in study.cells.values() for run in runs]
    assert len(losses) == 2
    assert losses[0] != losses[1]
    assert all(abs(loss - math.log(257)) < 3 for loss in losses)
