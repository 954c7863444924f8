"""`python -m hylo.report outputs/ablation`: rebuild and print the report of recorded studies. Needs no model."""

import argparse
import sys
from pathlib import Path

from hylo.core.errors import HyloError, problem
from hylo.core.names import file_name
from hylo.report import print_report, write_report
from hylo.runs.layout import RECORDS, STUDY
from hylo.runs.store import read_study

OUTPUTS = Path("outputs")


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0; 1 if a figure could not be drawn, 2 if a study could not be reported. The rest still is."""
    options = _options(arguments)
    folders = options.folders or sorted(path.parent for path in OUTPUTS.glob(f"*/{STUDY}"))
    code = 0
    if not folders:
        print(
            f"{OUTPUTS.resolve()} holds no recorded study; run one first, for example `make ablation`", file=sys.stderr
        )
        code = 2
    written: dict[Path, Path] = {}
    for folder in folders:
        try:
            to = _goal(folder, options.out, several=len(folders) > 1)
            if to in written:
                raise HyloError(f"{to} has the report of {written[to]}, a study of the same name; report it alone")
            report = write_report(folder, to)
            print_report(report)
            code = max(code, int(bool(report.missing or report.study.unread)))
            written[to] = folder
        except (HyloError, OSError) as error:
            print(f"{folder}: {error}", file=sys.stderr)
            code = 2
    return code


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hylo.report", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help=f"a study's folder; default: every one below {OUTPUTS}/"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the report goes; with several studies, each gets a subfolder named after it. Default: the study's "
        f"own folder. Published records (experiments/<study>/{RECORDS}) hold no reports, so they need --out",
    )
    return parser.parse_args(arguments)


def _goal(folder: Path, out: Path | None, *, several: bool) -> Path:
    """Where the report of a study goes.

    Raises:
        HyloError: the folder holds published records, which must not be mixed with reports; or the study's manifest
            is damaged.
    """
    to = folder if out is None else out / file_name(read_study(folder).name) if several else out
    if to.resolve().name == RECORDS and (to / STUDY).exists():
        allowed = "any folder that holds no published records, which report files must not be mixed with"
        fix = f"python -m hylo.report {folder} --out outputs/{folder.resolve().parent.name}-report"
        raise HyloError(problem("report folder", str(to), allowed, fix))
    return to


if __name__ == "__main__":
    sys.exit(main())
