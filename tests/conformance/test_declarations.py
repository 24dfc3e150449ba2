"""What is declared of a scheduler holds where it is true, and not where a changed configuration says otherwise."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from pytest_diffusion import check_scheduler, parametrize_with_scheduler_checks
from pytest_diffusion.conformance.shaped import replacing, small
from pytest_diffusion.conformance.subject import Subject
from tests.conformance.from_others import RisesInTraining, WithoutNoising
from tests.conformance.from_scratch import DDIM, FlowEuler


def gating(verdicts):
    return {verdict.check for verdict in verdicts if verdict.gates}


def test_a_declared_type_does_not_hold_for_another_configuration():
    checks = ["prediction_types_agree", "zero_terminal_snr"]
    assert {verdict.outcome for verdict in check_scheduler(DDIMScheduler(), prediction_type="epsilon", only=checks)} == {"pass"}
    subject = Subject(EulerDiscreteScheduler(), prediction_type="epsilon", kind="sigma")
    assert subject.with_config(prediction_type="v_prediction").prediction_type == "v_prediction"
    assert subject.with_config(timestep_spacing="trailing").declared == subject.declared
    assert not subject.with_config(use_flow_sigmas=True).declared if "use_flow_sigmas" in subject.config else True


def test_nor_in_the_configurations_of_the_thorough_profile():
    found = check_scheduler(EulerDiscreteScheduler(), prediction_type="epsilon", profile="thorough", only=["point_mass_preserved"])
    assert found[0].outcome == "pass"


def test_a_declared_mu_is_the_one_of_every_plan():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    plain, declared = Subject(scheduler), Subject(scheduler, plan={"mu": 0.5})
    assert plain.needed_arguments == {"mu": 1.15}
    assert declared.needed_arguments == {"mu": 0.5}
    scheduler.set_timesteps(4, mu=0.5)
    assert torch.equal(declared.planned(4).sigmas, scheduler.sigmas)


class LeftByGivenSigmas(FlowMatchEulerDiscreteScheduler):
    """A plan of given sigmas changes the next run; without mu it could not be made."""

    left = 1.0

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        if sigmas is not None:
            self.left = 1.1

    def step(self, model_output, timestep, sample, return_dict=True, **rest):
        found = super().step(model_output, timestep, sample, **rest)
        found.prev_sample = found.prev_sample * self.left
        return found


@pytest.mark.parametrize("dynamic", [False, True])
def test_plans_of_given_sigmas_get_the_arguments_that_they_need(dynamic):
    found = check_scheduler(LeftByGivenSigmas(use_dynamic_shifting=dynamic), only=["second_run"], raise_on_failure=False)
    assert "a plan of given sigmas" in found[0].message


def test_a_copy_in_a_parametrized_test_keeps_what_was_declared():
    mark = parametrize_with_scheduler_checks([WithoutNoising()], only=["point_mass_preserved"], kind="flow")
    scheduler, check = mark.args[1][0].values
    assert check(scheduler).outcome == check(copy.deepcopy(scheduler)).outcome == "pass"


class SharesWithABeginIndex(FlowMatchEulerDiscreteScheduler):
    """Timesteps that are shares, so that its levels are read off its noising, which a begin index changes."""

    def set_timesteps(self, num_inference_steps=None, device=None):
        super().set_timesteps(num_inference_steps, device=device)
        self.timesteps = self.sigmas[:-1].clone()


def test_levels_are_read_before_a_run_begins_in_the_middle():
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(SharesWithABeginIndex(), raise_on_failure=False)}
    assert {verdicts[name] for name in ("partial_start", "begin_index", "noising_in_a_run")} == {"pass"}


class StopsBeforeTheData(RisesInTraining):
    """Time goes up to 0.999, where a little noise is left."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.sigmas = self.sigmas * 0.999
        self.timesteps = self.sigmas[:-1] * self.num_train_timesteps


def test_the_end_of_a_rising_flow_is_read_as_such():
    assert not gating(check_scheduler(StopsBeforeTheData, only=["runs", "point_mass_preserved", "terminal_step", "partial_start"]))


class OneStepTowardsTheData(FlowEuler):
    def set_timesteps(self, num_inference_steps, device=None):
        if num_inference_steps != 1:
            raise ValueError(f"distilled for 1 step, not {num_inference_steps}")
        super().set_timesteps(1)

    def step(self, model_output, timestep, sample):
        return super().step(-model_output, timestep, sample)


def test_the_convention_of_a_model_of_one_step_is_found_by_its_end():
    assert Subject(OneStepTowardsTheData).counts(1, 2) == [1]
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(OneStepTowardsTheData)}
    assert verdicts["terminal_step"] == "pass"
    assert verdicts["point_mass_preserved"] == "skipped"


def test_a_configuration_may_be_an_object():
    class OfObject(DDIM):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, num_train_timesteps=1000)

    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(OfObject)}
    assert verdicts["named_betas"] == "pass"


def test_an_attribute_is_no_adapter():
    class Reads(DDIM):
        reading = None

    assert not Subject(Reads).is_adapted
    assert not gating(check_scheduler(Reads, only=["runs", "point_mass_preserved"]))


def of_one_shape(base, *, broken=False, doubled=False):
    """A class that takes videos (N, 16, 4, 8, 8) alone."""

    class Videos(base):
        def step(self, model_output, timestep, sample, *rest, **named):
            if sample.shape[1:] != (16, 4, 8, 8):
                raise ValueError(f"expected a 5D sample with 16 channels, not {tuple(sample.shape)}")
            assert model_output.shape[2:] == (4, 8, 8)
            assert model_output.shape[1] in ((16, 32) if doubled else (16,))
            found = super().step(model_output, timestep, sample, *rest, **named)
            if broken:
                found.prev_sample = found.prev_sample * 1.1
            return found

        def add_noise(self, original_samples, noise, timesteps):
            assert original_samples.shape[1:] == noise.shape[1:] == (16, 4, 8, 8)
            return super().add_noise(original_samples, noise, timesteps)

    return Videos


SHAPE = (2, 16, 4, 8, 8)


def test_samples_may_have_one_declared_shape():
    verdicts = {verdict.check: verdict for verdict in check_scheduler(of_one_shape(DDIMScheduler), shape=SHAPE, raise_on_failure=False)}
    plain = {verdict.check: verdict for verdict in check_scheduler(DDIMScheduler, raise_on_failure=False)}
    without = {"ranks", "layout", "inputs_untouched"}
    assert {name: one.outcome for name, one in verdicts.items() if name not in without} == {
        name: one.outcome for name, one in plain.items() if name not in without
    }
    assert {verdicts[name].message for name in without} == {f"Videos is given samples of the declared shape {SHAPE} alone."}


def test_also_where_the_model_predicts_a_variance_or_noise_is_drawn():
    made = of_one_shape(DDPMScheduler, doubled=True)(variance_type="learned_range")
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(made, shape=SHAPE, raise_on_failure=False)}
    plain = check_scheduler(DDPMScheduler(variance_type="learned_range"), raise_on_failure=False)
    other = {verdict.check for verdict in plain if verdict.outcome != verdicts[verdict.check]}
    assert other <= {"ranks", "layout", "inputs_untouched"}
    assert type(made).step is not type(Subject(made, shape=SHAPE).scheduler).step  # the caller's object is left alone


def test_draws_of_the_shape_are_replaced_by_those_of_the_sample():
    given = torch.arange(2 * 4 * 4 * 4.0).reshape(2, 4, 4, 4)
    seen = []

    def replace(values):
        seen.append(values.shape)
        return given

    replaced = replacing(replace, given.shape, SHAPE)(torch.zeros(SHAPE))
    assert seen == [given.shape]
    assert replaced.shape == SHAPE
    assert torch.equal(small(replaced, given.shape), given)
    assert replacing(lambda values: values + 1, given.shape, SHAPE)(torch.zeros(2)).tolist() == [1, 1]


def test_a_broken_one_of_one_shape_fails_and_an_undeclared_one_says_what_to_declare():
    broken = of_one_shape(DDIMScheduler, broken=True)
    assert "point_mass_preserved" in gating(check_scheduler(broken, shape=SHAPE, raise_on_failure=False, only=["point_mass_preserved"]))
    (verdict,) = check_scheduler(broken, raise_on_failure=False, only=["point_mass_preserved"])
    assert verdict.outcome == "broken"
    assert "expected a 5D sample with 16 channels" in verdict.message
    assert "declare it: check_scheduler(..., shape=(...))" in verdict.message


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 4, 8, 8), "with 256 elements in each sample; expected at least 1024"),
        ((2,), "expected the batch and"),
        ((2, 0, 4096), "expected"),
    ],
)
def test_wrong_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        check_scheduler(DDIMScheduler, shape=shape)
