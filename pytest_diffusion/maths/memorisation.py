"""Memorisation: the share of samples that lie nearer to a training image than real images do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pytest_diffusion.maths.manifold import nearest_distances
from pytest_diffusion.maths.statistics import wilson_interval
from pytest_diffusion.maths.tensors import ArrayLike, as_matrix, same_width

_FEWEST = 20
LEVEL = 0.05
"""Quantile of the held-out scores that is the threshold: this share of real images is below it by chance."""


class Memorisation(NamedTuple):
    """Share of samples that copy training images beyond chance, with its 95 % interval, and the nearest sample."""

    share: float
    low: float
    high: float
    nearest_sample: int
    nearest_training: int
    nearest_ratio: float
    """The score of the nearest sample: its distance divided by the mean distance to its neighbours; 0 for an exact copy."""


def memorisation(features: ArrayLike, training: ArrayLike, held_out: ArrayLike, *, neighbours: int = 50) -> Memorisation:
    """Share of features (N, D) that are copies of training features (M, D), against held-out real ones (H, D).

    A sample's score is its distance to the nearest training feature, divided by the mean distance to the `neighbours`
    nearest ones; a dense region alone is therefore no copy. Held-out images give the distribution of the score
    for images that cannot be copies. The figure is the share of samples below its 5 % quantile, minus the 5 %
    expected by chance. It is 0 for a sound model, even if its samples stay near the modes, and 1 if all are copies.
    Raises ValueError for fewer than 2 training rows, or fewer than 20 held-out rows that are not among them.
    Source: the ratio of Carlini et al., arXiv:2301.13188, section 5.1; the control of Meehan et al., arXiv:2004.05675.
    """
    samples, seen = as_matrix(features, "features"), as_matrix(training, "training", min_rows=2)
    control = as_matrix(held_out, "held_out", min_rows=_FEWEST)
    same_width(samples, seen)
    same_width(control, seen)
    fold = _Fold.of(samples, seen, control, neighbours)
    return _result([fold], fold.portion, *_interval([fold], 1.0, 1.0))


def copied_share(features: ArrayLike, reference: ArrayLike, *, neighbours: int = 50) -> Memorisation:
    """Share of features (N, D) that copy a reference (M, D) without held-out images, M >= 40.

    Each half of the reference, its even and its odd rows, is the held-out side of the other; the figure is the sum of both
    shares. The halves are not independent: two images that are near to one another count in both, and so may a sample.
    What counts in both counts twice in the sum, and therefore four times in its variance. Raises ValueError as
    `memorisation` does, whose sources are those of this figure.
    """
    samples, images = as_matrix(features, "features"), as_matrix(reference, "reference", min_rows=2 * _FEWEST)
    same_width(samples, images)
    halves = images[::2], images[1::2]
    first, second = folds = [_Fold.of(samples, halves[one], halves[1 - one], neighbours) for one in (0, 1)]
    of_samples = first.hits.nonzero()[:, 0], second.hits.nonzero()[:, 0]
    # A pair of images is in both folds if each one is a hit whose nearest image is the other.
    pairs = {(int(first.place_control[row, 0]), row) for row in first.control_hits.nonzero()[:, 0].tolist()}
    mutual = sum((row, int(second.place_control[row, 0])) in pairs for row in second.control_hits.nonzero()[:, 0].tolist())
    twice = int((first.hits & second.hits).sum()), mutual
    counts = sum(map(len, of_samples)), sum(int(fold.control_hits.sum()) for fold in folds)
    wider = [math.sqrt(1 + 2 * both / count) if count else 1.0 for both, count in zip(twice, counts, strict=True)]
    return _result(folds, sum(fold.portion for fold in folds), *_interval(folds, *wider))


class _Fold(NamedTuple):
    """Samples and held-out rows against one set of training rows."""

    scores: torch.Tensor
    """(N,) of the samples."""
    place: torch.Tensor
    """Indices (N, K) of the training rows nearest to each sample, nearest first; of each held-out row below."""
    place_control: torch.Tensor
    hits: torch.Tensor
    """Which samples score below the threshold, (N,) bool, and which held-out rows, (H,) bool."""
    control_hits: torch.Tensor
    num_controls: int

    @classmethod
    def of(cls, samples: torch.Tensor, seen: torch.Tensor, control: torch.Tensor, neighbours: int) -> _Fold:
        count = min(neighbours, len(seen))
        (near, place), (near_control, place_control) = (nearest_distances(side, seen, count) for side in (samples, control))
        scores, control_scores = (side[:, 0] / side.mean(1).clamp(min=1e-300) for side in (near, near_control))
        # Held-out images that are also in the training set are copies, so they cannot be in the control group.
        is_control = near_control[:, 0] > 0
        if (controls := int(is_control.sum())) < _FEWEST:
            raise ValueError(f"only {controls} held-out rows are not in the training set; at least {_FEWEST} are needed.")
        threshold = control_scores[is_control].quantile(LEVEL)
        return cls(scores, place, place_control, scores < threshold, is_control & (control_scores < threshold), controls)

    @property
    def portion(self) -> float:
        return float(self.hits.double().mean())


def _interval(folds: Sequence[_Fold], wider_samples: float, wider_controls: float) -> tuple[float, float]:
    """95 % interval of the sum of the portions; the errors of both kinds are multiplied by these factors."""
    below, above = [], []
    for fold in folds:
        low, high = wilson_interval(int(fold.hits.sum()), len(fold.hits))
        # The threshold is a quantile of a sample: its error adds to the binomial one (Newcombe's square-and-add).
        rare, common = wilson_interval(round(LEVEL * fold.num_controls), fold.num_controls)
        below += [wider_samples * (fold.portion - low), wider_controls * (common - LEVEL)]
        above += [wider_samples * (high - fold.portion), wider_controls * (LEVEL - rare)]
    total = sum(fold.portion for fold in folds)
    return total - math.hypot(*below), total + math.hypot(*above)


def _result(folds: Sequence[_Fold], *portions: float) -> Memorisation:
    """From the sum of the portions and its interval."""
    share, low, high = ((portion - len(folds) * LEVEL) / (1 - LEVEL) for portion in portions)
    one = min(range(len(folds)), key=lambda index: float(folds[index].scores.min()))
    closest = int(folds[one].scores.argmin())
    row = len(folds) * int(folds[one].place[closest, 0]) + one
    return Memorisation(share, low, high, closest, row, float(folds[one].scores[closest]))
