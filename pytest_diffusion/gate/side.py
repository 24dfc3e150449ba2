"""One of the two models, seen through its scores: samples, scores, features and losses in the order of the pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from pytest_diffusion.config.cache import checksum
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.features.image_scores import ImageScorer
from pytest_diffusion.features.store import stored_features, stored_scores
from pytest_diffusion.samples.generate import generate_samples
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import SettingsError


@dataclass(frozen=True)
class Rows:
    """What is known of the first N samples of a model, (N,) or (N, D) each."""

    scores: dict[str, torch.Tensor]
    features: torch.Tensor | None
    finite: torch.Tensor
    constant: torch.Tensor
    digests: list[str]
    """A hash of each image: equal images have equal ones."""
    images: torch.Tensor | None = None
    """uint8 (N, 3, H, W), where they are at hand."""

    @property
    def repeated(self) -> int:
        """How many images repeat an earlier one."""
        return len(self.digests) - len(set(self.digests))


class Side(Protocol):
    """A model whose first `count` samples are known, drawn now or earlier."""

    name: str

    def rows(self, count: int) -> Rows:
        """The first `count` samples. Raises SettingsError where there are not so many."""


@dataclass
class LiveSide:
    """A model that draws its samples when they are asked for; they are kept in the store, in the order of the pairs."""

    name: str
    pipeline: Any
    prompts: Sequence[str] | None
    settings: Settings
    weights: str
    scorers: Sequence[ImageScorer]
    extractor: Extractor | None = None
    say: Callable[[str], object] = print
    samples: Samples | None = None
    _known: Rows | None = None

    def rows(self, count: int) -> Rows:
        """The first `count` samples, drawn where they are not in the store."""
        seen = len(self._known.digests) if self._known is not None else 0
        if self.samples is None or len(self.samples) < count:
            wanted = replace(self.settings, num_samples=max(count, seen))
            self.samples = generate_samples(self.pipeline, self.prompts, wanted, weights=self.weights, say=self.say)
        if count > seen:
            fresh = _about(self.samples.images[seen:count], self.samples.finite[seen:count])
            for scorer in self.scorers:
                found = stored_scores(self.samples, scorer, self.samples.prompts, count, say=self.say)
                fresh.scores.update({name: values[seen:] for name, values in found.items()})
            values = stored_features(self.samples, self.extractor).values[:count] if self.extractor is not None else None
            self._known = _joined(self._known, fresh, values, self.samples.images[:count])
        assert self._known is not None
        return _first(self._known, count)

    def rows_of(self, images: torch.Tensor, prompts: Sequence[str] | None, finite: torch.Tensor, *, extract: bool = True) -> Rows:
        """What this side's scorers say of any images, uint8 (n, 3, H, W), with their features; neither is kept."""
        scores = {name: values for scorer in self.scorers for name, values in scorer(images, prompts).items()}
        features = self.extractor(images).values if self.extractor is not None and extract else None
        return replace(_about(images, finite), scores=scores, features=features)


@dataclass(frozen=True)
class SavedSide:
    """A model whose scores were saved earlier."""

    name: str
    kept: Rows

    def rows(self, count: int) -> Rows:
        """The first `count` of the saved samples."""
        held = len(self.kept.digests)
        if held < count:
            raise SettingsError(f"--diffusion-baseline: {self.name} holds {held} samples, and {count} are asked for; save it with more.")
        return _first(self.kept, count)


def _about(images: torch.Tensor, finite: torch.Tensor) -> Rows:
    """What images, uint8 (n, 3, H, W), show without any scorer."""
    flat = images.flatten(2)
    digests = [checksum(image.contiguous().numpy().data, size=8) for image in images]
    return Rows({}, None, finite, (flat == flat[..., :1]).all(2).all(1), digests, images)


def _joined(known: Rows | None, fresh: Rows, features: torch.Tensor | None, images: torch.Tensor) -> Rows:
    if known is None:
        return replace(fresh, features=features, images=images)
    scores = {name: torch.cat([known.scores[name], values]) for name, values in fresh.scores.items()}
    finite, constant = torch.cat([known.finite, fresh.finite]), torch.cat([known.constant, fresh.constant])
    return Rows(scores, features, finite, constant, known.digests + fresh.digests, images)


def _first(rows: Rows, count: int) -> Rows:
    scores = {name: values[:count] for name, values in rows.scores.items()}
    features = rows.features[:count] if rows.features is not None else None
    images = rows.images[:count] if rows.images is not None else None
    return Rows(scores, features, rows.finite[:count], rows.constant[:count], rows.digests[:count], images)
