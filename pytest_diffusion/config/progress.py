"""What a run says of its progress, stage by stage, through one object that whoever shows it sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

Advance = Callable[[int], object]
"""Told how many more units of a stage are done."""
Show = Callable[[str, int | None, str], AbstractContextManager[Advance]]
"""Shows a stage: its name, its number of units (None where nobody knows), and the name of a unit."""


def _nothing(name: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda count: None)


_SHOW: ContextVar[Show] = ContextVar("pytest_diffusion_progress", default=_nothing)


def stage(name: str, total: int | None = None, unit: str = "image") -> AbstractContextManager[Advance]:
    """A context in which a stage is shown as running; it gives a function that is told of each advance."""
    return _SHOW.get()(name, total, unit)


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Let stages in the block, and in whatever it calls, be shown by `show`."""
    token = _SHOW.set(show)
    try:
        yield
    finally:
        _SHOW.reset(token)
