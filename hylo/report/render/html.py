"""A self-contained HTML page: sortable tables, figures as SVG, style and script. Needs no network.

The templates in assets/ escape all text. The page's content security policy forbids every request and every script but
its own, so a name that looks like markup stays harmless even if escaping had a hole.
"""

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hylo.report.tables.columns import Column, Row
from hylo.report.tables.numbers import MISSING
from hylo.report.tables.table import Table

FILTER_FROM = 9
"""Tables with at least this many rows get a filter."""
SHOWN = 200
"""Rows of a table that are shown at once; the others follow when the reader sorts, filters, or asks for them."""
LONG = 24
"""Text cells longer than this many characters get a minimum width, or they would wrap at every word."""

_BREAK = re.compile(r"(?<=[_+.-])(?=\w)")
"""Where a long name may wrap."""
_ASSETS = Path(__file__).with_name("assets")
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


@dataclass(frozen=True, kw_only=True)
class FigureBlock:
    """A figure on the page."""

    title: str
    """Accessible name of the figure."""
    svg: str
    """As returned by `hylo.report.render.hover.svg`."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Top:
    """The top of the page: the question, what was found, and the main figure."""

    title: str
    """Title of the page and its first heading."""
    question: str = ""
    warnings: Sequence[str] = ()
    answer: Sequence[str] = ()
    """Sentences."""
    figure: FigureBlock | None = None
    notes: Sequence[str] = ()
    """Paragraphs below the figure: missing runs, protocol."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its content, in this order: warnings, text, table, notes, figures."""

    title: str
    warnings: Sequence[str] = ()
    text: Sequence[str] = ()
    """Paragraphs."""
    table: Table | None = None
    """Its title is the caption; its `about` and `notes` are not shown."""
    notes: Sequence[str] = ()
    figures: Sequence[FigureBlock] = ()


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """A cell of a table's body."""

    parts: Sequence[str]
    """Parts of its text; a line may break between them."""
    key: str
    """Sort key."""
    exact: str
    kind: str
    """CSS class: number, long, or empty."""
    tone: str
    """Tone of a badge; empty for plain text."""


def page(top: Top, sections: Sequence[Section]) -> str:
    """The whole page, byte-identical for the same content. All text is plain text and is escaped here.

    Args:
        top: the top of the page.
        sections: in the order of the table of contents.

    Raises:
        xml.etree.ElementTree.ParseError: a figure is not valid XML.
    """
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"cells": _cells, "inline_svg": inline_svg, "filter_from": FILTER_FROM, "shown_rows": SHOWN}
    template = environment.get_template("page.html")
    return template.render(top=top, sections=sections, style=style, script=script, digest=digest)


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """An SVG document as a page element: named for screen readers, with ids and style rules scoped to it.

    Ids and style rules are page-wide, so figures would otherwise use each other's clip paths and markers.
    """
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag == f"{{{_SVG}}}metadata"]:
            parent.remove(child)
    for element in root.iter():
        if element.tag == f"{{{_SVG}}}style":
            element.text = re.sub(r"(^|[},])\s*([^{},]+)(?=[^{}]*\{)", rf"\1#{prefix} \2", element.text or "")
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{prefix}-{value}")
            elif name in ("href", f"{{{_XLINK}}}href") and value.startswith("#"):
                element.set(name, f"#{prefix}-{value[1:]}")
            else:
                element.set(name, re.sub(r"url\(#", f"url(#{prefix}-", value))
    root.attrib |= {"id": prefix, "role": "img", "aria-label": title}
    for size in ("width", "height"):  # the page decides; the view box keeps the proportions
        root.attrib.pop(size, None)
    return ElementTree.tostring(root, encoding="unicode")


def _cells(row: Row, columns: Sequence[Column]) -> list[_Cell]:
    found = []
    for column in columns:
        shown = column.show(row)
        tone = column.tone(shown) if column.tone and shown != MISSING else ""
        parts = [shown] if column.numeric or tone else _BREAK.split(shown)
        kind = "number" if column.numeric else "long" if len(shown) > LONG and not tone else ""
        found.append(_Cell(parts=parts, key=column.sort_key(row), exact=column.exact(row), kind=kind, tone=tone))
    return found
