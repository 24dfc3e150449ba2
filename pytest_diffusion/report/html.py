"""The HTML report: one self-contained page from the report's data."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup, escape

from pytest_diffusion.config.resources import data_folder
from pytest_diffusion.report.figures import draw

LENSES = {
    "metrics": "Metrics",
    "schedule": "Noise schedule",
    "attention": "Attention",
    "latent": "Latent space",
    "always": "Determinism and guidance",
    "": "Your own tests",
}


def render(data: dict[str, Any]) -> str:
    """The page as text; everything that comes from outside is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(data_folder("templates")), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = _figure
    environment.filters["number"] = _number
    environment.filters["limits"] = _limits
    lenses = []
    for mode, title in LENSES.items():
        chosen = [verdict for verdict in data["verdicts"] if verdict["mode"] == mode]
        if chosen:
            own = {verdict["check"]: verdict for verdict in _checklist_last(chosen)}
            plots = {check: Markup(_drawn(check, verdict)) for check, verdict in own.items()}  # noqa: S704 - our own SVG
            lenses.append({"mode": mode or "own", "title": title, "verdicts": chosen, "plots": plots})
    series = {verdict["check"]: _series(verdict) for verdict in _checklist_last(data["verdicts"])}
    return environment.get_template("report.html.j2").render(data=data, lenses=lenses, series=series)


def _drawn(check: str, verdict: dict[str, Any]) -> str:
    """The check's plot; figures that cannot be drawn (all nan, say) must not take the page with them."""
    try:
        return draw(check, _series(verdict))
    except (ValueError, TypeError, IndexError) as error:
        return str(escape(f"The plot of {check} could not be drawn: {error}"))


def _checklist_last(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A check may also be made by a test of the user's; pictures and anchors are those of the checklist."""
    return sorted(verdicts, key=lambda verdict: verdict["nodeid"].startswith("diffusion::"))


def _series(verdict: dict[str, Any]) -> dict[str, Any]:
    measurement = verdict["measurement"] or {}
    series: dict[str, Any] = measurement.get("series", {})
    return series


def _figure(verdict: dict[str, Any]) -> str:
    """Figure and 95 % interval in one cell."""
    measurement = verdict["measurement"]
    if measurement is None:
        return "–"
    text = _number(measurement["value"])
    if measurement["interval"] is not None:
        low, high = (_number(end) for end in measurement["interval"])
        text += f" [{low}, {high}]"
    return f"{text} {measurement['unit']}".strip()


def _limits(verdict: dict[str, Any]) -> str:
    limits = verdict["limits"]
    if limits is None or (limits["at_least"] is None and limits["at_most"] is None):
        return "reported only"
    parts = [f"≥ {_number(limits['at_least'])}"] if limits["at_least"] is not None else []
    parts += [f"≤ {_number(limits['at_most'])}"] if limits["at_most"] is not None else []
    return ", ".join(parts)


def _number(value: float | str | None) -> str:
    number = float(value) if value is not None else math.nan
    if math.isinf(number):
        return "−∞" if number < 0 else "∞"
    if number == int(number) and abs(number) < 1e6 if math.isfinite(number) else False:
        return str(int(number))
    return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
