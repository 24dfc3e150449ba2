"""Which part made the candidate worse: the loss or the score in question, measured on hybrids of both models."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.figures import SET_FIGURES
from pytest_diffusion.gate.floor import Losses
from pytest_diffusion.gate.hybrids import Blame, Values, blame, with_parts
from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.gate.side import LiveSide, Rows
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.samples.generate import generate_images, to_uint8

TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
PARTS_OF_LOSS = ("unet", "transformer", *TEXT_PARTS, "vae", "scheduler")
"""Parts on which a denoising loss depends."""
MOST_IMAGES = 32
MOST_IMAGES_BY_BLOCK = 16
MOST_PAIRS = 48
GUARDS = "guards"


def of_loss(
    figure: str,
    candidate: Any,
    baseline: Any,
    comparison: Comparison,
    losses: Callable[[Any], Losses],
    theirs: Losses,
    *,
    count: int,
    clusters: Sequence[Hashable] | None,
    say: Callable[[str], object],
) -> Blame | None:
    """The parts from which a worse loss comes, by at most 32 of `count` images; None where nothing can be swapped.

    `losses(pipeline)` are those of any pipeline, and `theirs` those of the baseline in this figure.
    """
    if comparison.parts is None or comparison.is_own_code:
        return None
    count = min(count, MOST_IMAGES)
    scale = theirs(count).mean(0)

    def measure_on(images: int) -> Callable[[Any], Values]:
        def measure(pipeline: Any) -> Values:
            rows = 100 * (losses(pipeline)(images) / scale).mean(1)
            return float(rows.mean()), rows

        return measure

    measure = measure_on(count)
    groups = clusters[:count] if clusters is not None else None
    differing = comparison.parts.differing
    if figure == "reconstruction_loss":
        return blame(candidate, baseline, [name for name in differing if name == "vae"], measure)
    names = [name for name in differing if name in PARTS_OF_LOSS]
    if figure == "text_encoder_loss":
        # Both sides have the candidate's other parts there.
        rest = {name: getattr(candidate, name) for name in names if name not in TEXT_PARTS and hasattr(baseline, name)}
        texts = [name for name in names if name in TEXT_PARTS]
        with with_parts(baseline, rest):
            return blame(candidate, baseline, texts, measure, clusters=groups)
    say(f"{figure} is worse: which part did it is found out on {count} images, with the parts of each model in the other")
    return blame(candidate, baseline, names, measure, clusters=groups, by_block=measure_on(min(count, MOST_IMAGES_BY_BLOCK)))


def of_pairs(
    run: PairedRun,
    side: LiveSide,
    baseline: Any,
    comparison: Comparison,
    reference: torch.Tensor | FeatureStatistics | None,
    *,
    clusters: Sequence[Hashable] | None,
    say: Callable[[str], object],
) -> dict[str, Blame]:
    """The parts from which the worst figure of the pairs comes, and the samples that are broken beyond the baseline's, by name.

    `side` is the candidate's. At most 48 of the pairs are drawn again by each hybrid.
    """
    if comparison.parts is None or comparison.is_own_code:
        return {}
    figures = [name for name, one in run.decided.items() if one.word == "worse"]
    worst = sorted(figures, key=lambda name: run.decided[name].p_worse)[:1]
    worst += [GUARDS] if int(_broken(run.candidate).sum()) > int(_broken(run.baseline).sum()) else []
    if not worst:
        return {}
    count = min(run.pairs, MOST_PAIRS)
    names = [name for name in comparison.parts.differing if name != "pipeline"]
    say(f"{' and '.join(worst)}: which part did it is found out on {count} pairs, with the parts of each model in the other")
    prompts, seeds = run.prompts[:count] if run.prompts is not None else None, run.seeds[:count]
    against = reference if reference is not None else run.baseline.features
    drawn: dict[tuple[int, ...], Rows] = {}

    def rows_of(pipeline: Any) -> Rows:
        # Two figures ask for the same hybrids.
        key = (id(pipeline), *(id(getattr(pipeline, name, None)) for name in names))
        if key not in drawn:
            images, finite = to_uint8(generate_images(pipeline, prompts, seeds, side.settings))
            wants = any(name in SET_FIGURES for name in worst)
            drawn[key] = side.rows_of(torch.from_numpy(images), prompts, torch.from_numpy(finite), extract=wants)
        return drawn[key]

    groups = clusters[:count] if clusters is not None else None
    measures = {figure: _measure(figure, rows_of, against) for figure in worst}
    return {figure: blame(side.pipeline, baseline, names, measure, clusters=groups) for figure, measure in measures.items()}


def _measure(figure: str, rows_of: Callable[[Any], Rows], against: Any) -> Callable[[Any], Values]:
    def measure(pipeline: Any) -> Values:
        rows = rows_of(pipeline)
        if figure in SET_FIGURES:
            assert rows.features is not None
            return SET_FIGURES[figure](rows.features, against)
        values = _broken(rows).double() if figure == GUARDS else rows.scores[figure].double()
        return float(values.mean()), values

    return measure


def _broken(rows: Rows) -> torch.Tensor:
    return ~rows.finite | rows.constant
