"""Checks of sample quality against a reference: Fréchet and kernel distance, precision, recall, scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytest_diffusion.adapters.features import Features
from pytest_diffusion.checks.registry import check
from pytest_diffusion.checks.thumbnails import data_uri
from pytest_diffusion.errors import NotApplicable
from pytest_diffusion.maths.frechet import FeatureStatistics, frechet_distance, frechet_standard_error
from pytest_diffusion.maths.kernel import kernel_estimate
from pytest_diffusion.maths.manifold import precision_recall
from pytest_diffusion.maths.scores import clip_scores, inception_estimate
from pytest_diffusion.maths.statistics import mean_error, wilson_interval
from pytest_diffusion.verdict import Measurement


@check("metrics", "Fréchet distance of features")
def fid(features: Any, reference_features: Any) -> Measurement:
    """Fréchet distance between features (N, D) of samples and of the reference. Source: arXiv:1706.08500."""
    values, reference = _values(features), _reference(reference_features)
    distance = frechet_distance(values, reference)
    sizes = sorted({len(values) // part for part in (16, 8, 4, 2, 1) if len(values) // part > 1})
    series = {"sizes": sizes, "distances": [frechet_distance(values[:size], reference) for size in sizes]}
    statistics = reference if isinstance(reference, FeatureStatistics) else FeatureStatistics.from_features(reference)
    shift = float((torch.as_tensor(values).double().mean(0) - statistics.mean).square().sum())
    hint = f"{shift / distance:.0%} of it is a shift of the mean, the rest a difference in spread." if distance > 0 else ""
    name = "FID" if _extractor(features).startswith("inception") else "Fréchet distance"
    return _with_error(
        distance, frechet_standard_error(values, reference), features, reference_features, name=name, series=series, hint=hint
    )


@check("metrics", "kernel distance of features (KID)")
def kid(features: Any, reference_features: Any) -> Measurement:
    """Unbiased squared MMD between features of samples and of the reference. Source: arXiv:1801.01401."""
    estimate = kernel_estimate(_values(features), _reference_values(reference_features))
    return _with_error(estimate.value, estimate.standard_error, features, reference_features, name="KID")


@check("metrics", "precision: samples lie within the real manifold")
def precision(features: Any, reference_features: Any) -> Measurement:
    """Share of samples within the reference's k = 3 manifold. Source: arXiv:1904.06991."""
    value = precision_recall(_values(features), _reference_values(reference_features)).precision
    return _share(value, len(_values(features)), features, reference_features, "precision")


@check("metrics", "recall: real images lie within the samples' manifold")
def recall(features: Any, reference_features: Any) -> Measurement:
    """Share of reference images within the samples' k = 3 manifold. Source: arXiv:1904.06991."""
    value = precision_recall(_values(features), _reference_values(reference_features)).recall
    return _share(value, len(_reference_values(reference_features)), features, reference_features, "recall")


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
        protocol={"extractor": _extractor(features)} if isinstance(features, Features) else {},
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
    images = clip.image_embeds(samples.images)
    texts = clip.text_embeds(prompts)
    scores = clip_scores(images, texts)
    # Every sample with a prompt of another sample that differs from its own.
    distinct = list(dict.fromkeys(prompts))
    foreign_of = {prompt: distinct[(index + len(distinct) // 2) % len(distinct)] for index, prompt in enumerate(distinct)}
    other = clip_scores(images, clip.text_embeds([foreign_of[prompt] for prompt in prompts]))
    own, foreign, error = float(scores.mean()), float(other.mean()), mean_error(scores - other)
    hint = f"With the prompt of another sample it is {foreign:.1f}."
    if len(distinct) > 1 and own - foreign < 3 * error:
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
        protocol={"extractor": f"CLIP {clip.name}{_kinship(clip, pipeline)}"},
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


def _share(value: float, trials: int, features: Any, reference: Any, name: str) -> Measurement:
    interval = wilson_interval(value * trials, trials)
    return Measurement(value, name, interval=interval, **_basis(features, reference, {"k": 3}))


def _basis(features: Any, reference: Any, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Sample counts of both sides and the protocol they share."""
    source = _reference(reference)
    count = source.count if isinstance(source, FeatureStatistics) else len(source)
    protocol = {"extractor": _extractor(features)} if _extractor(features) else {}
    if isinstance(source, FeatureStatistics) and source.count is None:
        protocol["reference"] = "statistics file, protocol unverified"
    return {"num_samples": len(_values(features)), "num_reference": count, "protocol": {**protocol, **(extra or {})}}


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
