"""Laws of randomness: a scheduler uses the given generator, and draws no noise that it does not need."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import NotApplicable

_SOURCE = "diffusers' reproducibility guide: results follow from the generators"
_SHAPE = (2, 4, 4, 4)
_NOISES = (torch.zeros_like, torch.ones_like)


@law("noise comes from the generator that is given", source=_SOURCE, counts=(5,))
def generator_honoured(subject: Subject, counts: Sequence[int]) -> None:
    """The same seed must give the same samples, and another seed other samples. torch's global generator must not be used."""
    for count in subject.counts(*counts):
        if not _draws(subject, count):
            raise NotApplicable(f"{subject.name} draws no noise.")
        if subject.is_adapted and not subject.scheduler.adapter.takes_generator:
            raise NotApplicable(f"{subject.name} takes no generator, as its interface has none.")
        if "generator" not in subject.step_parameters:
            if any("seed" in name for name in subject.config):
                raise NotApplicable(f"{subject.name} is seeded by its configuration.")
            raise Broken("a parameter `generator` of step", "noise is drawn, and no seed can be given", count=count)
        states = torch.get_rng_state()
        runs = [_run(subject, count, seed) for seed in (1, 1, 2)]
        if not torch.equal(states, torch.get_rng_state()):
            torch.set_rng_state(states)
            raise Broken("torch's global generator to stay unchanged", "it changes although a generator is given", count=count)
        if not torch.equal(runs[0], runs[1]):
            raise Broken("the same samples from the same seed", f"they differ by {float((runs[0] - runs[1]).abs().max()):.4g}", count=count)
        if torch.equal(runs[0], runs[2]):
            if torch.equal(*_with_given_draws(subject, count, **subject.noisy)):
                raise NotApplicable(f"{subject.name} draws noise, and adds none of it in {count} steps: see `deterministic_draws_nothing`.")
            raise Broken("other samples from another seed", "they are the same: the generator is not used", count=count)


@law(
    "a list of generators gives each image its own",
    source=_SOURCE,
    counts=(5,),
    rests_on=("runs", "generator_honoured", "batch_invariance"),
)
def generator_list(subject: Subject, counts: Sequence[int]) -> None:
    """With one generator for each image, each image of a batch must equal the one that its generator gives alone."""
    for count in subject.counts(*counts):
        is_deaf = subject.is_adapted and not subject.scheduler.adapter.takes_generator
        told = str(subject.step_parameters["generator"].annotation) if "generator" in subject.step_parameters else ""
        if "Generator" in told and not re.search("list|sequence", told, re.IGNORECASE) and not subject.is_of_diffusers:
            raise NotApplicable(f"{subject.name}.step takes one generator, as its annotation says.")
        if is_deaf or not _draws(subject, count) or "generator" not in subject.step_parameters:
            raise NotApplicable(f"{subject.name} takes no generator, or draws nothing from it.")
        sample = walking.normal(*_SHAPE)
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        try:
            together = loops.states(subject, count, sample, generator=generators, **subject.noisy)[-1]
        except Crash as crash:
            raise Broken("a list of generators to be accepted", str(crash), count=count) from crash
        for index, seed in enumerate((1, 2)):
            own = [torch.Generator().manual_seed(seed)]
            alone = loops.states(subject, count, sample[index : index + 1], generator=own, **subject.noisy)[-1]
            gap = float((together[index : index + 1] - alone).abs().max())
            if not gap <= 1e-5 * max(1.0, float(alone.abs().max())):
                seen = f"image {index} of the batch differs by {gap:.4g} from the one that its generator gives alone"
                raise Broken("each image to depend only on its own generator", seen, count=count)


@law("a deterministic step draws nothing", source=_SOURCE, counts=(5,))
def deterministic_draws_nothing(subject: Subject, counts: Sequence[int]) -> None:
    """If the samples do not depend on noise, no noise must be drawn, because each draw changes all later draws of the generator."""
    loops.require_drivable(subject)
    for count in subject.counts(*counts):
        scheduler = subject.planned(count)
        sample = walking.normal(*_SHAPE) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        visits = walking.walk(subject, scheduler, sample, walking.smooth, generator=torch.Generator().manual_seed(1))
        drawn = [index for index, visit in enumerate(visits) if visit.draws]
        if drawn and torch.equal(*_with_given_draws(subject, count)):
            operator = visits[drawn[0]].draws[0].operator
            raise Broken(
                "no draw where no noise is added",
                f"step {drawn[0]} draws by torch's {operator}, and the samples do not depend on it",
                count=count,
            )


@law(
    "noise that is given is the noise that is added",
    source="diffusers' scheduler interface: step(variance_noise=...)",
    counts=(5,),
    rests_on=("runs", "generator_honoured", "noise_is_normal"),
)
def given_noise(subject: Subject, counts: Sequence[int]) -> None:
    """`variance_noise` must replace the noise of a stochastic step: the same values give the same samples, and nothing is drawn."""
    if "variance_noise" not in subject.step_parameters:
        raise NotApplicable(f"{subject.name}.step takes no variance_noise.")
    sample, noise = walking.normal(*_SHAPE), walking.normal(*_SHAPE, seed=7)
    for count in subject.counts(*counts):
        if not _draws(subject, count):
            raise NotApplicable(f"{subject.name} draws no noise.")
        drawn = loops.states(subject, count, sample, replace=lambda values: noise, **subject.noisy)[-1]
        scheduler = subject.planned(count)
        first = sample * float(getattr(scheduler, "init_noise_sigma", 1.0))
        visits = walking.walk(subject, scheduler, first, walking.smooth, variance_noise=noise, **subject.noisy)
        if any(visit.draws for visit in visits):
            raise Broken("no draw if noise is given", f"a draw by torch's {visits[0].draws[0].operator}", count=count)
        gap = float((visits[-1].after - drawn).abs().max())
        if not gap <= 1e-5 * max(1.0, float(drawn.abs().max())):
            raise Broken("the samples that result from drawing this noise", f"samples that differ by {gap:.4g}", count=count)


def _with_given_draws(subject: Subject, count: int, **extras: Any) -> list[torch.Tensor]:
    """All samples of a loop whose draws are zeros, and of one whose draws are ones."""
    return [torch.stack(loops.states(subject, count, walking.normal(*_SHAPE), replace=values, **extras)) for values in _NOISES]


def _run(subject: Subject, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(loops.states(subject, count, walking.normal(*_SHAPE), generator=generator, **subject.noisy))


def _draws(subject: Subject, count: int) -> bool:
    loops.require_drivable(subject)
    scheduler = subject.planned(count)
    sample = walking.normal(*_SHAPE) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    return any(visit.draws for visit in walking.walk(subject, scheduler, sample, walking.smooth, **subject.noisy))
