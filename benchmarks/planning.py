"""Everything that happens before the first cell of a sweep runs: `python -m benchmarks.planning CELLS FOLDER`.

Composes the cells (two methods, each with many seeds), checks them, adds the base model's, writes the plan, and looks
for finished runs.
"""

import sys
from pathlib import Path

from hydra import initialize_config_dir

from hylo.cli.sweep import plan_of
from hylo.runs.reuse import Listing, reuse_finished
from hylo.runs.shared import Session
from hylo.studies.plan import check_plan, freeze, with_base_cells

CONF = Path(__file__).parent.parent / "conf"
TINY = ("model=tiny_llama", "trainer=smoke", "tracking=none", "data.context_length=32", "data.eval_windows=6")


def main() -> None:
    """Plan a sweep of this many cells, with its records in this folder."""
    cells, outputs = int(sys.argv[1]), Path(sys.argv[2])
    session = Session()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        swept = ["method=lora,rslora", f"seed=range({(cells + 1) // 2})", f"outputs={outputs}", *TINY]
        plan = plan_of(swept, outputs, "sweep")
    check_plan(plan, session)
    plan = freeze(with_base_cells(plan, session), session)
    listing = Listing()
    pending = [cell for cell in plan.cells if not reuse_finished(cell, session, listing)]
    print(f"{len(pending)} of {len(plan.cells)} cells to run")


if __name__ == "__main__":
    main()
