"""Checks of how samples and reference lie in each other's neighbourhood: precision, recall, density, coverage, copies."""

from __future__ import annotations

from dataclasses import replace

from pytest_diffusion.checks.comparable import (
    FeatureLike,
    ReferenceLike,
    basis,
    is_fixed,
    reference_values_of,
    require_comparable,
    values_of,
)
from pytest_diffusion.checks.neighbours import beside_nearest
from pytest_diffusion.checks.pictures import with_nearest
from pytest_diffusion.checks.registry import check
from pytest_diffusion.features.manifold import Manifold
from pytest_diffusion.maths.memorisation import copied_share
from pytest_diffusion.maths.statistics import wilson_interval
from pytest_diffusion.verdicts.errors import TooFewSamples
from pytest_diffusion.verdicts.verdict import Measurement


@check(
    "metrics",
    "precision: samples lie within the real manifold",
    figure="share of samples inside the reference's manifold",
    sees="samples that look wrong",
    blind_to="lost variety",
    pictures=with_nearest("Samples that lie farthest from every reference image, above the nearest one", "nearest reference image"),
)
def precision(features: FeatureLike, reference_features: ReferenceLike, manifold: Manifold | None = None) -> Measurement:
    """Share of samples within the reference's k = 3 manifold. Source: arXiv:1904.06991."""
    found = _of_manifold("precision", 3, features, reference_features, manifold)
    return replace(found, series=beside_nearest(features, reference_features))


@check(
    "metrics",
    "recall: real images lie within the samples' manifold",
    figure="share of reference images inside the samples' manifold",
    sees="lost variety",
    blind_to="samples that look wrong",
    pictures=with_nearest("Reference images that lie farthest from every sample, above the nearest one", "nearest sample"),
)
def recall(features: FeatureLike, reference_features: ReferenceLike, manifold: Manifold | None = None) -> Measurement:
    """Share of reference images within the samples' k = 3 manifold. Source: arXiv:1904.06991."""
    found = _of_manifold("recall", 3, features, reference_features, manifold)
    return replace(found, series=beside_nearest(reference_features, features))


@check(
    "metrics",
    "density: samples lie where real images are dense",
    figure="mean number of k = 5 reference balls around a sample, over k",
    sees="samples that look wrong; outliers of the reference do not disturb it",
    blind_to="lost variety; no default limit",
)
def density(features: FeatureLike, reference_features: ReferenceLike, manifold: Manifold | None = None) -> Measurement:
    """Mean number of k = 5 reference balls around a sample, over k. Source: arXiv:2002.09797."""
    return _of_manifold("density", 5, features, reference_features, manifold)


@check(
    "metrics",
    "coverage: real images have a sample nearby",
    figure="share of k = 5 reference balls that hold a sample",
    sees="lost variety; outliers among the samples do not disturb it",
    blind_to="samples that look wrong; no default limit",
)
def coverage(features: FeatureLike, reference_features: ReferenceLike, manifold: Manifold | None = None) -> Measurement:
    """Share of k = 5 reference balls that hold a sample. Source: arXiv:2002.09797."""
    return _of_manifold("coverage", 5, features, reference_features, manifold)


@check(
    "metrics",
    "samples do not copy the reference",
    figure="share of samples that copy a reference image",
    sees="copies of the training set, when the training set is the reference",
    blind_to="copies that the features do not show as copies",
    pictures=with_nearest("Samples that are most like an image of the reference, above that image", "reference image"),
)
def memorisation(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Share of samples copied; each half of the reference is the control for the other.

    Source: arXiv:2301.13188, section 5.1, with the held-out control of arXiv:2004.05675.
    """
    values, known = values_of(features), reference_values_of(reference_features)
    require_comparable(features, reference_features)
    if len(known) < 100:
        raise TooFewSamples(f"{len(known)} reference images are too few to hold out a half of them; 100 are needed.")
    found = copied_share(values, known)
    series = beside_nearest(features, reference_features, alike=True)
    hint = f"Sample {found.nearest_sample} is the nearest to an image of the reference, number {found.nearest_training}."
    name, interval = "share of samples that copy the reference", (found.low, found.high)
    return Measurement(found.share, name, interval=interval, hint=hint, series=series, **basis(features, reference_features))


def _of_manifold(name: str, k: int, features: FeatureLike, reference: ReferenceLike, manifold: Manifold | None) -> Measurement:
    require_comparable(features, reference)
    found = manifold if manifold is not None else Manifold(values_of(features), reference_values_of(reference), is_fixed(reference))
    value, error, degrees = found.estimate(name, k)
    shared = basis(features, reference, {"k": k})
    measured = Measurement.with_error(value, error, degrees, name=name, given_reference=found.given_reference, **shared)
    assert measured.interval is not None
    if name == "density":
        return measured
    low, high = measured.interval
    # Where all or none lie inside, no half differs from the whole: the binomial error is then the least there is.
    if not found.given_reference or value in (0, 1) or name == "precision":
        count = shared["num_reference"] if name in ("recall", "coverage") else shared["num_samples"]
        least = wilson_interval(round(value * count), count)
        low, high = min(low, least[0]), max(high, least[1])
    return replace(measured, interval=(max(0.0, low), min(1.0, high)))
