"""Memorisation: the share of samples that lie nearer to a training image than real images do."""

from __future__ import annotations

import math
from typing import NamedTuple

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
    count = min(neighbours, len(seen))
    (near, place), (near_control, _) = (nearest_distances(side, seen, count) for side in (samples, control))
    # Held-out images that are also in the training set are copies, so they cannot be in the control group.
    near_control = near_control[near_control[:, 0] > 0]
    if len(near_control) < _FEWEST:
        raise ValueError(f"only {len(near_control)} held-out rows are not in the training set; at least {_FEWEST} are needed.")
    scores, control_scores = near[:, 0] / near.mean(1).clamp(min=1e-300), near_control[:, 0] / near_control.mean(1).clamp(min=1e-300)
    threshold = control_scores.quantile(LEVEL)
    hits = int((scores < threshold).sum())
    portion = hits / len(scores)
    low, high = wilson_interval(hits, len(scores))
    # The threshold is a quantile of a sample: its error adds to the binomial one (Newcombe's square-and-add).
    rare, common = wilson_interval(round(LEVEL * len(near_control)), len(near_control))
    low, high = portion - math.hypot(portion - low, common - LEVEL), portion + math.hypot(high - portion, LEVEL - rare)
    share, low, high = ((value - LEVEL) / (1 - LEVEL) for value in (portion, low, high))
    closest = int(scores.argmin())
    return Memorisation(share, low, high, closest, int(place[closest, 0]), float(scores[closest]))
