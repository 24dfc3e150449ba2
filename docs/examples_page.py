"""The page docs/examples.md and its pictures: what a pass and a fail of each check look like.

`python -m docs.examples_page` writes them, from the sound and the broken subject that tests/checks/test_subjects.py has of every check.
"""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from pytest_diffusion.checks import LENS_TITLES, all_checks
from pytest_diffusion.checks.registry import Check
from pytest_diffusion.checks.run import run_check
from pytest_diffusion.config.thresholds import Thresholds
from pytest_diffusion.report.figures import STYLE
from pytest_diffusion.verdicts.verdict import Verdict

FOLDER = Path(__file__).parent
PICTURES = FOLDER / "images" / "checks"
WIDTH, TILE, PER_ROW = 520, 64, 8
COLOURS = {"pass": "#1a7f4b", "fail": "#c0322b"}
LEAD = """# What a pass and a fail look like

For each check: what it sees, what a pass does not mean, and the same check on a small sound subject and on a broken one. The subjects are
those of the project's own tests, far smaller than a model, so that the fault is plain; limits are those of the examples. Each picture has
a pass on the left and a fail on the right. Above stand the figure with its 95 % interval (where it has one) and the limit, whose wrong side
is shaded; below, what the report draws. The [table of all checks](checks.md) has the limits of the presets.
"""
PAIRED = """## Against the baseline

All changes stand in one picture: each with its interval, its margin, and the word that follows from them. This is a fine-tune that
learned a new colour ([examples/finetune_gate](../examples/finetune_gate)), as the page of a comparison shows it;
[Gate your fine-tune](gate.md) explains the words.

![The changes of a sound fine-tune](images/report/comparison.png)
"""


def main() -> None:
    """Write the page and all pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    (FOLDER / "examples.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page; its pictures are written beside it."""
    from tests.checks.test_subjects import SUBJECTS

    parts = [LEAD, PAIRED]
    for lens, title in LENS_TITLES.items():
        chosen = [check for check in all_checks() if check.lens == lens and check.name in SUBJECTS]
        if chosen:
            parts += [f"## {title}", *(example(check, SUBJECTS[check.name]()) for check in chosen)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def example(check: Check, subjects: Any) -> str:
    """The section of a check, whose picture is written beside the page."""
    table = Thresholds({check.name: replace(subjects.limits, where="this example")})
    sound, broken = (run_check(check, dict(arguments), table) for arguments in (subjects.sound, subjects.broken))
    sides = [_side(check, verdict) for verdict in (sound, broken)]
    canvas = Image.new("RGB", (2 * WIDTH, max(side.height for side in sides)), "white")
    for place, side in enumerate(sides):
        canvas.paste(side, (place * WIDTH, 0))
    canvas.quantize(128, dither=Image.Dither.NONE).save(PICTURES / f"{check.name}.png", optimize=True)
    return "\n".join(
        [
            f"### {check.name}",
            "",
            f"{check.title[0].upper()}{check.title[1:]}. It sees {check.sees}. It is blind to {check.blind_to}.",
            "",
            f"![{check.name}: left a pass, right a fail](images/checks/{check.name}.png)",
            "",
            f"- **{sound.outcome}**: `` {' '.join(sound.message.split())} ``",
            f"- **{broken.outcome}**: `` {' '.join(broken.message.split())} ``",
        ]
    )


def _side(check: Check, verdict: Verdict) -> Image.Image:
    """The pictures of one verdict, one below another."""
    series = verdict.measurement.series if verdict.measurement is not None else {}
    parts = [_ruler(verdict)]
    if check.plot is not None and series:
        with mpl.rc_context(_RC):
            drawn = check.plot(series)
        parts += [_fitted(_image(drawn))] if drawn is not None else []
    for picture in check.pictures(series) if check.pictures is not None and series else []:
        rows = picture.rows if picture.is_strip else [row[:PER_ROW] for row in picture.rows]
        parts += [_fitted(_tiles(row, is_strip=picture.is_strip)) for row in rows]
    canvas = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + 8 * len(parts)), "white")
    top = 0
    for part in parts:
        canvas.paste(part, (0, top))
        top += part.height + 8
    return canvas


_RC = {**STYLE, "text.color": "#222", "axes.edgecolor": "#222", "axes.labelcolor": "#222", "xtick.color": "#222", "ytick.color": "#222"}
_RC |= {"grid.color": "#222"}


def _ruler(verdict: Verdict) -> Image.Image:
    """The figure and its interval on a line, with the limit and its wrong side."""
    measurement, limits = verdict.measurement, verdict.limits
    assert measurement is not None
    assert limits is not None
    low, high = measurement.interval or (measurement.value, measurement.value)
    ends = [float(one) for one in (low, high, measurement.value, limits.at_least, limits.at_most) if one is not None and abs(one) < 1e12]
    room = (max(ends) - min(ends)) * 0.25 or max(abs(ends[0]) * 0.25, 1.0)
    left, right = min(ends) - room, max(ends) + room
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / 100, 0.95))
        axes = figure.add_axes((0.03, 0.4, 0.94, 0.3))
        colour = COLOURS[verdict.outcome]
        if limits.at_most is not None:
            axes.axvspan(limits.at_most, right, color=COLOURS["fail"], alpha=0.15, lw=0)
            axes.axvline(limits.at_most, color="#222", lw=1)
        if limits.at_least is not None:
            axes.axvspan(left, limits.at_least, color=COLOURS["fail"], alpha=0.15, lw=0)
            axes.axvline(limits.at_least, color="#222", lw=1)
        axes.plot([max(low, left), min(high, right)], [0, 0], color=colour, lw=4, solid_capstyle="butt")
        axes.plot([min(max(measurement.value, left), right)], [0], "o" if verdict.outcome == "pass" else "X", color=colour, ms=9)
        axes.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
        axes.set_title(f"{verdict.outcome}: {measurement.name}", loc="left", fontsize=9, color=colour, fontweight="bold")
        return _image(figure, is_tight=False)


def _image(figure: Figure, *, is_tight: bool = True) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, facecolor="white", bbox_inches="tight" if is_tight else None)
    return Image.open(buffer).convert("RGB")


def _tiles(row: list[str], *, is_strip: bool) -> Image.Image:
    images = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB") for uri in row]
    if is_strip:
        return images[0]
    canvas = Image.new("RGB", (len(images) * (TILE + 1), TILE), "white")
    for place, image in enumerate(images):
        canvas.paste(image.resize((TILE, TILE), Image.Resampling.NEAREST), (place * (TILE + 1), 0))
    return canvas


def _fitted(image: Image.Image) -> Image.Image:
    """At most as wide as a side."""
    if image.width <= WIDTH - 10:
        return image
    return image.resize((WIDTH - 10, round(image.height * (WIDTH - 10) / image.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
