"""Calls of the scheduler under test: its errors become `Crash`, which says what was called before, and where the scheduler died."""

from __future__ import annotations

import re
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.verdicts.errors import NotApplicable

_OURS = str(Path(__file__).parent)
_STEP = "step("
_OF_LIBRARIES = re.compile(r"[/\\](torch|numpy)[/\\]")


class Crash(Exception):  # noqa: N818 - the scheduler's error, not ours
    """The scheduler raised an error.

    Fields: `call`, the call as text; `error`, the exception; `before`, the calls before it; `traceback`, the scheduler's own frames;
    `place`, the file and line of the last one.
    """

    def __init__(self, call: str, error: BaseException, *, before: str = "") -> None:
        text = str(error).strip()
        told = f"{call} raises {type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
        super().__init__(f"after {before}, {told}" if before else told)
        self.call, self.error, self.before, self.traceback = call, error, before, own_traceback(error)
        self.place = _place(error)


class _Journal:
    """What was called on the scheduler that was planned last."""

    def __init__(self) -> None:
        self._owner: Callable[[], Any] = lambda: None
        self._done: list[str] = []
        self.begun = 0
        """Calls of all schedulers in this process."""

    def begin(self, scheduler: Any) -> None:
        try:
            self._owner = weakref.ref(scheduler)
        except TypeError:  # it has __slots__
            self._owner = lambda: scheduler
        self._done = []

    def add(self, scheduler: Any, call: str) -> None:
        if scheduler is not None and scheduler is self._owner():
            self._done.append(call)

    def before(self, scheduler: Any) -> str:
        """The calls in words, with steps counted."""
        if scheduler is None or scheduler is not self._owner():
            return ""
        parts = []
        for is_step, calls in groupby(self._done, lambda call: call.startswith(_STEP)):
            listed = list(calls)
            parts += [f"{len(listed)} step{'s' * (len(listed) > 1)}"] if is_step else listed
        return "; ".join(parts)


_JOURNAL = _Journal()


def begin_journal(scheduler: Any) -> None:
    """From here on the calls of this scheduler are remembered, for the message of a crash."""
    _JOURNAL.begin(scheduler)


def calls_begun() -> int:
    """Calls of schedulers that this process has begun. A limit in calls ends a search at the same place on each machine."""
    return _JOURNAL.begun


@contextmanager
def calling(what: str, scheduler: Any = None) -> Iterator[None]:
    """Turn each error of the scheduler inside the block into a Crash; its warnings are ignored."""
    _JOURNAL.begun += 1
    try:
        with quiet(), torch.no_grad():
            yield
    except NotApplicable:
        raise  # an adapter's word, not an error
    except Exception as error:
        raise Crash(what, error, before=_JOURNAL.before(scheduler)) from error
    _JOURNAL.add(scheduler, what)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings inside the block: a deprecation does not break a law."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def own_traceback(error: BaseException, *, frames: int = 4) -> str:
    """The last frames of an error that are not the suite's, as Python prints them; empty where there are none."""
    return "".join(traceback.format_list(_own_frames(error)[-frames:])).rstrip()


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(_OURS)]


def _place(error: BaseException) -> str:
    """File and line of the last frame that is not the suite's, torch's or NumPy's."""
    own = [one for one in _own_frames(error) if not _OF_LIBRARIES.search(one.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""
