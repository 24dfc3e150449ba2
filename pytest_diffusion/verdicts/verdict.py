"""Measurement, Limits and Verdict, their plain-JSON forms, and `judge`, the only place where an outcome is decided."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Outcome = Literal["pass", "fail", "inconclusive", "skipped"]
CHECKLIST, SCHEDULER_CHECKS = "checklist", "scheduler checks"
"""The two suites in which a check may be declared."""


@dataclass(frozen=True)
class Measurement:
    """One figure and all that a reader needs to trust it.

    `interval` is a 95 % interval of `value`, None where the figure is exact. `series` holds plain lists,
    numbers and strings for the plot; `hint` is a likely cause that was itself measured on the data.
    `unjudged` says why no limit but the caller's own can be held against the figure in this run.
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

    @classmethod
    def with_error(cls, value: float, standard_error: float, **rest: Any) -> Measurement:
        """A measurement whose 95 % interval is normal: value ± 1.96 standard errors."""
        return cls(value, interval=(value - 1.96 * standard_error, value + 1.96 * standard_error), **rest)


@dataclass(frozen=True)
class Limits:
    """What is allowed, and who says so. `min_samples` counts samples, `min_reference` the reference side.

    With `extractor`, the limit holds only for features whose extractor's name starts so: no distance has a
    scale of its own.
    """

    at_least: float | None = None
    at_most: float | None = None
    min_samples: int = 0
    min_reference: int = 0
    extractor: str = ""
    source: str = ""
    where: str = ""
    """File and table, such as `thresholds/default.toml [fid]`."""

    @property
    def text(self) -> str:
        """The limits in words: "at most 30", "between 6 and 9"."""
        low, high = self.at_least, self.at_most
        if low is not None and high is not None:
            return f"exactly {_number(low)}" if low == high else f"between {_number(low)} and {_number(high)}"
        if low is not None:
            return f"at least {_number(low)}"
        return f"at most {_number(high)}" if high is not None else "no limit"


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
    """Whether this outcome fails the gate; an `inconclusive` may be let through by the thresholds file."""
    suite: str = CHECKLIST
    """Where the check is declared, with its plot and its pictures: the checklist or the scheduler checks."""

    def to_json(self) -> dict[str, Any]:
        """Plain `dict`, `list`, `str`, `float`, `int`, `bool` and None; non-finite numbers become strings.

        The lens also stands under "mode", its name in reports of version 0.1.
        """
        return {**_plain(asdict(self)), "mode": self.lens}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_json` wrote; entries that it does not know are left aside."""
        values = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        measurement, limits = values.get("measurement"), values.get("limits")
        if measurement is not None:
            measurement = {**_with_numbers(measurement), "value": float(measurement["value"])}
            if measurement.get("interval") is not None:
                low, high = measurement["interval"]
                measurement["interval"] = (float(low), float(high))
            values["measurement"] = Measurement(**measurement)
        if limits is not None:
            values["limits"] = Limits(**_with_numbers(limits))
        values.setdefault("lens", data.get("mode", ""))
        return cls(**values)


def judge(check: str, measurement: Measurement, limits: Limits | None, *, lens: str = "", title: str = "", strict: bool = True) -> Verdict:
    """The verdict on a measurement.

    `pass` needs enough samples and the whole interval within the limits, `fail` the whole interval
    outside; everything between is `inconclusive`. A figure without a limit is `skipped`: nothing was
    promised, so nothing is passed. `strict` says whether `inconclusive` fails the gate.
    """
    outcome, tail = _decide(measurement, limits)
    message = f"{_sentence(check, measurement)}; {tail}"
    if measurement.hint and outcome != "pass":
        message += f" {measurement.hint}"
    gates = outcome == "fail" or (outcome == "inconclusive" and strict)
    return Verdict(check, outcome, message, measurement, limits, lens, title, gates)


def skipped(check: str, reason: str, *, lens: str = "", title: str = "", suite: str = CHECKLIST) -> Verdict:
    """The verdict on a check that had nothing to look at."""
    return Verdict(check, "skipped", reason, lens=lens, title=title, gates=False, suite=suite)


def _decide(measurement: Measurement, limits: Limits | None) -> tuple[Outcome, str]:
    if limits is None or (limits.at_least is None and limits.at_most is None):
        return "skipped", "no limit is set for it in the thresholds, so it is reported and not judged."
    if measurement.unjudged and limits.where:
        return "skipped", f"reported and not judged: {measurement.unjudged}"
    seen_with = str(measurement.protocol.get("extractor", "an extractor without a name"))
    if not seen_with.startswith(limits.extractor):
        return "skipped", (
            f"the limit ({limits.text}, {limits.where}) is for the extractor {limits.extractor}, "
            f"not for {seen_with}: reported and not judged."
        )
    allowed = f"allowed {limits.text} ({limits.where or 'given by the caller'})."
    if math.isnan(measurement.value):
        return "fail", f"not a number; {allowed}"
    for what, seen, needed in (
        ("samples", measurement.num_samples, limits.min_samples),
        ("reference images", measurement.num_reference, limits.min_reference),
    ):
        if needed and (seen is None or seen < needed):
            count = "an unknown number of" if seen is None else str(seen)
            return "inconclusive", f"not enough samples: {count} {what}, at least {needed} are needed; {allowed}"
    low, high = measurement.interval or (measurement.value, measurement.value)
    if math.isnan(low) or math.isnan(high):
        return "inconclusive", f"its uncertainty could not be measured; {allowed}"
    at_least = -math.inf if limits.at_least is None else limits.at_least
    at_most = math.inf if limits.at_most is None else limits.at_most
    if low >= at_least and high <= at_most:
        return "pass", allowed
    if high < at_least or low > at_most:
        return "fail", allowed
    return "inconclusive", f"its interval straddles the limit; {allowed}{_samples_that_decide(measurement, at_least, at_most)}"


def _samples_that_decide(measurement: Measurement, at_least: float, at_most: float) -> str:
    """How many samples would shrink the interval to the distance between figure and limit."""
    if measurement.interval is None or not measurement.num_samples:
        return ""
    half_width = (measurement.interval[1] - measurement.interval[0]) / 2
    distance = min(abs(measurement.value - limit) for limit in (at_least, at_most))
    if distance == 0 or half_width / distance > 1000:
        return " The figure lies on its limit: more samples would hardly decide."
    needed = math.ceil(measurement.num_samples * (half_width / distance) ** 2)
    return f" About {max(needed, measurement.num_samples + 1)} samples would decide."


def _sentence(check: str, measurement: Measurement) -> str:
    text = f"{measurement.name or check} is {_number(measurement.value)}"
    if measurement.interval is not None:
        low, high = measurement.interval
        middle = abs((low + high) / 2 - measurement.value) <= 0.02 * abs(high - low)
        text += f" ± {_number((high - low) / 2)}" if middle else f" [{_number(low)}, {_number(high)}]"
    text += f" {measurement.unit}" if measurement.unit else ""
    basis = [f"N={measurement.num_samples}"] if measurement.num_samples is not None else []
    basis += [str(measurement.protocol[key]) for key in ("extractor", "layer") if key in measurement.protocol]
    return f"{text} ({', '.join(basis)})" if basis else text


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _with_numbers(value: Any) -> Any:
    """Plain JSON with "nan", "inf" and "-inf", which JSON holds as strings, as numbers again."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"A verdict holds plain values only; got {type(value).__name__}: {value!r}.")
