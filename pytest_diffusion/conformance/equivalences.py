"""Laws that compare configurations: prediction types, thresholding and clipping, and zero terminal SNR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.arrivals import arrivals, cleanest_level
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.gaussian import posterior_mean
from pytest_diffusion.conformance.laws import Broken, Claims, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.levels import PREDICTION_TYPES, Kind, NoiseLevel
from pytest_diffusion.models.schedulers import as_values, config_value, evaluations_per_step
from pytest_diffusion.verdicts.errors import NotApplicable

_SHAPE = (2, 4, 4, 3)
_TYPES: dict[Kind, tuple[str, ...]] = {
    "vp": PREDICTION_TYPES[:3],
    "sigma": PREDICTION_TYPES[:3],
    # EDM preconditions the model's output. A flow has another velocity, and its noise does not determine the image at σ = 1.
    "edm": ("epsilon", "v_prediction"),
    "flow": ("flow_prediction", "sample"),
}


@law(
    "every prediction type gives the same samples",
    source="Progressive Distillation, arXiv:2202.00512, section 4 and appendix D",
    counts=(5, 20),
)
def prediction_types_agree(subject: Subject, counts: Sequence[int]) -> None:
    """Predictions of noise, clean image and velocity can be converted into each other.

    The samples must therefore be the same up to rounding for all of them.
    """
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} is an inverse scheduler: its timesteps do not give the noise level of its samples.")
    if config_value(subject.scheduler, "timestep_type") == "continuous":
        raise NotApplicable(f"{subject.name} gives the model ln(σ)/4 as its timestep, which works for one prediction type only.")
    _trajectory(subject, subject.some_count)
    others = [(subject.prediction_type, subject)] if subject.prediction_type in _TYPES[subject.kind] else []
    for name in _TYPES[subject.kind]:
        if name == subject.prediction_type:
            continue
        try:
            other = subject.with_config(prediction_type=name)
            if other.kind == subject.kind:
                _trajectory(other, subject.some_count)
                others.append((name, other))
        except NotApplicable:
            continue
        except Crash as crash:
            if isinstance(crash.error, ValueError | NotImplementedError):
                continue  # the error says that this type is not supported
            if isinstance(crash.error, FloatingPointError) and name == "epsilon":
                continue  # at zero SNR the noise does not determine the image
            raise Broken(
                f"prediction_type={name!r} to be accepted, or refused by a ValueError", str(crash), count=subject.some_count
            ) from crash
    if len(others) < 2:
        raise NotApplicable(f"{subject.name} takes one prediction type only.")
    for count in subject.counts(*counts):
        runs = [(name, _trajectory(other, count)) for name, other in others]
        if evaluations_per_step(subject.scheduler) > 1 and float(runs[0][1].steps[0].level.sigma) > 1e3:
            raise NotApplicable("in float32, a second evaluation after σ > 1,000 is only rounding error.")
        if float(runs[0][1].steps[0].level.alpha) < 1e-6:
            # The noise does not determine the image there.
            runs = [(name, found) for name, found in runs if name != "epsilon"]
        (first, reference), *rest = runs
        for name, found in rest:
            for index, (one, another) in enumerate(zip(reference.steps, found.steps, strict=True)):
                level = reference.levels[index + 1]
                scale = max(float(level.alpha), float(level.sigma))
                gap = float((one.after - another.after).double().abs().max())
                noisiest = float(reference.steps[0].level.sigma / reference.steps[0].level.alpha.clamp(min=1e-30))
                if not gap <= 5e-3 * scale + 2.0**-20 * min(noisiest, 1e4):
                    seen = f"after step {index} (timestep {one.timestep:g}) samples from {name} and {first} differ by {gap:.4g}"
                    raise Broken("the same samples from equivalent predictions", seen, count=count)


@law(
    "clipping and thresholding have their closed form",
    source="Imagen, arXiv:2205.11487, section 2.3",
    rests_on=("runs", "terminal_step"),
)
def thresholding(subject: Subject, counts: Sequence[int]) -> None:
    """`thresholding` clamps x̂₀ of each image to ±s and divides by s; `clip_sample` clamps to ±`clip_sample_range`.

    s is a quantile of |x̂₀| of the image, limited to the range from 1 to `sample_max_value`.
    """
    del counts
    if subject.is_inverse:
        raise NotApplicable(f"{subject.name} goes from clean to noisy, and does not clip the image.")
    tried: list[dict[str, Any]] = []
    claims = Claims()
    choices: tuple[dict[str, Any], ...] = (
        {"thresholding": True, "sample_max_value": 3.0},
        {"thresholding": True, "sample_max_value": 1.0},
        {"clip_sample": True},
    )
    for changes in choices:
        # A quantile is of all elements, which a declared shape repeats.
        if next(iter(changes)) not in subject.config or (subject.shape is not None and "thresholding" in changes):
            continue
        try:
            own = {"thresholding": False} if "clip_sample" in changes and "thresholding" in subject.config else {}
            other = subject.with_config(**changes, **own)
        except NotApplicable:
            continue
        with claims.next():
            looked = _require_bounded(other, changes)
            tried += [changes] if looked else []
    claims.settle()
    if not tried:
        raise NotApplicable(f"{subject.name} has neither thresholding nor clip_sample, or does not end at the image.")


@law(
    "the clipped image may also decide the direction",
    source="DDIM, arXiv:2010.02502, equation 12; GLIDE, arXiv:2112.10741 (use_clipped_model_output)",
    counts=(5,),
    rests_on=("runs", "thresholding"),
)
def clipped_output(subject: Subject, counts: Sequence[int]) -> None:
    """With `use_clipped_model_output`, the noise of the next state must be the one that leads to the clipped image.

    Without it, that noise is the model's own, whatever the image was clipped to.
    """
    if "use_clipped_model_output" not in subject.step_parameters or "clip_sample" not in subject.config:
        raise NotApplicable(f"{subject.name}.step takes no use_clipped_model_output.")
    other = subject.with_config(clip_sample=True, **({"thresholding": False} if "thresholding" in subject.config else {}))
    bound = float(config_value(other.scheduler, "clip_sample_range") or 1.0)
    image, noise = 2 * walking.normal(2, 4, 8, 8, dtype=torch.float64), walking.normal(2, 4, 8, 8, seed=1, dtype=torch.float64)
    clipped = image.clamp(-bound, bound)
    for count in other.counts(*counts):
        for uses_clipped in (False, True):
            found = loops.run(
                other,
                count,
                lambda sample, level: image,
                lambda level: (level.alpha * image + level.sigma * noise).float(),
                replace=torch.zeros_like,
                use_clipped_model_output=uses_clipped,
            )
            step, target = found.steps[0], found.levels[1]
            own = (step.before.double() - step.level.alpha * (clipped if uses_clipped else image)) / step.level.sigma
            gap = float((step.after.double() - target.alpha * clipped - target.sigma * own).abs().max())
            if not gap <= 2e-3 * max(1.0, float(step.after.abs().max())):
                seen = f"a step whose result differs from it by {gap:.4g}"
                raise Broken(
                    f"the noise of the {'clipped' if uses_clipped else 'unclipped'} image with use_clipped_model_output={uses_clipped}",
                    seen,
                    count=count,
                )


@law(
    "zero terminal SNR is finite and lands on the image",
    source="Common Diffusion Noise Schedules, arXiv:2305.08891, algorithm 1",
    counts=(2, 5, 20),
    rests_on=("runs", "named_betas", "point_mass_preserved", "terminal_step", "prediction_types_agree"),
)
def zero_terminal_snr(subject: Subject, counts: Sequence[int]) -> None:
    """With `rescale_betas_zero_snr`, the first state is pure noise.

    With velocity or image predictions, sampling must reach the image from there without a division by zero.
    """
    if "rescale_betas_zero_snr" not in subject.config:
        raise NotApplicable(f"{subject.name} has no rescale_betas_zero_snr.")
    if subject.kind == "flow":
        raise NotApplicable(f"{subject.name} uses σ from 0 to 1, so it always starts at zero SNR.")
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    predictions = [name for name in ("v_prediction", "sample") if _takes(subject, name)]
    if not predictions:
        raise NotApplicable(f"{subject.name} predicts only noise, which does not determine the image at zero SNR.")
    known = {key: value for key, value in changes.items() if key in subject.config}
    other = subject.with_config(**known, prediction_type=predictions[0])
    last = getattr(other.planned(other.some_count), "alphas_cumprod", None)
    if last is not None and not float(last[-1]) < 1e-6:
        raise Broken("ᾱ of 0 (or nearly so) at the last timestep", f"rescale_betas_zero_snr leaves {float(last[-1]):.4g}")
    if last is not None:
        _require_rescaled(last, subject.with_config(rescale_betas_zero_snr=False))
    for count in other.counts(*counts):
        try:
            parts = arrivals(other, count)
        except Crash as crash:
            raise Broken("a loop from zero SNR without an error", str(crash), count=count) from crash
        end = parts[-1]
        if not bool(torch.isfinite(end.step.after).all()) or not abs(end.clean - float(end.target.alpha)) < 0.01:
            seen = f"{end.clean:.4g}·image after the last step"
            raise Broken(f"{float(end.target.alpha):.4g}·image", seen, count=count)


def _require_rescaled(products: torch.Tensor, plain: Subject) -> None:
    """Raise Broken unless √ᾱ is shifted to 0 at its end, and scaled so that its first value does not change."""
    roots, own = (as_values(one).double().sqrt() for one in (plain.planned(plain.some_count).alphas_cumprod, products))
    wanted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    gap = (own - wanted).abs() if own.shape == wanted.shape else torch.full((1,), torch.inf)
    place = int(gap.argmax())
    if not float(gap[place]) < 2e-3:
        raise Broken(f"√ᾱ of {float(wanted[place]):.5g} at timestep {place} of the rescaled schedule", f"{float(own[place]):.5g}")


def _trajectory(subject: Subject, count: int) -> loops.Run:
    noise = walking.normal(*_SHAPE, dtype=torch.float64)

    def start(level: NoiseLevel) -> torch.Tensor:
        return (level.alpha * 0.2 + level.sigma * noise).float()

    def denoiser(sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return posterior_mean(sample, level).clamp(-0.9, 0.9)

    return loops.run(subject, count, denoiser, start, replace=torch.zeros_like)


def _takes(subject: Subject, prediction_type: str) -> bool:
    try:
        _trajectory(subject.with_config(prediction_type=prediction_type), subject.some_count)
    except (Crash, NotApplicable):
        return False
    return True


def _require_bounded(subject: Subject, changes: dict[str, Any]) -> bool:
    """Whether the bound could be tested on a known, large x̂₀. Raises Broken if the last step does not return the bounded x̂₀."""
    image = walking.normal(2, 4, 8, 8, dtype=torch.float64) * torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    count = subject.counts(1, 2, 4, subject.some_count)[0]
    found = loops.run(
        subject,
        count,
        lambda sample, level: image,
        lambda level: (level.alpha * image + level.sigma * 0.3).float(),
        replace=torch.zeros_like,
        mask=torch.zeros(image.shape),
    )
    end = found.steps[-1]
    if float(found.end.sigma) > 0.05 or end.after.shape != image.shape:
        return False
    if "thresholding" in changes:
        ratio, most = (
            float(config_value(subject.scheduler, "dynamic_thresholding_ratio")),
            float(config_value(subject.scheduler, "sample_max_value")),
        )
        limits = image.flatten(1).abs().quantile(ratio, dim=1).clamp(1, most).view(-1, 1, 1, 1)
        expected = image.clamp(-limits, limits) / limits
        text = f"x̂₀ clamped to ±s and divided by s = {', '.join(f'{float(value):.3g}' for value in limits.flatten())}"
    else:
        bound = float(config_value(subject.scheduler, "clip_sample_range") or 1.0)
        expected, text = image.clamp(-bound, bound), f"x̂₀ clamped to ±{bound:g}"
    # If the last noise level is above zero, some noise remains in the state. The bound does not apply to it.
    wanted = float(found.end.alpha) * expected
    # An end that nothing declares is measured on an image within all bounds.
    is_declared = cleanest_level(subject, subject.planned(count)) is None
    ends_at = float(found.end.sigma) if is_declared else arrivals(subject, count)[-1].total
    slack = 2e-3 + 3 * ends_at * (1 + float(image.abs().max()) / max(float(end.level.sigma), 1e-6) * float(end.level.alpha))
    gap = float((end.after.double() - wanted).abs().max())
    if not gap <= slack:
        largest = float(end.after.abs().max()) if math.isfinite(gap) else math.nan
        shown = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        raise Broken(f"{text} with {shown}", f"samples up to {largest:.4g} that differ from it by {gap:.4g}", count=count)
    return True
