"""Strategies draw what their names say, and shrink to the simplest."""

import inspect

import diffusers
import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from pytest_diffusion.conformance import strategies


@settings(max_examples=60, deadline=None)
@given(strategies.betas())
def test_betas_are_schedules(betas):
    assert betas.shape == (1000,)
    assert betas.dtype == torch.float32
    assert bool(((betas > 0) & (betas <= 0.999)).all())
    assert bool((betas[1:] >= betas[:-1] - 1e-7).all())
    scheduler = diffusers.DDIMScheduler(trained_betas=betas.numpy())
    assert bool((scheduler.alphas_cumprod[1:] < scheduler.alphas_cumprod[:-1]).all())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_configs_make_schedulers_and_hold_only_what_differs(data):
    scheduler_class = data.draw(
        st.sampled_from([diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.EulerDiscreteScheduler])
    )
    config = data.draw(strategies.scheduler_configs(scheduler_class, exclude=["beta_schedule"]))
    assert "beta_schedule" not in config
    defaults = inspect.signature(scheduler_class).parameters
    assert all(value != defaults[name].default for name, value in config.items())
    scheduler = scheduler_class(**config)
    count = data.draw(strategies.num_inference_steps(min_value=2, max_value=9))
    scheduler.set_timesteps(count)
    assert len(scheduler.timesteps) == count
    assert data.draw(strategies.timesteps(scheduler)) in scheduler.timesteps


def test_they_shrink_to_the_simplest():
    quick = settings(max_examples=200, database=None, derandomize=True)
    smallest = find(strategies.scheduler_configs(diffusers.DDIMScheduler), lambda config: "timestep_spacing" in config, settings=quick)
    assert smallest == {"timestep_spacing": "linspace"}
    assert find(strategies.num_inference_steps(), lambda count: True, settings=quick) == 1
    assert find(strategies.prediction_types(), lambda name: True, settings=quick) == "epsilon"
    assert "flow_prediction" in {find(strategies.prediction_types(flow=True), lambda name: name.startswith("flow"), settings=quick)}


@settings(max_examples=20, deadline=None)
@given(strategies.samples(shape=(2, 3), bound=0.5), strategies.latents(shape=(64, 64), dtype=torch.float64), st.data())
def test_tensors(sample, latent, data):
    assert sample.shape == (2, 3)
    assert float(sample.abs().max()) <= 0.5
    assert latent.dtype == torch.float64
    assert abs(float(latent.mean())) < 0.1
    assert abs(float(latent.std()) - 1) < 0.1
    noise = data.draw(strategies.noise_like(sample.half()))
    assert (noise.shape, noise.dtype) == (sample.shape, torch.float16)


def test_unplanned_schedulers_give_their_training_timesteps():
    class Bare:
        num_train_timesteps = 5

    assert find(strategies.timesteps(Bare()), lambda timestep: timestep > 3, settings=settings(database=None)) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strategies.betas(num_train_timesteps=1), "num_train_timesteps is 1; expected at least 2"),
        (lambda: strategies.betas(max_beta=1.0), r"max_beta is 1\.0; expected a number between 0 and 1"),
        (lambda: strategies.num_inference_steps(min_value=5, max_value=2), "min_value and max_value are 5 and 2"),
        (lambda: strategies.samples(shape=()), r"shape is \(\); expected at least one side"),
        (lambda: strategies.latents(dtype=torch.int64), "dtype is torch.int64; expected a floating-point dtype"),
        (lambda: strategies.scheduler_configs(diffusers.DDIMScheduler, exclude=["eta"]), "DDIMScheduler has no parameter eta to exclude"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
