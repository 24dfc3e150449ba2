"""Entry points: what other packages add to sources and checks, and one line for each that cannot be loaded."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

SOURCES, CHECKS, DAMAGES = (f"pytest_diffusion.{group}" for group in ("sources", "checks", "damages"))


class Extensions(NamedTuple):
    """The entry points of one group: objects by name, and a message by name for those that failed."""

    loaded: dict[str, Any]
    broken: dict[str, str]


@cache
def extensions(group: str) -> Extensions:
    """All entry points of a group, each loaded once. A broken one harms nobody who does not use it."""
    loaded, broken = dict[str, Any](), dict[str, str]()
    for point in entry_points(group=group):
        try:
            loaded[point.name] = point.load()
        except Exception as error:
            reason = " ".join(str(error).split())
            broken[point.name] = f"entry point {point.name} = {point.value} ({group}) cannot be loaded: {type(error).__name__}: {reason}"
    return Extensions(loaded, broken)


def broken_extensions() -> list[str]:
    """One line for each entry point of ours that was tried and cannot be loaded."""
    return [line for group in (SOURCES, CHECKS, DAMAGES) for line in extensions(group).broken.values()]
