"""Plots as SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from cycler import cycler

from pytest_diffusion.verdicts.drawing import INK, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pytest-diffusion",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.prop_cycle": cycler(color=PALETTE),
    "legend.frameon": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
}


def draw(name: str, plot: Callable[[dict[str, Any]], Figure | None], series: dict[str, Any]) -> str:
    """SVG of a check's plot of its series, with ids that begin with the check's name; empty where there is nothing to draw."""
    with mpl.rc_context(STYLE):
        figure = plot(series)
        if figure is None:
            return ""
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Ids are unique in a file, not in a page of many plots.
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", text)
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
