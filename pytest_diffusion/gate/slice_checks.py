"""The forgetting map as checks: no slice of the prompts, or of the captions, is shown to be worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytest_diffusion.checks.registry import Check
from pytest_diffusion.gate.denoising import LossRun
from pytest_diffusion.gate.figures import figure_named
from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.gate.plots import change_by_slice
from pytest_diffusion.gate.slices import FEWEST_PAIRS, SliceFound
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.text import number
from pytest_diffusion.verdicts.verdict import Measurement

_SOURCE = "the margins of the figures, each in its units on all pairs"
_SHOWN = 3
_TITLE = "no slice of the {} is shown to be worse"


def paired_denoising_by_slice(run: LossRun) -> Measurement:
    """Slices of the reference's captions whose denoising loss is worse."""
    return _measured(run.slices, "captions", len(run.baseline))


def paired_retention_by_slice(run: LossRun) -> Measurement:
    """Slices of the retention set's captions whose denoising loss is worse: what a fine-tune forgot."""
    return _measured(run.slices, "captions of the retention set", len(run.baseline))


def paired_scores_by_slice(pairs: PairedRun) -> Measurement:
    """Slices of the prompts of which a score is worse."""
    return _measured(pairs.slices, "prompts", pairs.pairs)


def slice_checks() -> list[Check]:
    """The checks by slice, for a run that asks for slices."""
    plot = change_by_slice
    return [
        Check(
            function.__name__,
            "paired",
            _TITLE.format(of),
            function,
            f"slices of the {of} that are worse",
            plot=plot,
            own_fixtures=fixtures,
        )
        for function, of, fixtures in (
            (paired_denoising_by_slice, "captions", {"run": "diffusion_denoising"}),
            (paired_retention_by_slice, "captions of the retention set", {"run": "diffusion_retention"}),
            (paired_scores_by_slice, "prompts", {"pairs": "diffusion_pairs"}),
        )
    ]


def _measured(found: Sequence[SliceFound] | None, of: str, count: int) -> Measurement:
    if not found:
        raise NotApplicable(
            f"nothing was compared by slice of the {of}: none has {FEWEST_PAIRS} pairs, or no score is judged there. "
            "Losses are compared by words of the captions, and by columns of the images' own table."
        )
    worse = [one for one in found if one.is_named]
    through = [one for one in found if one.through]
    by_word = {word: sum(one.decided.word == word for one in found) for word in ("worse", "same", "better", "cannot tell")}
    counted = ", ".join(f"{many} {word}" for word, many in by_word.items() if many)
    return Measurement(
        float(len(worse)),
        f"number of slices of the {of} that are worse",
        num_samples=count,
        # What is not shown to be worse is not shown to be the same.
        relation="worse" if worse else "" if by_word["cannot tell"] else "same",
        own_limits=Limits(at_most=0, source=_SOURCE, where="gate/slice_checks.py"),
        hint=f"{_listed(worse)}Of {len(found)} slices: {counted}{f' ({len(through)} of them through those)' if through else ''}.",
        series={"slices": [one.to_json() for one in found]},
    )


def _listed(worse: Sequence[SliceFound]) -> str:
    told = [f"{one.name} ({_change(one)}, {one.pairs} pairs)" for one in worse[:_SHOWN]]
    more = f" and {len(worse) - _SHOWN} more" if len(worse) > _SHOWN else ""
    return f"Worse: {', '.join(told)}{more}. " if told else ""


def _change(one: SliceFound) -> str:
    figure: Any = figure_named(one.figure)
    return f"{one.figure} {number(one.decided.look.difference.value)}{' ' + figure.unit if figure.unit else ''}"
