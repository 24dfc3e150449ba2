"""`python -m pytest_diffusion.generate`: the share of one process in making samples, features and scores, without judging any.

It runs inside pytest, so that options, ini file and conftest.py are those of the gate that reads the store afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_diffusion.plugin.stash import GENERATION, active_settings


@dataclass(frozen=True)
class Work:
    """The samples of one model, and what is computed of them: feature extractors and scorers."""

    pipeline: Any
    settings: Any
    extractors: list[Any]
    scorers: list[Any]


class Generation:
    """Takes the place of pytest's own main function: makes what the gate would need, and judges nothing."""

    __name__ = GENERATION  # pluggy's name of it

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int | None:
        """The exit code: 0 where all is made, 1 where the model or the store did not allow it, 4 for wrong options."""
        from pytest_diffusion.plugin.course import runs_tests
        from pytest_diffusion.verdicts.errors import ModelError, SettingsError

        if not runs_tests(config.option):
            return None
        config._do_configure()
        try:
            self._generate(config)
        except SettingsError as error:
            return _failed(error, 4)
        except (ModelError, ImportError) as error:
            return _failed(error, 1)
        return 0

    def _generate(self, config: pytest.Config) -> None:
        from pytest_diffusion.config.claims import place
        from pytest_diffusion.data.prompts import prompts_of
        from pytest_diffusion.features.store import stored_features, stored_scores
        from pytest_diffusion.samples.generate import generate_samples

        settings = active_settings(config)[0]
        prompts, own = prompts_of(settings.prompts, settings.reference), place()
        for work in _works(config, prompts):
            samples = generate_samples(work.pipeline, prompts, work.settings, say=_say, made=_keeper(work))
            for extractor in work.extractors:
                stored_features(samples, extractor, say=_say)
            for scorer in work.scorers:
                stored_scores(samples, scorer, samples.prompts, len(samples), say=_say)
            _say(
                f"process {own.rank + 1} of {own.world} drew {samples.generated} of {len(samples)} samples of "
                f"{work.settings.model}; all are in {samples.folder}"
            )


def _works(config: pytest.Config, prompts: list[str]) -> Iterator[Work]:
    """The models of the run, loaded one after another, each with what its samples are needed for."""
    from pytest_diffusion.config.cache import cache_root
    from pytest_diffusion.config.settings import baseline_kind
    from pytest_diffusion.config.sources import model_source
    from pytest_diffusion.features.clip import load_clip
    from pytest_diffusion.features.extractors import load_extractor
    from pytest_diffusion.features.store import clip_extractor
    from pytest_diffusion.gate.stages import Material, scorers_of, wants_features
    from pytest_diffusion.models.capabilities import device_of, is_text_conditioned
    from pytest_diffusion.models.load import load_pipeline
    from pytest_diffusion.samples.cost import hold_to_budget
    from pytest_diffusion.samples.room import require_room, require_steps
    from pytest_diffusion.verdicts.errors import SettingsError

    settings, thresholds = active_settings(config)
    if settings.model is None and settings.lora is None:
        raise SettingsError("nothing to generate: give --diffusion-model.")
    lenses = settings.lenses or (("paired",) if settings.baseline is not None else ("metrics",))
    sides = [settings]
    if "paired" in lenses and settings.baseline is not None and baseline_kind(settings.baseline) == "model":
        sides.append(replace(settings, model=settings.baseline, lora=None))
    if not {"metrics", "paired"} & set(lenses):
        raise SettingsError(f"nothing to generate: the lenses {', '.join(lenses)} look at no samples of the store; give metrics or paired.")
    for side in sides:
        if side.model is not None and model_source(side.model).runs_own_code(side.model):
            raise SettingsError(f"{side.model} is code of your own, whose samples are not kept from one run to the next.")
    if ":" in (settings.scheduler or ""):
        raise SettingsError(f"--diffusion-scheduler={settings.scheduler} is code of your own: samples made with it are not kept.")
    cache_root(settings.cache_dir)  # a store that cannot be used is told before anything is loaded
    for place, side in enumerate(sides):
        pipeline = load_pipeline(side)
        count = (settings.max_samples or thresholds.margins.pairs) if "paired" in lenses and settings.baseline is not None else 0
        count = max(count, settings.num_samples if "metrics" in lenses and not place else 0)
        if not count:
            continue
        counted = replace(side, num_samples=count)
        hold_to_budget([(pipeline, counted)], prompts, {})
        require_steps(pipeline, counted)
        require_room(pipeline, counted)
        device, texts = str(device_of(pipeline)), prompts if is_text_conditioned(pipeline) else None
        extractors = [load_extractor(settings.features, device=device)] if wants_features(settings) else []
        clip = load_clip(settings.clip_model, device=device) if texts is not None else None
        scorers = scorers_of(pipeline, texts, counted, Material(clip=clip), {}) if "paired" in lenses else []
        if "metrics" in lenses and clip is not None and not place and hasattr(clip, "identity"):
            extractors.append(clip_extractor(clip))
        # What says not which one it is, is not kept, and would be computed for nothing.
        kept = [extractor for extractor in extractors if not extractor.is_own_code]
        yield Work(pipeline, counted, kept, [scorer for scorer in scorers if scorer.weights])


def _keeper(work: Work) -> Callable[[Path, range, Any, list[str] | None], None]:
    """Computes features and scores of a shard where its images have just been made."""
    import torch

    from pytest_diffusion.features.store import feature_pieces, score_pieces
    from pytest_diffusion.samples.generate import shard_size_of

    size = shard_size_of(work.settings, work.pipeline)

    def keep(folder: Path, indices: range, pixels: Any, texts: list[str] | None) -> None:
        images, first = torch.from_numpy(pixels), indices.start
        for extractor in work.extractors:
            feature_pieces(folder, extractor, images, first=first, size=size).keep(indices)
        for scorer in work.scorers:
            score_pieces(folder, scorer, images, texts, first=first, size=size).keep(indices)

    return keep


def _failed(error: Exception, code: int) -> int:
    print(f"pytest-diffusion: {error}", file=sys.stderr, flush=True)  # noqa: T201 - a command's output
    return code


def _say(text: str) -> None:
    print(f"diffusion: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a command's output
