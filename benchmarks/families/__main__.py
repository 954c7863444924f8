"""Try every family and print the table, or write it into docs/models.md."""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.families.contract import Outcome, outcomes
from benchmarks.families.table import page
from benchmarks.families.tiny import NOT_TINY, families
from hylo.core.errors import first_line

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def tried(family: str) -> dict[str, Outcome] | str:
    """The outcomes of a family, or why it has no tiny model."""
    torch.set_num_threads(1)
    if family in NOT_TINY:
        return NOT_TINY[family]
    try:
        return outcomes(family)
    except Exception as error:  # noqa: BLE001  a config or model that cannot be built tiny
        return first_line(f"{type(error).__name__}: {error}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("families", nargs="*", help="model types to try (default: all)")
    parser.add_argument("--write", action="store_true", help="rewrite the tables of docs/models.md")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = arguments.families or families()
    with ProcessPoolExecutor() as pool:
        found = {}
        for name, outcome in zip(names, pool.map(tried, names), strict=True):
            found[name] = outcome
            print(f"{len(found)}/{len(names)} {name}", file=sys.stderr, flush=True)
    text = page(found)
    if arguments.write and not arguments.families:
        PAGE.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
