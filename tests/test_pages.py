"""The entry pages: numbers match the records, links and commands work, lines are short."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from launch import ROOT

from hylo.analysis.contrasts import contrast_table
from hylo.evaluation.metrics import main_metric
from hylo.report import summarize
from hylo.report.tables.numbers import MISSING, interval, number
from hylo.runs.store import read_study
from hylo.studies.spec import EXPERIMENTS, read_study_file

README = (ROOT / "README.md").read_text(encoding="utf-8")
FINDINGS = (EXPERIMENTS / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", EXPERIMENTS / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
INTERVAL = re.compile(r"(-?[\d.]+)(?: %)?\s+\[(-?[\d.]+), (-?[\d.]+)\]")


def test_the_table_of_the_readme_is_that_of_the_records() -> None:
    """Row by row and in order; the shipped records have three seeds."""
    study = read_study(EXPERIMENTS / "ablation" / "records")
    summary = summarize(study).drop_duplicates("cell")
    contrasts: Any = contrast_table(study)
    above = contrasts[contrasts["measure"] == main_metric().name].set_index("cell")
    expected = []
    for row in summary.to_dict("records"):
        cell = row["cell"]
        gained = interval(row["improvement_pct"], row["improvement_low"], row["improvement_high"])
        added = gained if cell == "lora" else MISSING
        if cell in above.index:
            added = interval(*above.loc[cell, ["effect_pct", "low", "high"]])
        numbers = [number(row["trainable_params"], 0), number(row["ppl"]), gained, added]
        expected.append([f"`{cell}`", *numbers])
    assert [row[0] for row in expected] == [f"`{cell}`" for cell in read_study_file("ablation").cells]
    table = [[text.strip() for text in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("| `")]
    assert [[cell, *numbers] for cell, _, *numbers in table] == expected


SECTIONS = {text.splitlines()[0]: text for text in re.split(r"^## ", FINDINGS, flags=re.M)[1:]}
AS_PRINTED = {
    name: text
    for name, text in SECTIONS.items()
    if re.match("Every arm|Landmarks, each|What each|Is rank|Landmark d", name)
}
"""Sections of the findings that quote intervals as printed in the studies' tables, each with a link to them."""


def intervals(study: str) -> set[str]:
    """Every estimate with its interval in the results of a study, as printed."""
    found: set[str] = set()
    for path in (EXPERIMENTS / study / "results").glob("*.csv"):
        table = pd.read_csv(path)
        for start in [name.removesuffix("low") for name in table if name.endswith("low")]:
            for name in table.select_dtypes("number"):
                if name.startswith(start) and not name.endswith(("low", "high")):
                    columns: Any = table[[name, f"{start}low", f"{start}high"]]
                    found |= {interval(*row) for row in columns.itertuples(index=False)}
    return found


def quoted(text: str) -> list[str]:
    return [f"{value} [{low}, {high}]" for value, low, high in INTERVAL.findall(text)]


@pytest.mark.parametrize("name", AS_PRINTED)
def test_intervals_of_the_findings_are_those_of_the_results(name: str) -> None:
    text = AS_PRINTED[name]
    known = set().union(*map(intervals, set(re.findall(r"\((\w+)/results/summary", text))))
    assert len(quoted(text)) >= 3
    assert [each for each in quoted(text) if each not in known] == []


def test_intervals_of_the_readme_are_those_of_the_results() -> None:
    known = set().union(*map(intervals, ("ablation", "tuned_ablation", "tuned_landmarks", "tuned_bucketing")))
    prose = [each for each in quoted(README.partition("## Quick start")[0]) if each not in known]
    assert prose == []
    assert len(quoted(README.partition("## Quick start")[0])) >= 3


def test_a_changed_number_is_found() -> None:
    """Ensures that the comparison above can fail."""
    assert quoted("by 6.93 %\n[6.18, 7.69], and 0.0270 [0.0243, -0.0298]") == [
        "6.93 [6.18, 7.69]", "0.0270 [0.0243, -0.0298]"
    ]  # fmt: skip
    known = intervals("ablation")
    assert "6.93 [6.18, 7.69]" in known
    assert "6.93 [6.18, 7.68]" not in known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.M)]
    for link in (link for link in links if not link.startswith("https://")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_every_promise_of_reliability_has_its_test() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith(("|---", "| fault"))]
    assert len(rows) >= 40
    there = set(re.findall(r"^def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").glob("*.py")), re.M))
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= there, row


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_targets_are_there(page: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M))
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    studies = set(re.findall(r"NAME=(\w+)", page.read_text(encoding="utf-8")))
    assert all((EXPERIMENTS / name / "study.yaml").exists() for name in studies)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    """Except tables, whose rows cannot be wrapped; those of the README are short as well."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and (page.parent == ROOT or not line.startswith("|"))] == []


def test_the_readme_is_for_a_first_reader() -> None:
    assert len(README.splitlines()) <= 150


def test_the_index_names_every_page_and_the_glossary_every_word() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\((\S+?)\)", index))
    for word in ("cell", "contrast", "claim", "base model", "reference"):
        assert re.search(rf"^\*\*{word}\*\*", index, re.M), word


def test_the_citation_has_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    (version,) = re.findall(r"^version: (\S+)$", citation, re.M)
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
