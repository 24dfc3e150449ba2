"""Laws of steps that go back to more noise first: churn, and undone steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from pytest_diffusion.conformance.arrivals import arrivals, image_and_noise
from pytest_diffusion.conformance.calls import calling
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values
from pytest_diffusion.verdicts.errors import NotApplicable


@law(
    "churn adds as much noise as the step removes",
    source="Karras et al. 2022, arXiv:2206.00364, algorithm 2",
    counts=(5, 10),
    least=2,
    rests_on=("runs", "point_mass_preserved", "generator_honoured"),
)
def churn(subject: Subject, counts: Sequence[int]) -> None:
    """With `s_churn`, a step raises the noise from σ to σ̂ and goes on from there, so it must still arrive at its own target.

    The model must be asked at σ̂, or its answer at σ be used as such.
    """
    if "s_churn" not in subject.step_parameters:
        raise NotApplicable(f"{subject.name}.step takes no s_churn.")
    for count in subject.counts(*counts):
        for one in arrivals(subject, count, s_churn=0.3 * count)[:-1]:
            right = abs(one.clean - float(one.target.alpha)) <= 2 * one.tolerance
            if not (right and abs(one.total - float(one.target.sigma)) <= 2 * one.tolerance + 1e-3 * float(one.target.sigma)):
                seen = f"step {one.number} (timestep {one.step.timestep:g}) gives {one.clean:.5g}·image and {one.total:.5g}·noise"
                wanted = f"{float(one.target.alpha):.5g}·image and {float(one.target.sigma):.5g}·noise with s_churn={0.3 * count:g}"
                raise Broken(wanted, seen, count=count)


@law(
    "an undone step is back at the level where it began",
    source="RePaint, arXiv:2201.09865, equation 1 and algorithm 1",
    counts=(10, 25),
    rests_on=("runs", "point_mass_preserved"),
)
def undo_step(subject: Subject, counts: Sequence[int]) -> None:
    """`undo_step` must add noise to a sample until it has the level of the timestep at which the loop goes on."""
    alphas = getattr(subject.scheduler, "alphas_cumprod", None)
    if not callable(getattr(subject.scheduler, "undo_step", None)) or alphas is None:
        raise NotApplicable(f"{subject.name} has no undo_step.")
    image, noise = image_and_noise()
    undone = 0
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        timesteps = [int(value) for value in as_values(scheduler.timesteps)]
        for before, after in pairwise(timesteps):
            if after <= before:
                continue
            undone += 1
            # A step from `before` has left the sample at the level of the one below it.
            below = before - (after - before)
            start = float(alphas[below]) if below >= 0 else 1.0
            sample = (math.sqrt(start) * image + math.sqrt(1 - start) * noise).float()
            with calling(f"undo_step(sample, {before})", scheduler):
                got = scheduler.undo_step(sample, torch.tensor(before), torch.Generator().manual_seed(0)).double()
            kept = float((got * image).sum() / image.square().sum())
            spread = float((got - kept * image).square().mean().sqrt())
            wanted = float(alphas[before])
            slack = 5 / math.sqrt(image.numel())
            if abs(kept - math.sqrt(wanted)) > slack or abs(spread - math.sqrt(1 - wanted)) > slack:
                seen = f"undo_step from timestep {before} gives {kept:.3g}·image and {spread:.3g}·noise"
                raise Broken(
                    f"{math.sqrt(wanted):.3g}·image and {math.sqrt(1 - wanted):.3g}·noise, those of timestep {before}", seen, count=count
                )
    if not undone:
        raise NotApplicable(f"{subject.name} undoes no step in its plans.")
