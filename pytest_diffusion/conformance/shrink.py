"""The smallest case that still breaks a law, found by Hypothesis, and other configurations that break it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, NoSuchExample

from pytest_diffusion.conformance.calls import Crash, calls_begun
from pytest_diffusion.conformance.laws import Broken, Law, Several, crash_of, findings_of
from pytest_diffusion.conformance.reproduce import expression, found_again, rebuilt, snippet
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.drawing import Series
from pytest_diffusion.verdicts.errors import NotApplicable

_TRIES = 40
_EXAMPLES = 30
_CALLS = 3000
"""Calls of the scheduler in the search of one smallest case: about 4 s."""
_THOROUGH_CALLS = 2000
"""Calls in other configurations for one law: with all laws, about two minutes for a class."""
_SECONDS = 30.0
"""Processor time for a search, far more than its calls usually need: only a scheduler whose own steps are slow reaches it."""


class _Limit:
    """The end of a search. It is given in calls, so that the result does not depend on how fast the machine is."""

    def __init__(self, calls: int) -> None:
        self._calls, self._time = calls_begun() + calls, time.process_time() + _SECONDS

    @property
    def is_reached(self) -> bool:
        return calls_begun() >= self._calls or time.process_time() > self._time


@dataclass(frozen=True)
class Finding:
    """A broken claim in its smallest case: texts for the report, and data for a plot."""

    name: str
    expected: str
    seen: str
    configuration: str
    snippet: str
    traceback: str = ""
    series: Series = field(default_factory=dict)


def as_it_was_seen(one: Law, subject: Subject, error: Broken | Crash) -> Finding:
    """The finding for the configuration and the number of steps of the first observation, without a search for a smaller case."""
    return _described(one, subject, subject.arguments, getattr(error, "count", 0), error)


def smallest(one: Law, subject: Subject, error: Broken | Crash) -> Finding:
    """The finding for the fewest inference steps and the fewest arguments of the constructor that still break the same claim."""
    count = getattr(error, "count", 0)
    own = subject.arguments
    keys = sorted(own) if _is_rebuilt_alike(one, subject, count, error) else []
    counts = (
        sorted({number for number in (*one.counts, 1, 2, 3, 4, 5, count) if min(*one.counts, count) <= number <= count}) if count else [0]
    )
    found: dict[tuple[tuple[str, ...], int], Broken | Crash] = {(tuple(keys), count): error}
    limit = _Limit(_CALLS)

    def breaks(case: tuple[list[bool], int]) -> bool:
        chosen, number = case
        kept = tuple(key for key, kept_it in zip(keys, chosen, strict=True) if kept_it)
        if (kept, number) in found:
            return True
        if limit.is_reached:
            return False
        try:
            smaller = rebuilt(subject, {key: own[key] for key in kept}) if keys else subject
            seen = found_again(one, smaller, number, error)
        except Exception:
            return False  # a scheduler with these arguments may not exist
        if seen is not None:
            found[kept, number] = seen
        return seen is not None

    cases = st.tuples(st.tuples(*(st.booleans() for _ in keys)).map(list), st.sampled_from(counts))
    if len(counts) > 1 or keys:
        quick = settings(max_examples=_TRIES, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        try:
            find(cases, breaks, settings=quick)
        except (NoSuchExample, Flaky):
            pass  # what was found until then is kept in `found`
    kept, number = min(found, key=lambda case: (len(case[0]), case[1]))
    arguments = {key: own[key] for key in kept} if keys else own
    return _described(one, subject, arguments, number, found[kept, number], others=_failing(one, subject, error, arguments, number, limit))


def in_other_configurations(one: Law, subject: Subject, holds: Callable[[Subject, int], bool]) -> tuple[Subject, Broken | Crash] | None:
    """A random configuration of the same class that breaks the law, and the finding; None where the law holds in all that were tried.

    `holds(other, count)` says whether the laws on which this one depends hold there.
    """
    if not subject.is_configured:
        return None
    from pytest_diffusion.conformance.strategies import num_inference_steps, scheduler_configs

    own = subject.arguments
    limit = _Limit(_THOROUGH_CALLS)
    seen: list[tuple[Subject, Broken | Crash]] = []

    @settings(
        max_examples=_EXAMPLES,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(scheduler_configs(subject.scheduler_class), num_inference_steps(max_value=100))
    def broken_nowhere(config: dict[str, Any], count: int) -> None:
        if limit.is_reached:
            return
        try:
            other = rebuilt(subject, {**own, **config})
        except Exception:
            return  # a combination that the class refuses
        counts = [number for number in sorted({*other.counts(count), *one.counts[:2]}) if holds(other, number)]
        try:
            if counts:
                one.function(other, counts)
        except NotApplicable:
            return
        except (Broken, Crash, Several) as errors:
            seen.append((other, findings_of(errors)[0]))
            raise

    try:
        broken_nowhere()
    except (Broken, Crash, Several, Flaky):
        pass
    return seen[0] if seen else None


def _is_rebuilt_alike(one: Law, subject: Subject, count: int, error: Broken | Crash) -> bool:
    """Whether the class with the recorded arguments shows the same finding."""
    try:
        return found_again(one, rebuilt(subject, subject.arguments), count, error) is not None
    except Exception:
        return False


def _failing(
    one: Law, subject: Subject, error: Broken | Crash, arguments: dict[str, Any], count: int, limit: _Limit
) -> tuple[list[int], list[int]]:
    """Numbers of steps of the law that fail in a configuration, and those that were tried."""
    failing, tried = [], []
    if count:
        try:
            other = rebuilt(subject, arguments) if _is_rebuilt_alike(one, subject, count, error) else subject
        except Exception:
            other = subject
        for number in other.counts(*one.counts):
            if limit.is_reached:
                break
            tried.append(number)
            failing += [number] if found_again(one, other, number, error) is not None else []
    return failing, tried


def _described(
    one: Law,
    subject: Subject,
    arguments: dict[str, Any],
    count: int,
    error: Broken | Crash,
    *,
    others: tuple[list[int], list[int]] = ([], []),
) -> Finding:
    expected = error.expected if isinstance(error, Broken) else "a scheduler that takes what its interface says"
    seen = error.seen if isinstance(error, Broken) else str(error)
    shown = expression(subject, arguments)
    if count:
        shown += f", num_inference_steps={count}"
        failing, tried = others
        if len(failing) > 1:
            shown += f" (fails at {_listed(failing)} of the numbers tried, {_listed(tried)})"
    crash = crash_of(error)
    return Finding(
        subject.name,
        expected.rstrip("."),
        seen.rstrip("."),
        shown,
        snippet(one, subject, arguments, count, error),
        crash.traceback if crash is not None else "",
        dict(getattr(error, "series", {})),
    )


def _listed(numbers: list[int]) -> str:
    """Numbers with runs of neighbours put together: 1 to 5, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts[:12]) + (f" and {len(parts) - 12} more" if len(parts) > 12 else "")
