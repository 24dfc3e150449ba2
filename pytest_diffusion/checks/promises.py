"""What a run promises to judge: limits and requirements of files, lenses and a reference that the user gave."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from pytest_diffusion.checks.registry import CHECKS
from pytest_diffusion.config.parsers import LENSES
from pytest_diffusion.config.settings import Settings, baseline_kind
from pytest_diffusion.config.thresholds import Thresholds, is_preset
from pytest_diffusion.data.columns import places_of
from pytest_diffusion.verdicts.gate import Promise
from pytest_diffusion.verdicts.run import Entry

PAIRS = "paired_guards"
"""The check that every comparison with a baseline makes where pairs were drawn."""


RETENTION = "paired_retention_loss"
"""The check of the images that must not be forgotten."""
SLICES = {
    "prompts": "paired_scores_by_slice",
    "reference": "paired_denoising_by_slice",
    "retention": "paired_retention_by_slice",
}
"""The checks by slice, by whose table has the column."""
SELFTEST = "selftest"
"""The check of the gate itself."""


def promises_of(settings: Settings, thresholds: Thresholds) -> list[Promise]:
    """Everything that must be judged, or the gate is closed.

    A preset's requirements hold for a model, and only within the lenses that were asked for; the user's own always hold.
    """
    return list(dict.fromkeys([*_limits(thresholds), *_options(settings), *_required(settings, thresholds)]))


def kept_in_mind(promises: Iterable[Promise], entries: Collection[Entry], *, is_identical: bool) -> list[Promise]:
    """The promises that still hold when the comparison with a baseline is known.

    No pairs are needed where something is worse already. Where nothing differs, only what the user asked for by name is.
    """
    is_worse = any(entry.verdict.lens == "paired" and entry.verdict.outcome == "fail" for entry in entries)
    # A loss is the same, and is not measured, where no part differs that it depends on.
    same = {entry.verdict.check for entry in entries if entry.verdict.outcome == "skipped" and entry.verdict.message.startswith("same: ")}
    dropped = {PAIRS, RETENTION, *SLICES.values()} if is_worse or is_identical else {RETENTION, *SLICES.values()} & same
    left = [promise for promise in promises if promise.name not in dropped]
    return [promise for promise in left if not is_identical or not (promise.is_presets or promise.kind == "reference")]


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
    if settings.baseline is not None and settings.model is not None:
        by = "--diffusion-lora" if settings.lora is not None else "--diffusion-baseline"
        is_report = baseline_kind(settings.baseline) == "report"
        yield Promise("lens", "paired", by) if is_report else Promise("check", PAIRS, by, lens="paired")
        if settings.retention is not None and not is_report:
            yield Promise("check", RETENTION, "--diffusion-retention", lens="paired")
        if settings.slices and not is_report:
            columns = [name for name in settings.slices if name != "words"]
            places = {*places_of(columns, settings.prompts, settings.reference, settings.retention).values()}
            for place in dict.fromkeys(["prompts"] * ("words" in settings.slices) + sorted(places)):
                yield Promise("check", SLICES[place], "--diffusion-slices", lens="paired")
    if settings.selftest_require:
        yield Promise("check", SELFTEST, "--diffusion-selftest-require", lens="selftest")
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
