"""Assertion helpers of the comparison: on scores, on images with a scorer, and on two pipelines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from pytest_diffusion.checks.run import enforce
from pytest_diffusion.config.margins import Kind, Margin, Margins
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.features.image_scores import ImageScorer
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.denoising import NoisedImages
from pytest_diffusion.gate.figures import Figure, relative_loss, score_look
from pytest_diffusion.gate.looks import Look, Rules
from pytest_diffusion.gate.measured import measured
from pytest_diffusion.maths.sequential import OneLook
from pytest_diffusion.maths.tensors import ArrayLike
from pytest_diffusion.verdicts.recording import record
from pytest_diffusion.verdicts.verdict import Verdict, judge

Scoring = ImageScorer | Callable[[torch.Tensor, Sequence[str] | None], Any]
"""Images uint8 (N, 3, H, W) and prompts to values (N,)."""


def assert_not_worse(
    candidate: ArrayLike,
    baseline: ArrayLike,
    scorer: Scoring | None = None,
    *,
    margin: float,
    prompts: Sequence[str] | None = None,
    clusters: Sequence[Hashable] | None = None,
    less_is_better: bool = False,
    floor: float = 0.0,
    alpha: float = 0.05,
    name: str = "score",
) -> Verdict:
    """Assert that the mean score of the candidate is not worse than the baseline's by more than `margin`, pair by pair.

    `candidate` and `baseline` are scores (N,) of the same work (prompt, seed) in the same order, or with a `scorer` images uint8
    (N, 3, H, W). Pairs of one cluster (by default none; give the prompts where several seeds share one) count together. `floor` is the
    difference of two sound builds, where it is known. One-sided at level `alpha`, for one look at all pairs.
    Raises QualityFailure where it is worse, InconclusiveFailure where these pairs cannot tell, ValueError for other shapes.
    Returns the verdict. Source: docs/gate.md.
    """
    __tracebackhide__ = True
    look = _look(candidate, baseline, scorer, prompts, clusters)
    return _judged(look, name, Margin(margin=margin, source="the caller", origin="call"), -1 if less_is_better else 1, floor, alpha)


def assert_equivalent(
    candidate: ArrayLike,
    baseline: ArrayLike,
    scorer: Scoring | None = None,
    *,
    margin: float,
    prompts: Sequence[str] | None = None,
    clusters: Sequence[Hashable] | None = None,
    floor: float = 0.0,
    alpha: float = 0.05,
    name: str = "score",
) -> Verdict:
    """Assert that the mean score changes by no more than `margin` in either direction: for quantised, compiled or converted copies.

    Arguments, errors and result as in `assert_not_worse`; the two one-sided tests of Schuirmann 1987.
    """
    __tracebackhide__ = True
    look = _look(candidate, baseline, scorer, prompts, clusters)
    return _judged(look, name, Margin(margin=margin, kind="equivalence", source="the caller", origin="call"), 0, floor, alpha)


def assert_denoising_not_worse(
    candidate: Any,
    baseline: Any,
    images: torch.Tensor,
    prompts: Sequence[str] | None = None,
    *,
    margin: float = 10.0,
    kind: Kind = "not_worse",
    seed: int = 0,
    alpha: float = 0.05,
) -> Verdict:
    """Assert that the denoising loss of one pipeline is not above another's by more than `margin` per cent. No image is drawn.

    `images` uint8 (N, 3, H, W), at the pipelines' size, with their prompts where the models take some. Both models see the same noise
    at five noise levels. With `kind="equivalence"` it may not be below either. Errors and result as in `assert_not_worse`;
    NotApplicable where a scheduler's noise levels are not known.
    """
    __tracebackhide__ = True
    settings = Settings(seed=seed)
    noised = NoisedImages.of(images, list(prompts) if prompts is not None else None, baseline.scheduler)
    ours, theirs = (noised.losses_of(pipeline, settings)(len(images)) for pipeline in (candidate, baseline))
    own = Margin(margin=margin, kind=kind, source="the caller", origin="call")
    return _judged(relative_loss(ours, theirs, None), "denoising_loss", own, -1, 0.0, alpha)


def _look(
    candidate: ArrayLike,
    baseline: ArrayLike,
    scorer: Scoring | None,
    prompts: Sequence[str] | None,
    clusters: Sequence[Hashable] | None,
) -> Look:
    ours, theirs = (_scores(side, scorer, prompts) for side in (candidate, baseline))
    if ours.shape != theirs.shape or ours.ndim != 1:
        raise ValueError(f"the scores have shapes {tuple(ours.shape)} and {tuple(theirs.shape)}; expected (N,) for the same N pairs.")
    return score_look(ours, theirs, clusters)


def _scores(side: ArrayLike, scorer: Scoring | None, prompts: Sequence[str] | None) -> torch.Tensor:
    values = torch.as_tensor(side)
    if scorer is None:
        return values.double()
    found = scorer(values, prompts)
    return torch.as_tensor(next(iter(found.values())) if isinstance(found, dict) else found).double()


def _judged(look: Look, name: str, margin: Margin, direction: int, floor: float, alpha: float) -> Verdict:
    __tracebackhide__ = True
    margins = Margins({name: margin}, alpha)
    rules = Rules(margins, {name: direction}, OneLook(), {name: floor}, 1)
    decided = rules.decide({name: [look]})[name]
    figure = Figure(name, name, "%" if name.endswith("_loss") else "", direction)
    comparison = Comparison("the baseline", margins, figures={name: figure})
    measurement = measured(decided, figure, comparison, series={}, planned=look.pairs, remedy="")
    verdict = judge(f"paired_{name}", measurement, None, lens="paired", title=f"{name} no worse than the baseline's", raised_by="")
    record(verdict)
    return enforce(verdict)
