"""Features and their origin: values, class probabilities, and hashes of weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_diffusion.config.cache import checksum_of
from pytest_diffusion.maths.feature_statistics import FeatureStatistics


@dataclass(frozen=True)
class Features:
    """Features (N, D), float32, class probabilities (N, K) or None, and how they were made.

    `statistics` holds their mean and covariance where the store kept them.
    """

    values: torch.Tensor
    probabilities: torch.Tensor | None
    extractor: str
    protocol: dict[str, Any] = field(default_factory=dict)
    statistics: FeatureStatistics | None = None
    first_images: Callable[[int], torch.Tensor] | None = field(default=None, repr=False, compare=False)
    """The first n images that the features are of, uint8 (n, 3, H, W), where they are at hand: for pictures."""


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of named weights, eight hex digits; figures show it to identify the weights."""
    return checksum_of(itertools.chain.from_iterable(map(_parts, sorted(tensors.items()))), size=4)


def _parts(entry: tuple[str, torch.Tensor]) -> tuple[str, Any]:
    """Name and bytes of a tensor."""
    return entry[0], entry[1].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
