"""The denoising loss of every family: the right noise, levels and units, seen through a denoiser whose answer is known."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.demo import reference_captions, reference_images
from pytest_diffusion.models.capabilities import denoiser
from pytest_diffusion.models.denoising import BANDS, band_timesteps, denoising_losses, timesteps_at
from pytest_diffusion.models.levels import PREDICTION_TYPES, NoiseLevel, as_prediction, clean_of, level_of_timestep
from pytest_diffusion.verdicts.errors import NotApplicable
from tests.families.models import FAMILIES, build

pytestmark = pytest.mark.filterwarnings("ignore")
LEVEL = NoiseLevel(torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64))
SEEDS = [3, 4]
SIZES = {"flux": {"height": 64, "width": 64}, "pixart": {"height": 256, "width": 256}, "dit": {}}


def images_for(name, count=2):
    side = 256 if name == "pixart" else 64
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_clean_prediction_is_the_inverse_of_the_output(kind):
    clean, noisy = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    level = LEVEL if kind != "flow_prediction" else NoiseLevel(torch.tensor(0.3).double(), torch.tensor(0.7).double())
    assert torch.allclose(clean_of(as_prediction(clean, noisy, level, kind), noisy, level, kind), clean)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="prediction_type is 'eps'"):
        clean_of(torch.zeros(1), torch.zeros(1), LEVEL, "eps")


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "ddpm"])
def test_bands_are_equal_in_log_snr(name):
    scheduler = build(name).scheduler
    levels = [level_of_timestep(scheduler, timestep) for timestep in band_timesteps(scheduler)]
    snr = [2 * math.log(float(level.alpha / level.sigma)) for level in levels]
    assert len(snr) == BANDS
    assert snr == sorted(snr, reverse=True)
    steps = [one - two for one, two in pairwise(snr)]
    assert max(steps) / min(steps) < 1.15
    assert -8 < snr[-1] < snr[0] < 8


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_loss(name):
    pipeline, settings = build(name), Settings(**SIZES.get(name, {}))
    images = images_for(name)
    prompts = ["a photo of a red car", "a photo of a blue dog"]
    timesteps = band_timesteps(pipeline.scheduler)
    losses = denoising_losses(pipeline, images, prompts, SEEDS, settings, timesteps=timesteps)
    assert losses.shape == (2, BANDS)
    assert losses.isfinite().all()
    # The same noise again, and other noise for another seed.
    assert torch.equal(losses, denoising_losses(pipeline, images, prompts, SEEDS, settings, timesteps=timesteps))
    others = denoising_losses(pipeline, images, prompts, [5, 6], settings, timesteps=timesteps)
    assert not torch.allclose(losses, others, rtol=1e-6)
    # The denoiser is asked once for each timestep, with one row for each image: no guidance.
    rows = []
    handle = denoiser(pipeline).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(
            len(next(iter([*args, *(kwargs.get(key) for key in ("sample", "hidden_states") if key in kwargs)])))
        ),
        with_kwargs=True,
    )
    denoising_losses(pipeline, images, prompts, SEEDS, settings, timesteps=timesteps[:2])
    handle.remove()
    assert rows == [2, 2, 2]  # the first one is the call that is caught


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3", "ddpm"])
def test_a_perfect_denoiser_has_no_loss_and_one_of_zeros_that_of_its_target(name):
    """The noise is known from the seeds, so a denoiser that returns the target is right, whatever its units."""
    pipeline = build(name)
    images = images_for(name)
    prompts = ["a photo of a red car"] * 2
    from pytest_diffusion.models.capabilities import has_vae
    from pytest_diffusion.models.latents import LatentCodec
    from pytest_diffusion.models.levels import prediction_type_of

    clean = LatentCodec.of(pipeline).encode(images) if has_vae(pipeline) else images.float() / 127.5 - 1
    noise = torch.stack([torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    timesteps = band_timesteps(pipeline.scheduler)[1:4]
    targets = []
    for timestep in timesteps:
        level = level_of_timestep(pipeline.scheduler, timestep)
        noised = float(level.alpha) * clean + float(level.sigma) * noise
        targets.append(as_prediction(clean, noised, level, prediction_type_of(pipeline.scheduler)))
    waiting = iter([])

    def answer(module, args, output):
        wanted = next(waiting)
        return (wanted,) if isinstance(output, tuple) else type(output)(sample=wanted)

    denoiser(pipeline).register_forward_hook(answer)
    waiting = iter(targets)
    exact = denoising_losses(pipeline, images, prompts, SEEDS, Settings(), timesteps=timesteps)
    assert exact.max() < 1e-9
    waiting = iter([torch.zeros_like(one) for one in targets])
    zeros = denoising_losses(pipeline, images, prompts, SEEDS, Settings(), timesteps=timesteps)
    assert torch.allclose(zeros, torch.stack([one.double().square().flatten(1).mean(1) for one in targets], 1))


def test_losses_in_other_units_follow_the_closed_form(demo_pipeline):
    """A velocity's error is that of the noise divided by alpha, where alpha² + sigma² = 1."""
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    timesteps = band_timesteps(demo_pipeline.scheduler)[:4]
    given = {"timesteps": timesteps}
    own = denoising_losses(demo_pipeline, images, ["a red circle"] * 2, SEEDS, Settings(), **given)
    velocity = denoising_losses(demo_pipeline, images, ["a red circle"] * 2, SEEDS, Settings(), prediction_type="v_prediction", **given)
    clean = denoising_losses(demo_pipeline, images, ["a red circle"] * 2, SEEDS, Settings(), prediction_type="sample", **given)
    for column, timestep in enumerate(timesteps):
        alpha, sigma = (float(value) for value in level_of_timestep(demo_pipeline.scheduler, timestep))
        assert torch.allclose(velocity[:, column] * alpha**2, own[:, column], rtol=1e-3)
        assert torch.allclose(clean[:, column] * (alpha / sigma) ** 2, own[:, column], rtol=2e-2)


def test_a_wrongly_declared_prediction_type_shows(demo_pipeline):
    wrong = copy.deepcopy(demo_pipeline)
    wrong.scheduler.register_to_config(prediction_type="v_prediction")
    images = reference_images(2)
    given = {"timesteps": band_timesteps(demo_pipeline.scheduler), "prediction_type": "epsilon"}
    own, other = (denoising_losses(one, images, reference_captions(2), SEEDS, Settings(), **given) for one in (demo_pipeline, wrong))
    assert (other[:, 2] > 3 * own[:, 2]).all()


def test_schedulers_without_training_timesteps_are_left_aside():
    import diffusers

    with pytest.raises(NotApplicable, match="conditions its model on its sigmas"):
        band_timesteps(diffusers.EDMEulerScheduler())


def test_another_model_is_noised_to_the_same_levels():
    import diffusers

    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = band_timesteps(scheduler)
    levels = [
        2 * math.log(float(level.alpha / level.sigma)) for level in (level_of_timestep(scheduler, timestep) for timestep in timesteps)
    ]
    assert timesteps_at(scheduler, levels) == timesteps
    other = diffusers.DDIMScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    found = [level_of_timestep(other, timestep) for timestep in timesteps_at(other, levels)]
    assert [2 * math.log(float(level.alpha / level.sigma)) for level in found] == pytest.approx(levels, abs=0.05)
    assert timesteps_at(other, levels) != timesteps
    with pytest.raises(NotApplicable, match=r"no training timestep with a log-SNR of -7\.90: the two models have other noise schedules"):
        timesteps_at(scheduler, [-7.9])
