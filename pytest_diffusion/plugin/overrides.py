"""Fixtures of ours that a user's conftest.py or module overrides: where they hold, and what must be built anew for them."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from pytest_diffusion.plugin.stash import NODES, VIEW

_FIXTURES = "pytest_diffusion.plugin.fixtures."


def remember(collector: pytest.Collector) -> None:
    """Keep the folders and files that are collected: the checklist takes its place among them."""
    if isinstance(collector, pytest.Directory | pytest.File):
        collector.config.stash.setdefault(NODES, {})[collector.nodeid] = collector


def place_of_checklist(parent: pytest.Collector) -> pytest.Collector:
    """Where the checklist sees the fixtures that all collected tests see: `parent`, or a folder or file below that holds them all.

    Raises CollectError, in one line, where the override of a conftest.py holds for some of the tests only, and where an override
    has a scope or parameters that do not fit: then nobody could say which model the checklist judged. What a module overrides for
    its own tests is its own affair, unless nothing else is collected.
    """
    nodes = parent.config.stash.get(NODES, {})
    files = [PurePosixPath(nodeid) for nodeid, node in nodes.items() if isinstance(node, pytest.File)]
    for node in sorted(nodes.values(), key=lambda node: len(node.nodeid)):
        unseen = [fixture for fixture in _active(node) if fixture not in _active(parent)]
        if not unseen:
            continue
        if all(file.is_relative_to(node.nodeid) for file in files):
            parent = node
        elif isinstance(node, pytest.Directory):
            raise parent.CollectError(
                f"{_place(unseen[0])} overrides {unseen[0].argname} for a part of the tests, so that it is not clear which model the "
                f"checklist should judge. Run pytest on {node.nodeid} alone, leave that folder out, or move the fixture to the "
                "conftest.py of the folder that holds all tests."
            )
    for fixture in _active(parent):
        _require_fit(parent, fixture)
    return parent


def is_overridden(request: pytest.FixtureRequest, name: str) -> bool:
    """Whether a conftest or module redefines a fixture of ours for this test."""
    # The test that asked first: in a session-scoped fixture request.node is the session, which sees no conftest.py.
    return any(fixture.argname == name for fixture in _active(request._pyfuncitem))


def override_identity(request: pytest.FixtureRequest) -> list[str]:
    """Which overrides hold for this test, and its parameters: two that differ may give other samples of the same weights."""
    item = request._pyfuncitem
    indices = getattr(getattr(item, "callspec", None), "indices", {})
    return [*map(_name, _active(item)), *(f"{name} {index}" for name, index in indices.items())]


def refresh(item: pytest.Item) -> None:
    """Forget what our fixtures hold when this test sees other overrides than the one before: the values were built from those."""
    if not _ours().intersection(getattr(item, "fixturenames", ())):
        return
    view = tuple(map(_name, _active(item)))
    if view == item.config.stash.setdefault(VIEW, view):
        return
    item.config.stash[VIEW] = view
    for name in _ours():
        for fixture in item.session._fixturemanager.getfixturedefs(name, item) or ():
            if _is_ours(fixture):
                fixture.finish(item._request)  # type: ignore[attr-defined]


def _require_fit(place: pytest.Collector, fixture: Any) -> None:
    ours = (place.session._fixturemanager.getfixturedefs(fixture.argname, place) or ())[0]
    if fixture.params is not None:
        raise place.CollectError(
            f"{_place(fixture)}: {fixture.argname} has {len(fixture.params)} parameters, and the checklist judges one model in a run. "
            "Choose one of them, for instance by an environment variable, and run pytest once for each."
        )
    if ours.scope == "session" and fixture.scope != "session":
        raise place.CollectError(
            f'{_place(fixture)}: {fixture.argname} has the scope "{fixture.scope}"; expected @pytest.fixture(scope="session"), since '
            "what is made with it is kept for all tests."
        )


@cache
def _ours() -> frozenset[str]:
    """Names of our fixtures."""
    modules = [module for name, module in sys.modules.items() if name.startswith(_FIXTURES)]
    return frozenset(name for module in modules for name in vars(module) if name.startswith("diffusion_"))


def _is_ours(fixture: Any) -> bool:
    return str(fixture.func.__module__).startswith(_FIXTURES)


def _active(node: pytest.Item | pytest.Collector) -> list[Any]:
    """The redefinitions that hold for a node, one for each fixture of ours that is overridden there.

    pytest has no public question for it; getfixturedefs has kept its name since pytest 3.
    """
    found = []
    for name in sorted(_ours()):
        definitions = node.session._fixturemanager.getfixturedefs(name, node)
        if definitions and not _is_ours(definitions[-1]):
            found.append(definitions[-1])
    return found


def _place(fixture: Any) -> str:
    """The file of a redefinition, as a user would name it."""
    code = getattr(fixture.func, "__code__", None)
    path = Path(code.co_filename) if code is not None else Path(str(fixture.func.__module__))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _name(fixture: Any) -> str:
    """Fixture, file and line: what tells one redefinition from another."""
    code = getattr(fixture.func, "__code__", None)
    return f"{fixture.argname} {_place(fixture)} {code.co_firstlineno if code is not None else fixture.func.__qualname__}"
