"""Checks of cross-attention: that it is what was recorded, that it localises, and that it sharpens."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.checks.registry import check
from pytest_diffusion.checks.thumbnails import data_uri
from pytest_diffusion.errors import NotApplicable
from pytest_diffusion.maths.attention import half_mass_share, map_correlation
from pytest_diffusion.maths.statistics import mean_error, wilson_interval
from pytest_diffusion.verdict import Measurement


@check("attention", "what was recorded is cross-attention to the text")
def attention_is_cross(attention: Any) -> Measurement:
    """Recorded layers whose keys are not the prompt's tokens; self-attention of pixels says nothing about words."""
    layers = {name: record.is_cross for one in attention.records for name, record in one.layers.items()}
    wrong = [name for name, cross in layers.items() if not cross]
    hint = ""
    if wrong:
        hint = f"{wrong[0]} attends to the image's own positions (self-attention, attn1): record attn2 instead."
    return Measurement(len(wrong), "number of layers that are not cross-attention", num_samples=len(attention.phrases), hint=hint)


@check("attention", "attention rows sum to one")
def attention_rows_sum(attention: Any) -> Measurement:
    """Largest deviation of a row of attention probabilities from a sum of one."""
    _require_cross(attention)
    worst = torch.tensor([record.row_error for one in attention.records for record in one.layers.values()]).max()  # keeps nan
    return Measurement(float(worst), "largest |row sum - 1|", num_samples=len(attention.phrases))


@check("attention", "attention is not uniform over tokens")
def attention_not_uniform(attention: Any) -> Measurement:
    """Normalised entropy over content tokens (padding and start token left out), mean over the named layers; 1 is uniform."""
    _require_cross(attention)
    entropies = torch.stack([attention.entropies(name).mean(0) for name in attention.named]).mean(0)
    series = {"entropy": {name: [float(value) for value in attention.entropies(name).mean(1)] for name in attention.records[0].layers}}
    return Measurement.with_error(
        float(entropies.mean()),
        mean_error(entropies),
        name="token entropy",
        num_samples=len(entropies),
        series={**series, "timesteps": attention.records[0].timesteps},
        protocol={"layer": _named(attention)},
        hint="The maps hardly depend on the token: the text encoder may not be heard, or the weights are untrained.",
    )


@check("attention", "nouns activate compact regions")
def attention_compact(attention: Any) -> Measurement:
    """Smallest share of the picture that holds half of a noun's attention, mean over prompts; 0.5 is spread evenly."""
    _require_cross(attention)
    nouns = [phrase.noun for phrase in attention.phrases]
    shares = torch.stack([half_mass_share(attention.token_maps(name, nouns)) for name in attention.named]).mean(0)
    return Measurement.with_error(
        float(shares.mean()),
        mean_error(shares),
        name="share of the picture with half of a noun's attention",
        num_samples=len(shares),
        protocol={"layer": _named(attention)},
        series=_overlays(attention),
    )


@check("attention", "a modifier looks where its noun looks")
def modifier_noun_overlap(attention: Any) -> Measurement:
    """Correlation over space of the modifier's and the noun's late maps, mean over prompts and named layers."""
    _require_cross(attention)
    nouns = [phrase.noun for phrase in attention.phrases]
    modifiers = [phrase.modifier for phrase in attention.phrases]
    values = torch.stack(
        [map_correlation(attention.token_maps(name, nouns), attention.token_maps(name, modifiers)) for name in attention.named]
    ).mean(0)
    return Measurement.with_error(
        float(values.mean()),
        mean_error(values),
        name="correlation of modifier and noun",
        num_samples=len(values),
        protocol={"layer": _named(attention)},
    )


@check("attention", "tokens have maps of their own")
def attention_tokens_differ(attention: Any) -> Measurement:
    """Correlation over space between the late maps of different content tokens, mean over pairs and prompts."""
    _require_cross(attention)
    values = []
    for name in attention.named:
        for maps in attention.content_maps(name):
            pairs = torch.combinations(torch.arange(len(maps)))
            if len(pairs):
                values.append(map_correlation(maps[pairs[:, 0]], maps[pairs[:, 1]]).mean())
    if not values:
        raise NotApplicable("every prompt has a single content token.")
    per_prompt = torch.stack(values).reshape(len(attention.named), -1).mean(0)
    return Measurement.with_error(
        float(per_prompt.mean()),
        mean_error(per_prompt),
        name="correlation between tokens' maps",
        num_samples=len(per_prompt),
        protocol={"layer": _named(attention)},
    )


@check("attention", "attention sharpens from noisy to clean")
def attention_sharpens(attention: Any) -> Measurement:
    """Share of prompts whose token entropy is lower over the last fifth of the steps than over the first fifth."""
    _require_cross(attention)
    curves = torch.stack([attention.entropies(name) for name in attention.named]).mean(0)
    span = max(1, len(curves) // 5)
    if len(curves) < 2:
        raise NotApplicable(f"{len(curves)} step gives no early and late to compare.")
    falls = curves[-span:].mean(0) < curves[:span].mean(0)
    by_layer = {
        name: float((attention.entropies(name)[-span:].mean(0) < attention.entropies(name)[:span].mean(0)).double().mean())
        for name in attention.records[0].layers
    }
    return Measurement(
        float(falls.double().mean()),
        "share of prompts whose token entropy falls",
        interval=wilson_interval(int(falls.sum()), len(falls)),
        num_samples=len(falls),
        protocol={"layer": _named(attention)},
        series={"share_by_layer": by_layer},
        hint=f"Mean entropy goes from {float(curves[:span].mean()):.3f} to {float(curves[-span:].mean()):.3f}.",
    )


def _require_cross(attention: Any) -> None:
    """Refuse to measure what is not cross-attention; `attention_is_cross` says so as a failure."""
    for one in attention.records:
        for name, record in one.layers.items():
            if not record.is_cross:
                raise NotApplicable(f"{name} recorded self-attention, which has no tokens to speak of.")


def _named(attention: Any) -> str:
    if len(attention.named) == 1:
        return str(attention.named[0].removesuffix(".attn2").removesuffix(".transformer_blocks.0"))
    prefixes = list(dict.fromkeys(name.split(".")[0] for name in attention.named))
    return f"{', '.join(prefixes)}: {len(attention.named)} layers"


def _overlays(attention: Any) -> dict[str, Any]:
    """Maps of the first prompt's content tokens at a few timesteps, over the generated image, for the report."""
    record = attention.records[0]
    name = attention.named[-1]
    steps = record.layers[name].steps
    kept = record.content[0].nonzero().flatten().tolist() if record.content is not None else []
    return {
        "image": data_uri(attention.images[0]),
        "prompt": attention.phrases[0].prompt,
        "tokens": [record.tokens[0][place].replace("</w>", "") for place in kept],
        "map_timesteps": [record.timesteps[step] for step in steps],
        "maps": [[_small(maps[0, place]) for place in kept] for maps in steps.values()],
        "map_layer": name,
    }


def _small(values: torch.Tensor) -> list[list[float]]:
    """A map of at most 32 by 32 rounded numbers."""
    if max(values.shape) > 32:
        values = torch.nn.functional.adaptive_avg_pool2d(values[None, None].float(), (min(32, values.shape[0]), min(32, values.shape[1])))[
            0, 0
        ]
    return [[round(float(value), 4) for value in row] for row in values]
