"""The complete typed configuration, which YAML files and overrides are resolved to before anything runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import hylo.adapters
import hylo.data
import hylo.evaluation.probes
import hylo.models
import hylo.tracking
import hylo.training.optimizers
from hylo.adapters.component import ComponentConfig
from hylo.core.errors import ConfigError, problem
from hylo.core.interpolations import resolver_problems
from hylo.core.names import name_problems
from hylo.core.registry import import_all
from hylo.core.schema import bound_problems, bounded
from hylo.data.base import DataConfig
from hylo.evaluation.probes.base import ProbeChoice, ProbeConfig
from hylo.models.base import ModelConfig
from hylo.runs.launcher import LauncherConfig
from hylo.tracking.base import TrackerConfig
from hylo.training.config import TrainerConfig

for package in (
    hylo.adapters,
    hylo.data,
    hylo.models,
    hylo.evaluation.probes,
    hylo.tracking,
    hylo.training.optimizers,
):
    import_all(package)


UNTIL_DECIDED = "until_decided"
"""A value of `seeds`."""


class Tune(Enum):
    """Source of the settings that a study tunes per cell."""

    recorded = "trials, except choices already published under the same conditions"
    again = "trials, whatever was published; finished trials are reused"
    off = "none: cells keep the settings in their files, and verdicts say so"


@dataclass(kw_only=True, slots=True)
class Config:
    """One cell (model, data, method, trainer and seed), or a study of many."""

    model: ModelConfig = MISSING
    """Base model: conf/model/."""
    data: DataConfig = MISSING
    """Text and windows: conf/data/."""
    method: dict[str, ComponentConfig | None] = field(default_factory=dict)
    """Components by slot: conf/method/. A slot set to null is disabled."""
    trainer: TrainerConfig = MISSING
    """Training and evaluation settings: conf/trainer/."""
    probe: ProbeChoice = MISSING
    """Probe of the complete run: conf/probe/. Not part of the run's fingerprint."""
    tracking: TrackerConfig = MISSING
    """Where runs are logged in addition to their records: conf/tracking/."""
    launcher: LauncherConfig = MISSING
    """Where cells run: conf/launcher/."""
    seed: int = bounded(0, ge=0)
    """Seed for adapter initialization, window order and dropout."""
    study: str | None = None
    """Run a study, experiments/<study>/study.yaml, instead of one cell."""
    seeds: Any = None
    """Seeds of the study's cells, such as [0,1,2]; None: those named by the study; until_decided: as many as needed, by
    the rule in hylo/stats/sequential.py."""
    most_seeds: int = bounded(12, ge=3)
    """Maximum number of seeds with seeds=until_decided, decided or not."""
    tune: Tune = Tune.recorded
    """recorded, again or off: source of the settings that a study tunes per cell."""
    cells: list[str] | None = None
    """The study's cells to run now, with the base model's; None: all."""
    add: list[str] | None = None
    """Additional methods for the study to run, each in its own row; None: only the study's cells."""
    workers: int | None = bounded(None, ge=1)
    """Cells that run at the same time with launcher=local, sharing the cores; None: on a CPU one per core, at most four
    and as many as fit in memory; on GPUs one each."""
    cell: str | None = None
    """Name of the cell in tables; None: derived from the overrides."""
    outputs: str = "outputs"
    """Folder of all records, relative to the working directory."""

    @property
    def fixed_seeds(self) -> list[int] | None:
        """The seeds, if given as a list; otherwise None."""
        return self.seeds if isinstance(self.seeds, list) else None

    @property
    def components(self) -> dict[str, ComponentConfig]:
        """The method's enabled slots."""
        return {slot: config for slot, config in self.method.items() if config is not None}

    @property
    def probe_config(self) -> ProbeConfig | None:
        """The probe's settings; None without a probe."""
        return self.probe if isinstance(self.probe, ProbeConfig) else None


def resolve(composed: DictConfig) -> Config:
    """Converts a composed configuration to a typed one and checks the bounds of every number.

    Raises:
        ConfigError: a value is missing, of the wrong type or out of range, or calls a resolver (`${oc.env:HOME}`).
    """
    if calls := [*resolver_problems(composed)]:
        raise ConfigError(*calls)
    try:
        config = OmegaConf.to_object(composed)
    except AttributeError as error:  # a key added with + that a typed section does not have
        raise ConfigError(
            f"unknown key: {error}\n    fix:     remove it; `python train.py --help` lists the keys"
        ) from error
    except TypeError as error:  # an untyped entry of `method`
        raise ConfigError(f"method: {error}\n    fix:     choose components in a file of conf/method/") from error
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value\n    fix:     {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    assert isinstance(config, Config)
    problems = [*bound_problems(config), *_name_problems(config), *_study_problems(config), *_seed_problems(config)]
    if problems:
        raise ConfigError(*problems)
    return config


def _name_problems(config: Config) -> Iterator[str]:
    names = {"model.name": config.model.name, "data.name": config.data.name, "cell": config.cell, "study": config.study}
    for key, name in names.items():
        if name is not None:
            yield from name_problems(key, name)


def _study_problems(config: Config) -> Iterator[str]:
    for key, names in {"cells": config.cells, "add": config.add}.items():
        if names is not None and config.study is None:
            yield problem(key, names, "null without a study", f"study=..., or without {key}")
    if config.cells == []:
        yield problem("cells", [], "names of the study's cells, or null for all", "without cells")


def _seed_problems(config: Config) -> Iterator[str]:
    seeds = config.seeds
    if seeds is None or (seeds == UNTIL_DECIDED and config.study):
        return
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds:
        allowed = f"a list of whole numbers >= 0, or {UNTIL_DECIDED} with a study"
        yield problem("seeds", seeds, allowed, "'seeds=[0,1,2]'")
