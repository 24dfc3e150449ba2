"""Plots of the comparison: the loss by noise level, the looks, and all figures in units of their margins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_diffusion.verdicts.drawing import PALETTE, axes_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
