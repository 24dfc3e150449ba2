"""Each schedule check on sound schedulers of every family, and on broken ones that must be named."""

import json
import math
from pathlib import Path

import diffusers
import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.checks.denoising import forward_marginals
from pytest_diffusion.checks.schedule import alphas_cumprod_monotonic, betas_in_range, sigmas_monotonic, timesteps_well_formed
from pytest_diffusion.models.schedulers import is_flow
from pytest_diffusion.verdicts.errors import NotApplicable

ZOO = Path(__file__).parents[1] / "data" / "zoo"
PRESETS = {
    "stable-diffusion-v1-5": "sd15",
    "stable-diffusion-xl-base-1.0": "sdxl",
    "ddpm-butterflies-128": "ddpm",
    "stable-diffusion-3.5-large": "flow",
    "flux1-schnell": "flow",
    "stable-video-diffusion-xt": "default",
}
SOUND = [
    diffusers.DDPMScheduler(),
    diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    diffusers.DDIMScheduler(timestep_spacing="trailing", rescale_betas_zero_snr=True),
    diffusers.PNDMScheduler(),
    diffusers.PNDMScheduler(skip_prk_steps=True),
    diffusers.EulerDiscreteScheduler(),
    diffusers.EulerAncestralDiscreteScheduler(),
    diffusers.HeunDiscreteScheduler(),
    diffusers.KDPM2DiscreteScheduler(),
    diffusers.LMSDiscreteScheduler(),
    diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True),
    diffusers.DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True),
    diffusers.UniPCMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True),
    diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    diffusers.DPMSolverSinglestepScheduler(),
    diffusers.UniPCMultistepScheduler(),
    diffusers.DEISMultistepScheduler(),
    diffusers.EDMEulerScheduler(),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
]
ASSERTIONS = (
    pd.assert_alphas_cumprod_monotonic,
    pd.assert_betas_in_range,
    pd.assert_sigmas_monotonic,
    pd.assert_log_snr_first,
    pd.assert_log_snr_last,
    pd.assert_log_snr_midway,
    pd.assert_timesteps_well_formed,
)


def outcomes(scheduler, thresholds):
    """Verdicts of all schedule checks; what does not apply is left out."""
    verdicts = {}
    for assertion in ASSERTIONS:
        try:
            verdict = assertion(scheduler, thresholds=thresholds)
        except pd.QualityFailure as failure:
            verdict = failure.verdict
        verdicts[verdict.check] = verdict
    return {name: verdict for name, verdict in verdicts.items() if verdict.outcome != "missing"}


@pytest.mark.parametrize("name", PRESETS)
def test_released_configurations_pass_their_presets(name):
    config = json.loads((ZOO / name / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    verdicts = outcomes(scheduler, PRESETS[name])
    assert {name: verdict.message for name, verdict in verdicts.items() if verdict.outcome != "pass"} == {}
    assert len(verdicts) >= 4


@pytest.mark.parametrize("scheduler", SOUND, ids=lambda scheduler: type(scheduler).__name__)
def test_sound_schedulers_raise_no_alarm(scheduler):
    thresholds = "flow" if is_flow(scheduler) else "default"
    verdicts = outcomes(scheduler, thresholds)
    assert {name: verdict.message for name, verdict in verdicts.items() if verdict.outcome != "pass"} == {}
    assert len(verdicts) >= 4


def broken(kind):
    """A DDIM scheduler with one planted fault."""
    linear = torch.linspace(1e-4, 0.02, 1000)
    if kind == "reversed":
        return diffusers.DDIMScheduler(trained_betas=linear.flip(0).numpy())
    if kind == "constant":
        return diffusers.DDIMScheduler(trained_betas=torch.full((1000,), 0.01).numpy())
    if kind == "negative beta":
        betas = linear.clone()
        betas[500] = -0.01
        return diffusers.DDIMScheduler(trained_betas=betas.numpy())
    if kind == "too weak":
        return diffusers.DDIMScheduler(beta_end=0.002)
    if kind == "too noisy a start":
        return diffusers.DDIMScheduler(beta_start=0.01)
    scheduler = diffusers.DDIMScheduler()
    if kind == "flat":
        scheduler.alphas_cumprod = torch.full((1000,), 0.5)
    elif kind == "above one":
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
        scheduler.alphas_cumprod[0] = 1.1
    elif kind == "swapped":
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
        scheduler.alphas_cumprod[[300, 301]] = scheduler.alphas_cumprod[[301, 300]]
    elif kind == "cliff":
        scheduler.alphas_cumprod = torch.cat([torch.linspace(0.999, 0.9, 500), torch.linspace(0.001, 0.0001, 500)])
    return scheduler


@pytest.mark.parametrize(
    ("kind", "check", "message"),
    [
        ("reversed", "betas_in_range", "they look reversed"),
        ("reversed", "log_snr_first", "they look reversed"),
        ("constant", "betas_in_range", "The betas are constant (0.01)"),
        ("negative beta", "betas_in_range", "timestep 500, where beta is -0.01"),
        ("negative beta", "alphas_cumprod_monotonic", "timestep 500"),
        ("too weak", "log_snr_last", "of the image's signal remains"),
        ("too noisy a start", "log_snr_first", "is 4.6 nats"),
        ("flat", "alphas_cumprod_monotonic", "no noise is ever added"),
        ("above one", "alphas_cumprod_monotonic", "timestep 0, where ᾱ is 1.1"),
        ("swapped", "alphas_cumprod_monotonic", "timestep 301"),
        ("cliff", "log_snr_midway", "nats per t/T"),
    ],
)
def test_planted_faults_are_named(kind, check, message):
    verdict = outcomes(broken(kind), "default")[check]
    assert verdict.outcome == "fail"
    assert message in verdict.message


class Misplanned(diffusers.DDIMScheduler):
    """Plans wrong timesteps in a way that its config chooses."""

    fault = ""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if self.fault == "one too many":
            self.timesteps = torch.cat([self.timesteps, torch.tensor([0])])
        elif self.fault == "ascending":
            self.timesteps = self.timesteps.flip(0)
        elif self.fault == "off the grid":
            self.timesteps = self.timesteps + 1000
        elif self.fault == "nan":
            self.timesteps = self.timesteps * float("nan")
        elif self.fault == "crash":
            raise IndexError("index 1000 is out of bounds")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("one too many", "2 timesteps; expected 1"),
        ("ascending", "they must fall"),
        ("off the grid", "lies outside 0 to 999"),
        ("nan", "1 timesteps are not finite"),
        ("crash", "set_timesteps(1) raises IndexError"),
    ],
)
def test_misplanned_timesteps_are_named(fault, message):
    scheduler = Misplanned()
    scheduler.fault = fault
    with pytest.raises(pd.QualityFailure) as failure:
        pd.assert_timesteps_well_formed(scheduler)
    assert message in str(failure.value)


def test_rising_sigmas_are_named():
    class Rising(diffusers.EulerDiscreteScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas[10] = self.sigmas[9] + 1

    with pytest.raises(pd.QualityFailure, match=r"number of steps with rising sigma is 1; .*step 9"):
        pd.assert_sigmas_monotonic(Rising())


def test_one_beta_is_not_a_constant_schedule():
    measured = betas_in_range(diffusers.DDIMScheduler(num_train_timesteps=1))
    assert (measured.value, measured.hint) == (0, "")


@pytest.mark.parametrize(("last", "wrong"), [(0.0, 0), (-0.01, 1), (1e-9, 0)])
def test_only_the_last_noise_level_may_be_zero(last, wrong):
    scheduler = diffusers.DDIMScheduler()
    scheduler.alphas_cumprod = torch.cat([torch.linspace(1.0, 0.1, 9), torch.tensor([last])])
    measured = alphas_cumprod_monotonic(scheduler)
    assert measured.value == wrong
    assert measured.hint == (f"The first is timestep 9, where ᾱ is {last:g}." if wrong else "")
    scheduler.alphas_cumprod[5:] = 0
    assert alphas_cumprod_monotonic(scheduler).value == 4 + 4, "four do not fall, and four of the five are too early"


def test_sigmas_that_are_no_numbers_are_counted_with_those_that_rise():
    class Overflowing(diffusers.EulerDiscreteScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.sigmas[0], self.sigmas[20], self.sigmas[30] = math.inf, math.nan, self.sigmas[29] + 1

    measured = sigmas_monotonic(Overflowing())
    assert measured.value == 3
    assert measured.hint == "The first is step 29."


def test_the_callers_scheduler_is_left_alone():
    scheduler = diffusers.DDIMScheduler()
    before = scheduler.timesteps.clone()
    pd.assert_timesteps_well_formed(scheduler)
    assert torch.equal(scheduler.timesteps, before)


def test_what_does_not_apply_is_no_pass_for_an_assertion():
    with pytest.raises(pd.QualityFailure, match="has no alphas_cumprod"):
        pd.assert_alphas_cumprod_monotonic(diffusers.FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(("extra", "wrong"), [(9, False), (10, True)])
def test_a_warm_up_may_take_nine_more_evaluations_and_no_more(extra, wrong):
    class WarmsUp(diffusers.DDIMScheduler):
        plms_timesteps = ()

        def set_timesteps(self, num_inference_steps, device=None):
            super().set_timesteps(num_inference_steps)
            self.timesteps = torch.cat([self.timesteps[:1].repeat(extra), self.timesteps])

    measured = timesteps_well_formed(WarmsUp())
    assert (measured.value > 0) == wrong


def test_timesteps_that_fall_by_one_are_well_formed():
    measured = timesteps_well_formed(diffusers.DDIMScheduler(num_train_timesteps=10))
    assert (measured.value, measured.hint) == (0, "")
    assert measured.protocol == {"step counts": [1, 2, 3, 7, 10]}


def test_a_scheduler_that_takes_none_of_the_step_counts_is_not_judged():
    with pytest.raises(NotApplicable, match="needs at least 4 steps and has only 1 training timesteps"):
        timesteps_well_formed(diffusers.PNDMScheduler(num_train_timesteps=1))


def test_an_exact_forward_process_has_no_worst_timestep():
    found = forward_marginals(diffusers.FlowMatchEulerDiscreteScheduler())
    assert (found.value, found.hint) == (0.0, "")


def test_curves_for_a_plot_have_at_most_two_hundred_points_and_their_ends():
    scheduler = diffusers.DDIMScheduler()
    shown = alphas_cumprod_monotonic(scheduler).series["alphas_cumprod"]
    assert len(shown) == 200
    assert (shown[0], shown[-1]) == (float(scheduler.alphas_cumprod[0]), float(scheduler.alphas_cumprod[-1]))
    short = diffusers.DDIMScheduler(num_train_timesteps=200)
    assert alphas_cumprod_monotonic(short).series["alphas_cumprod"] == pytest.approx(short.alphas_cumprod.tolist())
