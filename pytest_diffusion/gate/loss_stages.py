"""The losses of a comparison, each from two pipelines, or from a pipeline and a saved baseline, to its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.columns import places_of
from pytest_diffusion.data.references import Reference
from pytest_diffusion.gate.attribution import TEXT_PARTS, of_loss
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.denoising import LossRun, NoisedImages, reconstruction_losses, run_losses
from pytest_diffusion.gate.figures import clusters_of
from pytest_diffusion.gate.floor import Losses, floors_of_losses
from pytest_diffusion.gate.hybrids import with_parts
from pytest_diffusion.gate.saved import SavedBaseline
from pytest_diffusion.gate.slices import WORDS, slicing
from pytest_diffusion.models.capabilities import is_text_conditioned
from pytest_diffusion.verdicts.errors import NotApplicable

_OF_LOSS = ("unet", "transformer", *TEXT_PARTS, "vae")
_TYPE = "prediction_type"
_FEWEST_IMAGES = 16
SLICED = {"denoising_loss": "reference", "retention_loss": "retention"}
"""Losses that are compared by slice of the captions, and whose table has the columns."""
Say = Callable[[str], object]


def is_same_for(figure: str, comparison: Comparison) -> bool:
    """Whether nothing differs that a loss depends on."""
    if comparison.parts is None or comparison.is_own_code:
        return False
    if figure == "reconstruction_loss":
        return comparison.parts.is_same("vae")
    if figure == "text_encoder_loss":
        return comparison.parts.is_same(*TEXT_PARTS)
    declared = [part for part in comparison.parts.parts if part.name == "scheduler" and any(_TYPE in note for note in part.notes)]
    # The decoder is not asked: images are encoded, noised and denoised.
    vae = next((part for part in comparison.parts.parts if part.name == "vae"), None)
    is_decoder_alone = vae is not None and bool(vae.areas) and set(vae.areas) <= {"decoder", "post_quant_conv"} and not vae.notes
    names = [name for name in (*_OF_LOSS, "pipeline") if name != "vae" or not is_decoder_alone]
    return comparison.parts.is_same(*names) and not declared


def compare_losses(
    figure: str,
    candidate: Any,
    baseline: Any | None,
    saved: SavedBaseline | None,
    reference: Reference,
    settings: Settings,
    comparison: Comparison,
    *,
    attributes: bool = True,
    say: Say,
) -> LossRun:
    """A loss of both models on the images of a reference; with `attributes`, a loss that is worse names the parts that did it.

    Raises NotApplicable for fewer than 16 images, for a reference of statistics, and where noise levels are not known.
    """
    images = reference.require_images()[: comparison.margins.references]
    if len(images) < _FEWEST_IMAGES:
        raise NotApplicable(f"{len(images)} images are too few to compare losses; at least {_FEWEST_IMAGES} are needed.")
    texts = reference.prompts[: len(images)] if reference.prompts is not None and is_text_conditioned(candidate) else None
    if baseline is not None and figure != "reconstruction_loss":
        _require_same_latents(candidate, baseline)
    if figure == "text_encoder_loss":
        _require_swappable(candidate, baseline)
        if texts is None:
            raise NotApplicable(
                "the reference images have no captions, so no text encoder would be asked: give pairs of images and prompts."
            )
    losses, log_snr = losses_on(figure, baseline if baseline is not None else candidate, saved, images, texts, settings)
    own, rules = losses(candidate), comparison.rules([figure], comparison.margins.references)
    floor: Callable[[], float] | None = None
    if saved is not None:
        rules = replace(rules, floors=saved.floors)
        theirs = saved.losses(figure, images, log_snr)
    elif figure == "text_encoder_loss":
        theirs = _with_text_of(baseline, candidate, losses)
    else:
        theirs = losses(baseline)

        def floor() -> float:
            return floors_of_losses(lambda: losses(baseline), baseline, len(images), theirs)

    clusters = clusters_of(texts)
    wanted = settings.slices if figure in SLICED else ()
    named = [name for name in wanted if name != WORDS]
    places = places_of(named, settings.prompts, settings.reference, settings.retention)
    required = [name for name, place in places.items() if SLICED.get(figure) == place]
    run = run_losses(
        figure,
        own,
        theirs,
        rules,
        count=len(images),
        log_snr=log_snr,
        clusters=clusters,
        floor=floor,
        slicing=slicing(wanted, texts, reference.columns, rules, comparison.slice_alpha, required=required),
        say=say,
    )
    if run.decided.word != "worse" or baseline is None or not attributes:
        return run
    found = of_loss(figure, candidate, baseline, comparison, losses, theirs, count=len(images), clusters=clusters, say=say)
    return replace(run, blame=found)


def losses_on(
    figure: str, model: Any, saved: SavedBaseline | None, images: torch.Tensor, texts: list[str] | None, settings: Settings
) -> tuple[Callable[[Any], Losses], list[float]]:
    """The losses of any pipeline on these images, and the log-SNR of their noise levels, which are those of `model`."""
    if figure == "reconstruction_loss":
        return lambda pipeline: reconstruction_losses(pipeline, images), []
    noised = NoisedImages.of(images, texts, model.scheduler)
    if saved is not None:
        noised = replace(noised, prediction_type=saved.prediction_type)
    return lambda pipeline: noised.losses_of(pipeline, settings), noised.log_snr


def _with_text_of(baseline: Any, candidate: Any, losses: Callable[[Any], Losses]) -> Losses:
    """Losses of the candidate with the text encoders and tokenizers of the baseline.

    Where they are lower than its own, the change of its text encoders is no training but damage: a text encoder that was trained
    together with the denoiser serves it better than another one.
    """
    own = losses(candidate)

    def run(count: int) -> torch.Tensor:
        own_ones = [name for name in TEXT_PARTS if getattr(candidate, name, None) is not None]
        with with_parts(candidate, {name: getattr(baseline, name, None) for name in own_ones}):
            return own(count)

    return run


def _require_same_latents(candidate: Any, baseline: Any) -> None:
    sizes = [_latent_channels(pipeline) for pipeline in (candidate, baseline)]
    if sizes[0] != sizes[1]:
        raise NotApplicable(
            f"the candidate's latents have {sizes[0]} channels, the baseline's {sizes[1]}: their losses cannot be compared, "
            "and samples share prompts but no noise."
        )


def _require_swappable(candidate: Any, baseline: Any | None) -> None:
    """Raise NotApplicable where the baseline's text encoders cannot take the place of the candidate's."""
    if baseline is None:
        raise NotApplicable("the baseline was saved without its weights.")
    for name in TEXT_PARTS:
        ours, theirs = getattr(candidate, name, None), getattr(baseline, name, None)
        widths = [getattr(getattr(part, "config", None), "hidden_size", None) for part in (ours, theirs)]
        if (ours is None) != (theirs is None) or type(ours) is not type(theirs) or widths[0] != widths[1]:
            raise NotApplicable(f"the baseline's {name} does not fit the candidate.")


def _latent_channels(pipeline: Any) -> int:
    config = getattr(getattr(pipeline, "vae", None), "config", None) or {}
    return int(config.get("latent_channels") or config.get("z_dim") or 3)
