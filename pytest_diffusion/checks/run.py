"""Measure, judge, record, raise: the one way of a check to its verdict, for the checklist and the assertion helpers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_diffusion.checks.registry import Check
from pytest_diffusion.config.thresholds import Thresholds
from pytest_diffusion.verdicts.errors import InconclusiveFailure, NotApplicable, QualityFailure
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import Verdict, judge, skipped


def run_check(one: Check, arguments: dict[str, Any], thresholds: Thresholds, *, must_judge: bool = False) -> Verdict:
    """Measure and judge one check and record its verdict; with `must_judge`, one that judged nothing is `missing`."""
    try:
        measurement = one.function(**arguments)
    except NotApplicable as reason:
        verdict = skipped(one.name, str(reason), lens=one.lens, title=one.title)
    else:
        limits = thresholds.for_check(one.name) or one.limits
        verdict = judge(one.name, measurement, limits, lens=one.lens, title=one.title, strict=thresholds.inconclusive_fails)
    if must_judge and verdict.outcome in ("skipped", "reported"):
        verdict = replace(verdict, outcome="missing", gates=True)
    record(verdict)
    return verdict


def enforce(verdict: Verdict) -> Verdict:
    """The verdict itself if it lets the gate open; else raise QualityFailure or InconclusiveFailure."""
    __tracebackhide__ = True
    if verdict.gates:
        raise (QualityFailure if verdict.outcome in ("fail", "missing") else InconclusiveFailure)(verdict)
    return verdict
