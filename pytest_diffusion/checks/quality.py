"""Checks of sample quality against a reference: Fréchet and kernel distance, precision, recall, scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pytest_diffusion.checks.registry import check
from pytest_diffusion.checks.thumbnails import data_uri
from pytest_diffusion.data.prompts import foreign_prompts
from pytest_diffusion.features.extractors import Features
from pytest_diffusion.features.store import stored_embeds
from pytest_diffusion.maths.diversity import vendi_estimate
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.frechet import frechet_distance, frechet_distance_infinity, frechet_standard_error
from pytest_diffusion.maths.kernel import cmmd_estimate, kernel_estimate
from pytest_diffusion.maths.manifold import manifold_estimates
from pytest_diffusion.maths.memorisation import memorisation as measure_memorisation
from pytest_diffusion.maths.scores import clip_scores, inception_estimate
from pytest_diffusion.maths.statistics import mean_error, wilson_interval
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.protocol import require_same_protocol
from pytest_diffusion.verdicts.verdict import Measurement


@check("metrics", "Fréchet distance of features")
def fid(features: Any, reference_features: Any) -> Measurement:
    """Fréchet distance between features (N, D) of samples and of the reference. Source: arXiv:1706.08500."""
    values, reference = _values(features), _reference(reference_features)
    _require_comparable(features, reference_features)
    known = _statistics(reference_features)
    distance = frechet_distance(_statistics(features) or values, known or reference)
    sizes = sorted({len(values) // part for part in (16, 8, 4, 2) if len(values) // part > 1})
    series = {
        "sizes": [*sizes, len(values)],
        "distances": [*(frechet_distance(values[:size], known or reference) for size in sizes), distance],
    }
    mean = known.mean if known is not None else torch.as_tensor(reference).double().mean(0)
    shift = float((torch.as_tensor(values).double().mean(0) - mean).square().sum())
    hint = f"{shift / distance:.0%} of it is a shift of the mean, the rest a difference in spread." if distance > 0 else ""
    name = "FID" if _extractor(features).startswith("inception") else "Fréchet distance"
    return _with_error(
        distance, frechet_standard_error(values, reference), features, reference_features, name=name, series=series, hint=hint
    )


@check("metrics", "Fréchet distance extrapolated to infinitely many samples")
def fid_infinity(features: Any, reference_features: Any) -> Measurement:
    """Fréchet distance without the bias of the sample size. Source: arXiv:1911.07023."""
    values, reference = _values(features), _reference(reference_features)
    _require_comparable(features, reference_features)
    fewest = min(len(side) for side in (values, reference) if isinstance(side, torch.Tensor))
    if fewest < 2 * values.shape[1]:
        raise NotApplicable(f"{fewest} samples of {values.shape[1]} features cannot be extrapolated: {2 * values.shape[1]} are needed.")
    estimate = frechet_distance_infinity(values, reference)
    name = "FID∞" if _extractor(features).startswith("inception") else "extrapolated Fréchet distance"
    return _with_error(*estimate, features, reference_features, name=name)


@check("metrics", "kernel distance of features (KID)")
def kid(features: Any, reference_features: Any) -> Measurement:
    """Unbiased squared MMD between features of samples and of the reference. Source: arXiv:1801.01401."""
    _require_comparable(features, reference_features)
    return _with_error(*kernel_estimate(_values(features), _reference_values(reference_features)), features, reference_features, name="KID")


@check("metrics", "maximum mean discrepancy of CLIP features (CMMD)")
def cmmd(samples: Any, reference: Any, clip: Any) -> Measurement:
    """1000 times the squared MMD between CLIP embeddings of samples and of reference images. Source: arXiv:2401.09603."""
    if reference.images is None:
        raise NotApplicable("the reference is a file of statistics; this figure needs its images.")
    estimate = cmmd_estimate(stored_embeds(samples, clip), stored_embeds(reference, clip))
    protocol = {"extractor": f"CLIP {clip.name}", **getattr(clip, "protocol", {}), "kernel": "Gaussian, sigma 10, times 1000, biased"}
    counts = {"num_samples": len(samples.images), "num_reference": len(reference.images)}
    return Measurement.with_error(*estimate, name="CMMD", protocol=protocol, **counts)


@check("metrics", "precision: samples lie within the real manifold")
def precision(features: Any, reference_features: Any) -> Measurement:
    """Share of samples within the reference's k = 3 manifold. Source: arXiv:1904.06991."""
    return _of_manifold("precision", 3, features, reference_features)


@check("metrics", "recall: real images lie within the samples' manifold")
def recall(features: Any, reference_features: Any) -> Measurement:
    """Share of reference images within the samples' k = 3 manifold. Source: arXiv:1904.06991."""
    return _of_manifold("recall", 3, features, reference_features)


@check("metrics", "density: how thickly the real manifold holds the samples")
def density(features: Any, reference_features: Any) -> Measurement:
    """Mean number of k = 5 reference balls around a sample, over k. Source: arXiv:2002.09797."""
    return _of_manifold("density", 5, features, reference_features)


@check("metrics", "coverage: real images have a sample nearby")
def coverage(features: Any, reference_features: Any) -> Measurement:
    """Share of k = 5 reference balls that hold a sample. Source: arXiv:2002.09797."""
    return _of_manifold("coverage", 5, features, reference_features)


@check("metrics", "diversity: effective number of different samples (Vendi score)")
def vendi_score(features: Any) -> Measurement:
    """Exponential entropy of the samples' cosine similarities. Source: arXiv:2210.02410."""
    estimate = vendi_estimate(_values(features))
    return Measurement.with_error(*estimate, name="Vendi score", num_samples=len(_values(features)), protocol=_protocol(features))


@check("metrics", "samples do not copy the reference")
def memorisation(features: Any, reference_features: Any) -> Measurement:
    """Share of samples that copy a reference image, each half of the reference by the distances of the other half to it.

    Source: arXiv:2301.13188, section 5.1, with the held-out control of arXiv:2004.05675.
    """
    values, reference = _values(features), _reference_values(reference_features)
    _require_comparable(features, reference_features)
    if len(reference) < 100:
        raise NotApplicable(f"{len(reference)} reference images are too few to hold a half of them out; 100 are needed.")
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


@check("metrics", "Inception score")
def inception_score(features: Any) -> Measurement:
    """Exp of the mean information of the class given the image. Source: arXiv:1606.03498.

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
        hint=f"Together the samples spread over {float(overall):.1f} classes; a single one wavers between {float(per_sample):.2f}.",
        num_samples=len(probabilities),
        protocol=_protocol(features),
    )


@check("metrics", "CLIP score of samples with their prompts")
def clip_score(samples: Any, clip: Any, pipeline: Any = None) -> Measurement:
    """Mean of 100·max(cos, 0) between each sample and its prompt. Source: arXiv:2104.08718.

    `samples` has `images`, uint8 (N, 3, H, W), and `prompts`; `clip` embeds both. With `pipeline`, the
    protocol says whether the CLIP is the one that the pipeline was trained with.
    """
    prompts: Sequence[str] | None = samples.prompts
    if prompts is None:
        raise NotApplicable("the model takes no prompts.")
    images = stored_embeds(samples, clip)
    texts = clip.text_embeds(prompts)
    scores = clip_scores(images, texts)
    other = clip_scores(images, clip.text_embeds(foreign_prompts(prompts)))
    own, foreign, error = float(scores.mean()), float(other.mean()), mean_error(scores - other)
    hint = f"With the prompt of another sample it is {foreign:.1f}."
    if len(set(prompts)) > 1 and own - foreign < 3 * error:
        hint += " Samples fit their own prompt no better than another's: prompts and images are not aligned"
        hint += " (shuffled captions, or a text encoder that is not heard)."
    worst = scores.argsort()[:8].tolist()
    series = {
        "scores": [float(score) for score in scores.sort().values[:: max(1, len(scores) // 200)]],
        "other": [float(score) for score in other.sort().values[:: max(1, len(other) // 200)]],
        "images": [data_uri(samples.images[index]) for index in worst],
        "captions": [f"{prompts[index]} ({float(scores[index]):.0f})" for index in worst],
    }
    return Measurement.with_error(
        own,
        mean_error(scores),
        name="CLIP score",
        num_samples=len(scores),
        series=series,
        hint=hint,
        protocol={"extractor": f"CLIP {clip.name}{_kinship(clip, pipeline)}", **getattr(clip, "protocol", {})},
    )


def _kinship(clip: Any, pipeline: Any) -> str:
    """Whether the CLIP that scores is the one that the pipeline listens to, which would flatter it."""
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is None or not hasattr(clip, "model"):
        return ""
    own, scoring = encoder.get_input_embeddings().weight, clip.model.text_model.get_input_embeddings().weight
    same = own.shape == scoring.shape and torch.allclose(own.float().cpu(), scoring.float().cpu(), atol=1e-3)
    return ", the pipeline's own" if same else ", not the pipeline's own"


def _with_error(value: float, error: float, features: Any, reference: Any, **rest: Any) -> Measurement:
    return Measurement.with_error(value, error, **_basis(features, reference), **rest)


def _of_manifold(name: str, k: int, features: Any, reference: Any) -> Measurement:
    _require_comparable(features, reference)
    estimate = manifold_estimates(_values(features), _reference_values(reference), k=k)[name]
    measured = Measurement.with_error(*estimate, name=name, **_basis(features, reference, {"k": k}))
    assert measured.interval is not None
    if name == "density":
        return measured
    # Where all or none lie inside, no half differs from the whole: what a binomial leaves open is the least.
    count = measured.num_reference if name in ("recall", "coverage") else measured.num_samples
    low, high = wilson_interval(estimate.value * (count or 0), count or 0)
    return replace(measured, interval=(max(0.0, min(measured.interval[0], low)), min(1.0, max(measured.interval[1], high))))


def _basis(features: Any, reference: Any, extra: dict[str, Any] | None = None) -> dict[str, Any]:
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


def _require_comparable(features: Any, reference: Any) -> None:
    """Raise ProtocolMismatchError where both sides say how they were made and differ."""
    # A saved reference outlives an upgrade of torch; `_basis` puts both versions into the protocol.
    require_same_protocol(getattr(features, "protocol", {}), getattr(reference, "protocol", {}), ignore=("versions",))


def _protocol(features: Any) -> dict[str, Any]:
    name = {"extractor": _extractor(features)} if _extractor(features) else {}
    return {**name, **getattr(features, "protocol", {})}


def _statistics(features: Any) -> FeatureStatistics | None:
    return features if isinstance(features, FeatureStatistics) else getattr(features, "statistics", None)


def _values(features: Any) -> torch.Tensor:
    return features.values if isinstance(features, Features) else torch.as_tensor(features)


def _extractor(features: Any) -> str:
    return features.extractor if isinstance(features, Features) else ""


def _reference(reference: Any) -> torch.Tensor | FeatureStatistics:
    return reference if isinstance(reference, FeatureStatistics) else _values(reference)


def _reference_values(reference: Any) -> torch.Tensor:
    if isinstance(reference, FeatureStatistics):
        raise NotApplicable("the reference is a file of statistics; this figure needs the features of single images.")
    return _values(reference)
