"""Checks of sample quality against a reference: Fréchet and kernel distance, precision, recall, scores."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from pytest_diffusion.checks import pictures, plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.prompts import foreign_prompts
from pytest_diffusion.data.references import Reference
from pytest_diffusion.features.clip import Clip, Scorer
from pytest_diffusion.features.identity import Features
from pytest_diffusion.features.manifold import Manifold
from pytest_diffusion.maths.diversity import vendi_estimate
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.frechet import extrapolated_distance, frechet_distance, frechet_standard_error
from pytest_diffusion.maths.kernel import cmmd_estimate, kernel_estimate
from pytest_diffusion.maths.memorisation import memorisation as measure_memorisation
from pytest_diffusion.maths.scores import clip_scores, inception_estimate
from pytest_diffusion.maths.statistics import mean_error, wilson_interval
from pytest_diffusion.maths.tensors import ArrayLike
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.protocol import require_same_protocol
from pytest_diffusion.verdicts.verdict import Measurement

FeatureLike: TypeAlias = Features | ArrayLike
"""Features of the store, or a tensor or array (N, D)."""
ReferenceLike: TypeAlias = FeatureLike | FeatureStatistics
"""Features of the reference, or statistics of them."""


@check(
    "metrics",
    "Fréchet distance of features",
    figure="Fréchet distance of features (FID with Inception features)",
    sees="large faults in look and in variety",
    blind_to="shuffled prompts and small damage; it falls as N grows, because of its bias, so quote N with it",
)
def fid(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Fréchet distance between features (N, D) of samples and of the reference. Source: arXiv:1706.08500."""
    values, reference = _values(features), _reference(reference_features)
    _require_comparable(features, reference_features)
    known = _statistics(reference_features)
    distance = frechet_distance(_statistics(features) or values, known or reference)
    mean = known.mean if known is not None else torch.as_tensor(reference).double().mean(0)
    shift = float((torch.as_tensor(values).double().mean(0) - mean).square().sum())
    hint = f"{shift / distance:.0%} of it is a shift of the mean, the rest is a difference in spread." if distance > 0 else ""
    name = "FID" if _extractor(features).startswith("inception") else "Fréchet distance"
    return _with_error(distance, frechet_standard_error(values, reference), features, reference_features, name=name, hint=hint)


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
    values, reference = _values(features), _reference(reference_features)
    _require_comparable(features, reference_features)
    fewest = min(len(side) for side in (values, reference) if isinstance(side, torch.Tensor))
    if fewest < 2 * values.shape[1]:
        raise NotApplicable(f"{fewest} samples of {values.shape[1]} features cannot be extrapolated: {2 * values.shape[1]} are needed.")
    found = extrapolated_distance(values, reference)
    name = "FID∞" if _extractor(features).startswith("inception") else "extrapolated Fréchet distance"
    series = {"sizes": found.sizes[::-1], "distances": found.distances[::-1], "infinity": found.estimate.value}
    return _with_error(*found.estimate, features, reference_features, name=name, series=series)


@check(
    "metrics",
    "kernel distance of features (KID)",
    figure="unbiased squared MMD of features",
    sees="the same as `fid`, without its bias in N",
    blind_to="has no absolute scale: no default limit",
)
def kid(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Unbiased squared MMD between features of samples and of the reference. Source: arXiv:1801.01401."""
    _require_comparable(features, reference_features)
    return _with_error(*kernel_estimate(_values(features), _reference_values(reference_features)), features, reference_features, name="KID")


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
    protocol = {**_clip_protocol(clip), "kernel": "Gaussian, sigma 10, times 1000, biased"}
    counts = {"num_samples": len(ours), "num_reference": len(theirs)}
    return Measurement.with_error(*cmmd_estimate(ours, theirs), name="CMMD", protocol=protocol, **counts)


@check(
    "metrics",
    "precision: samples lie within the real manifold",
    figure="share of samples inside the reference's manifold",
    sees="samples that look wrong",
    blind_to="lost variety",
)
def precision(features: FeatureLike, reference_features: ReferenceLike, manifold: Manifold | None = None) -> Measurement:
    """Share of samples within the reference's k = 3 manifold. Source: arXiv:1904.06991."""
    return _of_manifold("precision", 3, features, reference_features, manifold)


@check(
    "metrics",
    "recall: real images lie within the samples' manifold",
    figure="share of reference images inside the samples' manifold",
    sees="lost variety",
    blind_to="samples that look wrong",
)
def recall(features: FeatureLike, reference_features: ReferenceLike, manifold: Manifold | None = None) -> Measurement:
    """Share of reference images within the samples' k = 3 manifold. Source: arXiv:1904.06991."""
    return _of_manifold("recall", 3, features, reference_features, manifold)


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
    "diversity: effective number of different samples (Vendi score)",
    figure="effective number of different samples",
    sees="a collapse, without any reference",
    blind_to="whether the samples look real; no default limit",
)
def vendi_score(features: FeatureLike) -> Measurement:
    """Exponential entropy of the samples' cosine similarities. Source: arXiv:2210.02410."""
    estimate = vendi_estimate(_values(features))
    return Measurement.with_error(*estimate, name="Vendi score", num_samples=len(_values(features)), protocol=_protocol(features))


@check(
    "metrics",
    "samples do not copy the reference",
    figure="share of samples that copy a reference image",
    sees="copies of the training set, when the training set is the reference",
    blind_to="copies that the features do not show as copies",
)
def memorisation(features: FeatureLike, reference_features: ReferenceLike) -> Measurement:
    """Share of samples copied; each half of the reference is the control for the other.

    Source: arXiv:2301.13188, section 5.1, with the held-out control of arXiv:2004.05675.
    """
    values, reference = _values(features), _reference_values(reference_features)
    _require_comparable(features, reference_features)
    if len(reference) < 100:
        raise NotApplicable(f"{len(reference)} reference images are too few to hold out a half of them; 100 are needed.")
    halves = (reference[::2], reference[1::2])
    folds = [measure_memorisation(values, halves[index], halves[1 - index]) for index in (0, 1)]
    worst = max((0, 1), key=lambda index: folds[index].share)
    place = 2 * folds[worst].nearest_training + worst
    share = folds[0].share + folds[1].share
    interval = (
        share - math.hypot(*(fold.share - fold.low for fold in folds)),
        share + math.hypot(*(fold.high - fold.share for fold in folds)),
    )
    hint = f"Sample {folds[worst].nearest_sample} is the nearest to an image of the reference, number {place}."
    return Measurement(
        share, "share of samples that copy the reference", interval=interval, hint=hint, **_basis(features, reference_features)
    )


@check(
    "metrics",
    "Inception score",
    figure="exponential of the information between image and class",
    sees="a collapse to few classes",
    blind_to="everything within a class; no limit except where the classes are known",
)
def inception_score(features: FeatureLike) -> Measurement:
    """Exponential of the mean information about the class that an image gives. Source: arXiv:1606.03498.

    `features`: the fixture's, or class probabilities (N, K).
    """
    probabilities = features.probabilities if isinstance(features, Features) else features
    if probabilities is None:
        raise NotApplicable(f"the extractor {_extractor(features)} has no classes.")
    estimate = inception_estimate(probabilities)
    sure = torch.as_tensor(probabilities).double()
    per_sample, overall = (torch.special.entr(law).sum(-1).mean().exp() for law in (sure, sure.mean(0)))
    return Measurement.with_error(
        estimate.value,
        estimate.standard_error,
        name="Inception score",
        hint=f"All samples together cover {float(overall):.1f} classes; a single sample is spread over {float(per_sample):.2f}.",
        num_samples=len(sure),
        protocol=_protocol(features),
    )


@check(
    "metrics",
    "CLIP score of samples with their prompts",
    figure="100 × cosine between image and prompt",
    sees="shuffled prompts, a text encoder without effect",
    blind_to="fine detail; a single score is easy to fool, so the score with another sample's prompt is given beside it",
    plot=plots.clip_scores,
    pictures=pictures.worst_by_score,
)
def clip_score(samples: Samples, clip: Scorer, pipeline: object = None, sample_embeds: torch.Tensor | None = None) -> Measurement:
    """Mean of 100·max(cos, 0) between each sample and its prompt. Source: arXiv:2104.08718.

    `samples` has `images`, uint8 (N, 3, H, W), and `prompts`; `clip` embeds both. With `pipeline`, the
    protocol says whether the CLIP is the one that the pipeline was trained with. `sample_embeds` (N, D) are those of
    `clip`, computed here where they are not given.
    """
    prompts = samples.prompts
    if prompts is None:
        raise NotApplicable("the model takes no prompts.")
    images = clip.image_embeds(samples.images) if sample_embeds is None else sample_embeds
    texts = clip.text_embeds(prompts)
    scores = clip_scores(images, texts)
    other = clip_scores(images, clip.text_embeds(foreign_prompts(prompts)))
    own, foreign, error = float(scores.mean()), float(other.mean()), mean_error(scores - other)
    hint = f"With the prompt of another sample it is {foreign:.1f}."
    if len(set(prompts)) > 1 and own - foreign < 3 * error:
        hint += " Samples fit their own prompt no better than another's: prompts and images are not aligned"
        hint += " (shuffled captions, or a text encoder without effect)."
    worst = scores.argsort()[:8].tolist()
    series = {
        "scores": [float(score) for score in scores.sort().values[:: max(1, len(scores) // 200)]],
        "other": [float(score) for score in other.sort().values[:: max(1, len(other) // 200)]],
        "images": [pictures.data_uri(samples.images[index]) for index in worst],
        "captions": [f"{prompts[index]} ({float(scores[index]):.0f})" for index in worst],
    }
    protocol = _clip_protocol(clip)
    return Measurement.with_error(
        own,
        mean_error(scores),
        name="CLIP score",
        num_samples=len(scores),
        series=series,
        hint=hint,
        protocol={**protocol, "extractor": f"{protocol['extractor']}{_kinship(clip, pipeline)}"},
    )


def _clip_protocol(clip: Scorer) -> dict[str, Any]:
    return {"extractor": f"CLIP {clip.name}", **(clip.protocol if isinstance(clip, Clip) else {})}


def _kinship(clip: Scorer, pipeline: object) -> str:
    """Whether the CLIP that scores is the pipeline's own text encoder, which would make its score too good."""
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is None or not isinstance(clip, Clip):
        return ""
    own, scoring = encoder.get_input_embeddings().weight, clip.model.text_model.get_input_embeddings().weight
    same = own.shape == scoring.shape and torch.allclose(own.float().cpu(), scoring.float().cpu(), atol=1e-3)
    return ", the pipeline's own" if same else ", not the pipeline's own"


def _with_error(value: float, error: float, features: FeatureLike, reference: ReferenceLike, **rest: Any) -> Measurement:
    return Measurement.with_error(value, error, **_basis(features, reference), **rest)


def _of_manifold(name: str, k: int, features: FeatureLike, reference: ReferenceLike, manifold: Manifold | None) -> Measurement:
    _require_comparable(features, reference)
    found = manifold if manifold is not None else Manifold(_values(features), _reference_values(reference))
    estimate = found.estimate(name, k)
    measured = Measurement.with_error(*estimate, name=name, **_basis(features, reference, {"k": k}))
    assert measured.interval is not None
    if name == "density":
        return measured
    # Where all or none lie inside, no half differs from the whole: the binomial error is then the least there is.
    count = measured.num_reference if name in ("recall", "coverage") else measured.num_samples
    low, high = wilson_interval(round(estimate.value * (count or 0)), count or 0)
    return replace(measured, interval=(max(0.0, min(measured.interval[0], low)), min(1.0, max(measured.interval[1], high))))


def _basis(features: FeatureLike, reference: ReferenceLike, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sample counts of both sides and the protocol they share."""
    source = _reference(reference)
    count = source.count if isinstance(source, FeatureStatistics) else len(source)
    protocol = _protocol(features)
    if isinstance(source, FeatureStatistics) and "extractor" not in source.protocol:
        protocol["reference"] = "statistics file, protocol unverified"
    versions = getattr(reference, "protocol", {}).get("versions")
    if versions is not None and versions != protocol.get("versions"):
        protocol["reference versions"] = versions
    return {"num_samples": len(_values(features)), "num_reference": count, "protocol": {**protocol, **(extra or {})}}


def _require_comparable(features: FeatureLike, reference: ReferenceLike) -> None:
    """Raise ProtocolMismatchError where both sides say how they were made and differ."""
    # A saved reference outlives an upgrade of torch; `_basis` puts both versions into the protocol.
    require_same_protocol(getattr(features, "protocol", {}), getattr(reference, "protocol", {}), ignore=("versions",))


def _protocol(features: FeatureLike) -> dict[str, Any]:
    name = {"extractor": _extractor(features)} if _extractor(features) else {}
    return {**name, **getattr(features, "protocol", {})}


def _statistics(features: ReferenceLike) -> FeatureStatistics | None:
    return features if isinstance(features, FeatureStatistics) else getattr(features, "statistics", None)


def _values(features: FeatureLike) -> torch.Tensor:
    return features.values if isinstance(features, Features) else torch.as_tensor(features)


def _extractor(features: FeatureLike) -> str:
    return features.extractor if isinstance(features, Features) else ""


def _reference(reference: ReferenceLike) -> torch.Tensor | FeatureStatistics:
    return reference if isinstance(reference, FeatureStatistics) else _values(reference)


def _reference_values(reference: ReferenceLike) -> torch.Tensor:
    if isinstance(reference, FeatureStatistics):
        raise NotApplicable("the reference is a file of statistics; this figure needs the features of single images.")
    return _values(reference)
