"""`python -m hylo.studies status|collect outputs/ablation`: how a study's runs fare, and its report so far.

`status` needs no model and may be called on any machine that sees the folder, while the study runs. `collect` also
rebuilds the report from the records that are complete. What is missing is run by the command that began the study.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hylo.core.errors import HyloError
from hylo.studies.states import print_states


def main(arguments: Sequence[str] | None = None) -> int:
    """Return exit code 0 if all runs are complete, 1 if not, 2 if a folder holds no study."""
    parser = argparse.ArgumentParser(prog="python -m hylo.studies", description=__doc__)
    parser.add_argument("command", choices=("status", "collect"), help="print the runs' states; or the report as well")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a study's or sweep's folder")
    options = parser.parse_args(arguments)
    code = 0
    for folder in options.folders:
        try:
            complete = print_states(folder)
            if options.command == "collect":
                complete &= _report(folder)
            code = max(code, int(not complete))
        except (HyloError, OSError) as error:
            print(f"{folder}: {error}", file=sys.stderr)
            code = 2
    return code


def _report(folder: Path) -> bool:
    from hylo.report import print_report, write_report  # imports matplotlib, which only reports need

    report = write_report(folder)
    print_report(report)
    return not report.missing and not report.study.unread


if __name__ == "__main__":
    sys.exit(main())
