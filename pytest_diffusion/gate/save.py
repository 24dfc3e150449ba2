"""Draw the samples of a model, score them, and keep the scores as a saved baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from pytest_diffusion.config.cache import cache_root
from pytest_diffusion.config.margins import Margins
from pytest_diffusion.config.settings import Settings, own_preset
from pytest_diffusion.config.thresholds import lacks_family, load_thresholds
from pytest_diffusion.config.versions import versions_text
from pytest_diffusion.data.prompts import prompts_of
from pytest_diffusion.data.references import Reference, load_reference, num_reference_images
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.store import stored_reference_features
from pytest_diffusion.gate.floor import TWIN_PAIRS, floors_of_losses, sample_floors
from pytest_diffusion.gate.loss_stages import losses_on
from pytest_diffusion.gate.parts import part_hashes
from pytest_diffusion.gate.saved import SavedBaseline, checksums_of, image_checksums, load_baseline, save_baseline
from pytest_diffusion.gate.side import LiveSide
from pytest_diffusion.gate.stages import Material, scorers_of, wants_features
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.models.capabilities import device_of, family, has_vae, image_size, is_text_conditioned
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.levels import prediction_type_of
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples.room import require_room, require_steps
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError

Say = Callable[[str], object]


def save_model(settings: Settings, to: str, *, say: Say) -> SavedBaseline:
    """Save the baseline of the model that the settings name. Raises what loading and drawing raises, before anything is written."""
    pipeline = load_pipeline(settings)
    own = [own_preset(settings.model) or family(pipeline)] if lacks_family(settings.thresholds) else []
    margins = load_thresholds([*own, *settings.thresholds]).margins
    count = num_reference_images(settings.reference, settings.num_samples) if settings.reference is not None else 0
    reference = _reference(pipeline, settings, settings.reference, count)
    retention = _reference(pipeline, settings, settings.retention, margins.references)
    prompts = prompts_of(settings.prompts, settings.reference) if is_text_conditioned(pipeline) else None
    measured = measure_baseline(_side(pipeline, prompts, settings, say), margins, reference, retention, say=say)
    save_baseline(to, measured.tensors, measured.about)
    return load_baseline(to)


def measure_baseline(
    side: LiveSide, margins: Margins, reference: Reference | None, retention: Reference | None, *, say: Say
) -> SavedBaseline:
    """What a saved baseline holds of a model: scores, features, losses and noise floors. Raises what drawing raises."""
    pipeline, settings, prompts = side.pipeline, side.settings, side.prompts
    sets = {"denoising_loss": reference, "retention_loss": retention}
    if has_vae(pipeline):
        sets["reconstruction_loss"] = reference
    losses, kept, floors = _losses(pipeline, settings, margins, sets, say)
    looks = Plan(margins.pairs).looks(settings.max_samples or margins.pairs)
    if not looks:
        raise SettingsError(f"--diffusion-max-samples is {settings.max_samples}; the first look comes after {Plan().looks(1000)[0]} pairs.")
    count = looks[-1]
    limited = replace(settings, num_samples=count)
    require_steps(pipeline, limited)
    require_room(pipeline, limited)
    rows = side.rows(count)
    against = (
        stored_reference_features(reference.images, side.extractor, cache_root(settings.cache_dir)).values
        if (reference is not None and reference.images is not None and side.extractor is not None)
        else None
    )
    floors |= sample_floors(side, min(count, TWIN_PAIRS), against)
    tensors = {
        **losses,
        **{f"score.{name}": values for name, values in rows.scores.items()},
        "finite": rows.finite.to(torch.uint8),
        "constant": rows.constant.to(torch.uint8),
        **({"features": rows.features} if rows.features is not None else {}),
    }
    texts = [prompts[index % len(prompts)] for index in range(count)] if prompts is not None else None
    about = {
        "model": settings.model,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "pipeline": type(pipeline).__name__,
        "weights": side.weights,
        "parts": part_hashes(pipeline),
        "takes_prompts": prompts is not None,
        "size": [*image_size(pipeline, settings)],
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
        "scheduler": settings.scheduler,
        "scheduler_config": list(settings.scheduler_config),
        "dtype": settings.dtype,
        "compile": settings.compile,
        "memory_format": settings.memory_format,
        "prompts": checksums_of(texts) if texts is not None else [],
        "digests": rows.digests,
        "scorers": {name: scorer.identity for scorer in side.scorers for name in scorer.names},
        "extractor": side.extractor.name if side.extractor is not None else "",
        "prediction_type": prediction_type_of(pipeline.scheduler),
        "losses": kept,
        "floors": floors,
        "device": str(device_of(pipeline)),
        "versions": versions_text(),
    }
    return SavedBaseline(side.name, tensors, about)


def _reference(pipeline: Any, settings: Settings, name: str | None, limit: int) -> Reference | None:
    if name is None:
        return None
    height, width = image_size(pipeline, settings)
    return load_reference(name, height=height, width=width, limit=limit)


def _losses(
    pipeline: Any, settings: Settings, margins: Margins, sets: dict[str, Reference | None], say: Say
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, float]]:
    """Tensors, descriptions and floors of the losses on each set that is there; a set that cannot be used is said and left out."""
    tensors: dict[str, torch.Tensor] = {}
    kept: dict[str, Any] = {}
    floors: dict[str, float] = {}
    for figure, reference in sets.items():
        if reference is None or reference.images is None:
            continue
        images = reference.images[: margins.references]
        texts = reference.prompts[: len(images)] if reference.prompts is not None and is_text_conditioned(pipeline) else None
        try:
            losses, log_snr = losses_on(figure, pipeline, None, images, texts, settings)
            own = losses(pipeline)
            tensors[f"loss.{figure}"] = own(len(images))
        except NotApplicable as reason:
            say(f"{figure} is not saved: {reason}")
            continue
        kept[figure] = {"images": image_checksums(images), "log_snr": log_snr}
        floors[figure] = floors_of_losses(partial(losses, pipeline), pipeline, len(images), own)
        say(f"{figure}: {len(images)} images")
    return tensors, kept, floors


def _side(pipeline: Any, prompts: list[str] | None, settings: Settings, say: Say) -> LiveSide:
    device = str(device_of(pipeline))
    clip = load_clip(settings.clip_model, device=device) if prompts is not None else None
    extractor = load_extractor(settings.features, device=device) if wants_features(settings) else None
    scorers = scorers_of(pipeline, prompts, settings, Material(clip=clip, extractor=extractor), {})
    return LiveSide(str(settings.model), pipeline, prompts, settings, fingerprint(pipeline), scorers, extractor, say)
