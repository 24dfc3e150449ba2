"""The law on which most others depend: a sampling loop runs to its end with finite samples, on any processor."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.laws import Broken, Claims, law
from pytest_diffusion.conformance.loops import sample_of
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import NotApplicable

MOST_DRAWS = 4
"""With more draws in a step, it follows a Brownian path."""


def _runs_here(subject: Subject, counts: Sequence[int]) -> None:
    """Raise Broken, or Several, unless loops end without an error and with finite samples, with the rounding of this processor."""
    claims = Claims()
    most_draws = 0
    for count in subject.counts(*counts):
        if most_draws > MOST_DRAWS and count == subject.num_train_timesteps:
            continue  # dozens of draws in each step: minutes
        with claims.next():
            most_draws = max(most_draws, _require_runs(subject, count))
    claims.settle()


def _require_runs(subject: Subject, count: int) -> int:
    """The largest number of draws in a step of a loop. Raises Broken unless it ends, with finite samples."""
    try:
        found = _walked(subject, count)
    except Crash as crash:
        if isinstance(crash.error, FloatingPointError):
            raise Broken("finite samples from finite model outputs", str(crash.error), count=count) from crash
        raise Broken("a sampling loop that runs to its end", f"{crash}{_hint(subject, count, crash)}", count=count) from crash
    for index, step in enumerate(found):
        if not bool(torch.isfinite(step.after).all()):
            seen = f"step {index} (timestep {float(step.timestep):g}) gives {walking.unfit(step.after)}"
            raise Broken("finite samples from finite model outputs", seen, count=count)
    return max(len(step.draws) for step in found)


@law(
    "a sampling loop runs and stays finite",
    source="diffusers' scheduler interface",
    # Those of all laws that make short loops are among them, so that a crash is told here, and once.
    counts=(*range(1, 11), 12, 13, 15, 20, 25, 28, 30, 35, 40, 50),
    # As many as in training, where rounded timesteps meet.
    more=lambda subject: (subject.num_train_timesteps,),
    rests_on=(),
    ground=_runs_here,
)
def runs(subject: Subject, counts: Sequence[int]) -> None:
    """For any number of inference steps up to that of training, a loop must end without an error and with finite samples."""
    _runs_here(subject, counts)
    for count in subject.counts(*(one for one in counts if one <= loops.LARGE_STEPS)):
        try:
            loops.require_finite_at_any_rounding(subject, count)
        except Crash as crash:
            raise Broken("finite samples from finite model outputs", str(crash), count=count) from crash


def _hint(subject: Subject, count: int, crash: Crash) -> str:
    """What to declare, where a plan may lack an argument, or where a loop may have gone one timestep too far."""
    if crash.call.startswith("set_timesteps("):
        lacking = [name for name in list(subject.plan_parameters)[1:] if name not in subject.needed_arguments]
        named = next((name for name in lacking if re.search(rf"\b{name}\b", str(crash.error))), None)
        return f"; if its pipelines pass {named}, declare plan={{{named!r}: ...}}" if named else ""
    try:
        length = walking.length_of(subject, subject.planned(count))
    except (Crash, NotApplicable):
        return ""
    text = "; the plan has one timestep more than steps: if its pipelines leave the last one out, declare names_end=True"
    return text if length == count + 1 else ""


def _walked(subject: Subject, count: int) -> Sequence[walking.Visit | loops.Step]:
    """A loop on the constant image 0.25, or with a smooth function as the model if noise levels are unknown."""
    records = count != subject.num_train_timesteps
    try:
        loops.require_levels(subject)
    except NotApplicable:
        loops.require_drivable(subject)
        return walking.walk(subject, subject.planned(count), walking.normal(1, 2, 2, 2), walking.smooth, records=records)
    subject.require_plain_step()
    image = sample_of((1, 2, 2, 2))
    try:
        return loops.run(subject, count, lambda sample, level: torch.full_like(sample, 0.25), image, records=records).steps
    except NotApplicable:  # the levels of this one plan cannot be told
        return walking.walk(subject, subject.planned(count), walking.normal(1, 2, 2, 2), walking.smooth, records=records)
