"""The pairs of a comparison, from two pipelines, or from a pipeline and a saved baseline, to their run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.columns import prompt_columns
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.features.identity import Features
from pytest_diffusion.features.image_scores import ImageScorer, clip_scorer, load_scorer, tone_scorer
from pytest_diffusion.gate.attribution import of_pairs
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.figures import OF_REFERENCE, SET_FIGURES, clusters_of
from pytest_diffusion.gate.floor import TWIN_PAIRS, sample_floors
from pytest_diffusion.gate.pairs import PairedRun, run_pairs
from pytest_diffusion.gate.saved import SavedBaseline
from pytest_diffusion.gate.side import LiveSide, SavedSide
from pytest_diffusion.gate.slices import WORDS, slicing
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.models.capabilities import device_of, image_size, is_text_conditioned
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.samples.room import require_room, require_steps
from pytest_diffusion.samples.seeds import seeds_of
from pytest_diffusion.verdicts.errors import SettingsError, SetupError

Say = Callable[[str], object]


@dataclass(frozen=True)
class Material:
    """What scores need beside the samples. An exception in place of a thing says why it is not there, None that it was not asked for."""

    clip: Any = None
    extractor: Any = None
    reference: Any = None


def wants_features(settings: Settings) -> bool:
    """Whether features were asked for, by name or by a reference to compare with."""
    return settings.reference is not None or "features" in settings.sources


def scorers_of(
    candidate: Any, prompts: list[str] | None, settings: Settings, material: Material, missing: dict[str, Exception]
) -> list[ImageScorer]:
    """The scorers of a run: tones, CLIP where the model takes prompts, and those that the user names.

    Figures that cannot be measured are added to `missing` with the reason.
    """
    found = [tone_scorer()]
    device = str(device_of(candidate))
    if prompts is not None and "clip" not in settings.scorer:
        if isinstance(material.clip, Exception):
            missing |= {"clip_score": material.clip, "alignment": material.clip}
        elif material.clip is not None:
            found.append(clip_scorer(material.clip, prompts))

    def subject() -> torch.Tensor:
        height, width = image_size(candidate, settings)
        return load_reference(str(settings.subject), height=height, width=width, limit=256).require_images()

    def clip() -> Any:
        if isinstance(material.clip, Exception) or material.clip is None:
            raise material.clip or SetupError("--diffusion-scorer: clip needs a model that takes prompts.")
        return material.clip

    for name in settings.scorer:
        if prompts is None and name.partition(":")[0] in ("clip", "vlm"):
            raise SetupError(f"--diffusion-scorer: {name} scores prompts, and {type(candidate).__name__} takes none.")
        found.append(load_scorer(name, device=device, prompts=prompts or [], clip=clip, subject=subject))
    names = [name for scorer in found for name in scorer.names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"--diffusion-scorer: more than one scorer gives the score {twice[0]!r}; rename one of them.")
    return found


def draw_pairs(
    candidate: Any,
    baseline: Any | None,
    saved: SavedBaseline | None,
    prompts: list[str],
    settings: Settings,
    baseline_settings: Settings,
    comparison: Comparison,
    material: Material,
    *,
    say: Say,
) -> PairedRun:
    """Samples of both models until their figures are decided.

    The noise floor is that of the baseline on this machine, or the saved one. Raises what loading scorers and drawing raises.
    """
    own = prompts if is_text_conditioned(candidate) else None
    most = settings.max_samples or comparison.margins.pairs
    looks = Plan(comparison.margins.pairs).looks(most)
    if not looks:
        raise SettingsError(f"--diffusion-max-samples is {most}; the first look comes after {Plan().looks(1000)[0]} pairs.")
    missing = dict[str, Exception]()
    scorers = scorers_of(candidate, own, settings, material, missing)
    extractor = material.extractor if isinstance(material.extractor, Extractor) else None
    reference = _reference(material, missing)
    limited = replace(settings, num_samples=looks[-1])
    require_steps(candidate, limited)
    require_room(candidate, limited)
    ours = LiveSide("candidate", candidate, own, settings, fingerprint(candidate), scorers, extractor, say)
    names = [name for scorer in scorers for name in scorer.names] + ([*SET_FIGURES] if extractor is not None else [])
    rules = comparison.rules(names, comparison.margins.pairs)
    seeds = seeds_of(settings, looks[-1])
    columns = prompt_columns(settings.prompts, settings.reference, [name for name in settings.slices if name != WORDS])
    texts = [own[index % len(own)] for index in range(looks[-1])] if own is not None else None
    if saved is not None:
        theirs: Any = SavedSide(comparison.name, saved.rows_for(scorers, extractor, texts, seeds))
        rules = replace(rules, floors=saved.floors)
        floors: Callable[[int], Mapping[str, float]] | None = None
    else:
        theirs = LiveSide(comparison.name, baseline, own, baseline_settings, fingerprint(baseline), scorers, extractor, say)

        def measure(count: int) -> Mapping[str, float]:
            return sample_floors(theirs, min(count, TWIN_PAIRS), reference)

        floors = measure
    say(f"comparing with {comparison.name}: at most {looks[-1]} pairs, a look after {', '.join(map(str, looks[:4]))}, ...")
    run = run_pairs(
        ours,
        theirs,
        rules,
        prompts=texts,
        seeds=seeds,
        clusters=clusters_of(texts),
        reference=reference,
        most=looks[-1],
        floors=floors,
        slicing=slicing(settings.slices, texts, columns, rules, comparison.slice_alpha, required=list(columns)),
        say=say,
    )
    found = of_pairs(run, ours, baseline, comparison, reference, clusters=clusters_of(texts), say=say) if baseline is not None else {}
    return replace(run, missing=missing, blame=found)


def _reference(material: Material, missing: dict[str, Exception]) -> torch.Tensor | FeatureStatistics | None:
    """Features of the reference; where they cannot be had, the figures that need them are added to `missing`."""
    for thing in (material.extractor, material.reference):
        if isinstance(thing, Exception):
            missing.update(dict.fromkeys(OF_REFERENCE, thing))
            return None
    found = material.reference
    if found is None or isinstance(found, FeatureStatistics):
        return found
    assert isinstance(found, Features)
    return found.values
