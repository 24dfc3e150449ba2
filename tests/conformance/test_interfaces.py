"""Interfaces of other authors are driven as they are; what gives nothing at some number of steps only is broken."""

from collections import namedtuple
from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from pytest_diffusion import ADMDiffusion, KDiffusionSampler, check_equivalence, check_scheduler
from tests.conformance import samplers
from tests.conformance.from_scratch import DDIM, FlowEuler


def judged(scheduler, **rest):
    return {verdict.check: verdict for verdict in check_scheduler(scheduler, raise_on_failure=False, **rest)}


def gating(verdicts):
    return {name for name, verdict in verdicts.items() if verdict.gates}


class ForgetsToReturn(DDIMScheduler):
    """The last step gives nothing."""

    def step(self, model_output, timestep, sample, **rest):
        if timestep != self.timesteps[-1]:
            return super().step(model_output, timestep, sample, **rest)


class ForgetsInLongPlans(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        if len(self.timesteps) < 10 or timestep != self.timesteps[-1]:
            return super().step(model_output, timestep, sample, **rest)


class ScalarAtOne(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = self.timesteps.squeeze()


class ColumnFromTwenty(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if num_inference_steps >= 20:
            self.timesteps = self.timesteps[:, None]


class NothingAtOne(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if num_inference_steps == 1:
            self.timesteps = self.timesteps[:0]


class DiesAtOddNumbers(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        if len(self.timesteps) % 2 and len(self.timesteps) > 1:
            raise ValueError("shape mismatch of the model outputs that are kept")
        return super().step(model_output, timestep, sample, **rest)


@pytest.mark.parametrize(
    ("scheduler", "seen"),
    [
        (ForgetsToReturn, "ForgetsToReturn.step returns nothing"),
        (ForgetsInLongPlans, "ForgetsInLongPlans.step returns nothing"),
        (ScalarAtOne, "set_timesteps(1) raises TypeError: ScalarAtOne.timesteps has the shape ()"),
        (ColumnFromTwenty, "set_timesteps(20) raises TypeError: ColumnFromTwenty.timesteps has the shape (20, 1)"),
        (NothingAtOne, "set_timesteps(1) raises TypeError: NothingAtOne.timesteps is empty"),
        (DiesAtOddNumbers, "shape mismatch of the model outputs"),
    ],
)
def test_what_gives_nothing_at_some_numbers_of_steps_fails(scheduler, seen):
    verdict = judged(scheduler, only=["runs"])["runs"]
    assert verdict.outcome == "fail"
    assert seen in verdict.message
    same = {one.check: one for one in check_equivalence(scheduler, DDIMScheduler, configurations=[], raise_on_failure=False)}
    assert "alone" in same["same_samples"].message
    assert same["same_samples"].gates


class GivesNothing(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        pass


def test_the_one_that_cannot_be_driven_is_named():
    for pair, alone in (((GivesNothing, DDIMScheduler), "candidate"), ((DDIMScheduler, GivesNothing), "baseline")):
        same = {one.check: one for one in check_equivalence(*pair, configurations=[], raise_on_failure=False)}
        assert f"the {alone} alone cannot be driven: GivesNothing.step returns nothing" in same["same_samples"].message
    both = check_equivalence(GivesNothing, GivesNothing, configurations=[], raise_on_failure=False)
    assert {one.check: one.outcome for one in both}["same_samples"] == "skipped"


class WrongCleanImage(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        found = super().step(model_output, timestep, sample, **rest)
        return {"prev_sample": found.prev_sample, "pred_original_sample": -found.pred_original_sample}


def test_a_clean_image_in_a_dictionary_is_looked_at():
    assert "pred_original_sample with an error" in judged(WrongCleanImage, only=["predicted_original"])["predicted_original"].message
    same = {one.check: one for one in check_equivalence(WrongCleanImage, DDIMScheduler, configurations=[], raise_on_failure=False)}
    assert "Pred_original_sample of step 0" in same["same_samples"].message


class NeedsAGenerator(DDIM):
    def step(self, model_output, timestep, sample, generator):
        return super().step(model_output, timestep, sample, 1.0, generator)


class NeedsADevice(DDIM):
    def set_timesteps(self, num_inference_steps, device):
        super().set_timesteps(num_inference_steps)


class GivenSigmasOfSoMany(FlowMatchEulerDiscreteScheduler):
    """The number of steps must be told, also where sigmas are given."""

    def set_timesteps(self, num_inference_steps, device=None, sigmas=None):
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas)


class HandsOnThePlan(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, **kwargs):
        super().set_timesteps(num_inference_steps, **kwargs)


Named = namedtuple("Named", ("model_output", "prev_sample"))


class OutputFirst(DDIM):
    """The sample is the second entry of what a step returns, by its name."""

    def step(self, model_output, timestep, sample, **rest):
        return Named(model_output, super().step(model_output, timestep, sample, **rest).prev_sample)


class NotBeforeItIsPlanned(FlowEuler):
    """Sigmas are a property that raises until there is a plan."""

    _sigmas = None

    @property
    def sigmas(self):
        if self._sigmas is None:
            raise RuntimeError("call set_timesteps first")
        return self._sigmas

    @sigmas.setter
    def sigmas(self, values):
        self._sigmas = values

    def __init__(self):
        super().__init__()
        self._sigmas = None


class Lenient(SimpleNamespace):
    """A configuration that knows every name, and no value."""

    def __getattr__(self, name):
        return None


class AnyConfig(DDIM):
    def __init__(self):
        super().__init__()
        self.config = Lenient(num_train_timesteps=1000)

    def __deepcopy__(self, memo):
        return type(self)()


@pytest.mark.parametrize(
    "scheduler",
    [NeedsAGenerator, NeedsADevice, GivenSigmasOfSoMany, HandsOnThePlan(use_dynamic_shifting=True), OutputFirst, NotBeforeItIsPlanned],
)
def test_sound_interfaces_are_driven_as_they_are(scheduler):
    verdicts = judged(scheduler)
    assert not [verdict.message for name, verdict in verdicts.items() if verdict.gates and name != "timesteps_cover"]
    assert verdicts["runs"].outcome == verdicts["point_mass_preserved"].outcome == "pass"
    if "timesteps_cover" in gating(verdicts):
        assert "of training" in verdicts["timesteps_cover"].message  # diffusers' own double shift (#13243)


def test_a_configuration_that_knows_every_name_is_read():
    assert judged(AnyConfig, only=["runs", "point_mass_preserved"])["runs"].outcome == "pass"


class NeedsMu(FlowEuler):
    def set_timesteps(self, num_inference_steps, mu=None):
        if mu is None:
            raise TypeError("mu is needed for the shift of the plan")
        super().set_timesteps(num_inference_steps)
        self.sigmas = mu * self.sigmas / (1 + (mu - 1) * self.sigmas)
        self.timesteps = self.sigmas[:-1] * 1000


def test_an_argument_that_a_plan_lacks_is_named_and_may_be_declared():
    assert "if its pipelines pass mu, declare plan={'mu': ...}" in judged(NeedsMu, only=["runs"])["runs"].message
    verdicts = judged(NeedsMu, plan={"mu": 2.0}, only=["runs", "point_mass_preserved", "timesteps_cover"])
    assert not gating(verdicts)


class Gamma(DDIMScheduler):
    """`eta` is another number: the share of noise, 0.3 by default."""

    def step(self, model_output, timestep, sample, eta=0.3, generator=None, return_dict=True):
        return super().step(model_output, timestep, sample, eta=eta**2, generator=generator, return_dict=return_dict)


def test_eta_that_is_not_zero_by_default_is_another_number():
    assert judged(Gamma, only=["runs", "noise_amount"])["noise_amount"].outcome == "skipped"


class Tuples(samplers.GaussianDiffusion):
    def p_sample(self, *arguments, **named):
        found = super().p_sample(*arguments, **named)
        return found["sample"], found


def test_adm_objects_may_return_tuples():
    assert not gating(judged(Tuples, adapt=ADMDiffusion, only=["runs", "point_mass_preserved"]))


def test_a_sampler_that_dies_in_a_small_plan_fails_runs():
    def dies(model, x, sigmas):
        for index in range(len(sigmas) - 1):
            if index == 2:
                raise NameError("h_2 is not defined")
            x = model(x, sigmas[index] * x.new_ones(len(x)))
        return x

    verdict = judged(dies, adapt=KDiffusionSampler)["runs"]
    assert verdict.outcome == "fail"
    assert "NameError: h_2 is not defined" in verdict.message
