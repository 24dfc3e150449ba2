"""Names that a module defines, read from its source: looking does not run it."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

_UNTOLD = frozenset({"*", "__getattr__", "globals", "locals", "vars", "setattr", "exec", "eval", "modules", "__dict__", "update"})
"""What a source may use to make names that do not stand in it."""


def defined_names(module: str) -> frozenset[str] | None:
    """Names that a module may define; None where its source does not tell: no source, a star import, a `__getattr__`.

    Names inside functions are among them, so that only a name which stands nowhere counts as missing.
    """
    loaded = sys.modules.get(module)
    if loaded is not None:
        return None if hasattr(loaded, "__getattr__") else frozenset(dir(loaded))
    file = _source_file(module)
    if file is None:
        return None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None  # the import will say what is wrong
    names = frozenset(_bound(tree))
    return None if names & _UNTOLD else names


def _bound(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in _UNTOLD:
            yield node.attr
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]


def _source_file(module: str) -> Path | None:
    """The file of a module, found without importing its parents."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        path = Path(place, *below)
        for file in (path / "__init__.py", path.with_suffix(".py")):  # a package comes before a module, as in imports
            if file.is_file():
                return file
    return None
