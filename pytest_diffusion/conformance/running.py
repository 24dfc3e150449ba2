"""The law that everything rests on: a sampling loop runs to its end with finite samples, on any processor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pytest_diffusion.conformance import loops
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.loops import sample_of
from pytest_diffusion.conformance.subject import Crash, Subject
from pytest_diffusion.verdicts.errors import NotApplicable

_LARGE_STEPS = 10
"""Up to so many inference steps the noise levels of two steps lie far apart, and differences of their squares cancel."""


def _runs_here(subject: Subject, counts: Sequence[int]) -> None:
    """Loops end without an error and with finite samples, as this processor rounds."""
    for count in subject.counts(*counts):
        try:
            found = _walked(subject, count)
        except Crash as crash:
            if isinstance(crash.error, FloatingPointError):
                raise Broken("finite samples from finite model outputs", str(crash.error), count=count) from crash
            raise Broken("a sampling loop that runs to its end", str(crash), count=count) from crash
        for index, step in enumerate(found):
            if not bool(torch.isfinite(step.after).all()):
                seen = f"step {index} (timestep {float(step.timestep):g}) gives {loops.unfit(step.after)}"
                raise Broken("finite samples from finite model outputs", seen, count=count)


@law(
    "a sampling loop runs and stays finite",
    source="diffusers' scheduler interface",
    counts=(1, 2, 3, 4, 5, 7, 10, 20, 50),
    rests_on=(),
    ground=_runs_here,
)
def runs(subject: Subject, counts: Sequence[int]) -> None:
    """Whatever the number of inference steps, up to that of training, a loop ends without an error and with finite samples."""
    _runs_here(subject, counts)
    for count in subject.counts(*(one for one in counts if one <= _LARGE_STEPS)):
        try:
            loops.require_finite_at_any_rounding(subject, count)
        except Crash as crash:
            raise Broken("finite samples from finite model outputs", str(crash), count=count) from crash


def _walked(subject: Subject, count: int) -> Sequence[loops.Visit | loops.Step]:
    """A loop over the point mass at 0.25, or over any smooth function where levels are not known."""
    try:
        loops.require_levels(subject)
    except NotApplicable:
        loops.require_drivable(subject)
        return loops.walk(subject, subject.planned(count), loops.normal(1, 2, 2, 2), loops.smooth)
    return loops.run(subject, count, lambda sample, level: torch.full_like(sample, 0.25), sample_of((1, 2, 2, 2))).steps
