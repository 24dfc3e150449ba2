import diffusers
import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.analytic.compare import Denoisers, compare_trajectories, denoisers_of, epsilon_loss, epsilon_losses
from pytest_diffusion.analytic.flows import GaussianLaw, irreducible_loss
from pytest_diffusion.analytic.pipeline import AnalyticPipeline
from pytest_diffusion.checks.denoising import denoising_loss
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.models.levels import level_of_timestep
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable


def gaussian_images(count=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = 0.1 * torch.randn(9, 9, generator=torch.Generator().manual_seed(99))
    return (torch.randn(count, 9, generator=generator) @ mixing).view(-1, 1, 3, 3).clamp(-1, 1)


@pytest.fixture(scope="module")
def wiener():
    return pd.create_model("wiener", gaussian_images())


def tiny_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def test_a_model_agrees_with_itself_and_less_with_another(wiener):
    same = compare_trajectories(wiener, wiener, num_inference_steps=10)
    assert same.r2 == [1.0] * 10
    assert same.mse == same.l2 == [0.0] * 10
    assert same.overall == 1.0
    assert same.log_snr == sorted(same.log_snr)
    other = compare_trajectories(wiener, pd.create_model("optimal", gaussian_images(50)), num_inference_steps=10)
    assert min(other.r2) < 0.9
    assert max(other.l2) > 0.1
    with pytest.raises(ValueError, match=r"images of \(1, 3, 3\) and \(1, 2, 2\)"):
        compare_trajectories(wiener, pd.create_model("wiener", torch.rand(9, 1, 2, 2)))


def test_the_loss_of_the_closed_form_is_the_irreducible_one(wiener):
    losses = epsilon_loss(wiener, gaussian_images(4000, seed=1), [100, 400, 800])
    law = GaussianLaw.of(wiener.mean, wiener.covariance)
    for timestep, value, error in zip([100, 400, 800], losses.values, losses.errors, strict=True):
        assert value == pytest.approx(float(irreducible_loss(law, level_of_timestep(wiener.scheduler, timestep))), abs=4 * error)


def test_excess_loss_of_a_damaged_model_is_found(wiener):
    denoisers = Denoisers(wiener, pd.create_model("wiener", gaussian_images(2000, seed=2)), gaussian_images(500, seed=1))
    assert pd.assert_denoising_loss_below(denoisers).outcome == "pass"
    assert pd.assert_trajectory_agrees(denoisers, at_least=0.95).outcome == "pass"
    late = pd.create_model("wiener", gaussian_images())
    own = late.predict
    late.predict = lambda sample, timestep, kind=None: own(sample, min(timestep + 150, 999), kind)
    broken = Denoisers(late, denoisers.closed_form, denoisers.images)
    with pytest.raises(pd.QualityFailure, match=r"loss above a linear filter's is .*It is largest at timestep"):
        pd.assert_denoising_loss_below(broken)
    remembered = Denoisers(pd.create_model("optimal", gaussian_images(50)), denoisers.closed_form, denoisers.images)
    with pytest.raises(pd.QualityFailure, match=r"R² along the trajectory is .*They differ most at a log-SNR of"):
        pd.assert_trajectory_agrees(remembered, at_least=0.95)


def test_the_excess_loss_is_that_of_the_worst_timestep_and_its_error_is_paired(wiener):
    other, images = pd.create_model("optimal", gaussian_images(50)), gaussian_images(60, seed=1)
    timesteps = [20, 100, 250, 500, 750, 950]
    losses = [[epsilon_losses(model, images, timestep) for model in (other, wiener)] for timestep in timesteps]
    excess = [ours - theirs for ours, theirs in losses]
    worst = max(range(6), key=lambda index: float(excess[index].mean()))
    value, error = float(excess[worst].mean()), float(excess[worst].std()) / 60**0.5
    measured = denoising_loss(Denoisers(other, wiener, images))
    assert measured.value == pytest.approx(value)
    half_width = 2.000995 * error  # Student's t with 59 degrees of freedom
    assert measured.interval == pytest.approx((value - half_width, value + half_width), rel=1e-5)
    assert measured.series["timesteps"] == timesteps
    assert measured.series["model"] == pytest.approx([float(ours.mean()) for ours, _ in losses])
    assert measured.series["closed_form"] == pytest.approx([float(theirs.mean()) for _, theirs in losses])
    assert measured.hint.startswith(f"It is largest at timestep {timesteps[worst]}, where the model has")
    assert measured.num_samples == 60


def test_an_untrained_unet_is_worse_than_a_linear_filter():
    digits = load_reference("digits", height=8, width=8, limit=2000).images
    pipeline = diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler())
    denoisers = denoisers_of(pipeline, digits)
    assert denoisers.images.shape[1:] == (1, 8, 8)
    with pytest.raises(pd.QualityFailure, match="loss above a linear filter's is"):
        pd.assert_denoising_loss_below(denoisers)


def test_models_without_a_closed_form_are_named(demo_pipeline, pixel_pipeline):
    images = torch.zeros(900, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(NotApplicable, match="needs an unconditional pixel-space model; StableDiffusionPipeline is not one"):
        denoisers_of(demo_pipeline, images)
    with pytest.raises(NotApplicable, match="the reference is 8x8 and the model draws 16x16"):
        denoisers_of(pixel_pipeline, images)
    with pytest.raises(NotApplicable, match="a linear filter of 768 dimensions needs at least 768 images; half of the reference has 450"):
        denoisers_of(pixel_pipeline, torch.zeros(900, 3, 16, 16, dtype=torch.uint8))


def test_a_unet_from_a_folder_gives_its_features(tmp_path):
    pipeline = diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    model = pd.create_model("baseline_unet", folder=tmp_path, features=["mid_block", "down_blocks.0"])
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clean = model.denoise(sample, 500)
    assert set(model.last_features) == {"mid_block", "down_blocks.0"}
    assert model.last_features["mid_block"].shape[0] == 2
    level = level_of_timestep(model.scheduler, 500)
    with torch.no_grad():
        epsilon = pipeline.unet(sample, 500).sample
    assert torch.allclose(clean, (sample - level.sigma.float() * epsilon) / level.alpha.float(), atol=1e-4)
    assert torch.allclose(model.predict(sample, 500, "epsilon"), epsilon, atol=1e-4)
    with pytest.raises(ValueError, match="the UNet has no module 'attn'"):
        pd.create_model("baseline_unet", folder=tmp_path, features=["attn"])
    with pytest.raises(ModelError, match="lost cannot be loaded"):
        pd.create_model("baseline_unet", folder=tmp_path / "lost")
    with pytest.raises(ValueError, match="either folder"):
        pd.create_model("baseline_unet")


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDPMScheduler(),
        diffusers.DDIMScheduler(),
        diffusers.PNDMScheduler(),
        diffusers.EulerDiscreteScheduler(),
        diffusers.HeunDiscreteScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.EDMEulerScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.LCMScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_forward_marginals_of_sound_schedulers(scheduler):
    assert pd.assert_forward_marginals(scheduler).outcome == "pass"


def without_roots(self, x, noise, t):
    product = self.alphas_cumprod[t].view(-1, 1, 1, 1)
    return product * x + (1 - product) * noise


def without_sigma(self, x, noise, t):
    return x + noise


def not_a_number(self, x, noise, t):
    return x * float("nan")


@pytest.mark.parametrize(
    ("add_noise", "scheduler"),
    [
        (without_roots, diffusers.DDIMScheduler),
        (without_sigma, diffusers.EulerDiscreteScheduler),
        (not_a_number, diffusers.DDPMScheduler),
    ],
)
def test_a_wrong_forward_process_is_found(add_noise, scheduler):
    broken = type("Broken", (scheduler,), {"add_noise": add_noise})()
    with pytest.raises(pd.QualityFailure, match=r"largest deviation of the forward process is"):
        pd.assert_forward_marginals(broken)


def test_a_pipeline_of_a_closed_form(wiener):
    pipeline = AnalyticPipeline(wiener)
    arrays = pipeline(batch_size=3, num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert arrays.shape == (3, 3, 3, 1)
    assert 0 <= arrays.min() <= arrays.max() <= 1
    pictures = pipeline(batch_size=2, num_inference_steps=2).images
    assert pictures[0].size == (3, 3)
    assert pipeline(num_inference_steps=2, output_type="pt", return_dict=False)[0].shape == (1, 1, 3, 3)


def every_scheduler():
    """All scheduler classes of diffusers that can be built bare, and the sigma shapes of those that take them."""
    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler")):
        for config in ({}, {"use_karras_sigmas": True, "num_train_timesteps": 100}, {"use_exponential_sigmas": True}, {"shift": 3.0}):
            try:
                known = getattr(diffusers, name)._get_init_keys(getattr(diffusers, name))
                if set(config) <= known:
                    yield pytest.param(getattr(diffusers, name)(**config), id=f"{name}-{'-'.join(config)}")
            except (TypeError, ImportError, AttributeError, ValueError):
                continue


@pytest.mark.parametrize("scheduler", list(every_scheduler()))
@pytest.mark.filterwarnings("ignore")
def test_forward_marginals_alarm_on_no_scheduler_of_diffusers(scheduler):
    try:
        verdict = pd.assert_forward_marginals(scheduler)
    except pd.QualityFailure as failure:
        verdict = failure.verdict
    assert verdict.outcome in ("pass", "missing"), verdict.message


def test_half_precision_is_measured():
    digits = load_reference("digits", height=8, width=8, limit=400).images
    pipeline = diffusers.DDPMPipeline(tiny_unet().to(torch.bfloat16), diffusers.DDPMScheduler())
    with pytest.raises(pd.QualityFailure, match="loss above a linear filter's is"):
        pd.assert_denoising_loss_below(denoisers_of(pipeline, digits))
