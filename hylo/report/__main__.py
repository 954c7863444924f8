"""`python -m hylo.report outputs/ablation`: rebuild and print the report of recorded studies. Needs no model."""

import argparse
import sys
from pathlib import Path

from hylo.core.errors import HyloError
from hylo.report import print_report, write_report
from hylo.runs.store import STUDY

OUTPUTS = Path("outputs")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 where a study could not be reported; the others still are."""
    parser = argparse.ArgumentParser(prog="python -m hylo.report", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help=f"a study's folder; default: every one below {OUTPUTS}/"
    )
    folders = parser.parse_args(arguments).folders or sorted(path.parent for path in OUTPUTS.glob(f"*/{STUDY}"))
    code = 0
    if not folders:
        print(
            f"{OUTPUTS.resolve()} holds no recorded study; run one first, for example `make ablation`", file=sys.stderr
        )
        code = 2
    for folder in folders:
        try:
            print_report(write_report(folder))
        except HyloError as error:
            print(f"{folder}: {error}", file=sys.stderr)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
