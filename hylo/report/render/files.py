"""Report files, replaced atomically."""

import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from hylo.core.files import replacing
from hylo.report.render.hover import svg
from hylo.report.tables.numbers import written

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet takes for a formula."""


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg` (with tooltips), and return both paths in this order.

    The same figure gives the same bytes. The folder is created if missing.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return [
        write(folder / f"{name}.png", image.getvalue()),
        write(folder / f"{name}.svg", svg(figure).encode()),
    ]


def remove(folder: Path, name: str) -> None:
    """Delete what `save` wrote for an earlier report."""
    for suffix in ("png", "svg"):
        (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def csv(frame: pd.DataFrame) -> bytes:
    """The table as CSV with a header; numbers formatted by `written`, empty if missing.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, and so stays text.
    """
    safe = frame.map(lambda value: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value)
    return safe.to_csv(index=False, lineterminator="\n", float_format=written).encode()


def write(path: Path, content: bytes) -> Path:
    """Replace a file atomically; its folder is created if missing."""
    with replacing(path) as draft:
        draft.write_bytes(content)
    return path
