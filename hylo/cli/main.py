"""Runs what train.py composes: a study, a cell, or one job of a sweep."""

import hashlib
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hylo.cli.composition import compose
from hylo.cli.config_store import store_schemas
from hylo.cli.hydra_errors import explain, refuse_paths, refuse_replaced
from hylo.cli.shorthand import with_slots
from hylo.core.errors import HyloError
from hylo.core.interruption import Interrupted, stopping_on_signals
from hylo.core.names import file_name
from hylo.data.base import DataConfig
from hylo.runs.cell import Cell
from hylo.runs.config import Config, resolve
from hylo.runs.launcher import LeftRunning
from hylo.runs.run import run_or_report
from hylo.runs.shared import Session
from hylo.studies.manifest import report_plan
from hylo.studies.plan import Plan, check_plan, run_plan, with_base_cells
from hylo.studies.runner import run_study
from hylo.training.config import TrainerConfig

SESSION = Session()
"""Shared by all jobs of this process: a sweep in one process loads weights and text once."""

SWEEP: list[Plan] = []
"""The plan of the sweep whose jobs this process runs, if any."""

UNNAMED = {"seed", "seeds", "most_seeds", "tracking", "launcher", "outputs", "cell", "add", "workers", "probe", "tune"}
"""Keys that are never part of a cell's name: a row covers all seeds, a probe is added to an existing record, and the
others change no number."""
FIXED = "hydra.job.config.override_dirname.exclude_keys"
"""Where Hydra keeps the keys that are left out of a job's name."""
UNMARKED = ("-", "hydra", "tracking", "launcher", "outputs", "workers", "probe")
"""Prefixes of arguments that leave a sweep the same: launchers, logging, and what is done with the same runs."""


def main(composed: DictConfig) -> float | None:
    """Run what was composed; errors a user can act on exit with code 2.

    Returns:
        In a sweep, the cell's perplexity, for sweepers that optimise it (None if the cell failed).

    Raises:
        SystemExit: the configuration cannot work (2), or a cell failed (1).
    """
    with readable_errors():
        return dispatch(composed)


def dispatch(composed: DictConfig) -> float | None:
    """Run a job of a sweep, a study, or a single cell."""
    hydra = HydraConfig.get()
    overrides, config = list(hydra.overrides.task), resolve(composed)
    method = hydra.runtime.choices["method"]
    if hydra.mode is RunMode.MULTIRUN:
        fixed = hydra.job.config.override_dirname.exclude_keys
        cell = job_cell(config, overrides, method, Path(hydra.sweep.dir).name, fixed)
        return run_job(frozen(cell))
    if config.study:
        complete = run_study(config, overrides, compose, SESSION)
    else:
        complete = run_plan(Plan("runs", Path(config.outputs), [single_cell(config, overrides, method)]), SESSION)
    if not complete:
        sys.exit(1)
    return None


def frozen(cell: Cell) -> Cell:
    """The cell as it was when the sweep began, whatever has been edited in conf/ since.

    A job in another process (of a launcher) has no plan; it runs what it composes.
    """
    same = (each for sweep in SWEEP for each in sweep.cells if each.overrides == cell.overrides)
    return next(same, cell)


def run_job(cell: Cell) -> float | None:
    """Run one job of a sweep and the base model it is compared with. A failure is recorded; other jobs still run."""
    plan = Plan(cell.group, Path(cell.config.outputs), [cell])
    result = None
    try:
        check_plan(plan, SESSION)
        for each in with_base_cells(plan, SESSION).cells:
            result = run_or_report(each, SESSION)
    except HyloError as error:
        print(f"{cell.name}: {error}", file=sys.stderr, flush=True)
    except Interrupted:
        for sweep in SWEEP:
            report_plan(sweep, SESSION)
        raise
    return result.result["metrics"]["ppl"] if result else None


def job_cell(config: Config, overrides: Sequence[str], method: str, group: str, fixed: Collection[str]) -> Cell:
    """A cell named by what sets it apart: the method and the overrides that change numbers.

    Args:
        fixed: keys of overrides shared by all cells of the group, and so not part of a name.
    """
    parts = [text.lstrip("+~").partition("=") for text in overrides]
    unnamed = {"method", *fixed, *(key for key, _, _ in parts if _section(key) in UNNAMED)}
    unnamed |= {f"trainer.{key}" for key in TrainerConfig.WITHOUT_EFFECT}
    named = {
        key: f"{key.removeprefix('method.').replace('/', '.')}={value}" for key, _, value in parts if key not in unnamed
    }
    name = ",".join([method, *named.values()])
    # By the job alone: a job of a sweep knows nothing of the others, and both must give it the same name.
    base_name = ",".join(["none", *(text for key, text in named.items() if _changes_evaluation(key))])
    return Cell(group, config.cell or file_name(name), config, tuple(overrides), file_name(base_name))


def single_cell(config: Config, overrides: Sequence[str], method: str) -> Cell:
    """A cell run on its own: model, data and trainer preset are not part of its name."""
    keys = [text.lstrip("+~").partition("=")[0] for text in overrides]
    fixed = [key for key in keys if _section(key) in {"model", "data"} or key == "trainer"]
    return job_cell(config, overrides, method, "runs", fixed)


def _changes_evaluation(key: str) -> bool:
    """Whether a key can change the numbers of the base model."""
    section, _, name = key.partition(".")
    if section == "trainer":
        return not name or name in TrainerConfig.EVALUATION
    return section == "model" or (section == "data" and name not in DataConfig.TRAINING_ALONE)


def _section(key: str) -> str:
    return key.partition(".")[0]


def name_sweep(arguments: list[str]) -> list[str]:
    """Command-line arguments of a sweep, with its folder and the keys that all its jobs share.

    The folder is `sweep-<hash of what is swept>`, so that repeating a sweep finds it again. The flag comes first:
    argparse finds no overrides after a flag placed between them.
    """
    flags = [text for text in arguments if text in ("-m", "--multirun")]
    rest = [text for text in arguments if text not in flags]
    if not flags or any(text.startswith("hydra.sweep.dir=") for text in rest):
        return [*flags, *rest]
    swept = sorted(text for text in rest if not text.startswith(UNMARKED))
    digest = hashlib.sha256("\n".join(swept).encode()).hexdigest()
    options = [text for text in rest if text.startswith("-")]
    parsed = OverridesParser.create().parse_overrides([text for text in rest if text not in options])
    fixed = ",".join(f"'{each.key_or_group}'" for each in parsed if not each.is_sweep_override())
    return [*flags, *rest, f"hydra.sweep.dir=${{outputs}}/sweep-{digest[:8]}", f"{FIXED}=[{fixed}]"]


@contextmanager
def command_line() -> Iterator[None]:
    """Wraps Hydra's main: completes overrides, names the sweep, and explains what Hydra cannot compose."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing them
    SWEEP.clear()
    with stopping_on_signals(), readable_errors():
        store_schemas()
        refuse_replaced(sys.argv[1:])
        refuse_paths(sys.argv[1:])
        sys.argv[1:] = name_sweep(with_slots(sys.argv[1:]))
        yield


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turns errors that a user can act on into a short message and exit code 2."""
    try:
        yield
    except HyloError as error:
        stop(str(error))
    except Interrupted as stopped:
        print(f"{stopped}; the same command continues", file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    except LeftRunning as left:
        print(left, flush=True)
        sys.exit(0)
    except (HydraException, OmegaConfBaseException) as error:
        stop(explain(error))


def stop(message: str) -> NoReturn:
    """Print an error and exit with code 2."""
    print(f"\nerror: {message}\n\n`python train.py --help` lists groups, keys and examples.", file=sys.stderr)
    sys.exit(2)
