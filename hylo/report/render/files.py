"""Files of a report, written so that a reader sees either the old one or the whole new one."""

import io
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from hylo.core.files import replacing
from hylo.report.render.hover import svg
from hylo.report.tables.numbers import written


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg`, which shows values on pointing, and return both paths in this order.

    The same figure gives the same bytes. The folder is made where it is missing.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return [
        write(folder / f"{name}.png", image.getvalue()),
        write(folder / f"{name}.svg", svg(figure).encode()),
    ]


def csv(frame: pd.DataFrame) -> bytes:
    """A table with its header; numbers as `written` gives them, nothing where one is missing."""
    return frame.to_csv(index=False, lineterminator="\n", float_format=written).encode()


def write(path: Path, content: bytes) -> Path:
    """Replace a file as a whole; its folder is made where it is missing."""
    with replacing(path) as draft:
        draft.write_bytes(content)
    return path
