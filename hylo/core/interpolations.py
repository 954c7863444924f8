"""Interpolations that would run a resolver, such as reading an environment variable into a record."""

from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from hylo.core.errors import problem


def resolver_problems(config: Any, key: str = "") -> Iterator[str]:
    """Yields a problem for every text of a config that calls a resolver (`${oc.env:HOME}`, `${oc.${name}:HOME}`).

    Found on the parsed text, as OmegaConf reads it; nothing is resolved. References to other keys are allowed.
    """
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    if isinstance(config, dict):
        for name, value in config.items():
            yield from resolver_problems(name, f"{key}.{name}".strip("."))
            yield from resolver_problems(value, f"{key}.{name}".strip("."))
    elif isinstance(config, list | tuple):
        for place, value in enumerate(config):
            yield from resolver_problems(value, f"{key}[{place}]")
    elif isinstance(config, str) and "${" in config and _calls_a_resolver(parse(config)):
        allowed = "no resolver: it could write an environment variable, a secret, into every record"
        yield problem(key, config, allowed, "write the value itself")


def _calls_a_resolver(node: Any) -> bool:
    called = isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext)
    return called or any(map(_calls_a_resolver, getattr(node, "children", None) or ()))
