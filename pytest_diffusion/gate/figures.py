"""The figures by which a candidate is compared with its baseline, and their differences after any number of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from pytest_diffusion.gate.looks import Look
from pytest_diffusion.maths.diversity import vendi_influences
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.frechet import frechet_distance, frechet_influences
from pytest_diffusion.maths.kernel import kernel_distance, kernel_influences
from pytest_diffusion.maths.manifold import coverage_influences, precision_indicators
from pytest_diffusion.maths.paired import paired_mean
from pytest_diffusion.maths.statistics import Estimate

FEWEST_CLUSTERS = 20
"""With fewer different prompts the prompts are taken as given, and every pair counts for itself."""
Rows = tuple[float, torch.Tensor]
"""A figure of a set, and what each sample contributes to it (N,), whose mean differs from the figure by a constant."""


@dataclass(frozen=True)
class Figure:
    """A figure of samples: its title, unit and direction (1: more is better, -1: less is better, 0: neither)."""

    name: str
    title: str
    unit: str = ""
    direction: int = 1


FIGURES = (
    Figure("denoising_loss", "denoising loss on noised reference images", "%", -1),
    Figure("retention_loss", "denoising loss on the retention set", "%", -1),
    Figure("text_encoder_loss", "denoising loss with the candidate's text encoders in place of the baseline's", "%", -1),
    Figure("reconstruction_loss", "error of the VAE's round trip", "%", -1),
    Figure("clip_score", "CLIP score with the own prompt"),
    Figure("alignment", "lead of the own prompt over a foreign one, by CLIP"),
    Figure("brightness", "brightness", direction=0),
    Figure("contrast", "contrast", direction=0),
    Figure("saturation", "saturation", direction=0),
    Figure("sharpness", "sharpness", direction=0),
    Figure("fid", "Fréchet distance to the reference", direction=-1),
    Figure("kid", "kernel distance (KID) to the reference", "× 10⁻³", -1),
    Figure("precision", "precision against the reference"),
    Figure("coverage", "coverage of the reference"),
    Figure("vendi_score", "effective number of different samples"),
)
"""In the order in which they are shown. Scorers that the user names follow them."""
SET_FIGURES: dict[str, Callable[[torch.Tensor, torch.Tensor | FeatureStatistics], Rows]] = {}


def figure_named(name: str) -> Figure:
    """The declaration of a figure; that of a user's scorer is made from its name."""
    return next((one for one in FIGURES if one.name == name), Figure(name, f"score of {name}"))


def learned_and_forgot(better: Sequence[str], worse: Sequence[str]) -> str:
    """What a fine-tune traded, from the names of figures that are better and worse; empty where it traded nothing."""
    if "denoising_loss" in better and "retention_loss" in worse:
        return "It learned what the reference shows, and forgot some of the retention set."
    return ""


def _frechet(features: torch.Tensor, reference: torch.Tensor | FeatureStatistics) -> Rows:
    return frechet_distance(features, reference), frechet_influences(features, reference)


def _kernel(features: torch.Tensor, reference: torch.Tensor | FeatureStatistics) -> Rows:
    assert isinstance(reference, torch.Tensor)
    return 1000 * kernel_distance(features, reference), 1000 * kernel_influences(features, reference)


def _precision(features: torch.Tensor, reference: torch.Tensor | FeatureStatistics) -> Rows:
    assert isinstance(reference, torch.Tensor)
    inside = precision_indicators(features, reference, k=3)
    return float(inside.mean()), inside


def _coverage(features: torch.Tensor, reference: torch.Tensor | FeatureStatistics) -> Rows:
    assert isinstance(reference, torch.Tensor)
    return coverage_influences(features, reference, k=5)


def _vendi(features: torch.Tensor, reference: torch.Tensor | FeatureStatistics) -> Rows:
    return vendi_influences(features)


SET_FIGURES.update(fid=_frechet, kid=_kernel, precision=_precision, coverage=_coverage, vendi_score=_vendi)
OF_REFERENCE = frozenset({"fid", "kid", "precision", "coverage"})
"""Figures of sets that compare with a reference."""
OF_IMAGES = OF_REFERENCE - {"fid"}
"""Figures that need the reference's own features; statistics of it are not enough."""
_OF_COVARIANCE = ("fid", "vendi_score")
"""Figures of the features' second moments: with fewer than two samples for each feature they say more about the number of samples."""


def score_look(candidate: torch.Tensor, baseline: torch.Tensor, clusters: Sequence[Hashable] | None, *, rare: bool = True) -> Look:
    """The look at a score of single images: values (N,) of both models in the order of the pairs.

    With `rare`, the error allows for prompts that are lost so seldom that none of them was seen yet (`paired_mean`).
    """
    spread = float(baseline.std()) if len(baseline) > 1 else 0.0
    difference = paired_mean(candidate - baseline, clusters, unseen=spread if rare else 0.0)
    return Look(len(baseline), difference, float(candidate.mean()), float(baseline.mean()), spread, _count(clusters))


def set_look(
    name: str,
    candidate: torch.Tensor,
    baseline: torch.Tensor,
    reference: torch.Tensor | FeatureStatistics,
    clusters: Sequence[Hashable] | None,
    *,
    rare: bool = True,
) -> Look:
    """The look at a figure of sets: features (N, D) of both models in the order of the pairs.

    The error is that of the difference of both models' influences, in which the noise of the reference cancels.
    """
    (value, own), (other, others) = (SET_FIGURES[name](features, reference) for features in (candidate, baseline))
    spread = float(others.std())
    error = paired_mean(own - others, clusters, unseen=spread if rare else 0.0)
    enough = name not in _OF_COVARIANCE or len(baseline) >= 2 * baseline.shape[1]
    spread_of_it = error.standard_error if enough or not rare else math.inf
    return Look(len(baseline), Estimate(value - other, spread_of_it, error.degrees), value, other, spread, _count(clusters))


def relative_loss(candidate: torch.Tensor, baseline: torch.Tensor, clusters: Sequence[Hashable] | None, *, rare: bool = True) -> Look:
    """The look at denoising losses (N, T) of both models: the change in per cent of the baseline's mean loss, averaged over bands."""
    scale = baseline.mean(0)
    own, other = (100 * (losses / scale).mean(1) for losses in (candidate, baseline))
    return score_look(own, other, clusters, rare=rare)


def clusters_of(prompts: Sequence[str] | None) -> list[Hashable] | None:
    """Pairs of one prompt are one cluster, where there are enough different prompts; else None."""
    return list(prompts) if prompts is not None and len(set(prompts)) >= FEWEST_CLUSTERS else None


def _count(clusters: Sequence[Hashable] | None) -> int:
    return len(set(clusters)) if clusters is not None else 0
