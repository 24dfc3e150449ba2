"""`--diffusion-fail-on-drop`: figures held against those of the last release, which is the history's last run with an open gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pytest_diffusion.config.parsers import drop
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.protocol import ProtocolMismatchError, difference
from pytest_diffusion.verdicts.verdict import Measurement, Verdict, judge

PREFIX = "drop_"
"""Before the name of a check, for its drop."""
_FLAG = "--diffusion-fail-on-drop"
_IGNORED = ("versions",)


def drop_verdicts(
    asked: Sequence[str],
    verdicts: Mapping[str, Verdict],
    release: Callable[[str], Measurement | None],
    told: str,
    *,
    strict: bool = True,
) -> list[Verdict]:
    """A verdict for each `CHECK:AMOUNT`, on the change since the last release, as that of two independent samples.

    `release(check)` is the figure of the last release, or None; `told` says which run that is, empty where there is none. With nothing
    to compare with, as in the first run, a verdict is `inconclusive` and does not close the gate; a figure that this run does not
    have is `missing`, and closes it.
    """
    return [_verdict(*drop(text), verdicts, release, told, strict) for text in asked]


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
    release: Callable[[str], Measurement | None],
    told: str,
    strict: bool,
) -> Verdict:
    name, own = f"{PREFIX}{check}", verdicts.get(check)
    lens, title = (own.lens if own is not None else ""), f"change of {check} since the last release"
    if own is None or own.measurement is None:
        why = f": {own.message}" if own is not None else ", since it was not run."
        return Verdict(name, "missing", f"{check} is asked for by {_FLAG}, but it was not measured{why}", lens=lens, title=title)
    earlier = release(check)
    if earlier is None:
        why = f"{told} did not measure it" if told else "the history holds no run with an open gate"
        return Verdict(name, "inconclusive", f"No drop of {check} can be told: {why}.", lens=lens, title=title, gates=False)
    try:
        change = difference(own.measurement, earlier, ignore=_IGNORED)
    except ProtocolMismatchError as error:
        message = f"No drop of {check} since {told} can be told. {error}"
        return Verdict(name, "inconclusive", message, lens=lens, title=title, gates=strict)
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
