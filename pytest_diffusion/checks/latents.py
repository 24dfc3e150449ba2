"""Checks of the latent space: round trip, scale, shift and channels, and that pipeline and denoiser agree on them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch

from pytest_diffusion.checks import plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.maths.statistics import jackknife, mean_estimate
from pytest_diffusion.samples.latent_fit import LatentFit
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

FACTORS = [2 ** (index / 4) for index in range(-16, 17)]
OFFSET = 0.1
ALIKE = 0.1
"""Relative change of the error by swapping two channels below which they may be alike."""


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

    logarithm = Measurement.with_error(*jackknife(crossing, figures, groups=min(20, count)))
    assert logarithm.interval is not None
    value, factor = 2**logarithm.value, latent_fit.scaling_factor
    hint = f"The denoiser expects latents with a scaling factor of {factor * value:.4g}; the configuration says {factor:.4g}."
    if factor == 1:
        hint += " It looks as if the VAE's scaling factor is missing."
    elif abs(math.log(value * math.sqrt(factor))) < 0.3:
        hint += " It looks as if the VAE's scaling factor was applied twice."
    interval = 2 ** logarithm.interval[0], 2 ** logarithm.interval[1]
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

    estimate = jackknife(best, errors, groups=min(20, len(errors)))
    if math.isnan(estimate.value):
        raise NotApplicable("the denoiser's error hardly depends on an offset of the latents, so no best offset can be found.")
    raw = estimate.value / latent_fit.scaling_factor
    hint = f"The encoder's raw latents are offset by {-raw:+.4g} from what the denoiser expects: "
    hint += "is the shift factor ignored, or applied twice?"
    return Measurement.with_error(*estimate, name="best offset on latents", num_samples=len(errors), hint=hint)


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
    scouted = {pair: float(latent_fit.scout.errors(order=swapped_order(latent_fit.channels, *pair)).mean()) for pair in pairs}
    pair = min(scouted, key=lambda pair: scouted[pair])
    own = latent_fit.own_errors
    change = (latent_fit.errors(order=swapped_order(latent_fit.channels, *pair)) - own) / own.mean()
    measured = Measurement.with_error(
        *mean_estimate(change),
        name="least change of the error by swapping channels",
        num_samples=len(own),
        hint=f"The denoiser predicts no worse with channels {pair[0]} and {pair[1]} swapped: latent channels look permuted.",
    )
    assert measured.interval is not None
    is_alike = -ALIKE < measured.interval[0] < 0 < measured.interval[1]
    return replace(measured, unjudged=f"the denoiser treats channels {pair[0]} and {pair[1]} alike." if is_alike else "")


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


def swapped_order(count: int, one: int, other: int) -> list[int]:
    order = list(range(count))
    order[one], order[other] = order[other], order[one]
    return order
