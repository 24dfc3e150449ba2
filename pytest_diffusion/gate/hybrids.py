"""Which part did it: hybrids of candidate and baseline, measured on the images or pairs on which the candidate is worse.

The share of a part is the mean of two swaps: what the baseline loses with the candidate's part, and what the candidate wins with the
baseline's. For two parts this is the Shapley value (Shapley 1953), and the shares add up; for more it is near it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.special import stdtrit

from pytest_diffusion.maths.paired import paired_mean
from pytest_diffusion.models.capabilities import modules
from pytest_diffusion.models.memory import is_offloaded, whole_state_dict

Values = tuple[float, torch.Tensor]
"""A figure, and what each image or pair contributes to it (N,), whose mean differs from the figure by a constant."""
Measure = Callable[[Any], Values]
NAMED = 0.1
"""A part is named where its share is more than this, by the lower end of its interval."""
_MOST_GROUPS = 6
"""Blocks of one list are put together where there are more."""
_LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """What share of the loss comes with a part, with its 95 % interval."""

    part: str
    share: float
    interval: tuple[float, float]

    @property
    def is_named(self) -> bool:
        """Whether the part is shown to have a share of its own."""
        return self.interval[0] > NAMED


@dataclass(frozen=True)
class Blame:
    """The parts from which a loss comes, the largest share first; of the denoiser also its blocks."""

    parts: list[Share]
    blocks: list[Share] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Parts that could not be swapped, and why."""

    @property
    def named(self) -> list[str]:
        """The parts that did it."""
        return [one.part for one in self.parts if one.is_named]

    @property
    def text(self) -> str:
        """In sentences, which part did it."""
        if not self.parts:
            return f"Which part did it cannot be said: {self._refusals}." if self.refused else ""
        if len(self.parts) == 1 and not self.refused and self.parts[0].interval == (1.0, 1.0):
            told = f"It comes with {self.parts[0].part}, the only part that differs and has a say in it."
        elif self.named:
            told = f"{_listed([one for one in self.parts if one.is_named])}."
        else:
            told = f"No single part did it: {_listed(self.parts)}."
        blocks = [one for one in self.blocks if one.is_named]
        told += f" Within the denoiser, {_listed(blocks)}." if blocks else ""
        return told + (f" Not swapped: {self._refusals}." if self.refused else "")

    @property
    def _refusals(self) -> str:
        return ", ".join(f"{name} ({why})" for name, why in self.refused.items())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        shares = {"parts": self.parts, "blocks": self.blocks}
        return {**{name: [vars(one) for one in found] for name, found in shares.items()}, "refused": self.refused}


def _listed(shares: Sequence[Share]) -> str:
    first, *rest = [(100 * one.share, 100 * one.interval[0], 100 * one.interval[1], one.part) for one in shares]
    told = "{:.0f} % of it ({:.0f} to {:.0f}) comes with {}".format(*first)
    return "".join([told, *(", {:.0f} % ({:.0f} to {:.0f}) with {}".format(*one) for one in rest)])


@contextmanager
def with_parts(pipeline: Any, parts: Mapping[str, Any]) -> Iterator[None]:
    """The pipeline with other parts, in the dtype of those they stand for; its own are taken back at the end."""
    kept = {name: getattr(pipeline, name) for name in parts}
    try:
        for name, part in parts.items():
            setattr(pipeline, name, _in_dtype_of(kept[name], part))
        yield
    finally:
        for name, part in kept.items():
            setattr(pipeline, name, part)


def blame(
    candidate: Any,
    baseline: Any,
    differing: Sequence[str],
    measure: Measure,
    *,
    clusters: Sequence[Hashable] | None = None,
    by_block: Measure | None = None,
) -> Blame:
    """The shares of the parts that differ in the candidate's loss.

    `measure(pipeline)` gives the figure of a pipeline on the same images or pairs, in an order that `clusters` groups. With `by_block`,
    a measure on fewer images, the blocks of a denoiser that did it are swapped too. Parts of other shapes are not swapped. Both
    pipelines are as before at the end.
    """
    refused = {name: why for name in differing if (why := _why_not(candidate, baseline, name))}
    names = [name for name in differing if name not in refused]
    if not names:
        return Blame([], refused=refused)
    if len(names) == 1 and not refused:
        parts = [Share(names[0], 1.0, (1.0, 1.0))]
    else:
        whole = measure(candidate), measure(baseline)
        parts = [_share_of_part(candidate, baseline, name, measure, whole, clusters) for name in names]
    named = [one.part for one in parts if one.is_named]
    denoiser = next((name for name in ("unet", "transformer") if name in named), None)
    blocks = _shares_of_blocks(candidate, baseline, denoiser, by_block) if by_block is not None and denoiser is not None else []
    parts, blocks = (sorted(shares, key=lambda one: -one.share) for shares in (parts, blocks))
    return Blame(parts, blocks, refused)


def _share_of_part(
    candidate: Any, baseline: Any, name: str, measure: Measure, whole: tuple[Values, Values], clusters: Sequence[Hashable] | None
) -> Share:
    ours, theirs = getattr(candidate, name), getattr(baseline, name)
    with with_parts(baseline, {name: ours}):
        forward = measure(baseline)
    with with_parts(candidate, {name: theirs}):
        backward = measure(candidate)
    return _share(name, whole, forward, backward, clusters)


def _shares_of_blocks(candidate: Any, baseline: Any, name: str, measure: Measure) -> list[Share]:
    """Shares of the denoiser's blocks in what the baseline loses with the candidate's denoiser."""
    theirs = getattr(baseline, name)
    ours = _in_dtype_of(theirs, getattr(candidate, name))
    groups = blocks_of(ours, theirs)
    if len(groups) < 2:
        return []
    plain = measure(baseline)
    with with_parts(baseline, {name: ours}):
        swapped = measure(baseline)
    found = []
    for group, places in groups.items():
        with _exchanged(ours, theirs, places):
            forward = measure(baseline)  # its own denoiser, with this block of the candidate's
            with with_parts(baseline, {name: ours}):
                backward = measure(baseline)
        found.append(_share(group, (swapped, plain), forward, backward, None))
    return found


def blocks_of(ours: torch.nn.Module, theirs: torch.nn.Module) -> dict[str, list[tuple[str, str]]]:
    """The blocks in which two modules of one architecture differ: places (path of the parent, key) by name."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, child in ours.named_children():
        if not isinstance(child, torch.nn.ModuleList | torch.nn.ModuleDict):
            groups[name] = [("", name)]
            continue
        keys = list(child._modules)
        size = math.ceil(len(keys) / _MOST_GROUPS)
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            groups[f"{name}.{part[0]}" + (f" to {part[-1]}" if len(part) > 1 else "")] = [(name, key) for key in part]
    return {group: places for group, places in groups.items() if any(_differs(ours, theirs, *place) for place in places)}


def _differs(ours: torch.nn.Module, theirs: torch.nn.Module, parent: str, key: str) -> bool:
    one, other = (whole_state_dict(module.get_submodule(parent)._modules[key] or torch.nn.Identity()) for module in (ours, theirs))
    return one.keys() != other.keys() or any(not torch.equal(one[name], other[name]) for name in one)


def _in_dtype_of(own: Any, part: Any) -> Any:
    """The part, or a copy of it in the dtype of the pipeline's own: a float16 parent and a fine-tune stored as float32 are usual."""
    if not isinstance(own, torch.nn.Module) or not isinstance(part, torch.nn.Module):
        return part
    dtypes = [next((weight.dtype for weight in module.parameters()), None) for module in (own, part)]
    return part if dtypes[0] in (None, dtypes[1]) else copy.deepcopy(part).to(dtypes[0])


@contextmanager
def _exchanged(ours: torch.nn.Module, theirs: torch.nn.Module, places: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Both modules with these blocks of each other."""
    pairs = [(ours.get_submodule(parent)._modules, theirs.get_submodule(parent)._modules, key) for parent, key in places]

    def exchange() -> None:
        for one, other, key in pairs:
            one[key], other[key] = other[key], one[key]

    exchange()
    try:
        yield
    finally:
        exchange()


def _share(name: str, whole: tuple[Values, Values], forward: Values, backward: Values, clusters: Sequence[Hashable] | None) -> Share:
    """The share of the mean of both swaps in the whole difference, by the delta method."""
    if not all(bool(rows.isfinite().all()) for _, rows in (*whole, forward, backward)):
        # What is not finite has no size: the share is that of the images or pairs that a part breaks.
        whole = _broken(whole[0]), _broken(whole[1])
        forward, backward = _broken(forward), _broken(backward)
    (ours, own), (theirs, others) = whole
    total, rows = ours - theirs, own - others
    part = ((forward[0] - theirs) + (ours - backward[0])) / 2
    part_rows = ((forward[1] - others) + (own - backward[1])) / 2
    if total == 0:
        return Share(name, 0.0, (-math.inf, math.inf))
    share = part / total
    influence = (part_rows - share * rows) / total
    error = paired_mean(influence - influence.mean(), clusters)
    half = float(stdtrit(error.degrees, (1 + _LEVEL) / 2)) * error.standard_error if error.degrees >= 1 else math.inf
    return Share(name, share, (share - half, share + half))


def _broken(values: Values) -> Values:
    rows = (~values[1].isfinite()).double()
    return float(rows.mean()), rows


def _why_not(candidate: Any, baseline: Any, name: str) -> str:
    """Why a part cannot be swapped; empty where it can."""
    ours, theirs = getattr(candidate, name, None), getattr(baseline, name, None)
    if ours is None or theirs is None:
        return "only one of the models has it" if (ours is None) != (theirs is None) else "it is no part that can be swapped"
    if not isinstance(ours, torch.nn.Module) or not isinstance(theirs, torch.nn.Module):
        return ""
    if type(ours) is not type(theirs):
        return f"{type(ours).__name__} in place of {type(theirs).__name__}"
    if any(is_offloaded(modules(pipeline).values()) for pipeline in (candidate, baseline)):
        return "its weights are not in memory as a whole"
    one, other = whole_state_dict(ours), whole_state_dict(theirs)
    common = one.keys() & other.keys()
    if not common or any(one[key].shape != other[key].shape for key in common):
        return "its shapes differ"
    dtypes = {(one[key].dtype, other[key].dtype) for key in common}
    rounded = all(mine == yours or (mine.is_floating_point and yours.is_floating_point) for mine, yours in dtypes)
    return "" if rounded else "its weights are quantised in one of the models"
