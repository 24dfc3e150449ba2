"""`--diffusion-plan`: what this run would load and make, stage by stage, and what needs it; nothing is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffusion.plugin.stash import active_settings, is_given

if TYPE_CHECKING:
    from pytest_diffusion.config.settings import Settings


@dataclass(frozen=True)
class Stage:
    """A part of a run: what it makes, and for which checks."""

    name: str
    fixture: str
    images: int = 0
    """Images that it draws at most; those that are kept in the store count as `held`."""
    held: int = 0
    note: str = ""


def is_plan(config: pytest.Config) -> bool:
    """Whether this run is only planned."""
    return bool(config.getoption("diffusion_plan", None))


def show_plan(session: pytest.Session) -> None:
    """Load the model, draw two batches of images, and print what the collected tests would cost. Raises UsageError for what is wrong."""
    from pytest_diffusion.plugin.fixtures.support import readable_errors

    if not is_given(session.config, "model"):
        raise pytest.UsageError("--diffusion-plan needs --diffusion-model: nothing else has a cost that can be told before.")
    if "--diffusion-plan" not in session.config.invocation_params.args:
        raise pytest.UsageError("--diffusion-plan must be typed: from addopts it would let each run end with 0, and judge nothing.")
    if session.config.getoption("dist", "no") != "no" or getattr(session.config.option, "tx", None):
        raise pytest.UsageError("--diffusion-plan runs in one process: leave -n out, or say -n0.")
    try:
        with readable_errors():
            lines = _lines(session)
    except (pytest.fail.Exception, pytest.skip.Exception) as error:
        raise pytest.UsageError(str(error)) from None
    except Exception as error:  # the model's own, of a call that the run would make too
        raise pytest.UsageError(f"--diffusion-plan: the model cannot draw: {type(error).__name__}: {error}") from error
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    for line in ["", "plan of this run; nothing was judged:", *lines]:
        if reporter is not None:
            reporter.write_line(line)


def _lines(session: pytest.Session) -> list[str]:
    from pytest_diffusion.config.durations import duration
    from pytest_diffusion.data.prompts import prompts_of
    from pytest_diffusion.models.capabilities import uses_guidance
    from pytest_diffusion.models.load import load_pipeline
    from pytest_diffusion.samples.cost import probe
    from pytest_diffusion.samples.room import require_room, require_steps

    settings, thresholds = active_settings(session.config)
    pipeline = load_pipeline(settings)
    prompts = prompts_of(settings.prompts, settings.reference)
    require_steps(pipeline, settings)
    require_room(pipeline, settings)
    timing = probe(pipeline, prompts, settings)
    factor = settings.steps * (2 if uses_guidance(pipeline) and (settings.guidance_scale or 2.0) > 1 else 1)
    lines, total, disk = [f"  {'load':<20}{_source(settings)}"], 0.0, 0
    for stage in _stages(settings, thresholds, pipeline, prompts):
        users = [item.name for item in session.items if stage.fixture in getattr(item, "fixturenames", ())]
        if not users:
            continue
        left = stage.images - stage.held
        cost = ""
        if stage.images:
            spent = left * timing.seconds
            total += spent
            disk += 3 * timing.height * timing.width * left if stage.fixture in ("diffusion_samples", "diffusion_pairs") else 0
            held = f" ({stage.held} in the store)" if stage.held else ""
            cost = f"{stage.images} images{held}, {left * factor:,} denoiser evaluations, {duration(spent)}. "
        lines.append(f"  {stage.name:<20}{cost}{stage.note}for {_listed(users)}")
    memory = f", {timing.memory / 1e6:,.0f} MB of memory while drawing" if timing.memory else ""
    lines.append(
        f"  {'all images':<20}{duration(total)} ({timing.seconds:.3g} s each, {timing.source}), {disk / 1e6:,.1f} MB of disk{memory}"
    )
    return lines


def _stages(settings: Settings, thresholds: Any, pipeline: Any, prompts: Sequence[str]) -> list[Stage]:
    """Everything that draws images or looks at them, with the most that it draws."""
    from pytest_diffusion.plugin.fixtures.lenses import ATTENTION_PROMPTS
    from pytest_diffusion.samples.direction import SEEDS
    from pytest_diffusion.samples.trials import COUNT

    count, pairs = settings.num_samples, settings.max_samples or thresholds.margins.pairs
    held, own = _held(settings, pipeline, prompts), _held(replace(settings, num_samples=pairs), pipeline, prompts)
    attention = min(settings.times_effort(ATTENTION_PROMPTS), count)
    reference = f"{thresholds.margins.references} references at 5 noise levels, both models. "
    return [
        Stage("generate", "diffusion_samples", count, held),
        Stage("features", "diffusion_features", note=f"{count} images through {settings.features}. "),
        Stage("CLIP", "diffusion_sample_embeds", note=f"{count} images through {settings.clip_model}. "),
        Stage("attention", "diffusion_attention", attention),
        Stage("controlled runs", "diffusion_trials", 6 * COUNT),
        Stage("semantic direction", "diffusion_direction", 2 * settings.times_effort(SEEDS)),
        Stage("denoising loss", "diffusion_denoising", note=f"at most {reference}"),
        Stage("pairs", "diffusion_pairs", 2 * pairs, own, "at most; it stops when all is decided, "),
    ]


def _held(settings: Settings, pipeline: Any, prompts: Sequence[str]) -> int:
    """Samples of this model that are in the store."""
    from pytest_diffusion.samples.generate import samples_in_store

    return samples_in_store(pipeline, prompts, settings)


def _source(settings: Settings) -> str:
    from pytest_diffusion.config.sources import model_source

    name = str(settings.model or settings.baseline)
    source = model_source(name)
    folder = source.folder(name)
    if folder is not None and folder.is_dir():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return f"{name}: {size / 1e6:,.1f} MB on this machine"
    return f"{name}: {source.cost or source.name}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:6])}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"
