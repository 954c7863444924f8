"""Errors of Hydra and OmegaConf in this project's form: the value, what is allowed, the fix."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from hylo.core.errors import ConfigError, first_line, problem
from hylo.core.schema import Bounds

CONF = Path(__file__).parents[2] / "conf"
"""The config groups, one folder each."""
REPLACED: dict[str, str] = {
    "hydra/launcher": "launcher=local, launcher=slurm or launcher=ray: sweeps, studies and their trials use the same",
    "tracking.backend": "tracking=none, tracking=wandb or another file of conf/tracking/",
    "trainer.adam_beta1": "trainer.optimizer.beta1=...",
    "trainer.adam_beta2": "trainer.optimizer.beta2=...",
    "trainer.adam_epsilon": "trainer.optimizer.eps=...",
    "trainer.kernels=plain": "trainer.kernels=reference",
    "trainer.decay": "trainer.lr_scheduler=...",
    "trainer.weight_decay": "trainer.optimizer.weight_decay=...",
}
"""Keys and values of earlier versions, and their replacements."""


def explain(error: HydraException | OmegaConfBaseException) -> str:
    """A message that names the key, what is allowed there, and the likely fix."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if "is not a subclass of" in str(cause):
        return _untyped_section(cause)
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        if isinstance(cause, ConfigKeyError) or str(cause).startswith("Key "):
            return _unknown_key(cause)
        return _wrong_value(cause, str(error))
    return str(error)


def refuse_paths(overrides: Sequence[str]) -> None:
    """Refuse choices of a config group that lead out of conf/: their YAML would be loaded.

    Raises:
        ConfigError: as above.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        group = re.split("[@:]", key)[0]
        leads_out = any(part in ("..", "~") for part in re.split(r"[/\\,\[\]'\"\s]", f"{group}/{value}"))
        if (CONF / group).is_dir() and (leads_out or re.search(r"(^|[,\['\"\s])[/\\]", value)):
            allowed = f"names of files in conf/{group}/"
            raise ConfigError(problem(key, value, allowed, f"put the file there, then {key}=its_name"))


def refuse_replaced(overrides: Sequence[str]) -> None:
    """Refuse overrides with a key or value of an earlier version, including those prefixed by `+` or `~`.

    Raises:
        ConfigError: as above; it says what is written instead.
    """
    bare = [override.lstrip("+~") for override in overrides]
    if found := [old for text in bare for old in (text, text.partition("=")[0]) if old in REPLACED]:
        raise ConfigError(*map(_replaced, found))


def _replaced(old: str) -> str:
    return f"{old} is no longer part of the configuration\n    fix:     {REPLACED[old]}"


def _unreadable(error: OverrideParseException) -> str:
    key, _, value = error.override.partition("=")
    if value.startswith("[") and value.endswith("]"):  # a list stays one only if its items are quoted
        quoted = ",".join(f"'{item.strip()}'" for item in value[1:-1].split(","))
        fix = f'"{key}=[{quoted}]"'
    elif value.endswith(","):
        fix = f"{key}={value.rstrip(',')}"
    else:
        fix = f"\"{key}='{value}'\""
    return (
        f"the override {error.override} cannot be read: {first_line(error)}\n"
        f"    allowed: key=value; quote values that contain any of = , : ( ) [ ] {{ }}\n"
        f"    fix:     {fix}"
    )


def _untyped_section(cause: HydraException | OmegaConfBaseException) -> str:
    key, said = str(getattr(cause, "full_key", "")), re.search(r"value: (\w+)", str(cause))
    allowed, fix = "components selected by a file of conf/method/", "write one, or remove the override"
    if key.startswith("trainer."):
        group = key.replace(".", "/")
        allowed, fix = f"a choice from conf/{group}/", f"{group}={said[1] if said else '...'}"
    return f"{key}: a section without a type\n    allowed: {allowed}\n    fix:     {fix}"


def _unknown_choice(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or ""
    group, _, name = missing.partition("/") if ".." in missing else missing.rpartition("/")
    options = list(error.options or [])
    meant = _closest(name, options)
    fix = f"{group}={meant}" if meant else "one of these"
    return f"{group} = {name!r}\n    allowed: {', '.join(options)}\n    fix:     {fix}"


def _unknown_key(cause: OmegaConfBaseException) -> str:
    full_key = str(cause.full_key)
    if full_key in REPLACED:
        return _replaced(full_key)
    section, _, key = full_key.rpartition(".")
    known = _keys_of(cause)
    if not known:
        return f"{full_key} is not a key of the configuration\n    fix:     remove it"
    home = next((name for name in known if key in _fields_below(cause, name)), None)
    meant = f"{home}{_separator(cause, home, key)}{key}" if home else _closest(key, known)
    fix = f"{section}.{meant}=...".removeprefix(".") if meant else "one of these, or remove it"
    return f"{full_key} is not a key of the configuration\n    allowed: {', '.join(known)}\n    fix:     {fix}"


def _wrong_value(cause: OmegaConfBaseException, context: str) -> str:
    full_key = str(cause.full_key)
    message = first_line(cause)
    given = re.search(rf"{re.escape(full_key)}=(.*)", context)
    value = f" = {given[1]!r}" if given else ""
    lines = [f"{full_key}{value}", f"    {message}"]
    field = _field_of(cause, full_key.rpartition(".")[2])
    if field is not None:
        bounds = field.metadata.get("bounds")
        if isinstance(bounds, Bounds):
            lines.append(f"    allowed: {bounds}")
        if given and "not a ListConfig" in message:
            lines.append(f"    fix:     '{full_key}=[{given[1]}]'")
        elif isinstance(field.default, int | float):
            lines.append(f"    fix:     {full_key}={field.default} (the default)")
    return "\n".join(lines)


def _keys_of(cause: OmegaConfBaseException) -> list[str]:
    for schema in (cause.object_type, _schema_of(cause)):
        if dataclasses.is_dataclass(schema):
            return [field.name for field in dataclasses.fields(schema)]
    node: Any = cause.parent_node
    try:
        return [str(key) for key in node] if node is not None else []
    except TypeError:
        return []


def _fields_below(cause: OmegaConfBaseException, name: str) -> set[str]:
    """The keys of a typed section inside the one in which the error occurred."""
    node: Any = cause.parent_node
    schema = OmegaConf.get_type(node, name) if node is not None and name in node else None
    return {field.name for field in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else set()


def _separator(cause: OmegaConfBaseException, section: str, key: str) -> str:
    """A dot before a value, a slash before a section, which is a choice among files."""
    node: Any = cause.parent_node
    return "/" if dataclasses.is_dataclass(OmegaConf.get_type(node[section], key)) else "."


def _field_of(cause: OmegaConfBaseException, name: str) -> "dataclasses.Field[Any] | None":
    schema = _schema_of(cause)
    fields = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ()
    return next((field for field in fields if field.name == name), None)


def _schema_of(cause: OmegaConfBaseException) -> Any:
    """The dataclass of the section in which the error occurred, if any."""
    parent = cause.parent_node
    return OmegaConf.get_type(parent) if parent is not None else None


def _closest(word: str, options: list[str]) -> str | None:
    """The option that was meant: one that the word abbreviates (lr: learning_rate), or one spelt like it."""
    abbreviated = [option for option in options if "".join(part[0] for part in option.split("_") if part) == word]
    return next(iter(abbreviated or difflib.get_close_matches(word, options, n=1, cutoff=0.4)), None)
