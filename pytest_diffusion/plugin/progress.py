"""Progress of a run: a bar on a terminal, a line a minute in a log; both past pytest's capture."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import pytest

from pytest_diffusion.config.durations import duration
from pytest_diffusion.config.progress import Advance, Show, shown_by
from pytest_diffusion.config.settings import Settings

_EVERY = 60.0
"""Seconds between two lines about the same stage."""


def show_progress(config: pytest.Config, settings: Settings) -> None:
    """Let stages be shown until the session ends: for `auto` by a bar where standard error is a terminal, else by lines."""
    if settings.progress != "off":
        stack = ExitStack()
        stack.enter_context(shown_by(_show(config, settings.progress)))
        config.add_cleanup(stack.close)


def _show(config: pytest.Config, mode: str) -> Show:
    stream = _real_stderr(config)
    # Bars of several processes would overwrite one another.
    is_alone = not hasattr(config, "workerinput") and "RANK" not in os.environ
    if mode == "bar" or (mode == "auto" and is_alone and stream.isatty()):
        return Bars(stream)
    return Lines(stream)


class Bars:
    """A bar for each stage, with its speed and the time that is left."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream

    def __call__(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """The context of one stage."""
        return self._shown(name, total, unit)

    @contextmanager
    def _shown(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        from tqdm import tqdm

        with tqdm(total=total, desc=name, unit=unit, leave=False, file=self._stream) as bar:
            yield bar.update


class Lines:
    """A line a minute for the stage that runs, from a thread, since a stage may hang without any advance."""

    def __init__(self, stream: io.TextIOBase, every: float | None = None) -> None:
        self._stream, self._every = stream, every or _EVERY
        self._running: list[_Stage] = []

    def __call__(self, name: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        """The context of one stage."""
        return self._shown(_Stage(name, total, unit))

    @contextmanager
    def _shown(self, one: _Stage) -> Iterator[Advance]:
        ended = threading.Event()
        self._running.append(one)
        thread = threading.Thread(target=self._tell, args=(one, ended), name=f"progress of {one.name}", daemon=True)
        thread.start()
        try:
            yield one.advance
        finally:
            ended.set()
            self._running.remove(one)
            thread.join()

    def _tell(self, one: _Stage, ended: threading.Event) -> None:
        while not ended.wait(self._every):
            if self._running[-1:] == [one]:  # a stage within it speaks for itself
                self._stream.write(f"\ndiffusion: {one.text}\n")
                self._stream.flush()


class _Stage:
    """How far a stage is."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self._begun = 0, time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count

    @property
    def text(self) -> str:
        """One line for a log."""
        spent = time.monotonic() - self._begun
        if self.total is None:
            return f"{self.name}: {duration(spent)} so far"
        left = f", about {duration(spent * (self.total - self.done) / self.done)} left" if 0 < self.done <= self.total else ""
        return f"{self.name}: {self.done} of {self.total} {self.unit}s in {duration(spent)}{left}"


def _real_stderr(config: pytest.Config) -> io.TextIOWrapper:
    """Standard error as it is outside of pytest's capture, kept open until the session ends."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture is not None else nullcontext():
        stream = io.TextIOWrapper(io.FileIO(os.dup(2), "w"), encoding="utf-8", errors="replace", line_buffering=True)
    config.add_cleanup(stream.close)
    return stream
