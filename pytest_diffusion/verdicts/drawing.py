"""What plots share: the palette, and figures made without pyplot, so that matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = dict[str, Any]
"""Plain lists, numbers and strings of a measurement, for its plot and its pictures."""
Plot = Callable[[Series], "Figure | None"]
"""Draws a series; None where there is nothing to draw."""

INK = "#123456"
"""Drawn in this colour, replaced by the page's own text colour afterwards."""
PALETTE = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d")


def empty_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def axes_of(width: float, height: float) -> tuple[Figure, Any]:
    """A figure with one pair of axes."""
    figure = empty_figure(width, height)
    return figure, figure.subplots()
