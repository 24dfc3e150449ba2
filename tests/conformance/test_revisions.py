"""Two revisions or runtimes of one scheduler: sound ports pass, and the first number that differs is named."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, SCMScheduler

from pytest_diffusion import ConformanceFailure, check_equivalence
from pytest_diffusion.conformance.comparisons import Differs, Pair
from pytest_diffusion.conformance.subject import Subject
from tests.conformance.from_scratch import DDIM
from tests.conformance.known_defects import NOT_MADE_BARE
from tests.conformance.numpy_port import NumpyDDIM
from tests.conformance.test_diffusers import CLASSES


def outcomes(candidate, baseline=DDIMScheduler, **rest):
    return {verdict.check: verdict for verdict in check_equivalence(candidate, baseline, raise_on_failure=False, **rest)}


def test_a_port_to_numpy_is_the_same_up_to_rounding():
    verdicts = outcomes(NumpyDDIM)
    assert {verdict.outcome for verdict in verdicts.values()} == {"pass"}
    assert verdicts["same_samples"].measurement.protocol["configurations"] == 7
    assert 0 < verdicts["same_samples"].measurement.value < 64
    assert verdicts["same_plans"].measurement.value == 0


def test_a_scheduler_is_its_own_port_also_where_it_draws():
    found = check_equivalence(EulerAncestralDiscreteScheduler(beta_end=0.012), EulerAncestralDiscreteScheduler(beta_end=0.012))
    assert {verdict.measurement.value for verdict in found} == {0}


class OtherEnd(NumpyDDIM):
    def product(self, timestep):
        return self.products[max(timestep, 0)]


class OtherPlan(NumpyDDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps == 3:
            self.timesteps = self.timesteps + 1


class OtherNoise(NumpyDDIM):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, timesteps + 1 if timesteps[0] > 900 else timesteps)


class OtherDtype(NumpyDDIM):
    def step(self, *args, **kwargs):
        found = super().step(*args, **kwargs)
        found.prev_sample = found.prev_sample.float()
        return found


class OtherStart(NumpyDDIM):
    """Only a run that starts in the middle is off."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.done = 0

    def step(self, model_output, timestep, sample, **rest):
        found = super().step(model_output, timestep, sample, **rest)
        if self.done == 0 and timestep != self.timesteps[0]:
            found.prev_sample = found.prev_sample * 1.01
        self.done += 1
        return found


class OtherWithoutNoise(DDIMScheduler):
    def step(self, model_output, timestep, sample, eta=0.0, **rest):
        found = super().step(model_output, timestep, sample, eta=eta, **rest)
        if eta == 0:
            found.prev_sample = found.prev_sample * 1.5
        return found


class OtherHalf(DDIMScheduler):
    """Half precision is lost in one plan only."""

    def step(self, *args, **kwargs):
        found = super().step(*args, **kwargs)
        if len(self.timesteps) == 20:
            found.prev_sample = found.prev_sample.float()
        return found


class Dies(NumpyDDIM):
    def step(self, model_output, timestep, sample, **rest):
        if self.prediction_type == "sample":
            raise KeyError("no such type")
        return super().step(model_output, timestep, sample, **rest)


@pytest.mark.parametrize(
    ("candidate", "failed", "seen"),
    [
        (OtherEnd, {"same_samples", "same_partial_runs", "same_dtypes"}, "Step 0 (timestep 0) of 1 steps: number 0 is -1.006"),
        (
            OtherPlan,
            {"same_plans", "same_samples", "same_partial_runs", "same_dtypes"},
            "3 steps: number 0 is 667 and not 666",
        ),
        (OtherNoise, {"same_noising"}, "Noising at timestep 950 of 20 steps"),
        (OtherDtype, {"same_dtypes"}, "the dtypes are torch.float32 and torch.float64"),
        (OtherWithoutNoise, {"same_samples", "same_partial_runs", "same_dtypes"}, "Step 0 (timestep 0) of 1 steps: number 0 is"),
        (OtherHalf, {"same_dtypes"}, "Step 0 of 20 steps in float64: the dtypes are torch.float32 and torch.float64"),
        (OtherStart, {"same_partial_runs"}, "Step 0 (timestep 0) of 2 steps from step 1 on: number 0 is"),
        (
            Dies,
            {"same_samples", "same_partial_runs", "same_dtypes"},
            "differ with prediction_type='sample'. 1 steps: the candidate alone dies",
        ),
    ],
)
def test_a_difference_is_found_by_its_comparison(candidate, failed, seen):
    verdicts = outcomes(candidate)
    assert {name for name, verdict in verdicts.items() if verdict.gates} == failed
    assert any(seen in verdicts[name].message for name in failed), [verdicts[name].message for name in failed]
    with pytest.raises(ConformanceFailure, match=f"{candidate.__name__} "):
        check_equivalence(candidate, DDIMScheduler)


def test_configurations_and_rounding_may_be_given():
    class Coarse(NumpyDDIM):
        def step(self, *args, **kwargs):
            found = super().step(*args, **kwargs)
            found.prev_sample = found.prev_sample * (1 + 2e-4)
            return found

    assert outcomes(Coarse)["same_samples"].outcome == "fail"
    assert outcomes(Coarse, configurations=[], num_inference_steps=[2], roundings=1e5)["same_samples"].outcome == "pass"
    with pytest.raises(NotImplementedError):
        check_equivalence(NumpyDDIM, DDIMScheduler, configurations=[{"beta_schedule": "squaredcos_cap_v2"}])


def test_a_configuration_that_the_candidate_alone_refuses_is_a_difference():
    class Refuses(NumpyDDIM):
        def __init__(self, **config):
            if config.get("steps_offset"):
                raise ValueError("no offsets any more")
            super().__init__(**config)

    class HasParameters(Refuses):
        def __init__(self, beta_schedule="linear", clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon"):
            super().__init__(steps_offset=steps_offset, beta_schedule=beta_schedule, clip_sample=clip_sample)

    verdicts = outcomes(HasParameters)
    assert "differ with steps_offset=1. The candidate alone refuses it: ValueError: no offsets any more" in verdicts["same_plans"].message


def test_one_infinite_number_hides_no_other_difference():
    subject = Subject(DDIMScheduler())
    values = torch.tensor([1.0, 2.0, float("inf")])
    with pytest.raises(Differs, match="number 0 is 2 and not 1"):
        Pair(subject, subject, "", [], [], 64).require_near(values * 2, values, "sigmas")


BOTH_DIE = {
    *("BlockRefinementScheduler", "DDPMWuerstchenScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler", "HeliosDMDScheduler"),
    *("HeliosScheduler", "PiflowScheduler", "SCMScheduler", "ScoreSdeVeScheduler"),
}
"""Schedulers of diffusers that cannot plan, noise or step in their defaults on images."""


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in NOT_MADE_BARE])
def test_every_scheduler_is_itself(name):
    made = getattr(diffusers, name)
    found = outcomes(made, made, configurations=[], num_inference_steps=[1, 5])
    assert not [verdict.message for verdict in found.values() if verdict.outcome == "fail"]
    broken = [verdict.message for verdict in found.values() if verdict.outcome == "broken"]
    assert bool(broken) == (name in BOTH_DIE)
    assert all("nothing could be compared" in message for message in broken)


def test_arguments_of_plan_and_step_are_those_of_both():
    declared = {"plan": {"max_timesteps": 1.57}, "names_end": True}
    verdicts = outcomes(SCMScheduler, SCMScheduler, **declared)
    assert {verdicts[name].outcome for name in ("same_plans", "same_samples")} == {"pass"}


def test_partial_runs_are_compared_where_there_are_some():
    assert "at 2 to 10 inference steps" in outcomes(DDIMScheduler, num_inference_steps=[20])["same_partial_runs"].message


def test_another_scheduler_is_another_one():
    verdicts = outcomes(DDIM)
    assert verdicts["same_plans"].outcome == "fail"
    assert verdicts["same_plans"].measurement.value > 64


def test_on_the_command_line(pytester):
    pytester.makepyfile(
        ported="from tests.conformance.numpy_port import NumpyDDIM\nfrom tests.conformance.test_revisions import OtherEnd\n"
    )
    pytester.syspathinsert()
    ids = [f"diffusion::{name}" for name in ("same_plans", "same_samples")]
    options = ("--diffusion-scheduler-baseline=DDIMScheduler", "--diffusion-scheduler-config=clip_sample=False")
    assert pytester.runpytest("--diffusion-scheduler=ported:NumpyDDIM", *options, *ids).ret == 0
    result = pytester.runpytest("--diffusion-scheduler=ported:OtherEnd", *options, *ids)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*OtherEnd and its baseline DDIMScheduler differ*"])
    assert torch.is_grad_enabled()
