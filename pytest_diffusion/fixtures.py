"""Fixtures: lazy, session-scoped unless said, each body importing what it needs.

A user's conftest.py may override any of them; the built-in checklist then uses theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffusion.fixture_support import describe, is_overridden, note, readable_errors
from pytest_diffusion.stash import NOTES, NUMBERS, RUN, active_settings

if TYPE_CHECKING:
    import torch

    from pytest_diffusion.adapters.clip import Clip
    from pytest_diffusion.adapters.features import Features
    from pytest_diffusion.adapters.references import Reference
    from pytest_diffusion.maths.feature_statistics import FeatureStatistics
    from pytest_diffusion.samples.store import Samples
    from pytest_diffusion.settings import Settings
    from pytest_diffusion.thresholds import Thresholds


@pytest.fixture(scope="session")
def diffusion_settings(request: pytest.FixtureRequest) -> Settings:
    """The resolved Settings, with a test's `@pytest.mark.diffusion(...)` on top."""
    from pytest_diffusion.settings import override

    settings, _ = active_settings(request.config)
    changes = getattr(request, "param", None)
    return override(settings, dict(changes)) if changes else settings


@pytest.fixture(scope="session")
def diffusion_thresholds(request: pytest.FixtureRequest, diffusion_settings: Settings) -> Thresholds:
    """Limits by check: those that were named, else the preset that fits the model's capabilities."""
    from pytest_diffusion.settings import own_preset
    from pytest_diffusion.thresholds import load_thresholds

    names = list(diffusion_settings.thresholds)
    if not names:
        names = [own_preset(diffusion_settings.model) or _family(request, diffusion_settings)]
    thresholds = load_thresholds(names)
    note(request, diffusion_settings, thresholds=list(thresholds.files), inconclusive="fail" if thresholds.inconclusive_fails else "warn")
    return thresholds


@pytest.fixture(scope="session")
def diffusion_pipeline(request: pytest.FixtureRequest, diffusion_settings: Settings) -> Any:
    """The pipeline under test, on its device, in evaluation mode."""
    from pytest_diffusion.adapters.pipelines import load_pipeline

    _share_cores(request.config)
    with readable_errors():
        return load_pipeline(diffusion_settings)


@pytest.fixture
def diffusion_scheduler(request: pytest.FixtureRequest, diffusion_settings: Settings) -> Any:
    """A fresh copy of the pipeline's scheduler for each test; a local model's weights stay unloaded."""
    import copy

    from pytest_diffusion.adapters.pipelines import load_scheduler

    scheduler: Any = None
    if not is_overridden(request, "diffusion_pipeline"):
        with readable_errors():
            scheduler = load_scheduler(diffusion_settings)
    if scheduler is None:
        scheduler = request.getfixturevalue("diffusion_pipeline").scheduler
    return copy.deepcopy(scheduler)


@pytest.fixture(scope="session")
def diffusion_prompts(diffusion_settings: Settings) -> list[str]:
    """The prompts of `--diffusion-prompts`, else those of a reference of pairs, else the built-in list."""
    from pytest_diffusion.samples.prompts import load_prompts

    with readable_errors():
        if diffusion_settings.prompts is None and (diffusion_settings.reference or "").endswith((".jsonl", ".csv")):
            from pytest_diffusion.adapters.references import pair_prompts

            return pair_prompts(diffusion_settings.reference) or load_prompts(None)
        return load_prompts(diffusion_settings.prompts)


@pytest.fixture(scope="session")
def diffusion_reference(request: pytest.FixtureRequest, diffusion_settings: Settings, diffusion_pipeline: Any) -> Reference:
    """Real images uint8 (M, 3, H, W) at the samples' size, or statistics; skips where none is given."""
    from pytest_diffusion.adapters.images import RESIZE_PROTOCOL
    from pytest_diffusion.adapters.pipelines import image_size
    from pytest_diffusion.adapters.references import load_reference

    if diffusion_settings.reference is None:
        pytest.skip("no reference images are given: use --diffusion-reference.")
    height, width = image_size(diffusion_pipeline, diffusion_settings)
    with readable_errors():
        # The demo renders what is asked for; a folder is read up to the size that FID is quoted at.
        limit = max(diffusion_settings.num_samples, 1000 if diffusion_settings.reference == "demo" else 10_000)
        note(request, diffusion_settings, resize=RESIZE_PROTOCOL)
        return load_reference(diffusion_settings.reference, height=height, width=width, limit=limit)


@pytest.fixture(scope="session")
def diffusion_samples(
    request: pytest.FixtureRequest, diffusion_settings: Settings, diffusion_pipeline: Any, diffusion_prompts: list[str]
) -> Samples:
    """Generated images uint8 (N, 3, H, W), prompts and seeds; found in the cache or generated once."""
    from pytest_diffusion.samples.generate import generate_samples

    settings = diffusion_settings
    if _is_own_code(request, settings):
        settings = replace(settings, cache_dir=str(_session_folder(request)))
    with readable_errors():
        samples = generate_samples(diffusion_pipeline, diffusion_prompts, settings, progress=_progress(request.config))
    note(request, diffusion_settings, **describe(diffusion_pipeline))
    # A test with a marker makes pytest build this fixture twice; the second time all samples are found.
    generated = request.config.stash.get(RUN, {}).get("generated", 0) + samples.generated
    note(request, diffusion_settings, samples=len(samples.images), generated=generated, store=str(samples.folder))
    return samples


@pytest.fixture(scope="session")
def diffusion_extractor(diffusion_settings: Settings, diffusion_pipeline: Any) -> Callable[[torch.Tensor], Features]:
    """The feature extractor: uint8 images (N, 3, H, W) to features (N, D)."""
    from pytest_diffusion.adapters.features import load_extractor
    from pytest_diffusion.adapters.pipelines import device_of

    with readable_errors():
        try:
            return load_extractor(diffusion_settings.features, device=str(device_of(diffusion_pipeline)))
        except ImportError as error:
            # Nobody asked for a figure that needs it; with a reference or by name it would be a gap in the gate.
            if diffusion_settings.reference is None and "features" not in diffusion_settings.sources:
                pytest.skip(str(error))
            raise


@pytest.fixture(scope="session")
def diffusion_features(diffusion_samples: Samples, diffusion_extractor: Callable[[torch.Tensor], Features]) -> Features:
    """Features (N, D) and class probabilities of the samples, kept beside them in the store."""
    from pytest_diffusion.samples.features import stored_features

    with readable_errors():
        return stored_features(diffusion_samples, diffusion_extractor)


@pytest.fixture(scope="session")
def diffusion_reference_features(
    request: pytest.FixtureRequest,
    diffusion_settings: Settings,
    diffusion_reference: Reference,
    diffusion_extractor: Callable[[torch.Tensor], Features],
) -> Features | FeatureStatistics:
    """Features (M, D) of the reference images, kept in the cache, or the statistics that were given instead.

    Before they are used, canaries show whether these metrics can tell real images from black, noise and a cluster.
    """
    from pytest_diffusion.samples.features import stored_reference_features
    from pytest_diffusion.samples.store import cache_root

    if diffusion_reference.images is None:
        if diffusion_reference.statistics is None:
            raise ValueError(f"the reference {diffusion_reference.name} has neither images nor statistics.")
        return diffusion_reference.statistics
    from pytest_diffusion.samples.canaries import canary_figures, require_telling

    root = cache_root(diffusion_settings.cache_dir)
    with readable_errors():
        features = stored_reference_features(diffusion_reference.images, diffusion_extractor, root)
        figures = canary_figures(diffusion_reference, features, diffusion_extractor, root)
        require_telling(figures, features.extractor)
    note(request, diffusion_settings, canaries=figures)
    return features


@pytest.fixture(scope="session")
def diffusion_clip(request: pytest.FixtureRequest, diffusion_settings: Settings, diffusion_pipeline: Any) -> Clip:
    """CLIP for the CLIP score; skips for a model without prompts. It must hear the reference's prompts, where there are any."""
    from pytest_diffusion.adapters.clip import load_clip
    from pytest_diffusion.adapters.pipelines import device_of, is_text_conditioned

    if not is_text_conditioned(diffusion_pipeline):
        pytest.skip(f"{type(diffusion_pipeline).__name__} is not conditioned on text.")
    from pytest_diffusion.samples.canaries import require_aligned
    from pytest_diffusion.samples.store import cache_root

    with readable_errors():
        clip = load_clip(diffusion_settings.clip_model, device=str(device_of(diffusion_pipeline)))
        clip = replace(clip, cache=cache_root(diffusion_settings.cache_dir))
        if diffusion_settings.reference is not None:
            require_aligned(request.getfixturevalue("diffusion_reference"), clip)
        return clip


@pytest.fixture
def diffusion_generator(diffusion_settings: Settings) -> torch.Generator:
    """A CPU generator, fresh for each test, seeded with `--diffusion-seed`."""
    import torch

    return torch.Generator("cpu").manual_seed(diffusion_settings.seed)


class ReportNotes:
    """Figures and numbers of a user's own test, shown in the report under its name."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def add_number(self, name: str, value: float, unit: str = "") -> None:
        """Attach a number."""
        self._item.stash.setdefault(NUMBERS, []).append({"name": name, "value": float(value), "unit": unit})

    def add_figure(self, name: str, figure: Any) -> None:
        """Attach a matplotlib figure, or an image as uint8 tensor (3, H, W)."""
        from pytest_diffusion.report.embed import picture_uri

        self._item.stash.setdefault(NOTES, []).append({"name": name, "image": picture_uri(figure)})


@pytest.fixture
def diffusion_report(request: pytest.FixtureRequest) -> ReportNotes:
    """Attach your own figures and numbers to the report."""
    return ReportNotes(request.node)


def _share_cores(config: pytest.Config) -> None:
    """Divide torch's threads among xdist workers: more threads than cores are many times slower than one each."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _family(request: pytest.FixtureRequest, settings: Settings) -> str:
    from pytest_diffusion.adapters import pipelines

    if not is_overridden(request, "diffusion_pipeline"):
        with readable_errors():
            scheduler = pipelines.load_scheduler(settings)
            if scheduler is not None:
                return pipelines.family_of_index(settings.model, scheduler)
    return pipelines.family(request.getfixturevalue("diffusion_pipeline"))


def _is_own_code(request: pytest.FixtureRequest, settings: Settings) -> bool:
    """Whether code of the user's has a say in the samples, which no fingerprint of weights and configurations can see."""
    named = [settings.model or "", settings.scheduler or ""]
    if settings.model is not None and settings.model.startswith("analytic:"):
        from pytest_diffusion.analytic import is_built_in

        named = ["" if is_built_in(settings.model.partition(":")[2]) else settings.model, settings.scheduler or ""]
    return is_overridden(request, "diffusion_pipeline") or any(":" in name and not Path(name).exists() for name in named)


def _session_folder(request: pytest.FixtureRequest) -> Path:
    """A folder of this session, the same for all its workers: samples of code that may change are not kept."""
    folder: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    return (folder.parent if hasattr(request.config, "workerinput") else folder) / "diffusion-samples"


def _progress(config: pytest.Config) -> Callable[[Iterable[range], int], Any] | None:
    """A progress bar that pytest's capture does not swallow; none on workers and in files."""
    import sys

    capture = config.pluginmanager.getplugin("capturemanager")
    if hasattr(config, "workerinput") or capture is None:
        return None
    with capture.global_and_fixture_disabled():
        if not sys.stderr.isatty():  # asked here, because what is captured is never a terminal
            return None

    @contextmanager
    def show(ranges: Iterable[range], total: int) -> Iterator[Iterable[range]]:
        from tqdm import tqdm

        waiting = list(ranges)
        done = total - sum(len(indices) for indices in waiting)

        def counted(bar: tqdm[Any]) -> Iterator[range]:
            for indices in waiting:
                yield indices
                bar.update(len(indices))

        with capture.global_and_fixture_disabled(), tqdm(total=total, initial=done, desc="generating", unit="image", leave=False) as bar:
            yield counted(bar)

    return show
