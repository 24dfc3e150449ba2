"""Checks of distances between samples and reference: Fréchet, kernel, and maximum mean discrepancy."""

from __future__ import annotations

import torch

from pytest_diffusion.checks import plots
from pytest_diffusion.checks.comparable import (
    FeatureLike,
    ReferenceLike,
    extractor_of,
    is_fixed,
    protocol_of_clip,
    reference_of,
    reference_values_of,
    require_comparable,
    statistics_of,
    values_of,
    with_error,
)
from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.references import Reference
from pytest_diffusion.features.clip import Scorer
from pytest_diffusion.maths.frechet import extrapolated_distance, frechet_distance, frechet_standard_error
from pytest_diffusion.maths.kernel import cmmd_estimate, kernel_estimate
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import NotApplicable, TooFewSamples
from pytest_diffusion.verdicts.verdict import Measurement


@check(
    "metrics",
    "Fréchet distance of features",
    figure="Fréchet distance of features (FID with Inception features)",
    sees="large faults in look and in variety",
    blind_to="shuffled prompts and small damage; it falls as N grows, because of its bias, so quote N with it",
)
def fid(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Fréchet distance between features (N, D) of samples and of the reference. Source: arXiv:1706.08500."""
    values, reference = values_of(features), reference_of(reference_features)
    require_comparable(features, reference_features)
    known = statistics_of(reference_features)
    distance = frechet_distance(statistics_of(features) or values, known or reference)
    mean = known.mean if known is not None else torch.as_tensor(reference).double().mean(0)
    shift = float((torch.as_tensor(values).double().mean(0) - mean).square().sum())
    hint = f"{shift / distance:.0%} of it is a shift of the mean, the rest is a difference in spread." if distance > 0 else ""
    name = "FID" if extractor_of(features).startswith("inception") else "Fréchet distance"
    error = frechet_standard_error(values, reference, given_reference=is_fixed(reference_features))
    return with_error(Estimate(distance, error), features, reference_features, name=name, hint=hint)


@check(
    "metrics",
    "Fréchet distance extrapolated to infinitely many samples",
    figure="Fréchet distance extrapolated to infinitely many samples",
    sees="the same as `fid`, without its bias in N",
    blind_to="needs twice as many samples as features",
    plot=plots.distance_by_size,
)
def fid_infinity(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Fréchet distance without the bias of the sample size. Source: arXiv:1911.07023."""
    values, reference = values_of(features), reference_of(reference_features)
    require_comparable(features, reference_features)
    fewest = min(len(side) for side in (values, reference) if isinstance(side, torch.Tensor))
    if fewest < 2 * values.shape[1]:
        raise TooFewSamples(f"{fewest} samples of {values.shape[1]} features cannot be extrapolated: {2 * values.shape[1]} are needed.")
    found = extrapolated_distance(values, reference, given_reference=is_fixed(reference_features))
    name = "FID∞" if extractor_of(features).startswith("inception") else "extrapolated Fréchet distance"
    series = {"sizes": found.sizes[::-1], "distances": found.distances[::-1], "infinity": found.estimate.value}
    return with_error(found.estimate, features, reference_features, name=name, series=series)


@check(
    "metrics",
    "kernel distance of features (KID)",
    figure="unbiased squared MMD of features",
    sees="the same as `fid`, without its bias in N",
    blind_to="has no absolute scale: no default limit",
)
def kid(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Unbiased squared MMD between features of samples and of the reference. Source: arXiv:1801.01401."""
    require_comparable(features, reference_features)
    sides = values_of(features), reference_values_of(reference_features)
    estimate = kernel_estimate(*sides, given_reference=is_fixed(reference_features))
    return with_error(estimate, features, reference_features, name="KID")


@check(
    "metrics",
    "maximum mean discrepancy of CLIP features (CMMD)",
    figure="1000 × squared MMD of CLIP embeddings",
    sees="faults that CLIP sees and Inception does not",
    blind_to="no default limit; biased upwards by about 1/N",
)
def cmmd(
    samples: Samples,
    reference: Reference,
    clip: Scorer,
    sample_embeds: torch.Tensor | None = None,
    reference_embeds: torch.Tensor | None = None,
) -> Measurement:
    """1000 times the squared MMD between CLIP embeddings of samples and of reference images. Source: arXiv:2401.09603.

    `sample_embeds` (N, D) and `reference_embeds` (M, D) are those of `clip`, computed here where they are not given.
    """
    images = reference.images
    if images is None:
        raise NotApplicable("the reference is a file of statistics; this figure needs its images.")
    ours = clip.image_embeds(samples.images) if sample_embeds is None else sample_embeds
    theirs = clip.image_embeds(images) if reference_embeds is None else reference_embeds
    protocol = {**protocol_of_clip(clip), "kernel": "Gaussian, sigma 10, times 1000, biased"}
    counts = {"num_samples": len(ours), "num_reference": len(theirs)}
    estimate = cmmd_estimate(ours, theirs, given_reference=True)
    return Measurement.with_error(*estimate, name="CMMD", protocol=protocol, given_reference=True, **counts)
