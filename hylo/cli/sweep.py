"""The Hydra callback around a sweep: all jobs are checked before the first one runs and reported after the last."""

import sys
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from hylo.cli.main import SESSION, SWEEP, compose, job_cell, readable_errors
from hylo.core.devices import is_main_process
from hylo.core.errors import ConfigError, problem
from hylo.core.registry import name_of
from hylo.launch.local import LocalConfig
from hylo.studies.manifest import report_plan
from hylo.studies.plan import Plan, check_plan, freeze, run_or_stop, with_base_cells

BASIC = {
    "launcher": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "sweeper": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
}
"""Hydra's own parts: jobs of a grid that is known beforehand, one after the other in this process."""


class SweepReport(Callback):
    """Checks a sweep of `train.py -m`, runs its cells as a study's are run, and reports it.

    Hydra would compose every job again, which takes longer than planning them; so it is only left to launch jobs where
    another launcher or sweeper is chosen. Exits with code 0, 1 if a cell failed, 2 if the sweep cannot work.
    """

    _plan: Plan

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ended_by_errors():
            plan = sweep_plan(config)
            check_plan(plan, SESSION)
            self._plan = freeze(with_base_cells(plan, SESSION), SESSION)
            SWEEP.append(self._plan)
            if all(config.hydra[part]._target_ == target for part, target in BASIC.items()):
                run_or_stop(self._plan, SESSION)
                sys.exit(0 if not is_main_process() or report_plan(self._plan, SESSION) else 1)
            launcher = plan.cells[0].config.launcher
            if not isinstance(launcher, LocalConfig):
                allowed = "launcher=local with another sweeper than Hydra's own, whose jobs depend on each other"
                raise ConfigError(problem("launcher", name_of("launcher", type(launcher)), allowed, "launcher=local"))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with _ended_by_errors():
            complete = report_plan(self._plan, SESSION)
        if not complete:
            sys.exit(1)


@contextmanager
def _ended_by_errors() -> Iterator[None]:
    """Ends the process: Hydra turns a callback's exceptions into warnings, and would run the jobs by itself."""
    try:
        with readable_errors():
            yield
    except Exception:  # noqa: BLE001  whatever it is, the jobs must not run
        traceback.print_exc()
        sys.exit(1)


def sweep_plan(config: DictConfig) -> Plan:
    """The jobs of a sweep as cells.

    Raises:
        ConfigError: a job cannot be composed, or selects a study.
    """
    fixed = config.hydra.job.config.override_dirname.exclude_keys
    return plan_of(list(config.hydra.overrides.task), Path(config.outputs), Path(config.hydra.sweep.dir).name, fixed)


def plan_of(overrides: list[str], outputs: Path, group: str, fixed: Collection[str] = ()) -> Plan:
    """The jobs of a grid as cells; see `sweep_plan`. `fixed` are keys that are no part of a cell's name."""
    cells = []
    for own in jobs(overrides):
        job, method = compose(own)
        if job.study:
            raise ConfigError(f"study={job.study} is a sweep of its own\n    fix:     run it without -m")
        cells.append(job_cell(job, own, method, group, fixed))
    return Plan(group, outputs, cells)


def jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a grid sweep, as Hydra's basic sweeper makes them."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        yield from batch
