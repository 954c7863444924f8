"""The documentation says what is there: every method, with the number of parameters it has."""

import re
from pathlib import Path

import pytest
from adapters import METHODS, method
from test_parameter_counts import gpt2_small

from hylo.adapters.component import Host

DOCS = Path(__file__).parents[1] / "docs"
ROWS = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", (DOCS / "methods.md").read_text(), re.MULTILINE))


def test_every_method_is_documented():
    assert sorted(ROWS) == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_documented_parameter_counts(name: str):
    host = Host(gpt2_small(), context_length=1024, seed=0)
    assert int(ROWS[name].replace(",", "")) == sum(config.parameter_count(host) for config in method(name).values())
