"""curve.jsonl: what training writes step by step."""

import json
from pathlib import Path
from typing import Any


class Curve:
    """curve.jsonl: one line an optimizer step, each on disk as soon as the step is done."""

    def __init__(self, path: Path, *, keep: int, write: bool) -> None:
        self.path, self.write = path, write
        if write:
            lines = path.read_text().splitlines(keepends=True)[:keep] if path.exists() else []
            path.write_text("".join(lines))

    def add(self, line: dict[str, Any]) -> None:
        """Append a step."""
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
