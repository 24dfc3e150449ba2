"""Metrics of cross-attention maps: entropy over tokens, compactness in space, overlap and localisation."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def token_entropy(probabilities: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """Entropy of attention over the content tokens, divided by ln(their number): 0 is one token, 1 is uniform.

    `probabilities` (B, ..., tokens) need not sum to one: they are renormalised over the tokens of `content`, bool
    (B, tokens), so that padding has no effect. Returns the mean over all other axes, (B,); nan for a row with fewer
    than two content tokens, where the entropy is not defined.
    """
    kept = probabilities * content.reshape(len(content), *(1,) * (probabilities.ndim - 2), -1)
    mass = kept.sum(-1).clamp(min=1e-38)
    entropy = (mass.log() + torch.special.entr(kept).sum(-1) / mass).flatten(1).mean(1)
    count = content.sum(1).to(entropy)
    return torch.where(count > 1, entropy / count.log(), torch.nan)


def half_mass_share(maps: torch.Tensor) -> torch.Tensor:
    """Smallest share of positions that contains half of each map's mass; 0.5 for a uniform map.

    `maps` (..., h, w) are non-negative; returns (...).
    """
    flat = maps.double().flatten(-2)
    ordered = flat.sort(-1, descending=True).values.cumsum(-1)
    total = ordered[..., -1:]
    count = flat.shape[-1]
    # Interpolated within the position where the sum crosses one half; otherwise coarse maps give only multiples of 1/count.
    index = (ordered < total / 2).sum(-1, keepdim=True).clamp(max=count - 1)
    upper = ordered.gather(-1, index)
    lower = torch.where(index > 0, ordered.gather(-1, (index - 1).clamp(min=0)), torch.zeros_like(upper))
    part = (total / 2 - lower) / (upper - lower).clamp(min=1e-300)
    share: torch.Tensor = ((index + part) / count).squeeze(-1)
    return share


def map_correlation(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Pearson correlation over space of maps (..., h, w): (...). A constant map has correlation 0."""
    first, second = (maps.double().flatten(-2) for maps in (left, right))
    first, second = first - first.mean(-1, keepdim=True), second - second.mean(-1, keepdim=True)
    scale = first.norm(dim=-1) * second.norm(dim=-1)
    correlation: torch.Tensor = (first * second).sum(-1) / scale.clamp(min=1e-300)
    return correlation


def area_matched_iou(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each mask and the same number of highest pixels of its map: (N,).

    `maps` (N, h, w) are resized bilinearly to the masks, bool (N, H, W). No threshold is needed.
    """
    resized = F.interpolate(maps.float()[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    ious = []
    for values, mask in zip(resized.flatten(1), masks.flatten(1), strict=True):
        area = int(mask.sum())
        chosen = torch.zeros_like(mask)
        chosen[values.topk(area).indices] = True
        union = int((chosen | mask).sum())
        ious.append(int((chosen & mask).sum()) / union if union else 0.0)
    return torch.tensor(ious, dtype=torch.float64)
