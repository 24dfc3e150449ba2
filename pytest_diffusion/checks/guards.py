"""Guards on the images themselves: faults that make every other figure meaningless."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pytest_diffusion.checks import pictures
from pytest_diffusion.checks.registry import check
from pytest_diffusion.config.cache import checksum
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.tensors import ArrayLike
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

FLAT = 8
"""Levels of 256 that an image must span not to count as constant."""
SHOWN = 8
"""Pairs of a real and a generated image in the report."""


@check(
    "metrics",
    "every sample is finite",
    figure="samples with nan or infinity",
    sees="overflow in half precision, a division by zero",
    blind_to="anything that is finite",
)
def finite_images(samples: Samples | ArrayLike) -> Measurement:
    """Number of samples in which the model gave nan or infinity. `samples`: the store's, or float images (N, 3, H, W)."""
    images, finite = images_of(samples)
    wrong = int((~finite).sum())
    hint = ""
    if wrong:
        first = int((~finite).nonzero()[0])
        hint = f"The first is sample {first}: the denoiser or the decoder overflows or divides by zero (try float32)."
    return Measurement(wrong, "number of samples with nan or infinity", num_samples=len(images), hint=hint)


@check(
    "metrics",
    "no sample is constant",
    figure="samples that span less than 8 of 256 levels",
    sees="black frames, a safety checker that blacked images out",
    blind_to="a frame with a single bright pixel",
)
def constant_images(samples: Samples | ArrayLike) -> Measurement:
    """Number of samples whose pixels span less than 8 of 256 levels: black, white or grey frames."""
    images, _ = images_of(samples)
    flat = images.flatten(1)
    spans = flat.max(1).values.int() - flat.min(1).values.int()
    wrong = (spans < FLAT).nonzero().flatten()
    hint = ""
    if len(wrong):
        level = float(flat[wrong[0]].float().mean())
        shade = "black" if level < 16 else "white" if level > 239 else f"flat, at level {level:.0f} of 255"
        hint = f"The first is sample {int(wrong[0])}, which is {shade}."
    return Measurement(len(wrong), "number of constant samples", num_samples=len(images), hint=hint)


@check(
    "metrics",
    "no sample repeats another",
    figure="samples equal to an earlier one",
    sees="seeds without effect",
    blind_to="near-copies",
)
def duplicate_images(samples: Samples | ArrayLike) -> Measurement:
    """Number of samples that equal an earlier one in every bit, though their seeds differ."""
    images, _ = images_of(samples)
    first_of: dict[str, int] = {}  # by checksum: ten thousand images would not fit in memory
    repeats = []
    for index, image in enumerate(images):
        earlier = first_of.setdefault(checksum(image.contiguous().numpy().data), index)
        if earlier != index:
            repeats.append((index, earlier))
    hint = ""
    if repeats:
        hint = f"Only {len(first_of)} of {len(images)} samples are different; sample {repeats[0][0]} repeats sample {repeats[0][1]}."
    return Measurement(len(repeats), "number of repeated samples", num_samples=len(images), hint=hint)


@check(
    "metrics",
    "samples and reference have one resolution",
    figure="reference images smaller than the samples",
    sees="an enlarged, blurred reference",
    blind_to="JPEG artefacts",
    pictures=pictures.real_and_generated,
)
def same_resolution(samples: Samples | ArrayLike, reference: Reference) -> Measurement:
    """Number of reference images whose own resolution is below the samples': enlarging them would blur the reference."""
    images, _ = images_of(samples)
    if reference.images is None:
        raise NotApplicable("the reference is a file of statistics, which does not record a resolution.")
    height, width = images.shape[-2:]
    if reference.images.shape[-2:] != images.shape[-2:]:
        seen = f"{reference.images.shape[-1]}x{reference.images.shape[-2]}"
        hint = f"The reference was resized to {seen}, the samples are {width}x{height}: give --diffusion-height and --diffusion-width."
        return Measurement(len(reference.images), "number of reference images of another resolution", num_samples=len(images), hint=hint)
    small = {size: count for size, count in reference.sizes.items() if int(size.split("x")[0]) < width or int(size.split("x")[1]) < height}
    hint = ""
    if small:
        size, count = max(small.items(), key=lambda item: item[1])
        hint = (
            f"{count} are {size}, the samples {width}x{height}: generate at the reference's size (--diffusion-height, --diffusion-width)."
        )
    name, series = (
        "number of reference images below the samples' resolution",
        _side_by_side(images, getattr(samples, "prompts", None), reference),
    )
    return Measurement(sum(small.values()), name, num_samples=len(images), hint=hint, series=series)


def _side_by_side(images: torch.Tensor, prompts: list[str] | None, reference: Reference) -> dict[str, Any]:
    """Series of reference images and samples of the same prompts; the first of each where none is of both. Empty for grey ones."""
    real = reference.require_images()
    if images.shape[1] != 3 or real.shape[1] != 3:
        return {}
    samples, references = ({prompt: row for row, prompt in enumerate(known or [])} for known in (prompts, reference.prompts))
    of_both = [(references[prompt], row) for prompt, row in samples.items() if prompt in references]
    pairs = (of_both or list(zip(range(len(real)), range(len(images)), strict=False)))[:SHOWN]
    return {
        "real": [pictures.data_uri(real[left]) for left, _ in pairs],
        "generated": [pictures.data_uri(images[right]) for _, right in pairs],
        "captions": [prompts[right] for _, right in pairs] if prompts and of_both else [],
    }


def images_of(samples: Samples | ArrayLike) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (N, 3, H, W) and which of them are finite, from the store's samples or from images.

    Raises ValueError for images of another rank.
    """
    if not isinstance(samples, torch.Tensor | np.ndarray):
        return samples.images, samples.finite
    tensor = torch.as_tensor(samples)
    if tensor.ndim != 4:
        raise ValueError(f"samples have shape {tuple(tensor.shape)}; expected (N, 3, H, W).")
    if tensor.dtype == torch.uint8:
        return tensor, torch.ones(len(tensor), dtype=torch.bool)
    finite = torch.isfinite(tensor).flatten(1).all(1)
    return (tensor.nan_to_num(0, 1, 0).clamp(0, 1) * 255).round().to(torch.uint8), finite
