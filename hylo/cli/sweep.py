"""The Hydra callback around a sweep: all jobs are checked before the first one runs and reported after the last."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from hylo.cli.main import SESSION, SWEEP, compose, job_cell, readable_errors
from hylo.core.errors import ConfigError
from hylo.launch.local import LocalConfig
from hylo.studies.manifest import report_plan
from hylo.studies.plan import Plan, check_plan, freeze, run_or_stop, with_base_cells

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
"""The launcher that runs the jobs of a sweep one after the other in this process."""


class SweepReport(Callback):
    """Checks a sweep of `train.py -m`, runs its cells side by side where that is faster, and reports it.

    Exits with code 1 if a cell failed, 2 if the sweep cannot work. Hydra turns exceptions of callbacks into warnings,
    so failures are raised as SystemExit.
    """

    _plan: Plan

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with readable_errors():
            plan = sweep_plan(config)
            check_plan(plan, SESSION)
            self._plan = freeze(with_base_cells(plan, SESSION), SESSION)
            SWEEP.append(self._plan)
            launcher = plan.cells[0].config.launcher
            if not isinstance(launcher, LocalConfig) or launcher.at_once(plan.cells, SESSION) > 1:
                run_or_stop(self._plan, SESSION)  # its jobs then find their records complete

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        with readable_errors():
            complete = report_plan(self._plan, SESSION)
        if not complete:
            sys.exit(1)


def sweep_plan(config: DictConfig) -> Plan:
    """The jobs of a sweep as cells.

    Raises:
        ConfigError: a job cannot be composed, or selects a study.
    """
    group, cells = Path(config.hydra.sweep.dir).name, []
    fixed = config.hydra.job.config.override_dirname.exclude_keys
    for overrides in jobs(list(config.hydra.overrides.task)):
        job, method = compose(overrides)
        if job.study:
            raise ConfigError(f"study={job.study} is a sweep of its own\n    fix:     run it without -m")
        cells.append(job_cell(job, overrides, method, group, fixed))
    return Plan(group, Path(config.outputs), cells)


def jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a grid sweep, as Hydra's basic sweeper makes them."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        yield from batch
