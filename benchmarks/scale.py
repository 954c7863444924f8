"""How hylo's own work grows with the number of cells: planning them, and reporting what they recorded.

    python -m benchmarks.scale                            up to 2,000 cells and 2,000 records (half an hour)
    python -m benchmarks.scale --cells 25,50 --out somewhere

Each measurement is one new process (`benchmarks/cost.py`): CPU seconds with imports, and peak memory. Nothing is
trained. The rows go to the same results.json and results.md as those of `python -m benchmarks`.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.cost import cost
from benchmarks.records import write_study
from benchmarks.report import write_report
from benchmarks.results import Results, Row, measured
from benchmarks.settings import ROOT, Subject
from hylo.core.progress import Progress
from hylo.report import PAGE

PART = "scale"
MODEL = "smollm2_135m"
"""The model of the other parts, which share results.json; nothing here depends on it."""
CELLS = (25, 50, 100, 200, 2000)


def rows(cells: Sequence[int] = CELLS) -> Iterator[Row]:
    """Rows by number of cells: a plan, a report of a sweep, and a report of a study with as many contrasts."""
    with tempfile.TemporaryDirectory(prefix="hylo-scale-") as name, Progress("scale", 3 * len(cells)) as progress:
        for place, count in enumerate(cells):
            folder = Path(name) / str(count)
            folder.mkdir()
            yield from _costs(f"plan of {count:,} cells", "benchmarks.planning", str(count), str(folder / "outputs"))
            progress.update(3 * place + 1)
            yield from _reports(f"report of {count:,} records", write_study(folder / "sweep", count), folder / "page")
            progress.update(3 * place + 2)
            study = write_study(folder / "study", count // 5, seeds=5, contrasts=count // 5 - 1)
            told = f"report of {count:,} records, 5 seeds per cell, {count // 5 - 1} contrasts"
            yield from _reports(told, study, folder / "pages")
            progress.update(3 * place + 3)


def _reports(work: str, study: Path, to: Path) -> Iterator[Row]:
    yield from _costs(work, "hylo.report", str(study), "--out", str(to))
    yield measured(PART, work, "page_bytes", [(to / PAGE).stat().st_size])


def _costs(work: str, module: str, *arguments: str) -> Iterator[Row]:
    for metric, value in cost(module, *arguments, folder=ROOT).items():
        yield measured(PART, work, metric, [value])


def main() -> None:
    """Measure, and write results.json, results.md and the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = ",".join(map(str, CELLS))
    parser.add_argument("--cells", default=numbers, help=f"numbers of cells, each 10 or more; default {numbers}")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of the results")
    options = parser.parse_args()
    results = Results.of(Subject(MODEL), options.out)
    for row in rows([int(text) for text in options.cells.split(",")]):
        results.add(row)
        results.write(options.out)
    print("\n".join(map(str, write_report(options.out))))


if __name__ == "__main__":
    main()
