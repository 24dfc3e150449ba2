"""The smallest case that still breaks a law, found by Hypothesis, and the code that reproduces it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, NoSuchExample

from pytest_diffusion.conformance.laws import Broken, Law
from pytest_diffusion.conformance.subject import Crash, Subject, quiet
from pytest_diffusion.verdicts.drawing import Series
from pytest_diffusion.verdicts.errors import NotApplicable

_TRIES = 40
_EXAMPLES = 30


@dataclass(frozen=True)
class Finding:
    """A broken law in its smallest case: texts for the report, and data for a plot."""

    name: str
    expected: str
    seen: str
    configuration: str
    snippet: str
    series: Series = field(default_factory=dict)


def as_it_was_seen(one: Law, subject: Subject, error: Broken | Crash) -> Finding:
    """The finding for the configuration and the number of steps of the first observation, without a search for a smaller case."""
    return _described(one, subject, subject.own_values, error)


def smallest(one: Law, subject: Subject, error: Broken | Crash) -> Finding:
    """The finding for the fewest inference steps and the fewest entries of configuration that still break the law."""
    count = getattr(error, "count", 0)
    own = subject.own_values
    keys = sorted(own) if _can_be_rebuilt(subject) else []
    counts = sorted({number for number in (*one.counts, 1, 2, 3, 4, 5, count) if min(one.counts) <= number <= count}) or list(one.counts)
    found: dict[tuple[frozenset[str], int], Broken | Crash] = {(frozenset(keys), count): error}

    def breaks(case: tuple[list[bool], int]) -> bool:
        chosen, number = case
        kept = frozenset(key for key, kept_it in zip(keys, chosen, strict=True) if kept_it)
        try:
            smaller = _rebuilt(subject, {key: own[key] for key in kept}) if keys else subject
            one.function(smaller, [number] if count else list(one.counts))
        except (Broken, Crash) as seen:
            found[kept, number] = seen
            return True
        except Exception:
            return False  # a scheduler with this configuration may not exist
        return False

    cases = st.tuples(st.tuples(*(st.booleans() for _ in keys)).map(list), st.sampled_from(counts))
    best = (frozenset(keys), count)
    if count or keys:
        quick = settings(max_examples=_TRIES, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        try:
            chosen, number = find(cases, breaks, settings=quick)
            best = (frozenset(key for key, kept_it in zip(keys, chosen, strict=True) if kept_it), number)
        except (NoSuchExample, Flaky):
            pass  # if it is not reproducible, the first observation is reported
    final = found.get(best, error)
    config = {key: own[key] for key in sorted(best[0])} if keys else own
    return _described(one, subject, config, final)


def thorough_cases(one: Law, subject: Subject) -> None:
    """Test the law with random configurations of the same class and numbers of steps. Raises Broken for the smallest failing case."""
    if not _can_be_rebuilt(subject):
        return
    from pytest_diffusion.conformance.strategies import num_inference_steps, scheduler_configs

    own = subject.own_values

    @settings(
        max_examples=_EXAMPLES,
        database=None,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(scheduler_configs(subject.scheduler_class), num_inference_steps(max_value=100))
    def holds(config: dict[str, Any], count: int) -> None:
        try:
            other = _rebuilt(subject, {**own, **config})
            one.function(other, sorted({*other.counts(count), *one.counts[:2]}))
        except NotApplicable:
            return
        except (ValueError, NotImplementedError, ImportError):
            return  # a combination that the class refuses
        except (Broken, Crash) as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in {**own, **config}.items())
            expected = error.expected if isinstance(error, Broken) else "a scheduler that runs"
            seen = error.seen if isinstance(error, Broken) else str(error)
            raise Broken(expected, f"{seen} (with {shown or 'the defaults'})", series=getattr(error, "series", None)) from error

    with quiet():
        holds()


def _described(one: Law, subject: Subject, config: dict[str, Any], error: Broken | Crash) -> Finding:
    count = getattr(error, "count", 0)
    arguments = ", ".join(f"{key}={value!r}" for key, value in config.items())
    made = f"{subject.name}({arguments})"
    module = _public_module(subject)
    snippet = "\n".join(
        [
            f"    from {module} import {subject.name}",
            "    from pytest_diffusion import check_scheduler",
            f"    check_scheduler({made}, only=[{one.name!r}])",
        ]
    )
    expected = error.expected if isinstance(error, Broken) else "a scheduler that takes what its interface says"
    seen = error.seen if isinstance(error, Broken) else str(error)
    shown = f"{made}, num_inference_steps={count}" if count else made
    return Finding(subject.name, expected.rstrip("."), seen.rstrip("."), shown, snippet, dict(getattr(error, "series", {})))


def _public_module(subject: Subject) -> str:
    """Module from which users import the class: `diffusers` for its own classes."""
    module = subject.scheduler_class.__module__
    return "diffusers" if module.startswith("diffusers.") else module


def _can_be_rebuilt(subject: Subject) -> bool:
    return bool(subject.config) and hasattr(subject.scheduler_class, "from_config")


def _rebuilt(subject: Subject, config: dict[str, Any]) -> Subject:
    with quiet():
        return Subject(subject.scheduler_class(**config))
