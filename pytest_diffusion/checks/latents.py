"""Checks of the latent space: round trip, scale, shift and channels, and that pipeline and denoiser agree on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from pytest_diffusion.checks import pictures, plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.similarity import psnr, ssim
from pytest_diffusion.maths.statistics import jackknife, mean_error
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.samples.latent_fit import LatentFit
from pytest_diffusion.samples.round_trip import RoundTrip
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

FACTORS = [2 ** (index / 4) for index in range(-16, 17)]
OFFSET = 0.1
ALIKE = 0.1
"""Relative change of the error by swapping two channels below which they may be alike."""


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
        float(values.mean()),
        mean_error(values),
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
        float(values.mean()),
        mean_error(values),
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
        value, mean_error(per_sample), name="standard deviation of scaled latents", num_samples=len(encoded), hint=hint
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


@check(
    "latent",
    "the denoiser expects latents of the scale that the encoder gives",
    figure="scale factor at which the prediction's squared norm equals its inner product with the true latents",
    sees="a scaling factor that the denoiser was not trained with",
    blind_to="distilled models: theirs is reported only",
    plot=plots.scale,
)
def latent_scale(latent_fit: LatentFit) -> Measurement:
    """Scale factor at which the prediction's squared norm equals its inner product with the true latents; 1 is right.

    A denoiser that predicts the mean of all images which a noisy one may come from has an error that is orthogonal to its
    prediction, at the scale of its training and at no other. Too-small latents are over-predicted, too-large ones
    under-predicted.
    """
    scouted = [_log_ratio(latent_fit.scout.agreement(factor)) for factor in FACTORS]
    series = {"factors": FACTORS, "log_ratios": scouted}
    count = len(latent_fit.own_errors)
    unjudged = "a model without guidance may be distilled, and then it does not predict the mean." if latent_fit.is_distilled else ""
    crossings = [place for place in range(len(FACTORS) - 1) if scouted[place] < 0 <= scouted[place + 1]]
    if not crossings:
        edge = FACTORS[-1] if scouted[-1] < 0 else FACTORS[0]
        return Measurement(edge, "factor of the latents", num_samples=count, series=series, hint=_UNKNOWN, unjudged=unjudged)
    place = min(crossings, key=lambda place: abs(math.log(FACTORS[place])))
    # With all images the crossing may lie a little beside that of the first few.
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
    hint = f"The denoiser expects latents with a scaling factor of {factor * value:.4g}; the configuration says {factor:.4g}."
    if factor == 1:
        hint += " It looks as if the VAE's scaling factor is missing."
    elif abs(math.log(value * math.sqrt(factor))) < 0.3:
        hint += " It looks as if the VAE's scaling factor was applied twice."
    interval = 2 ** (exponent - 1.96 * error), 2 ** (exponent + 1.96 * error)
    return Measurement(value, "factor of the latents", interval=interval, num_samples=count, series=series, hint=hint, unjudged=unjudged)


@check(
    "latent",
    "the denoiser expects latents centred where the encoder puts them",
    figure="offset on encoded references at which the denoiser predicts best",
    sees="an ignored or doubled shift",
    blind_to="no default limit, because darker or brighter references have an offset too",
)
def latent_shift(latent_fit: LatentFit) -> Measurement:
    """The offset on all encoded references at which the denoiser predicts best, in units of scaled latents; 0 is right.

    References that are darker or brighter than the training images have an offset of their own.
    """
    errors = torch.stack([latent_fit.errors(offset=offset) for offset in (-OFFSET, 0.0, OFFSET)], 1)

    def best(values: torch.Tensor) -> float:
        return OFFSET * _vertex(values.mean(0))

    value, error = jackknife(best, errors, groups=min(20, len(errors)))
    if math.isnan(value):
        raise NotApplicable("the denoiser's error hardly depends on an offset of the latents, so no best offset can be found.")
    raw = value / latent_fit.scaling_factor
    hint = f"The encoder's raw latents are offset by {-raw:+.4g} from what the denoiser expects: "
    hint += "is the shift factor ignored, or applied twice?"
    return Measurement.with_error(value, error, name="best offset on latents", num_samples=len(errors), hint=hint)


@check(
    "latent",
    "the denoiser expects the channels in the encoder's order",
    figure="least relative change of the denoiser's error when two channels are swapped",
    sees="an encoder and a decoder that agree with one another, and not with the denoiser",
    blind_to="channels that the denoiser treats alike: those are reported only",
)
def latent_channels(latent_fit: LatentFit) -> Measurement:
    """Smallest relative change of the denoiser's error when two channels of the encoded references are swapped; above 0 is right."""
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
        unjudged=f"the denoiser treats channels {pair[0]} and {pair[1]} alike." if is_alike else "",
    )


_UNKNOWN = "The predictions fit the encoder's latents at no scale: the denoiser was not trained on latents of this encoder."


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
    return lambda values: values[:, _swap(count, one, other)]


def _swapped_in_decoder(codec: LatentCodec, trip: RoundTrip) -> str:
    """Two channels that the decoder confuses, if swapping them reproduces the images."""
    few, target = trip.latents[:4], trip.images[:4].float() / 255
    own = float(psnr(codec.decode(few), target).mean())
    if own > 20:
        return ""
    pairs = list(itertools.combinations(range(few.shape[1]), 2))
    gains = {pair: float(psnr(codec.decode(few[:, _swap(few.shape[1], *pair)]), target).mean()) - own for pair in pairs}
    best = max(gains, key=lambda pair: gains[pair], default=None)
    if best is None or gains[best] < 3:
        return ""
    return f" With channels {best[0]} and {best[1]} swapped it is {gains[best]:.1f} dB better: latent channels look permuted."
