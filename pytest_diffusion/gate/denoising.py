"""Losses of both models on the same images, look by look, before any image is drawn: of denoising, and of the VAE's round trip."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.figures import relative_loss
from pytest_diffusion.gate.floor import TWIN_IMAGES, TWINS, Losses
from pytest_diffusion.gate.hybrids import Blame
from pytest_diffusion.gate.looks import Decided, Look, Rules
from pytest_diffusion.gate.slices import SliceFound, Slicing
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.models.denoising import band_timesteps, denoising_losses, timesteps_at
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.levels import level_of_timestep, prediction_type_of
from pytest_diffusion.samples.generate import shared_batch_size
from pytest_diffusion.verdicts.errors import SetupError

_AT_ONCE = 64


@dataclass(frozen=True)
class NoisedImages:
    """Images uint8 (N, 3, H, W) that are noised alike for both models, with their captions, timesteps and units."""

    images: torch.Tensor
    prompts: list[str] | None
    timesteps: list[float]
    prediction_type: str
    """The baseline's: losses of both models are in its units."""
    log_snr: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, images: torch.Tensor, prompts: list[str] | None, scheduler: Any) -> NoisedImages:
        """Images at the noise levels of a scheduler. Raises NotApplicable where those are not known."""
        timesteps = band_timesteps(scheduler)
        levels = [level_of_timestep(scheduler, timestep) for timestep in timesteps]
        snr = [2 * float((level.alpha / level.sigma).log()) for level in levels]
        return cls(images, prompts, timesteps, prediction_type_of(scheduler), snr)

    def losses_of(self, pipeline: Any, settings: Settings) -> Losses:
        """The losses of a pipeline, computed in batches when they are asked for, and kept."""
        known: list[torch.Tensor] = []
        timesteps = timesteps_at(pipeline.scheduler, self.log_snr)
        texts = self.prompts if self.prompts is not None else [""] * len(self.images)

        def losses(count: int) -> torch.Tensor:
            seen = sum(map(len, known))
            if count > seen:

                def part(rows: slice) -> torch.Tensor:
                    chosen = slice(seen + rows.start, seen + rows.stop)
                    own = list(range(settings.seed + chosen.start, settings.seed + chosen.stop))
                    return denoising_losses(
                        pipeline,
                        self.images[chosen],
                        texts[chosen],
                        own,
                        settings,
                        timesteps=timesteps,
                        prediction_type=self.prediction_type,
                    )

                known.extend(shared_batch_size(settings, pipeline).parts(count - seen, part))
            return torch.cat(known)[:count]

        return losses


@dataclass(frozen=True)
class LossRun:
    """What losses on the same images showed: the decision, and the losses (N, T) of both models."""

    figure: str
    decided: Decided
    candidate: torch.Tensor
    baseline: torch.Tensor
    log_snr: list[float]
    """Of each column, where the columns are noise levels; else empty."""
    planned: int
    """Images that the run might have used."""
    evaluations: int
    """Denoiser evaluations of both models and of the twins, one for each image and timestep."""
    blame: Blame | None = None
    """The parts from which it comes, where it is worse."""
    slices: list[SliceFound] | None = None
    """The loss by slice of the captions, where that was asked for."""

    @property
    def bands(self) -> list[tuple[float, float, float]]:
        """By band, from the least noise to the most: log-SNR, and the change of the mean loss in per cent with its standard error."""
        change = 100 * (self.candidate - self.baseline) / self.baseline.mean(0)
        errors = change.std(0) / len(change) ** 0.5
        columns = zip(self.log_snr, change.mean(0).tolist(), errors.tolist(), strict=True) if self.log_snr else ()
        return list(columns)


def run_losses(
    figure: str,
    candidate: Losses,
    baseline: Losses,
    rules: Rules,
    *,
    count: int,
    log_snr: Sequence[float] = (),
    clusters: Sequence[Hashable] | None = None,
    floor: Callable[[], float] | None = None,
    slicing: Slicing | None = None,
    say: Callable[[str], object] = print,
) -> LossRun:
    """Look after each planned number of images, at most `count`, until the figure is decided.

    `floor` gives the noise floor in per cent. It costs evaluations, so it is asked for when something was decided that it could undo.
    """
    assert isinstance(rules.plan, Plan)
    looks = rules.plan.looks(count)
    history: list[Look] = []
    slices: list[SliceFound] | None = None
    for images in looks:
        ours, theirs = candidate(images), baseline(images)
        if not bool(theirs.isfinite().all()):
            raise SetupError(f"--diffusion-baseline: the baseline's own {figure} is not finite; nothing can be compared with it.")
        if not bool(ours.isfinite().all()):
            broken = int((~ours.isfinite().all(1)).sum())
            look = Look(images, Estimate(math.inf, 0.0, max(1, images - 1)), math.inf, 100.0, 0.0)
            reason = f"predictions of the candidate for {broken} of {images} images are not finite"
            decided = {figure: Decided("worse", look, (math.inf, math.inf), 0.0, 0.0, reason=reason)}
            break
        own = list(clusters[:images]) if clusters is not None else None
        history.append(relative_loss(ours, theirs, own))
        decided = rules.decide({figure: history})
        if slicing is not None:
            scale = theirs.mean(0)
            slices = slicing.decide({figure: (100 * (ours / scale).mean(1), 100 * (theirs / scale).mean(1))}, looks[: len(history)])
        is_sliced = slicing is None or slices is None or slicing.is_over(slices)
        if not (rules.is_over(decided) and is_sliced) and images < looks[-1]:
            say(f"{figure}: not decided after {images} images")
            continue
        if floor is not None and not rules.floors:
            rules = replace(rules, floors={figure: floor()})
            decided = rules.decide({figure: history})
        if rules.is_over(decided) and is_sliced:
            break
    twins = len(TWINS) * min(TWIN_IMAGES, images) if floor is not None else 0
    spent = (2 * images + twins) * len(log_snr)
    return LossRun(figure, decided[figure], ours, theirs, list(log_snr), looks[-1], spent, slices=slices)


def reconstruction_losses(pipeline: Any, images: torch.Tensor) -> Losses:
    """Mean squared error of the VAE's round trip, (count, 1), float64, of the first `count` images, uint8 (N, 3, H, W)."""
    codec = LatentCodec.of(pipeline)
    known: list[torch.Tensor] = []

    def losses(count: int) -> torch.Tensor:
        seen = sum(map(len, known))
        for start in range(seen, count, _AT_ONCE):
            batch = images[start : min(start + _AT_ONCE, count)]
            error = codec.decode(codec.encode(batch)) - batch.float() / 255
            known.append(error.double().square().flatten(1).mean(1, keepdim=True))
        return torch.cat(known)[:count]

    return losses
