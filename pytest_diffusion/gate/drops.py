"""`--diffusion-fail-on-drop`: figures held against those of the last release, which is the history's last run with an open gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pytest_diffusion.config.parsers import drop
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.protocol import DROP, VERSIONS, ProtocolMismatchError, difference
from pytest_diffusion.verdicts.verdict import Measurement, Verdict, judge

Release = tuple[Measurement, str]
"""A figure, and the release that it is of, in words."""
_FLAG = "--diffusion-fail-on-drop"


def drop_verdicts(
    asked: Sequence[str],
    verdicts: Mapping[str, Verdict],
    release: Callable[[str], Release | None],
    *,
    strict: bool = True,
) -> list[Verdict]:
    """A verdict for each `CHECK:AMOUNT`, on the change since the last release, as that of two independent samples.

    `release(check)` is the figure of the last release that measured the check, and which run that is; None where there is none. With
    nothing to compare with, as in the first run, a verdict is `inconclusive` and does not close the gate; a figure that this run does
    not have is `missing`, and closes it.
    """
    return [_verdict(*drop(text), verdicts, release, strict) for text in asked]


def direction_of(limits: Limits | None) -> int:
    """1 where more is better by a limit, -1 where less is, 0 where neither or both is limited."""
    if limits is None or (limits.at_least is None) == (limits.at_most is None):
        return 0
    return 1 if limits.at_least is not None else -1


def _verdict(
    check: str,
    amount: float,
    is_share: bool,
    verdicts: Mapping[str, Verdict],
    release: Callable[[str], Release | None],
    strict: bool,
) -> Verdict:
    name, own = f"{DROP}{check}", verdicts.get(check)
    lens, title = (own.lens if own is not None else ""), f"change of {check} since the last release"
    if own is None or own.measurement is None:
        why = f": {own.message}" if own is not None else ", since it was not run."
        return Verdict(name, "missing", f"{check} is asked for by {_FLAG}, but it was not measured{why}", lens=lens, title=title)
    found = release(check)
    if found is None:
        message = f"No drop of {check} can be told: the history holds no run with an open gate that measured it."
        return Verdict(name, "inconclusive", message, lens=lens, title=title, gates=False)
    earlier, told = found
    if not math.isfinite(earlier.value) and earlier.value != own.measurement.value:
        message = f"No drop of {check} can be told: it is {own.measurement.value}, and was {earlier.value} at {told}."
        return Verdict(name, "inconclusive", message, lens=lens, title=title, gates=strict)
    try:
        change = difference(own.measurement, earlier, ignore=VERSIONS)
    except ProtocolMismatchError as error:
        message = f"No drop of {check} since {told} can be told. {error}"
        return Verdict(name, "inconclusive", message, lens=lens, title=title, gates=strict)
    if earlier.value == own.measurement.value and math.isinf(earlier.value):
        change, is_share = replace(change, value=0.0, interval=None), False  # the difference of two infinite figures is no number
    size = amount * abs(earlier.value) if is_share else amount
    direction = direction_of(own.limits)
    limits = Limits(
        at_least=-size if direction >= 0 else None,
        at_most=size if direction <= 0 else None,
        source="the last release",
        where=_FLAG,
        origin="call",
    )
    shown = replace(change, name=f"change of {own.measurement.name or check} since {told}")
    return judge(name, shown, limits, lens=lens, title=title, strict=strict, raised_by="")
