"""Every kind of scheduler drives a closed form to its law: levels, prediction types and preconditioning are right."""

import diffusers
import pytest
import torch

from pytest_diffusion.analytic.registry import create_model
from pytest_diffusion.models.levels import NoiseLevel, as_prediction, kind_of, level_of_timestep
from pytest_diffusion.verdicts.errors import NotApplicable

SCHEDULERS = [
    ("vp", "DDIMScheduler", {"clip_sample": False}),
    ("vp", "DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}),
    ("vp", "DDIMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
    ("vp", "DPMSolverMultistepScheduler", {}),
    ("vp", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("vp", "UniPCMultistepScheduler", {}),
    ("vp", "DEISMultistepScheduler", {}),
    ("vp", "PNDMScheduler", {}),
    ("sigma", "EulerDiscreteScheduler", {}),
    ("sigma", "EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("sigma", "HeunDiscreteScheduler", {}),
    ("sigma", "LMSDiscreteScheduler", {}),
    ("sigma", "KDPM2DiscreteScheduler", {}),
    ("edm", "EDMEulerScheduler", {"sigma_data": 0.5}),
    ("edm", "EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5, "prediction_type": "v_prediction"}),
    ("flow", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("flow", "FlowMatchHeunDiscreteScheduler", {}),
    ("flow", "DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
]
LAW = (torch.tensor([0.3, -0.2, 0.1, 0.0]).double(), torch.diag(torch.tensor([0.2, 0.1, 0.05, 0.02]).double()) + 0.01)


@pytest.mark.parametrize(("kind", "name", "config"), SCHEDULERS, ids=lambda value: value if isinstance(value, str) else ",".join(value))
def test_samples_of_a_gaussian_follow_its_law(kind, name, config):
    scheduler = getattr(diffusers, name)(**config)
    assert kind_of(scheduler) == kind
    model = create_model("wiener", scheduler=scheduler).set_law(*LAW, (1, 2, 2))
    images = (
        model.sample(4000, batch_size=4000, generator=torch.Generator().manual_seed(0), num_inference_steps=100).images.flatten(1).double()
    )
    assert float((images.mean(0) - LAW[0]).abs().max()) < 0.03
    # Within what 100 steps leave of first-order solvers, and of a schedule whose last step is not clean.
    assert torch.allclose(images.T.cov(), LAW[1], atol=0.02)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction", "sample"])
def test_prediction_types_say_the_same(prediction_type):
    clean, noise = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    level = NoiseLevel.of_ratio(0.7) if prediction_type != "flow_prediction" else NoiseLevel(torch.tensor(0.6), torch.tensor(0.4))
    seen = as_prediction(clean, level.alpha * clean + level.sigma * noise, level, prediction_type)
    expected = {
        "epsilon": noise,
        "v_prediction": level.alpha * noise - level.sigma * clean,
        "flow_prediction": noise - clean,
        "sample": clean,
    }
    assert torch.allclose(seen, expected[prediction_type])


def test_edm_preconditioning_is_undone_by_the_scheduler():
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(10)
    clean, sample = torch.randn(2, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    sigma = scheduler.sigmas[3]
    level = level_of_timestep(scheduler, scheduler.timesteps[3])
    model_input = scheduler.precondition_inputs(sample, sigma)
    assert float(level.sigma / level.alpha) == pytest.approx(float(sigma), rel=1e-4)
    output = as_prediction(clean, model_input, level, "epsilon", scheduler=scheduler)
    assert torch.allclose(scheduler.precondition_outputs(sample, output, sigma), clean, atol=1e-4)


def test_fractional_timesteps_lie_between():
    scheduler = diffusers.DDIMScheduler()
    low, middle, high = (level_of_timestep(scheduler, value) for value in (499, 499.5, 500))
    assert low.sigma < middle.sigma < high.sigma
    assert float(middle.sigma / middle.alpha) == pytest.approx(float((low.sigma / low.alpha * high.sigma / high.alpha).sqrt()))
    assert float(middle.alpha**2 + middle.sigma**2) == pytest.approx(1)


def test_without_noise_there_is_nothing_to_predict():
    clean = torch.ones(1, 1, 2, 2)
    level = NoiseLevel(torch.ones(()), torch.zeros(()))
    assert torch.equal(as_prediction(clean, clean, level, "epsilon"), torch.zeros_like(clean))
    with pytest.raises(ValueError, match="prediction_type is 'noise'; expected one of"):
        as_prediction(clean, clean, NoiseLevel.of_ratio(1.0), "noise")


def test_timesteps_that_tell_nothing():
    class Bare:
        config = {}  # noqa: RUF012

    with pytest.raises(NotApplicable, match="Bare has no alphas_cumprod"):
        level_of_timestep(Bare(), 3)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("CMStochasticIterativeScheduler", {}, "matches none of its sigmas"),
        ("IPNDMScheduler", {}, "has no alphas_cumprod, so its noise levels are unknown"),
        ("DDPMScheduler", {"variance_type": "learned_range"}, "needs a learned variance"),
        ("RePaintScheduler", {}, "step also needs original_image, mask"),
    ],
)
def test_schedulers_of_unknown_kind_are_refused(name, config, message):
    model = create_model("wiener", scheduler=getattr(diffusers, name)(**config)).set_law(*LAW, (1, 2, 2))
    with pytest.raises(NotApplicable, match=message):
        model.sample(2, generator=torch.Generator().manual_seed(0), num_inference_steps=5)


def test_zero_terminal_snr_is_a_level():
    level = NoiseLevel.of_ratio(float("inf"))
    assert (float(level.alpha), float(level.sigma)) == (0.0, 1.0)
    scheduler = diffusers.DDIMScheduler(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    images = create_model("wiener", scheduler=scheduler).set_law(*LAW, (1, 2, 2)).sample(4, num_inference_steps=10).images
    assert bool(torch.isfinite(images).all())


def test_continuous_timesteps_are_a_quarter_of_log_sigma():
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", sigma_min=0.002, sigma_max=700.0, prediction_type="v_prediction", use_karras_sigmas=True
    )
    scheduler.set_timesteps(5)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        level = level_of_timestep(scheduler, timestep)
        assert float(level.sigma / level.alpha) == pytest.approx(float(sigma), rel=1e-3)


def test_sigmas_that_are_shares_of_the_timesteps_are_a_flow():
    scheduler = diffusers.LTXEulerAncestralRFScheduler()
    model = create_model("wiener", scheduler=scheduler).set_law(*LAW, (1, 2, 2))
    images = (
        model.sample(4000, batch_size=4000, generator=torch.Generator().manual_seed(0), num_inference_steps=100).images.flatten(1).double()
    )
    assert float((images.mean(0) - LAW[0]).abs().max()) < 0.03
    assert torch.allclose(images.T.cov(), LAW[1], atol=0.02)
