"""Scores averaged over samples: the Inception score of class probabilities and the CLIP score."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from pytest_diffusion.maths.statistics import Estimate, mean_error
from pytest_diffusion.maths.tensors import ArrayLike, as_matrix


def inception_score(probabilities: ArrayLike) -> float:
    """exp(E[KL(p(y|x) ‖ p(y))]) of class probabilities (N, K), on all samples at once; between 1 and K.

    Raises ValueError unless every row is non-negative and sums to 1. Source: arXiv:1606.03498.
    """
    return inception_estimate(probabilities).value


def inception_estimate(probabilities: ArrayLike) -> Estimate:
    """`inception_score` with a standard error by the delta method (the marginal's own error is of second order)."""
    matrix = as_matrix(probabilities, "probabilities", min_rows=2)
    if float(matrix.min()) < 0 or float((matrix.sum(1) - 1).abs().max()) > 1e-3:
        raise ValueError("probabilities are not distributions: every row must be non-negative and sum to 1.")
    divergences = (torch.xlogy(matrix, matrix) - torch.xlogy(matrix, matrix.mean(0))).sum(1)
    value = math.exp(float(divergences.mean()))
    return Estimate(value, value * mean_error(divergences), len(matrix) - 1)


def clip_score(image_features: ArrayLike, text_features: ArrayLike) -> float:
    """Mean of `clip_scores`: 100·max(cos, 0) averaged over pairs, in [0, 100]."""
    return float(clip_scores(image_features, text_features).mean())


def clip_scores(image_features: ArrayLike, text_features: ArrayLike) -> torch.Tensor:
    """100·max(cos, 0) of each image feature (N, D) with its own text feature (N, D): float64 (N,).

    Source: arXiv:2104.08718, with the usual scale of 100, as in torchmetrics.
    """
    images, texts = as_matrix(image_features, "image_features"), as_matrix(text_features, "text_features")
    if images.shape != texts.shape:
        raise ValueError(f"image_features have shape {tuple(images.shape)} and text_features {tuple(texts.shape)}; expected the same.")
    return 100 * F.cosine_similarity(images, texts, dim=1).clamp(min=0)
