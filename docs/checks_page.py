"""The page docs/checks.md, made of the checks' declarations and of the presets; run `python -m docs.checks_page` to write it."""

from pathlib import Path

from pytest_diffusion.checks import all_checks
from pytest_diffusion.config.thresholds import Thresholds, load_thresholds, preset_names

FOLDER = Path(__file__).parent
LEADS = {
    "paired": "a candidate against its baseline",
    "metrics": "samples against a reference",
    "schedule": "the scheduler alone",
    "attention": "models that attend to text",
    "latent": "models with a VAE",
    "always": "every model",
}


def page() -> str:
    """The whole page. What stands between the tables is written by hand, in docs/checks/*.md, one file for each lens."""
    parts = [_text("introduction")]
    for lens in LEADS:
        parts += [f"## {lens}: {LEADS[lens]}", _table(lens), _text(lens)]
    parts += [_text("closing")]
    return "\n\n".join(parts) + "\n"


def _table(lens: str) -> str:
    lines = ["| check | figure | sees | blind to | limits |", "|---|---|---|---|---|"]
    for check in all_checks():
        if check.lens == lens and check.function.__module__.startswith("pytest_diffusion."):
            name = f"`{check.name}`" if lens == "paired" else f"[`{check.name}`](examples.md#{check.name})"
            cells = (name, check.figure, check.sees, check.blind_to, _limits(check.name))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _limits(name: str) -> str:
    """The limit or margin of each preset, once where they agree."""
    presets = ["default", *(preset for preset in preset_names() if preset != "default")]
    texts = {preset: _limit(load_thresholds([preset]), name) for preset in presets}
    default = texts.pop("default")
    others = {preset: text for preset, text in texts.items() if text != default}
    return "; ".join([default, *(f"{preset}: {text}" for preset, text in others.items())])


def _limit(thresholds: Thresholds, name: str) -> str:
    if name in thresholds.limits:
        return thresholds.limits[name].text
    figure = name.removeprefix("paired_")
    if figure not in thresholds.margins.by_figure:
        return "exact" if figure != "drift" else "no limit"
    margin = thresholds.margins.of(figure)
    return "no limit" if margin is None else f"margin {margin.text}{' either way' if margin.kind == 'equivalence' else ''}"


def _text(name: str) -> str:
    return (FOLDER / "checks" / f"{name}.md").read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    (FOLDER / "checks.md").write_text(page(), encoding="utf-8")
