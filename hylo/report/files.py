"""Files of a report, written so that a reader sees either the old one or the whole new one."""

import io
import os
from pathlib import Path

from matplotlib.figure import Figure

from hylo.report.hover import svg


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


def write(path: Path, content: bytes) -> Path:
    """Replace a file as a whole; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
    return path
