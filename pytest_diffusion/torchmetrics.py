"""The figures as `torchmetrics.Metric`: collected over batches and processes, computed in float64, with an interval beside the value.

Each is equal to the plain function of `pytest_diffusion` on all that was collected. States are features, not images, and are
gathered over processes when `compute` is called; each process must then hold some of each side, not as many as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchmetrics import Metric

from pytest_diffusion.features.clip import Scorer, load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.maths.diversity import vendi_estimate
from pytest_diffusion.maths.frechet import frechet_distance, frechet_standard_error
from pytest_diffusion.maths.kernel import kernel_estimate
from pytest_diffusion.maths.manifold import manifold_estimates
from pytest_diffusion.maths.scores import clip_scores
from pytest_diffusion.maths.statistics import Estimate, mean_estimate
from pytest_diffusion.verdicts.quantiles import t95

Features = str | Callable[[torch.Tensor], torch.Tensor] | None
"""A name as `--diffusion-features` takes it, a function of uint8 images (N, 3, H, W) to features (N, D), or None: features are given."""
Interval = tuple[float, float]

__all__ = ["CLIPScore", "DensityCoverage", "FrechetDistance", "KernelDistance", "PrecisionRecall", "VendiScore"]


class _Figure(Metric):  # type: ignore[misc]
    """A figure whose 95 % interval is known when its value is."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._interval: Any = None

    @property
    def interval(self) -> Any:
        """The 95 % interval (low, high) of the last `compute`; by name where that gave several figures. None before it."""
        return self._interval if self._computed is not None else None

    def _told(self, estimate: Estimate) -> torch.Tensor:
        """The value, float64, whose interval is kept."""
        self._interval = _interval_of(estimate)
        return torch.tensor(estimate.value, dtype=torch.float64, device=self.device)

    def _told_all(self, estimates: dict[str, Estimate]) -> dict[str, torch.Tensor]:
        self._interval = {name: _interval_of(one) for name, one in estimates.items()}
        return {name: torch.tensor(one.value, dtype=torch.float64, device=self.device) for name, one in estimates.items()}


class _OfFeatures(_Figure):
    """A figure of features of samples."""

    fake: list[torch.Tensor]

    def __init__(self, features: Features = None, *, device: str = "cpu", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        extractor = load_extractor(features, device=device) if isinstance(features, str) else None
        self._features: Any = (lambda images: extractor(images).values) if extractor is not None else features
        self.add_state("fake", default=[], dist_reduce_fx="cat")

    def _of(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, D), float64. Raises ValueError for another shape."""
        with torch.no_grad():
            rows = torch.as_tensor(images if self._features is None else self._features(images))
        if rows.ndim != 2:
            raise ValueError(f"features have shape {tuple(rows.shape)}; expected (N, D).")
        return rows.detach().to(self.device, torch.float64)


class _OfTwoSets(_OfFeatures):
    """A figure of samples against a reference. `given_reference`: its interval is that of the samples alone."""

    real: list[torch.Tensor]

    def __init__(self, features: Features = None, *, given_reference: bool = True, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self._given_reference = given_reference
        self.add_state("real", default=[], dist_reduce_fx="cat")

    def update(self, images: torch.Tensor, real: bool) -> None:
        """Add a batch: uint8 images (N, 3, H, W), or features (N, D) where no extractor was given; `real` for the reference."""
        (self.real if real else self.fake).append(self._of(images))

    def _sets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the samples and of the reference, on the CPU. Raises ValueError where a side is empty."""
        return _joined(self.fake, "samples (real=False)"), _joined(self.real, "reference (real=True)")


class FrechetDistance(_OfTwoSets):
    """Squared Fréchet distance of features, FID with `features="inception"`. Source: arXiv:1706.08500."""

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """The distance, float64, with its bias in N; its `interval` is that of the delta method."""
        ours, theirs = self._sets()
        error = frechet_standard_error(ours, theirs, given_reference=self._given_reference)
        return self._told(Estimate(frechet_distance(ours, theirs), error))


class KernelDistance(_OfTwoSets):
    """Unbiased squared MMD of features with the cubic kernel, over all samples, KID. Source: arXiv:1801.01401."""

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """The distance, float64; it may be below 0."""
        return self._told(kernel_estimate(*self._sets(), given_reference=self._given_reference))


class _OfManifolds(_OfTwoSets):
    higher_is_better = True
    _names: tuple[str, str] = ("", "")
    _k = 0

    def __init__(self, features: Features = None, *, k: int | None = None, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self._k = self._k if k is None else k

    def compute(self) -> dict[str, torch.Tensor]:
        """Both figures by name, float64."""
        found = manifold_estimates(*self._sets(), k=self._k, given_reference=self._given_reference)
        return self._told_all({name: found[name] for name in self._names})


class PrecisionRecall(_OfManifolds):
    """Share of samples in the reference's manifold of `k` (3) neighbours, and the other way round. Source: arXiv:1904.06991."""

    _names, _k = ("precision", "recall"), 3


class DensityCoverage(_OfManifolds):
    """Density and coverage of the reference by the samples, with `k` (5) neighbours. Source: arXiv:2002.09797."""

    _names, _k = ("density", "coverage"), 5


class VendiScore(_OfFeatures):
    """Effective number of different samples. Source: arXiv:2210.02410."""

    higher_is_better = True

    def update(self, images: torch.Tensor) -> None:
        """Add a batch: uint8 images (N, 3, H, W), or features (N, D) where no extractor was given."""
        self.fake.append(self._of(images))

    def compute(self) -> torch.Tensor:
        """The number, float64, between 1 and N."""
        return self._told(vendi_estimate(_joined(self.fake, "samples")))


class CLIPScore(_Figure):
    """Mean of 100·max(cos, 0) between images and their prompts. Source: arXiv:2104.08718."""

    higher_is_better = True
    scores: list[torch.Tensor]

    def __init__(self, clip: str | Scorer, *, device: str = "cpu", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._clip = load_clip(clip, device=device) if isinstance(clip, str) else clip
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    def update(self, images: torch.Tensor, prompts: Sequence[str]) -> None:
        """Add uint8 images (N, 3, H, W) and their N prompts. Raises ValueError where the counts differ."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images have {len(prompts)} prompts.")
        with torch.no_grad():
            scores = clip_scores(self._clip.image_embeds(images), self._clip.text_embeds(list(prompts)))
        self.scores.append(scores.detach().to(self.device, torch.float64))

    def compute(self) -> torch.Tensor:
        """The mean, float64."""
        return self._told(mean_estimate(_joined(self.scores, "images")))


def _joined(state: Any, what: str) -> torch.Tensor:
    """A state's rows on the CPU: a list of batches, or one tensor after processes were joined."""
    parts = [state] if isinstance(state, torch.Tensor) else list(state)
    if not parts or not sum(map(len, parts)):
        raise ValueError(f"no {what} were added: call update first.")
    return torch.cat(parts).cpu()


def _interval_of(estimate: Estimate) -> Interval:
    half = t95(estimate.degrees) * estimate.standard_error
    return estimate.value - half, estimate.value + half
