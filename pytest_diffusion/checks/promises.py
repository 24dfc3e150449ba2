"""What a run promises to judge: limits and requirements of files, lenses and a reference that the user gave."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_diffusion.checks.registry import CHECKS
from pytest_diffusion.config.options import LENSES
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.thresholds import Thresholds, is_preset
from pytest_diffusion.verdicts.gate import Promise


def promises_of(settings: Settings, thresholds: Thresholds) -> list[Promise]:
    """Everything that must be judged, or the gate is closed.

    A preset's requirements hold for a model, and only within the lenses that were asked for; the user's own always hold.
    """
    return list(dict.fromkeys([*_limits(thresholds), *_options(settings), *_required(settings, thresholds)]))


def _limits(thresholds: Thresholds) -> Iterator[Promise]:
    for check, limits in thresholds.limits.items():
        if limits.is_users_own:
            yield Promise("check", check, limits.where, lens=_lens(check))


def _options(settings: Settings) -> Iterator[Promise]:
    origin = {name: settings.sources.get(name, "") for name in ("lenses", "reference")}
    shown = {name: f"--diffusion-{name}" if source == "option" else source for name, source in origin.items()}
    if origin["lenses"] and not is_preset(origin["lenses"]):
        for lens in settings.lenses or ():
            yield Promise("lens", lens, shown["lenses"])
    if origin["reference"] and not is_preset(origin["reference"]):
        yield Promise("reference", "reference", shown["reference"])


def _required(settings: Settings, thresholds: Thresholds) -> Iterator[Promise]:
    for name, by in thresholds.require.items():
        is_lens = name in (*LENSES, "always")
        of_preset = is_preset(by.partition(" ")[0])
        lens = name if is_lens else _lens(name)
        if of_preset and (settings.model is None or (settings.lenses is not None and lens not in (*settings.lenses, "always"))):
            continue
        yield Promise("lens" if is_lens else "check", name, by, of_preset, lens)


def _lens(check: str) -> str:
    found = CHECKS.get(check)
    return found.lens if found is not None else ""
