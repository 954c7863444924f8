"""A hash of the source code that modules reach through imports; it depends on content, never on paths.

    hash of the roots = SHA-256 over the sorted hashes of the syntax trees of all modules reached from them

Only imports from the root's own top-level package are followed, wherever they occur in a file: at the top, inside
functions, for type checking. A syntax tree is hashed without comments, docstrings, formatting and those imports, so
moving a file changes nothing. A package that discovers its members at run time does not reach them: whatever is
selected by name must be a root of its own. Own design.
"""

import ast
import importlib.util
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hylo.core.cache import text_hash


class Source(NamedTuple):
    """A module's code hash and imports."""

    code: str
    """Hash of its syntax tree."""
    imports: frozenset[str]
    """The modules of the same top-level package that it imports."""


def source_hash(roots: Iterable[str], *, without: Collection[str] = ()) -> str:
    """Hash of the code of modules and of everything they reach, as 64 hex digits.

    Args:
        roots: dotted names of the modules.
        without: packages that are neither hashed nor followed.

    Raises:
        ModuleNotFoundError: a module has no source file.
    """
    return text_hash(*sorted(read(name).code for name in reached(roots, without=without)))


def reached(roots: Iterable[str], *, without: Collection[str] = ()) -> set[str]:
    """The modules and all modules of their top-level packages that they import, directly or indirectly."""
    found: set[str] = set()
    queue = list(roots)
    while queue:
        name = queue.pop()
        if name not in found and not any(f"{name}.".startswith(f"{package}.") for package in without):
            found.add(name)
            queue += read(name).imports
    return found


@cache
def read(module: str) -> Source:
    """A module's code hash and imports; each file is read once per process."""
    path = _file(module)
    if path is None:
        raise ModuleNotFoundError(f"there is no source of the module {module}", name=module)
    tree = ast.parse(path.read_bytes())
    imports: set[str] = set()
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            lines = getattr(node, field, None)
            if isinstance(lines, list):
                own = {line: [*_own(line, module)] for line in lines}
                imports.update(name for names in own.values() for name in names)
                setattr(node, field, [line for line in lines if not own[line] and not _is_text(line)])
    return Source(text_hash(ast.dump(tree)), frozenset(imports))


def _own(node: ast.AST, module: str) -> Iterator[str]:
    """The modules of the module's own top-level package that an import names; none for other statements."""
    package = module.partition(".")[0]
    if isinstance(node, ast.Import):
        yield from (each.name for each in node.names if each.name.partition(".")[0] == package)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            inside = module if _is_package(module) else module.rpartition(".")[0]
            source = importlib.util.resolve_name("." * node.level + source, inside)
        if source.partition(".")[0] == package:
            members = [f"{source}.{each.name}" for each in node.names]
            modules = [name for name in members if _is_package(source) and _file(name)]
            yield from modules
            if len(modules) < len(members):
                yield source


@cache
def _file(module: str) -> Path | None:
    """A module's file, found without importing its parent packages; None if there is none."""
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin)
    if inner:
        place = place.parent.joinpath(*inner)
        place = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
    return place if place.exists() else None


def _is_package(module: str) -> bool:
    file = _file(module)
    return file is not None and file.name == "__init__.py"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
