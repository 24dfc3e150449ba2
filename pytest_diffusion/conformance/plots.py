"""Plots of the scheduler checks, each drawn from its law's series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_diffusion.verdicts.drawing import Series, axes_of, empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plan(series: Series) -> Figure:
    figure = empty_figure(8.0, 2.8)
    left, right = figure.subplots(1, 2)
    steps = range(len(series["timesteps"]))
    left.plot(steps, series["timesteps"], marker="o", markersize=3)
    left.set(xlabel="evaluation", ylabel="timestep", title="Timesteps of the plan")
    right.plot(steps, series["log_snr"], marker="o", markersize=3)
    right.set(xlabel="evaluation", ylabel="log-SNR in nats", title="Noise level of the samples")
    figure.tight_layout()
    return figure


def convergence(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 3.0)
    steps, errors, order = series["steps"], series["errors"], series["declared"]
    axes.plot(steps, errors, marker="o", label=f"seen: order {series['seen']:.2f}")
    # A line through the last point with the declared order.
    axes.plot(steps, [errors[-1] * (steps[-1] / count) ** order for count in steps], linestyle="--", label=f"declared: order {order}")
    axes.set(xscale="log", yscale="log", xlabel="inference steps", ylabel=series["what"], title="Error against steps, Gaussian data")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.legend()
    return figure
