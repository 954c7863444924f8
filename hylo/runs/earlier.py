"""Converts records written by earlier versions: the only place that knows renamed keys."""

from typing import Any


def current_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """Updates a study's manifest: `base` used to be `untuned`, a contrast's `comparison` its `way`."""
    current = _renamed(manifest, {"untuned": "base"})
    current["cells"] = [_renamed(cell, {"untuned": "base"}) for cell in manifest["cells"]]
    if "contrasts" in manifest:
        current["contrasts"] = [_renamed(contrast, {"way": "comparison"}) for contrast in manifest["contrasts"]]
    return current


def current_result(result: dict[str, Any]) -> dict[str, Any]:
    """Updates a run's result: a probe's `fingerprint` used to be its `mark`, and the only probe had no name."""
    if "probe" not in result:
        return result
    return result | {"probe": {"name": "kv"} | _renamed(result["probe"], {"mark": "fingerprint"})}


def _renamed(section: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in section.items()}
