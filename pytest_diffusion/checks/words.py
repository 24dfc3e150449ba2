"""Checks of attention by word: nouns are compact and localised, modifiers agree with nouns, tokens differ."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.attention.localisation import Localisation
from pytest_diffusion.attention.run import AttentionRun
from pytest_diffusion.attention.tokens import plain
from pytest_diffusion.checks import pictures, plots
from pytest_diffusion.checks.attention import named_layers, of_unnamed_layers, require_cross, shown_layers
from pytest_diffusion.checks.registry import check
from pytest_diffusion.maths.attention import area_matched_iou, half_mass_share, map_correlation
from pytest_diffusion.maths.statistics import choice_p_value, mean_estimate
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

MARGIN = 0.95
"""How much more compact than a random token a noun must be."""


@check(
    "attention",
    "nouns activate compact regions",
    figure="share of the picture that holds half of a noun's attention",
    sees="maps spread over everything",
    blind_to="compact regions in the wrong place",
    plot=plots.maps,
)
def attention_compact(attention: AttentionRun) -> Measurement:
    """Smallest share of the picture that holds half of a noun's attention, mean over prompts; 0.5 is spread evenly."""
    require_cross(attention)
    nouns = [phrase.noun for phrase in attention.phrases]
    shares = torch.stack([half_mass_share(attention.token_maps(name, nouns)) for name in attention.named]).mean(0)
    return Measurement.with_error(
        *mean_estimate(shares),
        name="share of the picture with half of a noun's attention",
        num_samples=len(shares),
        protocol={"layer": named_layers(attention)},
        series=_overlays(attention),
    )


@check(
    "attention",
    "nouns are more compact than tokens drawn at random",
    figure="p-value of the nouns' compactness under shuffled tokens",
    sees="maps that are alike for all tokens, whatever their shape",
    blind_to="judged only for layers that you name",
)
def attention_noun_specific(attention: AttentionRun) -> Measurement:
    """p-value of the nouns' compactness under shuffled tokens: a random token of each prompt's sequence in the noun's place.

    Nouns must be more compact by a twentieth (`MARGIN`): in an untrained model, words differ from one another by less.
    The start token and the padding are drawn too, unless a mask hides them from the image.
    """
    require_cross(attention)
    nouns = [phrase.noun for phrase in attention.phrases]
    chosen = torch.stack([half_mass_share(attention.token_maps(name, nouns)) for name in attention.named]).mean(0).tolist()
    pools = []
    for layers in zip(*(attention.all_maps(name) for name in attention.named), strict=True):
        seen = torch.stack([maps.sum((1, 2)) for maps in layers]).amin(0) > 0
        pools.append(torch.stack([half_mass_share(maps[seen]) for maps in layers]).mean(0))
    others = sum(float(pool.mean()) for pool in pools) / len(pools)
    return Measurement(
        choice_p_value([share / MARGIN for share in chosen], pools),
        "p-value of nouns under shuffled tokens",
        num_samples=len(pools),
        protocol={"layer": named_layers(attention)},
        unjudged=of_unnamed_layers(attention, "how padding tokens attend differs between layers"),
        hint=f"Half of a noun's attention lies on {sum(chosen) / len(chosen):.3f} of the picture, that of a random token on {others:.3f}.",
    )


@check(
    "attention",
    "words attend to what they name",
    figure="overlap of words' maps with what they name, on noised references with masks",
    sees="tokens shifted by one and transposed maps, by name",
    blind_to="references without masks",
    plot=plots.localisation,
)
def attention_localises(localisation: Localisation) -> Measurement:
    """Intersection over union of each word's highest pixels with the mask of what it names, on noised reference images.

    For each image the worse of a phrase's words counts: a modifier and its noun both belong to the object.
    """
    values = _word_ious(localisation.word_maps(), localisation.masks)
    found = mean_estimate(values)
    share = localisation.masks.double().mean((1, 2))
    others = {
        "one place further along the prompt": localisation.word_maps(shift=1),
        "one place earlier in the prompt": localisation.word_maps(shift=-1),
        "transposed": localisation.word_maps().transpose(-1, -2),
    }
    fits = {name: float(_word_ious(maps, localisation.masks).mean()) for name, maps in others.items()}
    best = max(fits, key=lambda name: fits[name])
    hint = f"Pixels drawn at random would have {float((share / (2 - share)).mean()):.2f}."
    # A cause is named only where it explains more than chance could.
    if fits[best] > found.value + max(2 * found.standard_error, 0.1):
        cause = "maps look transposed" if best == "transposed" else "tokens look shifted by one"
        hint += f" The map {best} fits better ({fits[best]:.2f}): {cause}."
    return Measurement.with_error(
        *found,
        name="overlap of words' maps with what they name",
        num_samples=len(values),
        series={"examples": _examples(localisation)},
        protocol={"layer": shown_layers(localisation.layers)},
        hint=hint,
    )


@check(
    "attention",
    "a modifier attends where its noun attends",
    figure="correlation of the modifier's and the noun's map",
    sees="attributes bound to the wrong object",
    blind_to="no default limit: a causal text encoder may carry both in the later token",
)
def modifier_noun_overlap(attention: AttentionRun) -> Measurement:
    """Correlation over space of the modifier's and the noun's late maps, mean over prompts and named layers."""
    require_cross(attention)
    nouns = [phrase.noun for phrase in attention.phrases]
    modifiers = [phrase.modifier for phrase in attention.phrases]
    values = torch.stack(
        [map_correlation(attention.token_maps(name, nouns), attention.token_maps(name, modifiers)) for name in attention.named]
    ).mean(0)
    return Measurement.with_error(
        *mean_estimate(values),
        name="correlation of modifier and noun",
        num_samples=len(values),
        protocol={"layer": named_layers(attention)},
    )


@check(
    "attention",
    "tokens have maps of their own",
    figure="correlation between tokens' maps",
    sees="one map for all words",
    blind_to="which word has which map",
)
def attention_tokens_differ(attention: AttentionRun) -> Measurement:
    """Correlation over space between the late maps of different content tokens, mean over pairs and prompts."""
    require_cross(attention)
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
        *mean_estimate(per_prompt),
        name="correlation between tokens' maps",
        num_samples=len(per_prompt),
        protocol={"layer": named_layers(attention)},
    )


def _examples(localisation: Localisation) -> list[dict[str, Any]]:
    """The last word of a few references (a phrase's noun): picture, map and mask, for the report."""
    maps = localisation.word_maps()[:, -1:]
    overlaps = _word_ious(maps, localisation.masks)
    return [
        {
            "image": pictures.data_uri(localisation.images[row]),
            "word": localisation.words[row][-1],
            "map": _small(maps[row, 0]),
            "mask": _small(localisation.masks[row].float()),
            "overlap": float(overlaps[row]),
        }
        for row in range(min(7, len(maps)))
    ]


def _word_ious(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The worse overlap of each image's words, (N,), of maps (N, words, h, w)."""
    return torch.stack([area_matched_iou(maps[:, word], masks) for word in range(maps.shape[1])]).amin(0)


def _overlays(attention: AttentionRun) -> dict[str, Any]:
    """Maps of the first prompt's content tokens at a few timesteps, over the generated image, for the report."""
    record = attention.records[0]
    name = attention.named[-1]
    steps = record.layers[name].steps
    kept = record.content[0].nonzero().flatten().tolist() if record.content is not None else []
    return {
        "image": pictures.data_uri(attention.images[0]),
        "prompt": attention.phrases[0].prompt,
        "tokens": [plain(record.tokens[0][place]) for place in kept],
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
