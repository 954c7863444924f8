"""Records that earlier versions wrote, in the words of this one: the one place that knows what has been renamed."""

from typing import Any


def current_manifest(manifest: dict[str, Any]) -> dict[str, Any]:
    """A study's manifest: the base model's cell was `untuned`, a contrast's comparison its `way`."""
    current = _renamed(manifest, {"untuned": "base"})
    current["cells"] = [_renamed(cell, {"untuned": "base"}) for cell in manifest["cells"]]
    if "contrasts" in manifest:
        current["contrasts"] = [_renamed(contrast, {"way": "comparison"}) for contrast in manifest["contrasts"]]
    return current


def current_result(result: dict[str, Any]) -> dict[str, Any]:
    """A run's result: a probe's fingerprint was its `mark`, and while there was one probe it had no name."""
    if "probe" not in result:
        return result
    return result | {"probe": {"name": "kv"} | _renamed(result["probe"], {"mark": "fingerprint"})}


def _renamed(section: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in section.items()}
