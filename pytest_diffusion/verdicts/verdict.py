"""Measurement, Limits and Verdict, their plain-JSON forms, and `judge`, the only place where an outcome is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from pytest_diffusion.verdicts.limits import Limits as Limits
from pytest_diffusion.verdicts.limits import Origin as Origin
from pytest_diffusion.verdicts.plain_json import plain, with_numbers
from pytest_diffusion.verdicts.quantiles import t95
from pytest_diffusion.verdicts.text import number, shown

Outcome = Literal["pass", "fail", "inconclusive", "undersampled", "missing", "broken", "reported", "skipped"]
"""`pass`, `fail`: the whole interval within, or outside, the limits. `inconclusive`: the interval straddles a limit.
`undersampled`: fewer samples than the limit needs. `missing`: required, and not judged. `broken`: the set-up failed, so
nothing was measured. `reported`: measured, and no limit holds for it. `skipped`: the model has nothing to measure.
"""
JUDGED: frozenset[Outcome] = frozenset({"pass", "fail", "inconclusive", "undersampled"})
"""Outcomes in which a figure was held against a limit."""
_OF_RELATION: dict[str, Outcome] = {"better": "pass", "same": "pass", "worse": "fail", "cannot tell": "inconclusive"}
CHECKLIST, SCHEDULER_CHECKS = "checklist", "scheduler checks"
"""The two suites in which a check may be declared."""


@dataclass(frozen=True)
class Measurement:
    """One figure and all that a reader needs to trust it.

    `interval` is a 95 % interval of `value`, None where the figure is exact; with `given_reference` it is that of the
    samples alone, because the reference is the same in every run. `series` holds plain lists,
    numbers and strings for the plot; `hint` is a likely cause that was itself measured on the data.
    `unjudged` says why no limit but the caller's own can be held against the figure in this run.
    A comparison with a baseline has decided already: `relation` is its word, and `own_limits` the margin that it held against
    the change, which is known only when the baseline was measured.
    """

    value: float
    name: str = ""
    unit: str = ""
    interval: tuple[float, float] | None = None
    num_samples: int | None = None
    num_reference: int | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Any] = field(default_factory=dict)
    hint: str = ""
    unjudged: str = ""
    given_reference: bool = False
    relation: Literal["", "better", "same", "worse", "cannot tell"] = ""
    own_limits: Limits | None = None

    @classmethod
    def with_error(cls, value: float, standard_error: float, degrees: float = math.inf, **rest: Any) -> Measurement:
        """A measurement whose 95 % interval is that of Student's t with `degrees` of freedom; normal where they are infinite."""
        half_width = t95(degrees) * standard_error
        return cls(value, interval=(value - half_width, value + half_width), **rest)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one check: `check`, `outcome`, `measurement`, `limits` and `message`."""

    check: str
    outcome: Outcome
    message: str
    measurement: Measurement | None = None
    limits: Limits | None = None
    lens: str = ""
    """"metrics", "schedule", "attention", "latent" or "always"; empty for a user's own test."""
    title: str = ""
    gates: bool = True
    """Whether this outcome closes the gate; an `inconclusive` may be let through by the thresholds file."""
    suite: str = CHECKLIST
    """Where the check is declared, with its plot and its pictures: the checklist or the scheduler checks."""
    is_setups_fault: bool = False
    """Whether a `broken` check says nothing about the model: a package is missing, the hub cannot be reached."""

    def __post_init__(self) -> None:
        """Messages hold names and texts of files, and go to terminals and pages."""
        object.__setattr__(self, "message", shown(self.message))

    def to_json(self) -> dict[str, Any]:
        """Plain `dict`, `list`, `str`, `float`, `int`, `bool` and None; non-finite numbers become strings.

        The lens also stands under "mode", its name in reports of version 0.1.
        """
        return {**plain(asdict(self)), "mode": self.lens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote; entries that it does not know are left aside."""
        values = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        measurement, limits = values.get("measurement"), values.get("limits")
        if measurement is not None:
            measurement = {**with_numbers(measurement), "value": float(measurement["value"])}
            if measurement.get("interval") is not None:
                low, high = measurement["interval"]
                measurement["interval"] = (float(low), float(high))
            if measurement.get("own_limits") is not None:
                measurement["own_limits"] = Limits(**with_numbers(measurement["own_limits"]))
            values["measurement"] = Measurement(**measurement)
        if limits is not None:
            values["limits"] = Limits(**with_numbers(limits))
        values.setdefault("lens", data.get("mode", ""))
        return cls(**values)


def judge(
    check: str,
    measurement: Measurement,
    limits: Limits | None,
    *,
    lens: str = "",
    title: str = "",
    strict: bool = True,
    raised_by: Literal["samples", "effort", ""] = "samples",
) -> Verdict:
    """The verdict on a measurement.

    `pass` needs enough samples and the whole interval within the limits, `fail` the whole interval outside. With fewer
    samples than the limit needs it is `undersampled`; everything else is `inconclusive`. A figure without a limit is
    `reported`: nothing was promised, so nothing is passed. Without `strict`, a figure near its limit and one with too few
    samples do not close the gate, unless the whole interval is outside or unknown, or too few samples were drawn for a
    limit of the user's own. The message says how many samples would decide, where their number is `raised_by` the user: by
    the option for the number of samples, or by `--diffusion-effort`.
    """
    limits = measurement.own_limits or limits
    outcome, tail = _decide(measurement, limits)
    if outcome == "inconclusive" and limits is not None and raised_by:
        tail += _what_decides(measurement, *_bounds(limits), by_effort=raised_by == "effort")
    message = f"{_sentence(check, measurement)}; {tail}"
    if measurement.hint and outcome != "pass":
        message += f" {measurement.hint}"
    gates = outcome == "fail" or (outcome in ("inconclusive", "undersampled") and (strict or _is_no_close_call(measurement, limits)))
    return Verdict(check, outcome, message, measurement, limits, lens, title, gates)


def skipped(check: str, reason: str, *, lens: str = "", title: str = "", suite: str = CHECKLIST) -> Verdict:
    """The verdict on a check that had nothing to look at."""
    return Verdict(check, "skipped", reason, lens=lens, title=title, gates=False, suite=suite)


def broken(check: str, reason: str, *, lens: str = "", title: str = "", suite: str = CHECKLIST, is_setups_fault: bool = False) -> Verdict:
    """The verdict on a check that could not be measured. The reason is the whole message, so that checks can share it."""
    message = f"could not be measured: {reason}"
    return Verdict(check, "broken", message, lens=lens, title=title, suite=suite, is_setups_fault=is_setups_fault)


def _decide(measurement: Measurement, limits: Limits | None) -> tuple[Outcome, str]:
    if limits is None or not limits.is_set:
        return "reported", "no limit is set for it in the thresholds, so it is reported and not judged."
    if measurement.relation:
        return _OF_RELATION[measurement.relation], f"allowed {limits.text} ({limits.where or 'given by the caller'})."
    # A margin is held by the comparison alone, which says why it did not.
    if measurement.unjudged and (measurement.own_limits is not None or not limits.is_users_own):
        return "reported", f"reported and not judged: {measurement.unjudged}"
    seen_with = str(measurement.protocol.get("extractor", "an extractor without a name"))
    if not seen_with.startswith(limits.extractor):
        return "reported", (
            f"the limit ({limits.text}, {limits.where}) is for the extractor {limits.extractor}, "
            f"not for {seen_with}: reported and not judged."
        )
    allowed = f"allowed {limits.text} ({limits.where or 'given by the caller'})."
    if math.isnan(measurement.value):
        return "fail", f"not a number; {allowed}"
    if shortage := _shortage(measurement, limits):
        outside = " All of its interval lies outside the limit." if _is_outside(measurement, limits) else ""
        return "undersampled", f"not enough samples: {shortage}; {allowed}{outside}"
    low, high = _interval(measurement)
    if math.isnan(low) or math.isnan(high):
        return "inconclusive", f"its uncertainty could not be measured; {allowed}"
    at_least, at_most = _bounds(limits)
    if low >= at_least and high <= at_most:
        return "pass", allowed
    if _is_outside(measurement, limits):
        return "fail", allowed
    return "inconclusive", f"its interval straddles the limit; {allowed}"


def _shortage(measurement: Measurement, limits: Limits) -> str:
    """What there is too little of, samples or reference images; empty where there is enough."""
    for what, seen, needed in (
        ("samples", measurement.num_samples, limits.min_samples),
        ("reference images", measurement.num_reference, limits.min_reference),
    ):
        if needed and (seen is None or seen < needed):
            return f"{'an unknown number of' if seen is None else seen} {what}, at least {needed} are needed"
    return ""


def _is_no_close_call(measurement: Measurement, limits: Limits | None) -> bool:
    """Whether a figure that cannot be decided closes the gate even where close calls are let through."""
    if limits is None:
        return False
    is_own_and_short = limits.is_users_own and bool(_shortage(measurement, limits))
    return math.isnan(sum(_interval(measurement))) or _is_outside(measurement, limits) or is_own_and_short


def _interval(measurement: Measurement) -> tuple[float, float]:
    return measurement.interval or (measurement.value, measurement.value)


def _bounds(limits: Limits) -> tuple[float, float]:
    at_least = -math.inf if limits.at_least is None else limits.at_least
    return at_least, math.inf if limits.at_most is None else limits.at_most


def _is_outside(measurement: Measurement, limits: Limits) -> bool:
    """Whether the whole interval lies outside the limits; False where it is not known."""
    low, high = _interval(measurement)
    at_least, at_most = _bounds(limits)
    return not math.isnan(low + high) and (high < at_least or low > at_most)


def _what_decides(measurement: Measurement, at_least: float, at_most: float, *, by_effort: bool) -> str:
    """How many samples would shrink the interval to the distance between figure and limit."""
    if measurement.interval is None or not measurement.num_samples or math.isnan(sum(measurement.interval)):
        return ""
    half_width = (measurement.interval[1] - measurement.interval[0]) / 2
    distance = min(abs(measurement.value - limit) for limit in (at_least, at_most))
    if distance == 0 or half_width / distance > 1000:
        return " The figure lies on its limit: more samples would hardly decide."
    # A reference that may vary has its share in the uncertainty, which more samples alone do not lessen.
    sides = {"samples": measurement.num_samples, "reference images": 0 if measurement.given_reference else measurement.num_reference}
    factor = (half_width / distance) ** 2
    if by_effort:
        times = max(math.ceil(10 * factor), 11) / 10
        return f" About {times:g} times as many would decide: raise --diffusion-effort by this factor, with as many samples and references."
    needed = [f"{max(math.ceil(count * factor), count + 1)} {what}" for what, count in sides.items() if count]
    condition = ", if the figure stays where it is" if measurement.num_reference else ""
    return f" About {' and '.join(needed)} would decide{condition}."


def _sentence(check: str, measurement: Measurement) -> str:
    text = f"{measurement.relation}: " if measurement.relation else ""
    text += f"{measurement.name or check} is {number(measurement.value)}"
    if measurement.interval is not None:
        low, high = measurement.interval
        middle = abs((low + high) / 2 - measurement.value) <= 0.02 * abs(high - low)
        text += f" ± {number((high - low) / 2)}" if middle else f" [{number(low)}, {number(high)}]"
    text += f" {measurement.unit}" if measurement.unit else ""
    basis = [f"N={measurement.num_samples}"] if measurement.num_samples is not None else []
    basis += [str(measurement.protocol[key]) for key in ("extractor", "layer") if key in measurement.protocol]
    return f"{text} ({', '.join(basis)})" if basis else text
