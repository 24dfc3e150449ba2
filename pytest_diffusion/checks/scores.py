"""Checks of samples by themselves or with their prompts: diversity, Inception score, CLIP score."""

from __future__ import annotations

import torch

from pytest_diffusion.checks import pictures, plots
from pytest_diffusion.checks.comparable import FeatureLike, extractor_of, protocol_of, protocol_of_clip, values_of
from pytest_diffusion.checks.registry import check
from pytest_diffusion.data.prompts import foreign_prompts
from pytest_diffusion.features.clip import Clip, Scorer
from pytest_diffusion.features.identity import Features
from pytest_diffusion.maths.diversity import vendi_estimate
from pytest_diffusion.maths.scores import clip_scores, inception_estimate
from pytest_diffusion.maths.statistics import mean_error, mean_estimate
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement


@check(
    "metrics",
    "diversity: effective number of different samples (Vendi score)",
    figure="effective number of different samples",
    sees="a collapse, without any reference",
    blind_to="whether the samples look real; no default limit",
)
def vendi_score(features: FeatureLike) -> Measurement:
    """Exponential entropy of the samples' cosine similarities. Source: arXiv:2210.02410."""
    estimate = vendi_estimate(values_of(features))
    return Measurement.with_error(*estimate, name="Vendi score", num_samples=len(values_of(features)), protocol=protocol_of(features))


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
        raise NotApplicable(f"the extractor {extractor_of(features)} has no classes.")
    sure = torch.as_tensor(probabilities).double()
    per_sample, overall = (torch.special.entr(law).sum(-1).mean().exp() for law in (sure, sure.mean(0)))
    return Measurement.with_error(
        *inception_estimate(probabilities),
        name="Inception score",
        hint=f"All samples together cover {float(overall):.1f} classes; a single sample is spread over {float(per_sample):.2f}.",
        num_samples=len(sure),
        protocol=protocol_of(features),
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
    protocol = protocol_of_clip(clip)
    return Measurement.with_error(
        *mean_estimate(scores),
        name="CLIP score",
        num_samples=len(scores),
        series=series,
        hint=hint,
        protocol={**protocol, "extractor": f"{protocol['extractor']}{_kinship(clip, pipeline)}"},
    )


def _kinship(clip: Scorer, pipeline: object) -> str:
    """Whether the CLIP that scores is the pipeline's own text encoder, which would make its score too good."""
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is None or not isinstance(clip, Clip):
        return ""
    own, scoring = encoder.get_input_embeddings().weight, clip.model.text_model.embeddings.token_embedding.weight
    same = own.shape == scoring.shape and torch.allclose(own.float().cpu(), scoring.float().cpu(), atol=1e-3)
    return ", the pipeline's own" if same else ", not the pipeline's own"
