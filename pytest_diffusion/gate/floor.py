"""The noise floor: how far sound builds of the same model lie apart on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from pytest_diffusion.data.batches import batch_size_of
from pytest_diffusion.gate.figures import relative_loss
from pytest_diffusion.gate.looks import Look
from pytest_diffusion.gate.pairs import looks_at
from pytest_diffusion.gate.side import LiveSide, Rows
from pytest_diffusion.models.capabilities import modules
from pytest_diffusion.samples.generate import generate_images, shared_batch_size, to_uint8

_SURE = 1.645
"""One-sided 95 % of the error of a twin's mean difference is added to it."""
_OF_SHARES = ("precision", "coverage")
"""Shares of samples: in a few twins, one sample that crosses a border is more than any margin, so they have no floor."""
TWIN_PAIRS = 16
"""Samples of each twin. Twins differ little from pair to pair, so a few are enough."""
TWIN_IMAGES = 16
"""Noised images for each twin."""
Losses = Callable[[int], torch.Tensor]
"""Losses (count, T), float64, of the first `count` images."""
Twin = Callable[[Any], AbstractContextManager[None]]


@contextmanager
def rounded_weights(pipeline: Any) -> Iterator[None]:
    """All weights rounded to bfloat16, in place, and restored bit by bit."""
    kept = [
        (weight, weight.detach().to("cpu", copy=True))
        for part in modules(pipeline).values()
        for weight in part.parameters()
        if not weight.is_meta
    ]
    try:
        with torch.no_grad():
            for weight, original in kept:
                weight.copy_(original.to(torch.bfloat16))
        yield
    finally:
        with torch.no_grad():
            for weight, original in kept:
                weight.copy_(original)


@contextmanager
def other_kernels(pipeline: Any) -> Iterator[None]:
    """Attention by torch's plain formula in place of its fused kernels."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


TWINS: dict[str, Twin] = {"weights rounded to bfloat16": rounded_weights, "another batch size and attention kernel": other_kernels}
"""Sound builds of a model, each a context in which the pipeline is one of them."""


def sample_floors(side: LiveSide, count: int, reference: Any) -> dict[str, float]:
    """The floor of every figure of samples, from the first `count` samples of a model and of its twins."""
    plain = side.rows(count)
    looks = [looks_at(_rows_of_twin(side, twin, count), plain, None, reference, rare=False) for twin in TWINS.values()]
    return floors_of(looks)


def floors_of_losses(losses: Callable[[], Losses], pipeline: Any, count: int, plain: Losses) -> float:
    """The floor of a loss, in per cent, from the first of `count` images; `losses` computes them anew, under each twin."""
    most = min(TWIN_IMAGES, count)
    found = []
    for twin in TWINS.values():
        with twin(pipeline):
            found.append({"loss": relative_loss(losses()(most), plain(most), None, rare=False)})
    return floors_of(found)["loss"]


def floors_of(looks: Sequence[Mapping[str, Look]]) -> dict[str, float]:
    """The floor of each figure from looks at twins by figure: the largest of their differences, with one-sided 95 % of its error."""
    found: dict[str, float] = {}
    for twin in looks:
        for name, look in twin.items():
            if name in _OF_SHARES:
                continue
            value, error, _ = look.difference
            found[name] = max(found.get(name, 0.0), abs(value) + _SURE * error)
    return found


def _rows_of_twin(side: LiveSide, twin: Twin, count: int) -> Rows:
    """Samples of a twin, in batches of another size than the model's own. They are not kept."""
    own = shared_batch_size(side.settings, side.pipeline).size
    assert side.samples is not None
    prompts = side.samples.prompts[:count] if side.samples.prompts is not None else None
    with twin(side.pipeline):
        batch = batch_size_of(side.pipeline, max(1, min(own, count) - 1))
        images, finite = to_uint8(generate_images(side.pipeline, prompts, side.samples.seeds[:count], side.settings, batch=batch))
    return side.rows_of(torch.from_numpy(images), prompts, torch.from_numpy(finite))
