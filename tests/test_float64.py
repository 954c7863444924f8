"""Perplexity of a run against the independent float64 loop of benchmarks/float64.py, and the table made from it."""

import re

import pytest

from benchmarks.float64 import BATCHES, BEGIN, END, FAMILIES, PADDING, PAGE, TOLERANCE, WEIGHTS, deviations


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_agrees_with_the_loop(family: str, weights: str):
    found = deviations(family, weights)
    assert len(found) == len(BATCHES) * len(PADDING)
    assert {key: value for key, value in found.items() if not value < TOLERANCE} == {}


def test_the_page_has_every_combination():
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = re.findall(r"^\| (\S+) \| (\w+) \| (.*) \|$", table, re.MULTILINE)
    assert [row[:2] for row in rows[1:]] == [(name, weights) for name in FAMILIES.values() for weights in WEIGHTS]
    numbers = [float(cell) for *_, cells in rows[1:] for cell in cells.split(" | ")]
    assert len(numbers) == len(rows[1:]) * len(BATCHES) * len(PADDING)
    assert max(numbers) < TOLERANCE
