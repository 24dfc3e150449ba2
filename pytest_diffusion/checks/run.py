"""Measure, judge, record, raise: the one way of a check to its verdict, for the checklist and the assertion helpers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pytest_diffusion.checks.registry import Check
from pytest_diffusion.config.thresholds import Thresholds
from pytest_diffusion.verdicts.errors import InconclusiveFailure, NotApplicable, QualityFailure, TooFewSamples
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import Verdict, judge, skipped

_CHOSEN = frozenset({"diffusion_samples", "diffusion_features", "diffusion_sample_embeds", "diffusion_manifold"})
"""Fixtures that hold as many samples as the user asks for."""
_SCALED = frozenset(f"diffusion_{name}" for name in ("attention", "localisation", "round_trip", "paths", "latent_fit", "direction"))
"""Fixtures that draw a number of their own, times `--diffusion-effort`."""


def run_check(one: Check, arguments: dict[str, Any], thresholds: Thresholds, *, must_judge: bool = False) -> Verdict:
    """Measure and judge one check and record its verdict; with `must_judge`, one that judged nothing is `missing`."""
    limits, strict = thresholds.for_check(one.name) or one.limits, thresholds.inconclusive_fails
    try:
        measurement = one.function(**arguments)
    except NotApplicable as reason:
        # A preset's limit for one extractor does not hold for another one.
        seen_with = str(getattr(arguments.get("features"), "extractor", ""))
        holds = limits is not None and limits.is_set and (limits.is_users_own or seen_with.startswith(limits.extractor))
        if isinstance(reason, TooFewSamples) and limits is not None and holds:
            gates = strict or limits.is_users_own
            verdict = Verdict(one.name, "undersampled", str(reason), None, limits, one.lens, one.title, gates)
        else:
            verdict = skipped(one.name, str(reason), lens=one.lens, title=one.title)
    else:
        verdict = judge(one.name, measurement, limits, lens=one.lens, title=one.title, strict=strict, raised_by=_raised_by(one))
    if must_judge and verdict.outcome in ("skipped", "reported"):
        verdict = replace(verdict, outcome="missing", gates=True)
    record(verdict)
    return verdict


def _raised_by(one: Check) -> Literal["samples", "effort", ""]:
    """How the user can raise the number of samples that a check sees."""
    fixtures = set(one.fixtures.values())
    return "samples" if fixtures & _CHOSEN else "effort" if fixtures & _SCALED else ""


def enforce(verdict: Verdict) -> Verdict:
    """The verdict itself if it lets the gate open; else raise QualityFailure or InconclusiveFailure."""
    __tracebackhide__ = True
    if verdict.gates:
        raise (QualityFailure if verdict.outcome in ("fail", "missing") else InconclusiveFailure)(verdict)
    return verdict
