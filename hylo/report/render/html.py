"""One HTML page with everything inside it: tables that sort, figures as SVG, style and script. It asks for no network.

The page's own policy forbids every request and every script but the one it comes with, so a name that looks like markup
stays a name even if escaping had a hole.
"""

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hylo.report.tables.columns import Column, Row
from hylo.report.tables.numbers import MISSING
from hylo.report.tables.table import Table

FILTER_FROM = 9
"""Rows from which a table has a filter."""

_BREAK = re.compile(r"([_+.-])(?=\w)")
"""Where a long name may go on in the next line."""
_ASSETS = Path(__file__).with_name("assets")
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _XLINK)


@dataclass(frozen=True, kw_only=True)
class FigureBlock:
    """A figure of a section."""

    title: str
    """What it shows, for readers who cannot see it."""
    svg: str
    """As `hylo.report.render.hover.svg` writes it."""
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what stands under it, in this order: warnings, text, table, notes, figures."""

    title: str
    warnings: Sequence[str] = ()
    text: Sequence[str] = ()
    """Paragraphs."""
    table: Table | None = None
    """Its title is the caption; its own texts are not shown."""
    notes: Sequence[str] = ()
    figures: Sequence[FigureBlock] = ()


def page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole page, byte-identical for the same content. All texts are plain text and are escaped here.

    Args:
        title: of the page and its first heading.
        lead: paragraphs under it.
        sections: in the order of the table of contents.

    Raises:
        xml.etree.ElementTree.ParseError: a figure is no XML.
    """
    style, script = ((_ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    names = [f"section-{place}" for place, _ in enumerate(sections, 1)]
    links = [f'<li><a href="#{name}">{_text(part.title)}</a></li>' for name, part in zip(names, sections, strict=True)]
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}; base-uri 'none'; form-action 'none'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{_text(title)}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        f"<header>\n<h1>{_text(title)}</h1>",
        *(f'<p class="lead">{_text(paragraph)}</p>' for paragraph in lead),
        "</header>",
        *(['<nav aria-label="Contents">\n<ol>', *links, "</ol>\n</nav>"] if links else []),
        "<main>",
        *(_section(name, part) for name, part in zip(names, sections, strict=True)),
        "</main>",
        "<footer></footer>",
        f"<script>{script}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def badge(word: str, tone: str) -> str:
    """A word on a coloured ground; tone is one of good, bad, open, plain."""
    return f'<span class="badge {_text(tone)}">{_text(word)}</span>'


def inline_svg(svg: str, prefix: str, title: str) -> str:
    """An SVG document as an element of a page: named for screen readers, and with every id and rule its own.

    Ids are unique in a page and style rules hold in all of it, so several figures would otherwise take each other's
    clip paths and markers.
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


def _section(name: str, part: Section) -> str:
    lines = [
        f'<section id="{name}">',
        f"<h2>{_text(part.title)}</h2>",
        *(f'<p class="warning">{_text(line)}</p>' for line in part.warnings),
        *(f"<p>{_text(paragraph)}</p>" for paragraph in part.text),
        _table(name, part.table) if part.table else "",
        *(['<ul class="notes">', *(f"<li>{_text(note)}</li>" for note in part.notes), "</ul>"] if part.notes else []),
        *(_figure(f"{name}-figure-{place}", figure) for place, figure in enumerate(part.figures, 1)),
        "</section>",
    ]
    return "\n".join(line for line in lines if line)


def _figure(name: str, figure: FigureBlock) -> str:
    caption = f"<figcaption>{_text(figure.caption)}</figcaption>\n" if figure.caption else ""
    return f"<figure>\n<div>{inline_svg(figure.svg, name, figure.title)}</div>\n{caption}</figure>"


def _table(name: str, table: Table) -> str:
    rows: list[Row] = table.frame.to_dict("records")
    lines = ['<div class="table">']
    if len(rows) >= FILTER_FROM:
        lines.append(
            f'<div class="filter" hidden><label for="{name}-filter">Filter rows</label>'
            f'<input type="search" id="{name}-filter" autocomplete="off"><output></output></div>'
        )
    lines += [
        f'<div class="scroll">\n<table>\n<caption>{_text(table.title)}</caption>',
        f"<thead>\n<tr>{''.join(_header(column) for column in table.columns)}</tr>\n</thead>",
        "<tbody>",
        *(f"<tr>{_cells(row, table.columns)}</tr>" for row in rows),
        "</tbody>\n</table>\n</div>\n</div>",
    ]
    return "\n".join(lines)


def _header(column: Column) -> str:
    kind = ' class="number" data-numeric' if column.numeric else ""
    header = column.header.replace(" %", "\N{NO-BREAK SPACE}%")
    button = f'<button type="button" title="{_text(column.about)}">{_text(header)}</button>'
    return f'<th scope="col" aria-sort="none"{kind}>{button}</th>'


def _cells(row: Row, columns: Sequence[Column]) -> str:
    return "".join(_cell(row, column, 'th scope="row"' if place == 0 else "td") for place, column in enumerate(columns))


def _cell(row: Row, column: Column, tag: str) -> str:
    shown = column.show(row)
    exact = column.exact(row)
    attributes = ' class="number"' if column.numeric else ""
    attributes += f' data-value="{_text(column.sort_key(row))}"' + (f' title="{_text(exact)}"' if exact else "")
    if column.tone and shown != MISSING:
        content = badge(shown, column.tone(shown))
    else:
        content = _text(shown) if column.numeric else _BREAK.sub(r"\1<wbr>", _text(shown))
    return f"<{tag}{attributes}>{content}</{tag.partition(' ')[0]}>"


def _text(text: str) -> str:
    """Escaped for content and for attributes in double quotes."""
    return escape(text, quote=True)
