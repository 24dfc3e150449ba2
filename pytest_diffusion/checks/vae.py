"""Checks of the VAE: round trip, spread of its latents, and that the pipeline decodes as its configuration says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from pytest_diffusion.checks import pictures
from pytest_diffusion.checks.latents import swapped_order
from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.similarity import psnr, ssim
from pytest_diffusion.maths.statistics import mean_error, mean_estimate
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.samples.round_trip import RoundTrip
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement


@check(
    "latent",
    "the VAE reproduces images",
    figure="PSNR of decode(encode(x)) in dB",
    sees="a VAE that loses the image; channels swapped in the decoder, by name",
    blind_to="small details that few pixels hold",
    pictures=pictures.round_trips,
)
def vae_psnr(latents: LatentCodec, reference: Reference, round_trip: RoundTrip | None = None) -> Measurement:
    """Mean peak signal-to-noise ratio of decode(encode(x)) over reference images, in dB."""
    trip = round_trip if round_trip is not None else RoundTrip.of(latents, reference)
    images, decoded = trip.images, trip.decoded
    values = psnr(decoded, images.float() / 255)
    worst = int(values.argmin())
    shown = (decoded * 255).round().to(torch.uint8)
    series = {
        "originals": [pictures.data_uri(image) for image in images[:6]],
        "round_trips": [pictures.data_uri(image) for image in shown[:6]],
    }
    return Measurement.with_error(
        *mean_estimate(values),
        name="round-trip PSNR",
        unit="dB",
        num_samples=len(values),
        series=series,
        hint=f"The worst is {reference.label(worst)} with {float(values[worst]):.1f} dB." + _swapped_in_decoder(latents, trip),
    )


@check(
    "latent",
    "the VAE keeps the structure of images",
    figure="structural similarity of decode(encode(x)) and x",
    sees="edges and textures that are no longer preserved",
    blind_to="colours",
)
def vae_ssim(latents: LatentCodec, reference: Reference, round_trip: RoundTrip | None = None) -> Measurement:
    """Mean structural similarity of decode(encode(x)) and x over reference images; 1 is the same."""
    trip = round_trip if round_trip is not None else RoundTrip.of(latents, reference)
    values = ssim(trip.decoded, trip.images.float() / 255)
    worst = int(values.argmin())
    return Measurement.with_error(
        *mean_estimate(values),
        name="round-trip SSIM",
        num_samples=len(values),
        hint=f"The worst is {reference.label(worst)} with {float(values[worst]):.2f}.",
    )


@check(
    "latent",
    "scaled latents have unit spread",
    figure="standard deviation of scaled latents",
    sees="a missing, doubled or wrong scaling factor, by name",
    blind_to="a factor that the denoiser was trained with, though the spread is not 1",
)
def latent_std(latents: LatentCodec, reference: Reference, round_trip: RoundTrip | None = None) -> Measurement:
    """Standard deviation of scaled latents of reference images; the denoiser was trained at about 1."""
    trip = round_trip if round_trip is not None else RoundTrip.of(latents, reference)
    images, encoded = trip.images, trip.latents
    value = float(encoded.std())
    raw = value / latents.scaling_factor
    # A factor f brings raw latents to 1. Without it their spread is 1/f, and applied twice it is f.
    ideal = 1 / raw if raw > 0 else math.inf
    hint = f"A scaling factor of {ideal:.4g} would bring it to 1; the configuration says {latents.scaling_factor:.4g}."
    if latents.scaling_factor == 1 and not 0.7 < raw < 1.4:
        hint += " It looks as if the VAE's scaling factor is missing."
    elif abs(math.log(value / ideal)) < 0.25 and not 0.7 < value < 1.4:
        hint += " It looks as if the VAE's scaling factor was applied twice."
    elif not 0.7 < value < 1.4:
        hint += " The VAE's scaling factor is wrong."
    if not 0.7 < value < 1.4 and value > 0:
        # Images of a denoiser whose latents have unit spread: too small a factor saturates them, too large a one makes them flat.
        contrast = float(latents.decode(encoded[:16] / value).std()), float((images[:16].float() / 255).std())
        hint += f" Latents of unit spread decode to a contrast of {contrast[0]:.2f}; the references have {contrast[1]:.2f}."
    per_sample = encoded.flatten(1).std(1)
    return Measurement.with_error(
        value, mean_error(per_sample), len(per_sample) - 1, name="standard deviation of scaled latents", num_samples=len(encoded), hint=hint
    )


@check(
    "latent",
    "the pipeline decodes its latents as the VAE's configuration says",
    figure="difference between the pipeline's images and its latents decoded by the VAE's configuration",
    sees="a pipeline that forgets or doubles factor or shift, or swaps channels, by name",
    blind_to="a configuration that is wrong itself",
)
def pipeline_decodes(trials: Trials, latents: LatentCodec) -> Measurement:
    """Mean difference in 8-bit levels between the pipeline's images and its final latents decoded by factor and shift."""
    final, images = trials.latents(), trials.plain.float() / 255
    decoded = latents.decode(final)
    if decoded.shape != images.shape:
        # PixArt draws at the nearest size that it was trained on, and shrinks the images alone.
        sizes = [f"{one.shape[-1]}x{one.shape[-2]}" for one in (decoded, images)]
        raise NotApplicable(f"its latents decode to {sizes[0]}, and the pipeline resized the images to {sizes[1]}.")
    difference = _levels(decoded, images)
    hint = ""
    if difference > 0:
        shown = slice(0, 1)
        causes = {name: _levels(codec.decode(order(final[shown])), images[shown]) for name, codec, order in _misreadings(latents, final)}
        best = min(causes, key=lambda name: causes[name])
        hint = "No factor, shift or order of channels explains it."
        if causes[best] < difference / 4:
            hint = f"The pipeline decodes as if {best} (then the difference is {causes[best]:.2g})."
    return Measurement(difference, "mean difference between pipeline and configuration", "levels", num_samples=len(final), hint=hint)


def _levels(images: torch.Tensor, others: torch.Tensor) -> float:
    """Mean difference of images in [0, 1], both rounded to 8 bits, in levels."""
    return float(((images * 255).round() - (others * 255).round()).abs().mean())


def _misreadings(codec: LatentCodec, final: torch.Tensor) -> list[tuple[str, LatentCodec, Callable[[torch.Tensor], torch.Tensor]]]:
    """What a pipeline may do wrong with its latents: a name, the codec that does it, and the order of channels."""

    def same(values: torch.Tensor) -> torch.Tensor:
        return values

    factor, shift = codec.scaling_factor, codec.shift
    found: list[tuple[str, LatentCodec, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("the scaling factor were missing", replace(codec, scaling_factor=1.0), same),
        ("the scaling factor were applied twice", replace(codec, scaling_factor=factor**2), same),
        ("the shift were ignored", replace(codec, shift=torch.zeros_like(shift)), same),
        ("the shift were applied twice", replace(codec, shift=2 * shift), same),
        ("the spread of each channel were ignored", replace(codec, spread=torch.ones_like(codec.spread)), same),
    ]
    for one, other in itertools.combinations(range(final.shape[1]), 2):
        found.append((f"channels {one} and {other} were swapped", codec, _swapper(final.shape[1], one, other)))
    return found


def _swapper(count: int, one: int, other: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda values: values[:, swapped_order(count, one, other)]


def _swapped_in_decoder(codec: LatentCodec, trip: RoundTrip) -> str:
    """Two channels that the decoder confuses, if swapping them reproduces the images."""
    few, target = trip.latents[:4], trip.images[:4].float() / 255
    own = float(psnr(codec.decode(few), target).mean())
    if own > 20:
        return ""
    pairs = list(itertools.combinations(range(few.shape[1]), 2))
    gains = {pair: float(psnr(codec.decode(few[:, swapped_order(few.shape[1], *pair)]), target).mean()) - own for pair in pairs}
    best = max(gains, key=lambda pair: gains[pair], default=None)
    if best is None or gains[best] < 3:
        return ""
    return f" With channels {best[0]} and {best[1]} swapped it is {gains[best]:.1f} dB better: latent channels look permuted."
