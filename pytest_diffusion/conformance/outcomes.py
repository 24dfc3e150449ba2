"""How findings of a law become a verdict, and what an expected failure makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_diffusion.conformance.laws import Law
from pytest_diffusion.conformance.shrink import Finding
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Limits, Measurement, Verdict, broken, skipped


def failed(one: Law, findings: Sequence[Finding]) -> Verdict:
    """The failed verdict on a law: what was expected and seen, why it matters, and how to see it again."""
    first = findings[0]
    told, *more = [_told(finding) for finding in findings]
    why = f"Why: {one.reason} Source: {one.source}."
    text = "\n".join([f"{first.name} fails `{one.name}`: {one.title}.", told[0], why, told[1], *(f"Also:\n{a}\n{b}" for a, b in more)])
    protocol = {"scheduler": first.name, "configuration": first.configuration, "snippet": first.snippet}
    measurement = Measurement(len(findings), "violations", series=first.series, protocol=protocol, hint=first.seen)
    return Verdict(one.name, "fail", text, measurement, limits_of(one), "schedule", one.title, suite=SCHEDULER_CHECKS)


def not_applicable(one: Law, reason: str) -> Verdict:
    """The skipped verdict on a law that does not apply."""
    return skipped(one.name, reason, lens="schedule", title=one.title, suite=SCHEDULER_CHECKS)


def limits_of(one: Law) -> Limits:
    """No violation, by the source of the law."""
    return Limits(at_most=0, source=one.source, where="scheduler conformance")


def unseen(verdict: Verdict, none: str = "no law") -> Verdict:
    """The broken verdict in place of a skipped one, where no check had something to look at: what was not seen must not pass."""
    reason = f"{none} could look at this scheduler. {verdict.message}"
    return broken(verdict.check, reason, lens="schedule", title=verdict.title, suite=SCHEDULER_CHECKS)


def judged_with(verdict: Verdict, reason: str | None, *, strict: bool) -> Verdict:
    """The verdict on a check whose failure is expected for `reason`; with `strict`, it must not pass or be skipped."""
    if reason is None:
        return verdict
    if verdict.gates:
        return replace(verdict, gates=False, message=f"{verdict.message}\nThis failure is expected: {reason}")
    if strict and verdict.outcome in ("pass", "skipped"):
        what = "passes" if verdict.outcome == "pass" else f"is skipped ({verdict.message.rstrip('.')})"
        message = f"{verdict.check} {what}, though its failure is expected: {reason} Remove it from expected_failures."
        return replace(verdict, outcome="fail", gates=True, message=message)
    return verdict


def _told(finding: Finding) -> tuple[str, str]:
    """What was expected and seen; and how to see it again."""
    where = f"\nWhere:\n{finding.traceback}" if finding.traceback else ""
    seen = f"Expected: {finding.expected}.\nSeen: {finding.seen}.{where}"
    return seen, f"Smallest configuration: {finding.configuration}\nReproduce it:\n{finding.snippet}"
