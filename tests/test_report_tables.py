"""Report tables on the console and in markdown: nothing cut off, everything marked, and the text around them."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recorded import CELLS, SIZE, printed, row_of, write_recorded_study

from hylo.report import COLUMNS, write_report
from hylo.report.tables.caption import RANDOM_WEIGHTS
from hylo.report.tables.numbers import interval, number, written
from hylo.report.tables.summary_columns import CONTRASTS


def test_console_at_120_columns(recorded: Path, table: pd.DataFrame):
    lines = printed(recorded).splitlines()
    lines = [line.rstrip() for line in lines if not line.startswith("report:")]
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    row = row_of(table, "high", "low")
    assert f"{row['improvement_pct']:.1f} [{row['improvement_low']:.1f}, {row['improvement_high']:.1f}]" in text
    for words in ("Against the base model", "Against the previous row", "1 % ", "12 evaluation windows"):
        assert words in text
    assert "nan" not in text.lower()
    assert "…" not in text


def test_nothing_is_cut_off(tmp_path: Path):
    name = "a_method_whose_name_is_longer_than_any_column_could_be_expected_to_be"
    folder = write_recorded_study(
        tmp_path / "long", {name: 10.0, "b": 20.0}, [0], np.random.default_rng(7), params={name: 6_738_415_616}, **SIZE
    )
    assert name in printed(folder)
    folded = printed(folder, width=100, force_terminal=True)
    assert "6,738,415,616" in folded
    assert "…" not in folded
    assert name.startswith(re.findall(r"^(a_\w+) ", folded, re.MULTILINE)[0])


def test_random_weights_are_marked_in_every_table(tmp_path: Path):
    folder = write_recorded_study(tmp_path / "random", CELLS, [0], np.random.default_rng(8), pretrained=False, **SIZE)
    write_report(folder)
    assert printed(folder).count(RANDOM_WEIGHTS) == 2
    assert (folder / "summary.md").read_text().count(f"**{RANDOM_WEIGHTS}**") == 2


def test_a_failed_audit_marks_its_row_in_every_table(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "leak", CELLS, [0], np.random.default_rng(8), audit={"low": ["causality", "padding"]}, **SIZE
    )
    report = write_report(folder)
    line = "AUDIT FAILED: low [!]: causality, padding"
    assert printed(folder).count(line) == 2
    text = (folder / "summary.md").read_text()
    assert text.count(f"**{line}**") == 2
    rows = [row for row in text.splitlines() if row.startswith("| ") and "low" in row.split("|")[1] + row.split("|")[2]]
    assert rows
    assert all("low [!]" in row for row in rows)  # as a cell, and as the reference of another
    assert set(row_of(report.summary, "low", "untuned")["audit"].split(", ")) == {"causality", "padding"}
    assert set(report.summary.loc[report.summary["cell"] != "low", "audit"]) == {"passed"}


def test_what_intervals_mean_is_said(recorded: Path, tmp_path: Path):
    assert RANDOM_WEIGHTS not in printed(recorded)
    assert "new seeds and new windows" in printed(recorded)
    one = write_recorded_study(tmp_path / "one", CELLS, [0], np.random.default_rng(9), **SIZE)
    assert printed(one).count("evaluation noise only") == 2
    assert "new seeds and" not in printed(one)


def test_markdown_has_every_column_and_no_nan(study: Path):
    report = write_report(study)
    text = (study / "summary.md").read_text()
    headers = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| Cell")]
    every = [column.header for column in CONTRASTS]
    assert headers == [[header for header in every if header not in ("Reference", "Added params")], every]
    assert {column.key for column in CONTRASTS} == set(COLUMNS) - {
        name for name in COLUMNS if name.endswith(("_low", "_high"))
    }
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") - 1 in map(len, headers)
    assert "nan" not in text.lower()
    assert "<NA>" not in text
    for path in report.figures:
        assert f"({path.relative_to(study).as_posix()})" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((30.04, 28.06, 32.12), "30.0 [28.1, 32.1]"),
        ((0.004, -0.03, 0.04), "0.004 [-0.030, 0.040]"),
        ((0.017, 0.004, 0.030), "0.017 [0.004, 0.030]"),
        ((1e-6, -1e-6, 3e-6), "0.0000 [0.0000, 0.0000]"),
        ((np.nan, np.nan, np.nan), "–"),
        ((-0.01, -2, 2), "0.0 [-2.0, 2.0]"),
        ((49_152.4, 48_000.0, 50_300.0), "49,152 [48,000, 50,300]"),
    ],
)
def test_interval_text(values: tuple[float, float, float], expected: str):
    assert interval(*values) == expected


def test_number_text():
    assert (number(pd.NA), number(2_442_240, 0), number(-0.0)) == ("–", "2,442,240", "0.0")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (29.88313439260702, "29.88313439"),
        (29.883134392607023, "29.88313439"),  # from another vector unit on the same records
        (1 / 3e12, "3.333333333e-13"),
        (-0.00001234567890123, "-1.23456789e-05"),
        (1411325952.0, "1411325952.0"),
        (2, "2.0"),
        (0.0, "0.0"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_file_holds_ten_digits(value: float, expected: str):
    assert written(value) == expected
