"""Every broken scheduler breaks the checks that it should, and no other."""

import pytest

from pytest_diffusion.conformance.suite import Suite, scheduler_checks
from tests.broken_schedulers import BROKEN, grids, interface, plans, precision, solvers, steps  # noqa: F401 - each registers its schedulers
from tests.conformance.known_defects import known_in
from tests.nightly import mostly_nightly, nightly


def test_there_are_enough_and_every_check_has_one():
    assert len(BROKEN) >= 40
    untried = set(scheduler_checks()) - {check for one in BROKEN for check in one.checks}
    # Without an accelerator it has nothing to look at, see test_suite.py.
    assert untried == {"devices"}


def name_of(broken):
    return broken.scheduler_class.__name__


@pytest.mark.parametrize("broken", mostly_nightly([(one,) for one in BROKEN], "one of twenty runs always", every=20), ids=name_of)
def test_a_mistake_is_caught_by_no_other_check(broken):
    suite = Suite(broken.make())
    failed = {name for name in scheduler_checks() if suite.verdict(name).outcome == "fail"}
    inherited = known_in(broken.scheduler_class) - broken.checks
    assert failed - inherited == broken.checks, broken.because


def first_of_each_check():
    """Broken schedulers that together break every check."""
    seen, chosen = set(), []
    for one in BROKEN:
        if one.checks - seen:
            chosen.append(one.scheduler_class)
            seen |= one.checks
    return chosen


ALWAYS = first_of_each_check()


@pytest.mark.parametrize(
    "broken",
    [pytest.param(one, marks=[] if one.scheduler_class in ALWAYS else [nightly("one of each check runs always")]) for one in BROKEN],
    ids=name_of,
)
def test_a_mistake_is_caught_by_its_check(broken):
    suite = Suite(broken.make())
    for name in broken.checks:
        verdict = suite.verdict(name)
        assert verdict.outcome == "fail", broken.because
        message = verdict.message
        assert message.startswith(f"{broken.scheduler_class.__name__} fails `{name}`")
        for part in ("Expected: ", "Seen: ", "Why: ", "Smallest configuration: ", "Reproduce it:"):
            assert part in message
