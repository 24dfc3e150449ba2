"""Paired samples: shard by shard, until every figure is decided or one of them is worse."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from pytest_diffusion.features.image_scores import TONES
from pytest_diffusion.gate.figures import OF_IMAGES, OF_REFERENCE, SET_FIGURES, score_look, set_look
from pytest_diffusion.gate.hybrids import Blame
from pytest_diffusion.gate.looks import Decided, Look, Rules
from pytest_diffusion.gate.side import Rows, Side
from pytest_diffusion.gate.slices import SliceFound, Slicing
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.verdicts.errors import SetupError

Reference = torch.Tensor | FeatureStatistics | None
"""Features (M, D) of the reference images, or their statistics; None where there is no reference."""


@dataclass(frozen=True)
class PairedRun:
    """What the pairs showed: each figure's decision, and the rows of both models."""

    decided: dict[str, Decided]
    candidate: Rows
    baseline: Rows
    prompts: list[str] | None
    seeds: list[int]
    planned: int
    """Pairs that the run might have drawn."""
    missing: dict[str, Exception] = field(default_factory=dict)
    """Figures that could not be measured, and why."""
    blame: dict[str, Blame] = field(default_factory=dict)
    """The parts from which the worst figure comes, and broken samples, by name."""
    slices: list[SliceFound] | None = None
    """Scores by slice of the prompts, where that was asked for."""

    @property
    def pairs(self) -> int:
        """Pairs that were drawn."""
        return len(self.baseline.digests)

    @property
    def broken(self) -> dict[str, list[int]]:
        """How many samples of the candidate and of the baseline are broken, by what is wrong with them."""
        sides = (self.candidate, self.baseline)
        return {
            "not finite": [int((~rows.finite).sum()) for rows in sides],
            "of one colour": [int(rows.constant.sum()) for rows in sides],
            "repeated": [rows.repeated for rows in sides],
        }

    @property
    def is_closed(self) -> bool:
        """Whether a figure is worse."""
        return any(one.word == "worse" for one in self.decided.values())


def run_pairs(
    candidate: Side,
    baseline: Side,
    rules: Rules,
    *,
    prompts: list[str] | None,
    seeds: list[int],
    clusters: Sequence[Hashable] | None,
    reference: Reference = None,
    most: int,
    floors: Callable[[int], Mapping[str, float]] | None = None,
    slicing: Slicing | None = None,
    say: Callable[[str], object] = print,
) -> PairedRun:
    """Look after each planned number of pairs, until nothing is left to find out or `most` pairs are drawn.

    `floors` gives the noise floor of each figure, and is asked once, at the first look. Raises what drawing samples raises.
    """
    assert isinstance(rules.plan, Plan)
    looks = rules.plan.looks(most)
    histories: dict[str, list[Look]] = {}
    slices: list[SliceFound] | None = None
    for place, count in enumerate(looks, 1):
        ours, theirs = candidate.rows(count), baseline.rows(count)
        if count == looks[0]:
            _require_sound(theirs, baseline.name)
        own = list(clusters[:count]) if clusters is not None else None
        for name, look in looks_at(ours, theirs, own, reference).items():
            histories.setdefault(name, []).append(look)
        if floors is not None and not rules.floors:
            rules = replace(rules, floors=floors(count))
        decided = rules.decide(histories)
        if slicing is not None:
            slicing = replace(slicing, rules=rules)
            slices = slicing.decide(scores_of(ours, theirs), looks[:place])
        if rules.is_over(decided) and (slicing is None or slicing.is_over(slices or [])):
            break
        say(f"after {count} pairs: {_progress(decided)}")
    texts = prompts[:count] if prompts is not None else None
    return PairedRun(decided, ours, theirs, texts, seeds[:count], looks[-1], slices=slices)


def scores_of(candidate: Rows, baseline: Rows) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The scores of what the images show, of both models; tones of a slice say little about what was forgotten."""
    names = [name for name in candidate.scores if name in baseline.scores and name not in TONES]
    return {name: (candidate.scores[name].double(), baseline.scores[name].double()) for name in names}


def _require_sound(rows: Rows, name: str) -> None:
    """Raise SetupError for a baseline whose own samples are broken: nothing can be said against it."""
    count = len(rows.digests)
    for what, broken in (
        ("are not finite", int((~rows.finite).sum())),
        ("have one colour", int(rows.constant.sum())),
        ("repeat others", rows.repeated),
    ):
        if 2 * broken > count:
            raise SetupError(
                f"--diffusion-baseline: {name} is broken itself: {broken} of its first {count} samples {what}; nothing was compared."
            )


def looks_at(
    candidate: Rows, baseline: Rows, clusters: Sequence[Hashable] | None, reference: Reference, *, rare: bool = True
) -> dict[str, Look]:
    """The look at every figure that both models have, by name; `rare` as in `score_look`."""
    names = [name for name in candidate.scores if name in baseline.scores]
    found = {name: score_look(candidate.scores[name], baseline.scores[name], clusters, rare=rare) for name in names}
    if candidate.features is None or baseline.features is None:
        return found
    for name in SET_FIGURES:
        if (name in OF_REFERENCE and reference is None) or (name in OF_IMAGES and not isinstance(reference, torch.Tensor)):
            continue
        against = reference if reference is not None else baseline.features
        found[name] = set_look(name, candidate.features, baseline.features, against, clusters, rare=rare)
    return found


def _progress(decided: Mapping[str, Decided]) -> str:
    open_ones = [name for name, one in decided.items() if one.word == "cannot tell"]
    return f"{len(decided) - len(open_ones)} of {len(decided)} figures are decided; not yet: {', '.join(open_ones[:6])}"
