"""The registry of laws for schedulers, and the exception for a broken law."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pytest_diffusion.config.registry import Registry
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.drawing import Plot, Series
from pytest_diffusion.verdicts.errors import NotApplicable, unknown_name

LawFunction = Callable[[Subject, Sequence[int]], Series | None]


class Broken(Exception):  # noqa: N818 - a finding about the scheduler, not an error of ours
    """A law does not hold. Fields: `expected`, `seen`, `count` (inference steps, 0 if they do not matter), `series` for a plot."""

    def __init__(self, expected: str, seen: str, *, count: int = 0, series: Series | None = None) -> None:
        super().__init__(f"expected {expected}; seen: {seen}")
        self.expected, self.seen, self.count, self.series = expected, seen, count, series or {}


class Several(Exception):  # noqa: N818 - findings about the scheduler, not an error of ours
    """Several claims of one law do not hold. Field: `findings`, an error for each of them."""

    def __init__(self, findings: Sequence[Broken | Crash]) -> None:
        super().__init__("; ".join(map(str, findings)))
        self.findings = list(findings)


class Claims:
    """Claims of one law that are tried one after another, so that a broken one does not hide the others.

    `with claims.next(): ...` for each; `claims.settle()` raises what was found.
    """

    def __init__(self) -> None:
        self._findings: list[Broken | Crash] = []
        self._reasons: list[NotApplicable] = []
        self._tried = 0

    @contextmanager
    def next(self) -> Iterator[None]:
        """One claim: its error is kept, or the reason why it does not apply."""
        self._tried += 1
        try:
            yield
        except NotApplicable as reason:
            self._reasons.append(reason)
        except (Broken, Crash) as error:
            self.add(error)
        except Several as errors:
            self._findings += errors.findings

    def add(self, error: Broken | Crash) -> None:
        """Keep a finding, unless it is the same as an earlier one."""
        if signature(error) not in map(signature, self._findings):
            self._findings.append(error)

    def settle(self) -> None:
        """Raise the one finding, or all of them; NotApplicable if no claim applies."""
        if len(self._findings) == 1:
            raise self._findings[0]
        if self._findings:
            raise Several(self._findings)
        if self._reasons and len(self._reasons) == self._tried:
            raise self._reasons[0]


def findings_of(error: Broken | Crash | Several) -> list[Broken | Crash]:
    """The findings that an error of a law stands for."""
    return error.findings if isinstance(error, Several) else [error]


def crash_of(error: BaseException) -> Crash | None:
    """The crash that a finding is, or that it came from."""
    return error if isinstance(error, Crash) else (error.__cause__ if isinstance(error.__cause__, Crash) else None)


def signature(error: Broken | Crash) -> tuple[str, ...]:
    """What makes two findings the same one, apart from the numbers in their texts."""
    crash = crash_of(error)
    text = error.expected if isinstance(error, Broken) else ""
    return (_without_numbers(text), *(death(crash) if crash is not None else ()))


def death(crash: Crash) -> tuple[str, ...]:
    """What makes two crashes the same one: the type of the exception, its text without numbers, and where it was raised."""
    return type(crash.error).__name__, _without_numbers(str(crash.error)), crash.place


def _without_numbers(text: str) -> str:
    # What is written as a setting, "eta=0.5", names a claim.
    return re.sub(r"(?<![=\w.])-?\d[\d.,]*(e[-+]?\d+)?|\b(inf|nan)\b", "#", text)


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
    more: Callable[[Subject], Sequence[int]] = lambda subject: ()
    """Further numbers of steps, that depend on the scheduler."""
    least: int = 1
    """Fewest steps of a plan in which the law has something to look at."""

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
    more: Callable[[Subject], Sequence[int]] = lambda subject: (),
    least: int = 1,
) -> Callable[[LawFunction], LawFunction]:
    """Decorator that registers a law. Raises ValueError for a name that is taken."""

    def register(function: LawFunction) -> LawFunction:
        name = function.__name__
        made = Law(name, title, source, function, tuple(counts), tuple(rests_on), ground or function, plot, more, least)
        LAWS.add(name, made, declared=function)
        return function

    return register


def require_known(what: str, names: Collection[str]) -> Collection[str]:
    """The unchanged names. Raises ValueError for an unknown check."""
    if isinstance(names, str):
        raise ValueError(f"{what} is the text {names!r}; expected a collection of names of checks.")
    for name in names:
        if name not in LAWS.names:
            raise ValueError(unknown_name(what, name, LAWS.names))
    return names


def chosen_names(only: Collection[str] | None) -> list[str]:
    """Names of the checks that `only` chooses, in their order. Raises ValueError for an unknown name, and if there is none."""
    if only is None:
        return LAWS.names
    if not require_known("only", only):
        raise ValueError("only is empty; expected at least one name of a check.")
    return [name for name in LAWS.names if name in only]
