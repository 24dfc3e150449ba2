import json
import math
from pathlib import Path

import diffusers
import pytest
import torch

from pytest_diffusion.models import schedulers
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError

ZOO = Path(__file__).parents[1] / "data" / "zoo"
# First and last log-SNR of what people really run, as in the closed forms of their configurations.
EXPECTED = {
    "stable-diffusion-v1-5": (7.07, -5.36),
    "stable-diffusion-xl-base-1.0": (7.07, -5.36),
    "ddpm-butterflies-128": (9.21, -10.12),
    "stable-diffusion-3.5-large": (11.6, -math.inf),
    "flux1-schnell": (13.8, -math.inf),
    "stable-video-diffusion-xt": (12.43, -13.10),
}


def zoo_scheduler(name):
    config = json.loads((ZOO / name / "scheduler_config.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_config(config)


@pytest.mark.parametrize("name", EXPECTED)
def test_log_snr_of_released_checkpoints(name):
    curve = schedulers.log_snr(zoo_scheduler(name))
    first, last = EXPECTED[name]
    assert float(curve[0]) == pytest.approx(first, abs=0.05)
    assert float(curve[-1]) == (last if math.isinf(last) else pytest.approx(last, abs=0.05))
    assert (curve[1:] < curve[:-1]).all()


def test_log_snr_of_edm():
    curve = schedulers.log_snr(diffusers.EDMEulerScheduler())
    assert float(curve[0]) == pytest.approx(-2 * math.log(0.002), abs=0.05)
    assert float(curve[-1]) == pytest.approx(-2 * math.log(80), abs=0.05)


def test_dynamic_shifting_is_given_its_mu():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    assert len(schedulers.with_timesteps(scheduler, 7).timesteps) == 7


@pytest.mark.parametrize(
    ("scheduler", "flow", "evaluations", "revisits"),
    [
        (diffusers.DDIMScheduler(), False, 1, False),
        (diffusers.HeunDiscreteScheduler(), False, 2, False),
        (diffusers.PNDMScheduler(), False, 1, True),
        (diffusers.FlowMatchEulerDiscreteScheduler(), True, 1, False),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), True, 1, False),
        (diffusers.RePaintScheduler(), False, 1, True),
    ],
)
def test_capabilities(scheduler, flow, evaluations, revisits):
    assert schedulers.is_flow(scheduler) is flow
    assert schedulers.evaluations_per_step(scheduler) == evaluations
    assert schedulers.revisits_timesteps(scheduler) is revisits


def test_a_scheduler_without_a_schedule_is_said_to_have_none():
    with pytest.raises(NotApplicable, match="neither alphas_cumprod nor sigmas"):
        schedulers.log_snr(object())


def test_building_from_the_models_own_config():
    base = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    built = schedulers.build_scheduler("EulerDiscreteScheduler", base)
    assert isinstance(built, diffusers.EulerDiscreteScheduler)
    assert torch.equal(built.alphas_cumprod, base.alphas_cumprod)
    assert isinstance(schedulers.build_scheduler("diffusers.schedulers:DDPMScheduler", base), diffusers.DDPMScheduler)
    with pytest.raises(SettingsError, match=r"expected one of: .*Did you mean 'DDIMScheduler'"):
        schedulers.build_scheduler("DDIMSchedular", base)
    with pytest.raises(SettingsError, match="has no attribute 'Nothing'"):
        schedulers.build_scheduler("json:Nothing", base)
