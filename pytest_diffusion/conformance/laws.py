"""The registry of laws for schedulers, and the exception for a broken law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_diffusion.config.registry import Registry
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.drawing import Plot, Series

LawFunction = Callable[[Subject, Sequence[int]], Series | None]


class Broken(Exception):  # noqa: N818 - a finding about the scheduler, not an error of ours
    """A law does not hold. Fields: `expected`, `seen`, `count` (inference steps, 0 if they do not matter), `series` for a plot."""

    def __init__(self, expected: str, seen: str, *, count: int = 0, series: Series | None = None) -> None:
        super().__init__(f"expected {expected}; seen: {seen}")
        self.expected, self.seen, self.count, self.series = expected, seen, count, series or {}


@dataclass(frozen=True)
class Law:
    """A law: name of its function, title, source, numbers of steps at which it is tested, and the laws that it depends on."""

    name: str
    title: str
    source: str
    function: LawFunction
    counts: tuple[int, ...]
    rests_on: tuple[str, ...]
    ground: LawFunction
    """The part of this law that dependent laws need; the law itself may require more."""
    plot: Plot | None = None

    @property
    def reason(self) -> str:
        """The explanation in the report: the function's docstring, on one line."""
        return " ".join((self.function.__doc__ or "").split())


LAWS: Registry[Law] = Registry("law")
"""Laws by name, in the order of their declaration; a law may depend only on earlier ones."""


def law(
    title: str,
    *,
    source: str,
    counts: Sequence[int] = (5,),
    rests_on: Sequence[str] = ("runs",),
    ground: LawFunction | None = None,
    plot: Plot | None = None,
) -> Callable[[LawFunction], LawFunction]:
    """Decorator that registers a law. Raises ValueError for a name that is taken."""

    def register(function: LawFunction) -> LawFunction:
        name = function.__name__
        LAWS.add(name, Law(name, title, source, function, tuple(counts), tuple(rests_on), ground or function, plot), declared=function)
        return function

    return register
