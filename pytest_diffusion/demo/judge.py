"""The demo's classifier: it predicts layout and objects of an image, and is the demo's feature extractor."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import nn

from pytest_diffusion.demo.scenes import KINDS, LAYOUTS, Scene

FEATURE_SIZE = 128
NONE = len(KINDS)
"""Class index of the second head for "no second object"."""


class Judgement(NamedTuple):
    """Logits of the classifier: layout (N, 3), first object (N, 24), second object or none (N, 25)."""

    layout: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor


class Readings(NamedTuple):
    """Which images show their scenes according to the classifier, bool (N,), and the class of the first object."""

    objects: torch.Tensor
    """The right objects with the right colours, in any order."""
    order: torch.Tensor
    """The right objects, in the right places."""
    kinds: torch.Tensor
    """Class of the first object, int64 (N,)."""


class Judge(nn.Module):
    """Convolutional classifier of scenes: float images (N, 3, 32, 32) in [0, 1] to a `Judgement`."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        blocks = []
        for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
            blocks += [
                nn.Conv2d(width_in, width_out, 3, stride=1 if index == 0 else 2, padding=1),
                nn.GroupNorm(8, width_out),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 4 * 4, FEATURE_SIZE))
        self.layout = nn.Linear(FEATURE_SIZE, len(LAYOUTS))
        self.first = nn.Linear(FEATURE_SIZE, len(KINDS))
        self.second = nn.Linear(FEATURE_SIZE, len(KINDS) + 1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, 128), float32, of float images (N, 3, 32, 32) in [0, 1]."""
        features: torch.Tensor = self.body(images * 2 - 1)
        return features

    def forward(self, images: torch.Tensor) -> Judgement:
        hidden = nn.functional.silu(self.features(images))
        return Judgement(self.layout(hidden), self.first(hidden), self.second(hidden))


def targets(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class indices (N,) of layout, first and second object."""
    return (
        torch.tensor([LAYOUTS.index(scene.layout) for scene in scenes]),
        torch.tensor([scene.first for scene in scenes]),
        torch.tensor([NONE if scene.second is None else scene.second for scene in scenes]),
    )


def read(judgement: Judgement, scenes: list[Scene]) -> Readings:
    """Comparison of classified images with the scenes that they should show."""
    layout, first, second = (target.to(judgement.first.device) for target in targets(scenes))
    seen_layout, seen_first, seen_second = (logits.argmax(1) for logits in judgement)
    straight = (seen_first == first) & (seen_second == second)
    crossed = (seen_first == second) & (seen_second == first)
    return Readings(straight | crossed, straight & (seen_layout == layout), seen_first)
