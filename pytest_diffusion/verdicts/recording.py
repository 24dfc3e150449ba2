"""Where verdicts go while a test runs: a sink that the plugin sets for each test item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pytest_diffusion.verdicts.verdict import Verdict

_SINK: ContextVar[Callable[[Verdict], None] | None] = ContextVar("diffusion_verdicts", default=None)


@contextmanager
def recording_to(sink: Callable[[Verdict], None]) -> Iterator[None]:
    """Send every verdict recorded inside the block to `sink`."""
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


def record(verdict: Verdict) -> None:
    """Hand a verdict to the running test, if there is one; a notebook has none."""
    sink = _SINK.get()
    if sink is not None:
        sink(verdict)
