"""Fixtures of the attention and latent lenses and of controlled runs: lazy, session-scoped, each body importing what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_diffusion.fixture_support import describe, note, readable_errors

if TYPE_CHECKING:
    from pytest_diffusion.adapters.latents import LatentCodec
    from pytest_diffusion.adapters.references import Reference
    from pytest_diffusion.analytic.compare import Denoisers
    from pytest_diffusion.samples.attention_run import AttentionRun
    from pytest_diffusion.samples.direction import Direction
    from pytest_diffusion.samples.latent_fit import LatentFit
    from pytest_diffusion.samples.localisation import Localisation
    from pytest_diffusion.samples.paths import LatentPaths
    from pytest_diffusion.samples.trials import Trials
    from pytest_diffusion.settings import Settings

ATTENTION_PROMPTS = 64


@pytest.fixture(scope="session")
def diffusion_attention(diffusion_settings: Settings, diffusion_pipeline: Any) -> AttentionRun:
    """Cross-attention recorded over 64 prompts whose modifier and noun are known."""
    from pytest_diffusion.samples.attention_run import run_attention
    from pytest_diffusion.samples.prompts import phrases

    count = min(ATTENTION_PROMPTS, diffusion_settings.num_samples)
    with readable_errors():
        return run_attention(diffusion_pipeline, phrases(diffusion_settings.prompts, count), diffusion_settings)


@pytest.fixture(scope="session")
def diffusion_localisation(diffusion_settings: Settings, diffusion_pipeline: Any, diffusion_reference: Reference) -> Localisation:
    """Attention over noised reference images that say where the things are which their prompts name."""
    from pytest_diffusion.samples.localisation import run_localisation

    with readable_errors():
        return run_localisation(diffusion_pipeline, diffusion_reference, diffusion_settings)


@pytest.fixture(scope="session")
def diffusion_latents(diffusion_pipeline: Any) -> LatentCodec:
    """Encode and decode between images and scaled latents; skips for a pixel-space model."""
    from pytest_diffusion.adapters.latents import LatentCodec

    with readable_errors():
        return LatentCodec.of(diffusion_pipeline)


@pytest.fixture(scope="session")
def diffusion_paths(diffusion_latents: LatentCodec, diffusion_reference: Reference) -> LatentPaths:
    """Decoded slerps between eight pairs of encoded references."""
    from pytest_diffusion.samples.paths import latent_paths

    with readable_errors():
        return latent_paths(diffusion_latents, diffusion_reference)


@pytest.fixture(scope="session")
def diffusion_latent_fit(
    diffusion_pipeline: Any, diffusion_latents: LatentCodec, diffusion_reference: Reference, diffusion_settings: Settings
) -> LatentFit:
    """The denoiser in the middle of a run, on encoded references: how well it predicts there and nearby."""
    from pytest_diffusion.samples.latent_fit import fit_latents

    with readable_errors():
        return fit_latents(diffusion_pipeline, diffusion_latents, diffusion_reference, diffusion_settings)


@pytest.fixture(scope="session")
def diffusion_trials(
    request: pytest.FixtureRequest, diffusion_pipeline: Any, diffusion_prompts: list[str], diffusion_settings: Settings
) -> Trials:
    """Small controlled runs: the same seed again, another batch size, another guidance."""
    from pytest_diffusion.samples.trials import Trials

    note(request, diffusion_settings, **describe(diffusion_pipeline))
    return Trials(diffusion_pipeline, diffusion_prompts, diffusion_settings)


@pytest.fixture(scope="session")
def diffusion_denoisers(diffusion_pipeline: Any, diffusion_reference: Reference) -> Denoisers:
    """The denoiser of an unconditional pixel model beside a closed form of half of the reference; skips for other models."""
    from pytest_diffusion.analytic.compare import denoisers_of

    if diffusion_reference.images is None:
        pytest.skip("the reference is a file of statistics; a closed form needs its images.")
    with readable_errors():
        return denoisers_of(diffusion_pipeline, diffusion_reference.images)


@pytest.fixture(scope="session")
def diffusion_direction(diffusion_pipeline: Any, diffusion_settings: Settings) -> Direction:
    """Images of two prompts that differ in one attribute, at the same seeds."""
    from pytest_diffusion.samples.direction import run_direction
    from pytest_diffusion.samples.prompts import direction_pair

    with readable_errors():
        return run_direction(diffusion_pipeline, direction_pair(diffusion_settings.prompts), diffusion_settings)
