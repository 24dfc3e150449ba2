"""Plots of the comparison: the loss by noise level, the looks, and all figures in units of their margins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pytest_diffusion.verdicts.drawing import PALETTE, axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_SLICES = 24


def loss_by_band(series: dict[str, Any]) -> Figure | None:
    """Change of the denoising loss at each noise level, with two standard errors."""
    bands = series.get("bands")
    if not bands:
        return None
    figure, axes = axes_of(4.6, 2.8)
    snr, change, error = zip(*bands, strict=True)
    axes.errorbar(snr, change, yerr=[2 * one for one in error], fmt="o", color=PALETTE[0], capsize=3)
    axes.axhline(0, color=PALETTE[3], linewidth=1)
    axes.set_xlabel("log-SNR (little noise to the right)")
    axes.set_ylabel("change of the loss (%)")
    axes.set_title("Denoising loss by noise level")
    return figure


def change_by_look(series: dict[str, Any]) -> Figure | None:
    """A figure's difference at each look, with the margin."""
    looks = series.get("looks")
    if not looks or len(looks) < 2:
        return None
    figure, axes = axes_of(4.6, 2.4)
    counts, values, errors = zip(*looks, strict=True)
    axes.errorbar(counts, values, yerr=[2 * error for error in errors], fmt="o-", color=PALETTE[0], capsize=2)
    if series.get("margin"):
        for side in (-1, 1):
            axes.axhline(side * series["margin"], color=PALETTE[3], linewidth=1, linestyle="--")
    axes.set_xlabel("pairs")
    axes.set_ylabel("change")
    return figure


def change_by_slice(series: dict[str, Any]) -> Figure | None:
    """The change of each slice with its interval, in units of the margin, worst first."""
    slices = [one for one in series.get("slices") or [] if one["margin"] and all(map(math.isfinite, one["interval"]))][:_MOST_SLICES]
    if not slices:
        return None
    figure, axes = axes_of(5.2, 1.2 + 0.22 * len(slices))
    for row, one in enumerate(reversed(slices)):
        low, high = (end / one["margin"] for end in one["interval"])
        colour = PALETTE[1] if one["word"] == "worse" else PALETTE[0]
        axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
        axes.plot([one["change"] / one["margin"]], [row], "o", color=colour, markersize=4)
    axes.set_yticks(range(len(slices)), [f"{one['slice']} ({one['figure']})" for one in reversed(slices)], fontsize=7)
    for side in (-1, 1):
        axes.axvline(side, color=PALETTE[3], linewidth=1, linestyle="--")
    axes.set_xlabel("change in margins (dashed)")
    axes.set_title("Change by slice, worst first")
    return figure
