"""Checks of semantic directions: a prompt pair changes different samples the same way, the more the further it goes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from pytest_diffusion.checks import pictures, plots
from pytest_diffusion.checks.registry import check
from pytest_diffusion.features.clip import Scorer
from pytest_diffusion.maths.statistics import mean_estimate, rank_correlations, sign_flip_p_value
from pytest_diffusion.samples.direction import Direction
from pytest_diffusion.verdicts.verdict import Measurement


@check(
    "latent",
    "a prompt pair changes different samples the same way",
    figure="agreement of the changes that a prompt pair causes",
    sees="an attribute that changes samples at random",
    blind_to="whether the change is the one that the prompts name",
    pictures=pictures.direction,
)
def semantic_direction(direction: Direction, clip: Scorer) -> Measurement:
    """Mean cosine between each sample's change and the mean change of the others, in CLIP's image space.

    `direction` holds images of both prompts at the same seeds. Random changes give about 0.
    """
    change = _changes(direction, clip)
    values = _agreement(change)
    series = {
        "sources": [pictures.data_uri(image) for image in direction.source_images[:8]],
        "targets": [pictures.data_uri(image) for image in direction.target_images[:8]],
        "prompts": [direction.pair.source, direction.pair.target],
    }
    return Measurement.with_error(
        *mean_estimate(values),
        name="agreement of changes",
        num_samples=len(values),
        series=series,
        protocol={"extractor": f"CLIP {clip.name}"},
        hint=f"{direction.pair.source!r} to {direction.pair.target!r} moves different samples in different directions.",
    )


@check(
    "latent",
    "the agreement of changes is not due to chance",
    figure="p-value of that agreement, with each seed's two images exchanged at random",
    sees="an agreement by luck",
    blind_to="how strong the change is",
)
def semantic_direction_chance(direction: Direction, clip: Scorer) -> Measurement:
    """p-value of the agreement: how often it is as large when each seed's two images are exchanged at random."""
    change = _changes(direction, clip)

    def statistic(signs: torch.Tensor) -> torch.Tensor:
        return torch.stack([_agreement(change * row[:, None]).mean() for row in signs])

    return Measurement(
        sign_flip_p_value(statistic, len(change)),
        "p-value of the agreement of changes",
        num_samples=len(change),
        protocol={"extractor": f"CLIP {clip.name}"},
        hint="Source and target images could be exchanged: the prompts make no difference that CLIP sees.",
    )


@check(
    "latent",
    "going further along a direction changes more",
    figure="rank correlation of strength and change, as the prompt's embedding goes from source to target",
    sees="a text embedding that the images do not follow smoothly",
    blind_to="the size of the change",
    plot=plots.strength,
    pictures=pictures.strengths,
)
def semantic_strength(direction: Direction, clip: Scorer) -> Measurement:
    """Rank correlation of strength and change along the direction, mean over seeds, as the prompt's embedding goes from source to target.

    The change is measured along the mean change of the other seeds, so that no sample confirms itself.
    """
    change = _changes(direction, clip)
    axes = F.normalize(change.sum(0) - change, dim=1)
    start = clip.image_embeds(direction.source_images).double()
    swept = [clip.image_embeds(images).double() for images in direction.sweep.values()]
    count = len(swept[0])
    along = torch.stack([((embeds - start[:count]) * axes[:count]).sum(1) for embeds in swept], 1)
    strengths = torch.tensor(list(direction.sweep), dtype=torch.float64)
    values = rank_correlations(along, strengths)
    return Measurement.with_error(
        *mean_estimate(values),
        name="rank correlation of strength and change",
        num_samples=count,
        protocol={"extractor": f"CLIP {clip.name}"},
        series={"strengths": strengths.tolist(), "change": along.mean(0).tolist(), "strip": _strip(direction)},
        hint="The change does not grow with the strength of the direction: the images do not follow the text embedding smoothly.",
    )


def _changes(direction: Direction, clip: Scorer) -> torch.Tensor:
    changes: torch.Tensor = clip.image_embeds(direction.target_images).double() - clip.image_embeds(direction.source_images).double()
    return changes


def _agreement(change: torch.Tensor) -> torch.Tensor:
    """Cosine of each change (N, D) with the sum of the others', (N,); 0 where nothing changes."""
    return F.cosine_similarity(change, change.sum(0) - change, dim=1).nan_to_num(0.0)


def _strip(direction: Direction) -> list[list[str]]:
    """A few seeds at each strength, one list of pictures for each seed."""
    shown = range(min(3, len(next(iter(direction.sweep.values())))))
    return [[pictures.data_uri(images[row]) for images in direction.sweep.values()] for row in shown]
