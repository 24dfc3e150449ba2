"""The self-test: what would this gate catch on this model? Known damage, one after another, each held against the same gate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pytest_diffusion.gate.damage import LOSSES_OF_REFERENCES, SCORES_OF_CLIP, Damage
from pytest_diffusion.gate.kinds import Required, all_damages
from pytest_diffusion.gate.strength import Limit, detection_limit, power_of
from pytest_diffusion.gate.suggestions import Suggested, SuggestedLimit, suggest_limits, suggest_margins
from pytest_diffusion.gate.trial import ABSOLUTELY_CAUGHT, PairedGate, Trial, applied
from pytest_diffusion.models.fingerprint import config_text, fingerprint
from pytest_diffusion.verdicts.errors import NotApplicable, SetupError

QUICK, FULL = "quick", "full"
SEEDS = 5
"""Of a full self-test: the parent is measured with each, and each damage is drawn with each."""
Absolute = Callable[[Any], list[dict[str, Any]]]
"""Verdicts of the absolute checks on the pipeline as it is now, under some settings."""


@dataclass
class Budget:
    """Seconds that are left. What took as long before, and would not end in time, is not begun."""

    seconds: float
    started: float = field(default_factory=time.monotonic)
    _longest: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.started)

    def allows(self, kind: str) -> bool:
        """Whether another piece of work of a kind would end in time, as far as is known."""
        return self.left > self._longest.get(kind, 0.0)

    def spent(self, kind: str, seconds: float) -> None:
        """Remember how long a piece of work took."""
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))


@dataclass
class SelfTest:
    """What was tried, and what it showed."""

    level: str
    model: str
    trials: list[Trial] = field(default_factory=list)
    parent: list[dict[str, Any]] | None = None
    """Verdicts of the absolute checks on the undamaged model."""
    limits: dict[str, Limit] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    """Damages that do not fit the model, and why."""
    left_out: list[str] = field(default_factory=list)
    """What the time did not suffice for."""
    suggested: list[Suggested] = field(default_factory=list)
    suggested_limits: list[SuggestedLimit] = field(default_factory=list)
    floors: dict[str, float] = field(default_factory=dict)
    is_copy: bool = False
    seconds: float = 0.0
    created: str = ""

    def of(self, damage: str, strength: float) -> list[Trial]:
        """Trials of a damage at a strength, one for each seed."""
        return [one for one in self.trials if (one.damage, one.strength) == (damage, strength)]

    @property
    def sound(self) -> list[Trial]:
        """Trials of sound changes that were judged: not those in which nothing changed, or nothing could be compared."""
        return [one for one in self.trials if one.sound and one.word != "not judged"]

    @property
    def false_alarms(self) -> list[Trial]:
        """Sound changes that the comparison calls worse."""
        return [one for one in self.sound if one.is_caught]

    def missing(self, required: Sequence[Required]) -> dict[str, str]:
        """Required damages that are not caught at every seed, by the comparison or by an absolute check, and why."""
        found = {}
        for one in required:
            trials = self.of(one.damage.name, one.strength)
            # The absolute checks are asked with the first seed alone.
            missed = [] if any(trial.absolute_by for trial in trials) else [trial for trial in trials if not trial.is_caught]
            if not trials and one.damage.name in self.not_applicable:
                found[one.text] = f"it does not fit this model: {self.not_applicable[one.damage.name]}"
            elif not trials:
                found[one.text] = "the time did not suffice for it"
            elif missed:
                found[one.text] = f"missed with {len(missed)} of {len(trials)} seeds"
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        own = {name: value for name, value in vars(self).items() if name not in ("trials", "limits", "suggested", "suggested_limits")}
        known = {one.name: one for one in all_damages()}
        return {
            **own,
            "rows": [_row(self, known.get(name), name, strength) for name, strength in self._kinds()],
            "trials": [asdict(one) for one in self.trials],
            "limits": {name: asdict(limit) for name, limit in self.limits.items()},
            "suggested": [asdict(one) for one in self.suggested],
            "suggested_limits": [asdict(one) for one in self.suggested_limits],
        }

    def _kinds(self) -> list[tuple[str, float]]:
        """Damages and strengths of the table: all that were tried for their own sake, and not in search of a limit."""
        return list(dict.fromkeys((one.damage, one.strength) for one in self.trials))


def run_selftest(
    gates: Callable[[int], PairedGate],
    level: str,
    *,
    required: Sequence[Required] = (),
    seconds: float = float("inf"),
    absolute: Absolute | None = None,
    say: Callable[[str], object] = print,
) -> SelfTest:
    """Hold all kinds of damage against the gate; `gates(seed)` measures the parent with a seed.

    A quick one tries each damage once, at its usual strength. A full one repeats this with five seeds, asks the `absolute` checks, and
    looks for the weakest strength that is caught. With `seconds`, as much of a full one as there is time for, in this order. Raises
    SetupError if the model is not as it was at the end.
    """
    budget = Budget(seconds)
    gate = gates(0)
    pipeline = gate.side.pipeline
    before = _state(pipeline)
    found = SelfTest(level, gate.side.name, is_copy=gate.is_copy, floors=dict(gate.saved.floors))
    plan = list(_plan(required, level))
    _try(found, gate, plan, 0, budget, say)
    planned = {damage.name for damage, _ in plan}
    later = [one.name for one in all_damages() if one.name not in planned]
    found.left_out += [f"{', '.join(later)} (for a full self-test)"] if later else []
    if level != QUICK:
        if absolute is not None:
            _ask(found, gate, absolute, budget, say)
        _search(found, gate, budget, say)
        for seed in range(1, SEEDS):
            if not budget.allows("seed"):
                found.left_out.append(f"seeds {seed} to {SEEDS - 1}")
                break
            begin = time.monotonic()
            _try(found, gates(seed), plan, seed, budget, say)
            budget.spent("seed", time.monotonic() - begin)
    if _state(pipeline) != before:
        raise SetupError("--diffusion-selftest: the model is not as it was before; nothing that follows could be trusted.")
    found.suggested = suggest_margins(found.trials, found.floors, gate.margins, is_copy=found.is_copy)
    found.suggested_limits = suggest_limits(found.parent or [], found.trials)
    found.seconds = round(time.monotonic() - budget.started, 1)
    found.created = datetime.now(UTC).isoformat(timespec="seconds")
    return found


def _state(pipeline: Any) -> tuple[str, str]:
    """All of a pipeline that damages change."""
    return fingerprint(pipeline), f"{type(pipeline.scheduler).__name__} {config_text(pipeline.scheduler.config)}"


def _plan(required: Sequence[Required], level: str) -> Iterator[tuple[Damage, float]]:
    """What is asked for first, then each kind at its usual strength."""
    planned = dict.fromkeys([(one.damage.name, one.strength) for one in required])
    planned |= dict.fromkeys((one.name, one.usual) for one in all_damages() if level != QUICK or not one.is_long)
    known = {one.name: one for one in all_damages()}
    for name, strength in planned:
        yield known[name], strength


def _try(
    found: SelfTest, gate: PairedGate, plan: Sequence[tuple[Damage, float]], seed: int, budget: Budget, say: Callable[[str], object]
) -> None:
    for damage, strength in plan:
        if damage.name in found.not_applicable or (damage.sound == "fine-tune" and gate.is_copy):
            continue
        if not budget.allows("trial"):
            found.left_out.append(f"{damage.told(strength)} (seed {seed})")
            continue
        try:
            trial = gate.judge(damage, strength, seed)
        except NotApplicable as reason:
            if any(one.damage == damage.name for one in found.trials):
                found.left_out += [text] if (text := f"{damage.told(strength)}: {reason}") not in found.left_out else []
            else:
                found.not_applicable[damage.name] = str(reason)
            continue
        budget.spent("trial", trial.seconds)
        found.trials.append(trial)
        by = ", ".join(trial.caught_by) or ("not decided: " + ", ".join(trial.undecided) if trial.undecided else trial.note or "same")
        say(f"self-test: {damage.told(strength)}: {by} {f'({trial.at}, ' if trial.at else '('}{trial.seconds:.1f} s)")


def _ask(found: SelfTest, gate: PairedGate, absolute: Absolute, budget: Budget, say: Callable[[str], object]) -> None:
    """The absolute checks on the model, on its sound variants, and on each damage at its usual strength."""
    begin = time.monotonic()
    if not budget.allows("absolute"):
        found.left_out.append("the absolute checks")
        return
    found.parent = absolute(gate.side.settings)
    failing = {one["check"] for one in found.parent if one["outcome"] in ABSOLUTELY_CAUGHT}
    budget.spent("absolute", time.monotonic() - begin)
    known = {one.name: one for one in all_damages()}
    # Sound ones first: without them no limit can be derived.
    for place, trial in sorted(enumerate(found.trials), key=lambda pair: not pair[1].sound):
        damage = known[trial.damage]
        if not budget.allows("absolute"):
            found.left_out.append(f"the absolute checks on {damage.told(trial.strength)}")
            continue
        begin = time.monotonic()
        with applied(damage, gate.target(), trial.strength, trial.seed) as settings:
            verdicts = absolute(settings)
        # What fails without the damage has not seen it.
        told = [{**one, "outcome": "fails without it"} if one["check"] in failing else one for one in verdicts]
        found.trials[place] = replace(trial, absolute=told)
        budget.spent("absolute", time.monotonic() - begin)
        say(f"self-test: absolute checks on {damage.told(trial.strength)}: {', '.join(found.trials[place].absolute_by) or 'none fails'}")


def _search(found: SelfTest, gate: PairedGate, budget: Budget, say: Callable[[str], object]) -> None:
    """The weakest strength of each kind that is caught."""
    for damage in all_damages():
        if not damage.strengths or damage.sound or damage.name in found.not_applicable:
            continue
        if not budget.allows("search"):
            found.left_out.append(f"the weakest {damage.name}")
            continue
        begin = time.monotonic()
        known = {one.strength: one.is_caught for one in found.trials if one.damage == damage.name}

        def is_caught(strength: float, damage: Damage = damage, known: dict[float, bool] = known) -> bool:
            if strength not in known:
                known[strength] = gate.judge(damage, strength, 0).is_caught
            return known[strength]

        try:
            limit = _limit(damage, is_caught)
        except NotApplicable as reason:
            found.left_out.append(f"the weakest {damage.name}: {reason}")
            continue
        found.limits[damage.name] = limit
        budget.spent("search", time.monotonic() - begin)
        say(f"self-test: weakest {damage.name} that is caught: {limit.caught}")


def _needed(damage: Damage, trials: Sequence[Trial]) -> str:
    """What would see a damage that was missed: the material that it names, unless that was there."""
    measured = {figure.name for trial in trials for figure in trial.figures}
    lacking = {LOSSES_OF_REFERENCES: "denoising_loss", SCORES_OF_CLIP: "clip_score"}.get(damage.sees, "") not in measured
    return (
        damage.sees
        if damage.sees and lacking
        else "smaller margins or more pairs, if it matters: no figure is shown to move by more than its margin"
    )


def _limit(damage: Damage, is_caught: Callable[[float], bool]) -> Limit:
    """The weakest strength of a kind that is caught."""
    if damage.is_continuous:
        return detection_limit(is_caught, damage.usual, strongest=damage.strengths[-1])
    caught = [strength for strength in damage.strengths if is_caught(strength)]
    missed = [strength for strength in damage.strengths if not is_caught(strength)]
    return Limit(caught[0] if caught else None, missed[-1] if missed else None)


def _row(test: SelfTest, damage: Damage | None, name: str, strength: float) -> dict[str, Any]:
    """A row of the table: a damage at a strength, over its seeds."""
    trials = test.of(name, strength)
    first, power = next((one for one in trials if one.is_caught), trials[0]), power_of(trials)
    asked = [one for one in trials if one.absolute is not None]
    is_missed = not first.sound and not any(one.is_caught or one.absolute_by for one in trials)
    limit = test.limits.get(name)
    return {
        "damage": name,
        "strength": strength,
        "title": damage.told(strength) if damage is not None else name,
        "sound": first.sound,
        "word": first.word,
        "by": first.caught_by or first.undecided,
        "at": first.at,
        "caught": power.caught,
        "seeds": power.runs,
        "interval": list(power.interval),
        "limit": limit.caught if limit is not None else None,
        "absolute": sorted({check for one in asked for check in one.absolute_by}) if asked else None,
        "seconds": first.seconds,
        "needs": _needed(damage, trials) if is_missed and damage is not None else "",
        "note": first.note,
    }
