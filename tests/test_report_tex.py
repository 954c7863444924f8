"""Tables for LaTeX: alignment, intervals, escaping, and the file of a study."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recorded import row_of

from hylo.report import write_report
from hylo.report.render.latex import booktabs, escape
from hylo.report.tables.columns import estimate, quantity, text

COLUMNS = [
    text("Cell", "cell", ""),
    estimate("Gain (%) [95 %]", "gain", "low", "high", ""),
    quantity("Parameters per 1 %", "params", "", decimals=0),
]


def _rows(source: str) -> list[str]:
    """The rows between the middle and the bottom rule."""
    return source.partition("\\midrule\n")[2].partition("\n\\bottomrule")[0].splitlines()


def test_a_table():
    frame = pd.DataFrame(
        {
            "cell": ["low_rank", "[x]", "--"],
            "gain": [12.04, -1.0, np.nan],
            "low": [10.0, -3.0, np.nan],
            "high": [14.0, 1.0, np.nan],
            "params": [2_442_240, -5, np.nan],
        }
    )
    source = booktabs(frame, COLUMNS, "100 % of a_b.", "demo: Against the & row")
    assert _rows(source) == [
        r"low\_rank & 12.0\,[10.0, 14.0] & 2,442,240 \\",
        r"{}[x] & $-$1.0\,[$-$3.0, 1.0] & $-$5 \\",
        r"-{}- & -- & -- \\",
    ]
    assert r"\begin{tabular}{@{}lrr@{}}" in source
    assert r"\begin{tabular}[b]{@{}r@{}}Gain (\%) \\ {}[95 \%] \\\end{tabular}" in source
    assert r"\begin{tabular}[b]{@{}r@{}}Parameters \\ per 1 \% \\\end{tabular}" in source
    assert r"\caption{100 \% of a\_b.}" in source
    assert r"\label{tab:demo-against-the-row}" in source
    places = [source.index(rule) for rule in (r"\caption", r"\label", r"\toprule", r"\midrule", r"\bottomrule")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("plain", "source"),
    [
        ("_%&#$", r"\_\%\&\#\$"),
        ("{}~^", r"\{\}\textasciitilde{}\textasciicircum{}"),
        ("\\begin", r"\textbackslash{}begin"),
        ("a<b|c>d", r"a\textless{}b\textbar{}c\textgreater{}d"),
        ("a---b", "a-{}-{}-b"),
        ("two\nlines", "two lines"),
        ("–", "--"),
        ("a–b", "a--b"),
    ],
)
def test_escaping(plain: str, source: str):
    assert escape(plain) == source


def test_the_study_as_tables(study: Path):
    report = write_report(study)
    source = (study / "summary.tex").read_text(encoding="utf-8")
    assert source.count(r"\begin{table*}") == source.count(r"\end{table*}") == 2
    first, second = source.split(r"\end{table*}")[:2]
    assert (len(_rows(first)), len(_rows(second))) == (4, 2)
    row = row_of(report.summary, "high", "low")
    assert re.search(rf"high & low & 3 & {row['improvement_pct']:.1f}\\,\[", second)
    for part in (first, second):
        widths = {re.sub(r"\\&", "", line).count("&") for line in _rows(part)}
        assert widths == {part.count(r"\end{tabular}") - 2}  # one per header, one for the whole table
        assert "95 \\% intervals cover new seeds and new windows" in part
    assert "nan" not in source.lower()
    write_report(study)
    assert (study / "summary.tex").read_text(encoding="utf-8") == source
