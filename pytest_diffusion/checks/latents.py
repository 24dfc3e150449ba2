"""Checks of the latent space: round trip, scale, shift and channels, and that pipeline and denoiser agree on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pytest_diffusion.checks.registry import check
from pytest_diffusion.checks.thumbnails import data_uri
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.similarity import psnr, ssim
from pytest_diffusion.maths.statistics import jackknife, mean_error
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

ROUND_TRIP_IMAGES = 200
FACTORS = [2 ** (index / 4) for index in range(-16, 17)]
OFFSET = 0.1
ALIKE = 0.1
"""Share of the error; what changes less by trading two channels may be chance."""


@check("latent", "the VAE gives images back")
def vae_psnr(latents: Any, reference: Reference) -> Measurement:
    """Mean peak signal-to-noise ratio of decode(encode(x)) over reference images, in dB."""
    images = reference.require_images()[:ROUND_TRIP_IMAGES]
    encoded = latents.encode(images)
    decoded = latents.decode(encoded)
    values = psnr(decoded, images.float() / 255)
    worst = int(values.argmin())
    shown = (decoded * 255).round().to(torch.uint8)
    series = {"originals": [data_uri(image) for image in images[:6]], "round_trips": [data_uri(image) for image in shown[:6]]}
    return Measurement.with_error(
        float(values.mean()),
        mean_error(values),
        name="round-trip PSNR",
        unit="dB",
        num_samples=len(values),
        series=series,
        hint=f"The worst is {reference.label(worst)} with {float(values[worst]):.1f} dB." + _swapped_in_decoder(latents, encoded, images),
    )


@check("latent", "the VAE keeps the structure of images")
def vae_ssim(latents: Any, reference: Reference) -> Measurement:
    """Mean structural similarity of decode(encode(x)) and x over reference images; 1 is the same."""
    images = reference.require_images()[:ROUND_TRIP_IMAGES]
    values = ssim(latents.decode(latents.encode(images)), images.float() / 255)
    worst = int(values.argmin())
    return Measurement.with_error(
        float(values.mean()),
        mean_error(values),
        name="round-trip SSIM",
        num_samples=len(values),
        hint=f"The worst is {reference.label(worst)} with {float(values[worst]):.2f}.",
    )


@check("latent", "scaled latents have unit spread")
def latent_std(latents: Any, reference: Reference) -> Measurement:
    """Standard deviation of scaled latents of reference images; the denoiser was trained at about 1."""
    images = reference.require_images()[:ROUND_TRIP_IMAGES]
    encoded = latents.encode(images)
    value = float(encoded.std())
    raw = value / latents.scaling_factor
    # A factor f brings raw latents to 1; missing it leaves 1/f, applying it twice leaves f.
    ideal = 1 / raw if raw > 0 else math.inf
    hint = f"A scaling factor of {ideal:.4g} would bring it to 1; the configuration says {latents.scaling_factor:.4g}."
    if latents.scaling_factor == 1 and not 0.7 < raw < 1.4:
        hint += " It looks as if the VAE's scaling factor is missing."
    elif abs(math.log(value / ideal)) < 0.25 and not 0.7 < value < 1.4:
        hint += " It looks as if the VAE's scaling factor was applied twice."
    elif not 0.7 < value < 1.4:
        hint += " The VAE's scaling factor is wrong."
    if not 0.7 < value < 1.4 and value > 0:
        # What a denoiser that makes latents of unit spread would give: too small a factor saturates, too large a one is flat.
        contrast = float(latents.decode(encoded[:16] / value).std()), float((images[:16].float() / 255).std())
        hint += f" Latents of unit spread decode to a contrast of {contrast[0]:.2f}; the references have {contrast[1]:.2f}."
    per_sample = encoded.flatten(1).std(1)
    return Measurement.with_error(
        value, mean_error(per_sample), name="standard deviation of scaled latents", num_samples=len(encoded), hint=hint
    )


@check("latent", "the pipeline decodes its latents as the VAE's configuration says")
def pipeline_decodes(trials: Any, latents: Any) -> Measurement:
    """Mean difference in 8-bit levels between the pipeline's images and its final latents decoded by factor and shift."""
    final, images = trials.latents(), trials.plain.float() / 255
    decoded = latents.decode(final)
    if decoded.shape != images.shape:
        # PixArt draws at the nearest size that it was trained on, and shrinks the images alone.
        sizes = [f"{one.shape[-1]}x{one.shape[-2]}" for one in (decoded, images)]
        raise NotApplicable(f"its latents are of images of {sizes[0]}, and the pipeline resized them to {sizes[1]}.")
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


@check("latent", "the denoiser expects latents of the scale that the encoder gives")
def latent_scale(latent_fit: Any) -> Measurement:
    """The factor on encoded references at which predictions are as long as their share of the truth; 1 is right.

    A denoiser that predicts the mean of what a noisy picture may show is never off at the scale of its training: the error
    is at right angles to the prediction. Smaller latents it takes for stronger ones, larger ones for weaker ones.
    """
    scouted = [_log_ratio(latent_fit.scout.agreement(factor)) for factor in FACTORS]
    series = {"factors": FACTORS, "log_ratios": scouted}
    count = len(latent_fit.own_errors)
    unjudged = "a model that draws without guidance may be distilled: it does not predict the mean." if latent_fit.is_distilled else ""
    crossings = [place for place in range(len(FACTORS) - 1) if scouted[place] < 0 <= scouted[place + 1]]
    if not crossings:
        edge = FACTORS[-1] if scouted[-1] < 0 else FACTORS[0]
        return Measurement(edge, "factor of the latents", num_samples=count, series=series, hint=_UNKNOWN, unjudged=unjudged)
    place = min(crossings, key=lambda place: abs(math.log(FACTORS[place])))
    # On all images the crossing may lie a little beside that of the few.
    nearby = FACTORS[max(0, place - 1) : place + 3]
    figures = torch.stack([latent_fit.agreement(factor) for factor in nearby], 1)

    def crossing(values: torch.Tensor) -> float:
        ratios = [_log_ratio(values[:, index]) for index in range(len(nearby))]
        for low, high, factor in zip(ratios, ratios[1:], nearby, strict=False):
            if low < 0 <= high:
                return math.log2(factor) - low / (high - low) / 4
        return math.nan

    exponent, error = jackknife(crossing, figures, groups=min(20, count))
    value, factor = 2**exponent, latent_fit.scaling_factor
    hint = f"The denoiser knows latents with a scaling factor of {factor * value:.4g}; the configuration says {factor:.4g}."
    if factor == 1:
        hint += " It looks as if the VAE's scaling factor is missing."
    elif abs(math.log(value * math.sqrt(factor))) < 0.3:
        hint += " It looks as if the VAE's scaling factor was applied twice."
    interval = 2 ** (exponent - 1.96 * error), 2 ** (exponent + 1.96 * error)
    return Measurement(value, "factor of the latents", interval=interval, num_samples=count, series=series, hint=hint, unjudged=unjudged)


@check("latent", "the denoiser expects latents centred where the encoder puts them")
def latent_shift(latent_fit: Any) -> Measurement:
    """The offset on all encoded references at which the denoiser predicts best, in units of scaled latents; 0 is right.

    References that are darker or brighter than the training images have one of their own.
    """
    errors = torch.stack([latent_fit.errors(offset=offset) for offset in (-OFFSET, 0.0, OFFSET)], 1)

    def best(values: torch.Tensor) -> float:
        return OFFSET * _vertex(values.mean(0))

    value, error = jackknife(best, errors, groups=min(20, len(errors)))
    if math.isnan(value):
        raise NotApplicable("the denoiser's error hardly depends on where the latents lie, so it does not tell where they should.")
    raw = value / latent_fit.scaling_factor
    hint = f"The encoder's raw latents lie {-raw:+.4g} from where the denoiser expects them: is the shift factor ignored, or applied twice?"
    return Measurement.with_error(value, error, name="best offset on latents", num_samples=len(errors), hint=hint)


@check("latent", "the denoiser expects the channels where the encoder puts them")
def latent_channels(latent_fit: Any) -> Measurement:
    """Smallest relative change of the denoiser's error when two channels of the encoded references trade places; above 0 is right."""
    pairs = list(itertools.combinations(range(latent_fit.channels), 2))
    if not pairs:
        raise NotApplicable("latents of one channel have no order.")
    scouted = {pair: float(latent_fit.scout.errors(order=_swap(latent_fit.channels, *pair)).mean()) for pair in pairs}
    pair = min(scouted, key=lambda pair: scouted[pair])
    own = latent_fit.own_errors
    change = (latent_fit.errors(order=_swap(latent_fit.channels, *pair)) - own) / own.mean()
    value, error = float(change.mean()), mean_error(change)
    is_alike = abs(value) < 1.96 * error and value - 1.96 * error > -ALIKE
    return Measurement.with_error(
        value,
        error,
        name="least change of the error by swapping channels",
        num_samples=len(own),
        hint=f"The denoiser predicts no worse with channels {pair[0]} and {pair[1]} swapped: latent channels look permuted.",
        unjudged=f"to the denoiser channels {pair[0]} and {pair[1]} are alike." if is_alike else "",
    )


_UNKNOWN = "At no scale do the predictions fit the encoder's latents: the denoiser does not know them."


def _log_ratio(agreement: torch.Tensor) -> float:
    """log(prediction · latents / |prediction|²) of all images; very low where they have nothing in common."""
    product, square = agreement.sum(0).tolist()
    return math.log(max(product, 1e-12 * square) / square) if square > 0 else -math.inf


def _vertex(values: torch.Tensor) -> float:
    """Where a parabola through values at -1, 0 and 1 is lowest; nan where it has no lowest point."""
    low, middle, high = (float(value) for value in values)
    bend = low - 2 * middle + high
    return (low - high) / (2 * bend) if bend > 0 else math.nan


def _levels(images: torch.Tensor, others: torch.Tensor) -> float:
    """Mean difference of images in [0, 1], both rounded to 8 bits, in levels."""
    return float(((images * 255).round() - (others * 255).round()).abs().mean())


def _swap(count: int, one: int, other: int) -> list[int]:
    order = list(range(count))
    order[one], order[other] = order[other], order[one]
    return order


def _misreadings(codec: Any, final: torch.Tensor) -> list[tuple[str, Any, Callable[[torch.Tensor], torch.Tensor]]]:
    """What a pipeline may do wrong with its latents: a name, the codec that does it, and the order of channels."""

    def same(values: torch.Tensor) -> torch.Tensor:
        return values

    factor, shift = codec.scaling_factor, codec.shift
    found: list[tuple[str, Any, Callable[[torch.Tensor], torch.Tensor]]] = [
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
    return lambda values: values[:, _swap(count, one, other)]


def _swapped_in_decoder(codec: Any, encoded: torch.Tensor, images: torch.Tensor) -> str:
    """Two channels that the decoder takes for one another, if trading them brings the images back."""
    few, target = encoded[:4], images[:4].float() / 255
    own = float(psnr(codec.decode(few), target).mean())
    if own > 20:
        return ""
    pairs = list(itertools.combinations(range(few.shape[1]), 2))
    gains = {pair: float(psnr(codec.decode(few[:, _swap(few.shape[1], *pair)]), target).mean()) - own for pair in pairs}
    best = max(gains, key=lambda pair: gains[pair], default=None)
    if best is None or gains[best] < 3:
        return ""
    return f" With channels {best[0]} and {best[1]} swapped it is {gains[best]:.1f} dB better: latent channels look permuted."
