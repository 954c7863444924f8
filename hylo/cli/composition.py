"""Composition of typed configurations from overrides, as fast as a plan of thousands of cells needs it.

Hydra searches and merges some thirty files for every configuration. Most cells of a plan choose the same files and
differ in values: what the choices give is composed once, and the values are applied to copies of it, by the same
function of Hydra in the same order. Whatever goes wrong on this way is composed again by Hydra alone, so errors are its
own.
"""

import copy
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from hydra import compose as hydra_compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from hylo.cli.config_store import store_schemas
from hylo.cli.hydra_errors import explain, refuse_paths, refuse_replaced
from hylo.cli.shorthand import with_slots
from hylo.core.errors import ConfigError
from hylo.runs.config import Config, resolve

Composed = tuple[DictConfig, str]
"""A configuration before it is resolved, and the name of its method."""


class _Known:
    """What the overrides of earlier cells mean, and what their choices of files give."""

    def __init__(self, loader: ConfigLoaderImpl) -> None:
        self._groups, self._parser = loader.repository, OverridesParser.create()
        self._overrides: dict[str, tuple[Override, bool]] = {}
        self._chosen: dict[tuple[str, ...], Composed] = {}

    def override(self, text: str) -> tuple[Override, bool]:
        """An override, and whether it sets a value rather than choosing a file or configuring Hydra."""
        if text not in self._overrides:
            override = self._parser.parse_override(text)
            plain = override.package is None and not override.is_sweep_override() and not override.is_hydra_override()
            self._overrides[text] = override, plain and not self._groups.group_exists(override.key_or_group)
        return self._overrides[text]

    def chosen(self, overrides: Sequence[str]) -> Composed:
        """What Hydra composes from choices alone; not to be changed."""
        if (key := tuple(overrides)) not in self._chosen:
            self._chosen[key] = by_hydra(overrides)
        return self._chosen[key]


_KNOWN: WeakKeyDictionary[ConfigLoaderImpl, _Known] = WeakKeyDictionary()
"""By Hydra's loader: it is a new one for each folder of configurations that Hydra is started with."""


def compose(overrides: Sequence[str]) -> tuple[Config, str]:
    """The typed configuration composed from overrides, and the name of its method.

    The files of conf/ are read once per process.

    Raises:
        ConfigError: the overrides cannot be composed.
    """
    refuse_replaced(overrides)
    refuse_paths(overrides)
    try:
        composed, method = _composed(with_slots(overrides))
        return resolve(composed), method
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error


def _composed(overrides: list[str]) -> Composed:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    try:
        known = _KNOWN.setdefault(loader, _Known(loader))
        parsed = [known.override(text) for text in overrides]
        values = [override for override, is_value in parsed if is_value]
        chosen, method = known.chosen([override.input_line or "" for override, is_value in parsed if not is_value])
        composed = copy.deepcopy(chosen)
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        return composed, method
    except (HydraException, OmegaConfBaseException):
        return by_hydra(overrides)


def by_hydra(overrides: Sequence[str]) -> Composed:
    """What Hydra composes from overrides, without its own section.

    Raises:
        HydraException: it cannot be composed.
    """
    store_schemas()
    composed = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
    method = composed.hydra.runtime.choices["method"]
    with open_dict(composed):
        del composed["hydra"]
    return composed, method
