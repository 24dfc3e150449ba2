"""Laws of tensors: any rank, independent images, the sample's dtype, device and layout, and unchanged inputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.calls import Crash
from pytest_diffusion.conformance.laws import Broken, Claims, law
from pytest_diffusion.conformance.noising import noised
from pytest_diffusion.conformance.randomness import Draws
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values
from pytest_diffusion.verdicts.errors import NotApplicable

_OF_RANK = re.compile(loops.OF_RANK, re.IGNORECASE)
_OF_DTYPE = re.compile(r"dtype|float|half|precision", re.IGNORECASE)
_SOURCE = "diffusers' scheduler interface: samples are tensors of any shape, batch first"


@law("samples of rank 2 to 5 are taken", source=_SOURCE, counts=(4,), rests_on=("runs", "noise_is_normal"))
def ranks(subject: Subject, counts: Sequence[int]) -> None:
    """The same numbers in the shape of vectors, audio, images or videos must give the same samples, or be refused by name."""
    subject.require_any_shape()
    claims = Claims()
    for count in subject.deep_counts(*counts):
        image = walking.normal(2, 4, 2, 6)
        expected = _states(subject, count, image)[-1]
        for shape in ((2, 48), (2, 4, 12), (2, 4, 2, 2, 3)):
            with claims.next():
                got = _require_runs(subject, count, image.reshape(shape), f"samples of shape {shape}")[-1]
                _require_close(got.reshape(image.shape), expected, f"the samples of shape {(2, 4, 2, 6)} in shape {shape}", count)
                _require_noised_as(subject, image, shape, count)
    claims.settle()


@law("an image does not depend on its batch", source=_SOURCE, counts=(4,), rests_on=("runs", "noise_is_normal"))
def batch_invariance(subject: Subject, counts: Sequence[int]) -> None:
    """Each image of a batch must equal the image that is sampled alone. No statistic may be computed over the batch."""
    for count in subject.deep_counts(*counts):
        batch = walking.normal(3, 4, 4, 4) * torch.tensor([0.2, 1.0, 4.0]).view(3, 1, 1, 1)
        together = _states(subject, count, batch)[-1]
        for index in range(3):
            alone = _states(subject, count, batch[index : index + 1])[-1]
            _require_close(together[index : index + 1], alone, f"image {index} of a batch of 3 and the same image alone", count)


@law("samples keep the model's dtype", source="diffusers casts the previous sample to the model output's dtype", counts=(4,))
def dtype_kept(subject: Subject, counts: Sequence[int]) -> None:
    """step, scale_model_input and noising must keep the dtype (float16, bfloat16, float32 or float64) and return finite values."""
    claims = Claims()
    loops.require_drivable(subject)
    # Samplers behind adapters are written for float32.
    dtypes = (torch.float32,) if subject.is_adapted else (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for count in subject.deep_counts(*counts):
        for dtype in dtypes:
            if dtype == torch.float16 and float(getattr(subject.planned(count), "init_noise_sigma", 1.0)) > 1e4:
                continue  # the first noise is too large for float16
            sample = walking.normal(2, 4, 4, 4).to(dtype)
            with claims.next():
                _require_steps_in(subject, sample, count)
            with claims.next():
                _require_noised_in(subject, sample, dtype, count)
    claims.settle()


def _require_steps_in(subject: Subject, sample: torch.Tensor, count: int) -> None:
    """Raise Broken unless model inputs and all samples of a loop have the first sample's dtype, and are finite."""
    dtype = sample.dtype
    states = _require_runs(subject, count, sample, f"{dtype} samples")
    if subject.noisy:
        states += _require_runs(subject, count, sample, f"{dtype} samples with eta=1", **subject.noisy)
        _require_rounded_runs(subject, count)
    for index, got in enumerate(states):
        if got.dtype != dtype:
            raise Broken(f"{dtype} samples from {dtype} model outputs", f"step {index % count} gives {got.dtype}", count=count)
        if not bool(torch.isfinite(got).all()):
            raise Broken(f"finite samples in {dtype}", f"step {index} gives {walking.unfit(got)}", count=count)
    scheduler = subject.planned(count)
    scaled = walking.scale(scheduler, sample, as_values(scheduler.timesteps)[0])
    if scaled.dtype != dtype:
        raise Broken(f"{dtype} model inputs from {dtype} samples", f"scale_model_input gives {scaled.dtype}", count=count)


@law("samples stay on their device", source=_SOURCE, counts=(4,), rests_on=("runs", "noise_is_normal"))
def devices(subject: Subject, counts: Sequence[int]) -> None:
    """On an accelerator, a loop must run, keep its samples there, and give the samples of the CPU up to rounding."""
    device = accelerator()
    if device is None:
        raise NotApplicable("there is no accelerator on this machine.")
    arguments = {"device": device} if "device" in inspect.signature(subject.scheduler.set_timesteps).parameters else {}
    for count in subject.deep_counts(*counts):
        sample = walking.normal(2, 4, 4, 4)
        scheduler = subject.planned(count, **arguments)
        try:
            there = loops.states(subject, count, sample.to(device), scheduler=scheduler, replace=torch.zeros_like)[-1]
        except Crash as crash:
            raise Broken(f"a loop that runs on {device}", str(crash), count=count) from crash
        if there.device.type != device.type:
            raise Broken(f"samples on {device}", f"samples on {there.device}", count=count)
        gap = float((there.cpu() - _states(subject, count, sample)[-1]).abs().max())
        if not gap <= 1e-2:
            raise Broken("the samples of the CPU", f"samples on {device} that differ by {gap:.4g}", count=count)


def _require_noised_in(subject: Subject, sample: torch.Tensor, dtype: torch.dtype, count: int) -> None:
    """Raise Broken if noising at either end of the plan changes its image's dtype, or gives other values than in float32.

    diffusers' training scripts depend on the dtype; it is asked of diffusers' classes only.
    """
    if not (methods := _noising_of(subject)):
        raise NotApplicable(f"{subject.name} adds no noise to images.")
    for method in methods:
        for place in (0, -1):
            timesteps = as_values(subject.planned(count).timesteps)[[place]]
            with Draws(torch.zeros_like):  # `forward_process` reports draws, and crashes in float32
                try:
                    exact = noised(subject.planned(count), method, sample.float(), sample.float(), timesteps)
                except Crash as crash:
                    raise NotApplicable(f"{subject.name} dies in {method}: see `forward_process`.") from crash
                try:
                    got = noised(subject.planned(count), method, sample, sample, timesteps)
                except Crash as crash:
                    loops.require_not_refused(subject, crash, f"{dtype} images", _OF_DTYPE)
                    raise Broken(f"{dtype} images to be accepted by {method}", str(crash), count=count) from crash
            if got.dtype != dtype and subject.is_of_diffusers:
                raise Broken(f"{dtype} samples from {dtype} images", f"{method} gives {got.dtype}", count=count)
            if float(exact.abs().max()) > torch.finfo(dtype).max:
                continue
            gap = float((got.double() - exact.double()).abs().max())
            if not gap <= 16 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * max(1.0, float(exact.abs().max())):
                most = float(exact.abs().max())
                seen = f"{method} at timestep {float(timesteps[0]):g} differs by {gap:.4g}, where float32 gives up to {most:.4g}"
                raise Broken(f"the values of float32 from noising in {dtype}, up to rounding", seen, count=count)


def _require_noised_as(subject: Subject, image: torch.Tensor, shape: tuple[int, ...], count: int) -> None:
    """Raise Broken unless noising accepts this shape."""
    clean = image.reshape(shape)
    for method in _noising_of(subject):
        scheduler = subject.planned(count)
        timesteps = as_values(scheduler.timesteps)[-1:]
        try:
            other = noised(scheduler, method, clean, clean, timesteps)
        except Crash as crash:
            loops.require_not_refused(subject, crash, f"images of shape {shape}", _OF_RANK)
            raise Broken(f"images of shape {shape} to be accepted by {method}", str(crash), count=count) from crash
        if other.shape != shape:
            raise Broken(f"noised images of shape {shape}", f"{method} gives {tuple(other.shape)}", count=count)


def _noising_of(subject: Subject) -> list[str]:
    """A list with the name of the method that adds noise; empty if there is none."""
    try:
        return [] if subject.is_inverse else [subject.noising_method()]
    except NotApplicable:
        return []


def accelerator() -> torch.device | None:
    """The machine's accelerator: cuda, else mps."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else None


@law("the layout in memory does not matter", source=_SOURCE, counts=(4,), rests_on=("runs", "noise_is_normal"))
def layout(subject: Subject, counts: Sequence[int]) -> None:
    """Views that are not contiguous (channels last, strided) must give the same samples as contiguous copies."""
    subject.require_any_shape()
    for count in subject.deep_counts(*counts):
        image = walking.normal(2, 4, 6, 4)
        expected = _states(subject, count, image)[-1]
        strided = torch.stack([image, image], dim=-1)[..., 0]
        for name, view in (("channels last", image.to(memory_format=torch.channels_last)), ("strided", strided)):
            got = _require_runs(subject, count, view, f"{name} samples")[-1]
            _require_close(got, expected, f"{name} samples and contiguous ones", count)


@law("inputs are left as they were", source="torch's convention: only names that end in _ change their argument", counts=(4,))
def inputs_untouched(subject: Subject, counts: Sequence[int]) -> None:
    """`step`, `scale_model_input` and noising must not change the sample, the model output or the timesteps that they get."""
    subject.require_any_shape()
    loops.require_drivable(subject)
    for count in subject.deep_counts(*counts):
        kept: list[tuple[str, torch.Tensor, torch.Tensor]] = []

        def predict(
            sample: torch.Tensor, scaled: torch.Tensor, timestep: Any, kept: list[tuple[str, torch.Tensor, torch.Tensor]] = kept
        ) -> torch.Tensor:
            output = 0.8 * torch.tanh(scaled)
            kept += [("the sample", sample, sample.clone()), ("the model output", output, output.clone())]
            return output

        scheduler = subject.planned(count)
        timesteps = as_values(scheduler.timesteps)
        kept.append(("scheduler.timesteps", timesteps, timesteps.clone()))
        first = walking.normal(2, 4, 4, 4) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        scaled_before = first.clone()
        walking.scale(subject.planned(count), first, timesteps[0])
        kept.append(("the sample of scale_model_input", first, scaled_before))
        walking.walk(subject, scheduler, first, predict)
        if subject.noising is not None:
            image, noise = walking.normal(2, 4, 4, 4, seed=1), walking.normal(2, 4, 4, 4, seed=2)
            kept += [("the clean image of noising", image, image.clone()), ("the noise", noise, noise.clone())]
            _noise_once(subject, count, image, noise)
        for what, now, before in kept:
            if not torch.equal(now, before):
                gap = float((now - before).abs().max())
                raise Broken("unchanged inputs", f"{what} has changed by up to {gap:.4g}", count=count)


@law(
    "both ways to return a sample are the same",
    source="diffusers' scheduler interface: return_dict",
    counts=(5,),
    rests_on=("runs", "noise_is_normal"),
)
def return_types(subject: Subject, counts: Sequence[int]) -> None:
    """`step(..., return_dict=False)`, as pipelines call it, must give the same samples as `return_dict=True` in every step."""
    if "return_dict" not in subject.step_parameters:
        raise NotApplicable(f"{subject.name}.step has no return_dict.")
    loops.require_drivable(subject)
    for count in subject.deep_counts(*counts):
        sample = walking.normal(2, 4, 4, 4)
        outputs = loops.states(subject, count, sample, replace=torch.zeros_like, return_dict=True)
        try:
            tuples = loops.states(subject, count, sample, replace=torch.zeros_like, return_dict=False)
        except Crash as crash:
            raise Broken("a loop with return_dict=False that runs", str(crash), count=count) from crash
        for index, (one, other) in enumerate(zip(outputs, tuples, strict=True)):
            _require_close(other, one, f"step {index} with return_dict=False and with True", count)


@law(
    "scaling the input twice is scaling it once",
    source="diffusers' scheduler interface: scale_model_input",
    counts=(5,),
    rests_on=("runs", "noise_is_normal"),
)
def scaling_is_pure(subject: Subject, counts: Sequence[int]) -> None:
    """`scale_model_input` must give the same result for the same sample and timestep, and a second call must not change the run."""
    if not callable(getattr(subject.scheduler, "scale_model_input", None)):
        raise NotApplicable(f"{subject.name} has no scale_model_input.")
    loops.require_drivable(subject)
    for count in subject.deep_counts(*counts):
        scheduler = subject.planned(count)
        first = walking.normal(2, 4, 4, 4) * float(getattr(scheduler, "init_noise_sigma", 1.0))

        def predict(
            sample: torch.Tensor, scaled: torch.Tensor, timestep: Any, scheduler: Any = scheduler, count: int = count
        ) -> torch.Tensor:
            _require_close(walking.scale(scheduler, sample, timestep), scaled, "two calls of scale_model_input", count)
            return walking.smooth(sample, scaled, timestep)

        try:
            twice = walking.walk(subject, scheduler, first, predict, replace=torch.zeros_like)[-1].after
        except Crash as crash:
            raise Broken("a loop that scales its input twice to run", str(crash), count=count) from crash
        once = _states(subject, count, walking.normal(2, 4, 4, 4))[-1]
        _require_close(twice, once, "samples of a loop that scales twice and of one that scales once", count)


def _noise_once(subject: Subject, count: int, image: torch.Tensor, noise: torch.Tensor) -> None:
    scheduler = subject.planned(count)
    try:
        noised(scheduler, str(subject.noising), image, noise, as_values(scheduler.timesteps)[:1].repeat(len(image)))
    except Crash:
        return  # `forward_process` and `forward_is_pure` report this


def _states(subject: Subject, count: int, sample: torch.Tensor) -> list[torch.Tensor]:
    return loops.states(subject, count, sample, replace=torch.zeros_like)


def _require_runs(subject: Subject, count: int, sample: torch.Tensor, what: str, **extras: float) -> list[torch.Tensor]:
    try:
        return loops.states(subject, count, sample, replace=torch.zeros_like, **extras)
    except Crash as crash:
        loops.require_not_refused(subject, crash, what, _OF_RANK)
        raise Broken(f"{what} to be accepted", str(crash), count=count) from crash


def _require_rounded_runs(subject: Subject, count: int) -> None:
    try:
        loops.require_finite_at_any_rounding(subject, count, **subject.noisy)
    except Crash as crash:
        raise Broken("finite samples with eta=1", str(crash), count=count) from crash


def _require_close(got: torch.Tensor, expected: torch.Tensor, what: str, count: int) -> None:
    gap = float((got - expected).abs().max())
    if not gap <= 1e-4 * max(1.0, float(expected.abs().max())):
        raise Broken("the same numbers", f"{what} differ by {gap:.4g}", count=count)
