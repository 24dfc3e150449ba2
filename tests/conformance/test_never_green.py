"""A crash is a failure, whatever the kind of the scheduler, and a run in which nothing was judged is no pass."""

import numpy as np
import pytest
import torch
from diffusers import AmusedScheduler, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler, VQDiffusionScheduler

from pytest_diffusion import (
    ConformanceFailure,
    KDiffusionSampler,
    check_equivalence,
    check_scheduler,
    parametrize_with_scheduler_checks,
)
from pytest_diffusion.conformance.refusals import is_on_purpose, refuses_count
from tests.conformance.from_others import NamesItsEnd, WithoutNoising
from tests.conformance.from_scratch import DDIM, Multistep


class Unknown:
    """Nothing tells how it holds its samples."""

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.arange(num_inference_steps).flip(0)

    def step(self, model_output, timestep, sample):
        return (sample - model_output / len(self.timesteps),)


class NeverPlans(Unknown):
    def set_timesteps(self, num_inference_steps, device=None):
        np.zeros(num_inference_steps) + np.zeros(num_inference_steps + 1)  # a ValueError of NumPy, about shapes


class AlwaysRefuses(Unknown):
    def set_timesteps(self, num_inference_steps, device=None):
        raise ValueError(f"{num_inference_steps} steps do not divide the training steps")


class DiesInStep(Unknown):
    def step(self, model_output, timestep, sample):
        raise RuntimeError("boom")


class DiesInTheThirdStep(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        if len(self.timesteps) > 3 and timestep == self.timesteps[3]:
            raise KeyError("lost")
        return super().step(model_output, timestep, sample, eta, generator)


def verdicts_of(scheduler):
    return {verdict.check: verdict for verdict in check_scheduler(scheduler, raise_on_failure=False)}


@pytest.mark.parametrize(
    ("scheduler", "seen", "line"),
    [
        (NeverPlans, "ValueError: operands could not be broadcast together", "np.zeros(num_inference_steps + 1)"),
        (AlwaysRefuses, "steps do not divide the training steps", "raise ValueError"),
        (DiesInStep, "RuntimeError: boom", 'raise RuntimeError("boom")'),
        (DiesInTheThirdStep, "KeyError: 'lost'", 'raise KeyError("lost")'),
    ],
)
def test_a_crash_fails_runs_and_nothing_else(scheduler, seen, line):
    verdicts = verdicts_of(scheduler)
    assert {name for name, verdict in verdicts.items() if verdict.gates} == {"runs"}
    assert verdicts["runs"].outcome == "fail"
    assert seen in verdicts["runs"].message
    # The scheduler's own traceback leads to the line.
    assert line in verdicts["runs"].message.partition("Where:")[2]


def test_a_crash_says_what_was_done_before_it():
    assert (
        "after set_timesteps(4); 3 steps, step(model_output, 249, sample) raises KeyError"
        in verdicts_of(DiesInTheThirdStep)["runs"].message
    )


def test_schedulers_of_unknown_kind_that_run_are_looked_at():
    verdicts = verdicts_of(Unknown)
    assert not any(verdict.gates for verdict in verdicts.values())
    assert verdicts["runs"].outcome == verdicts["second_run"].outcome == "pass"


def test_a_refusal_is_raised_on_purpose_and_speaks_of_steps():
    class Picky(DDIM):
        def set_timesteps(self, num_inference_steps, device=None):
            if num_inference_steps == 3:
                raise ValueError("three steps are too odd")
            if num_inference_steps == 5:
                assert num_inference_steps != 5, "not 5"
            if num_inference_steps == 7:
                torch.zeros(2).reshape(7)
            if num_inference_steps == 10:
                raise ValueError("sigmas must fall")
            super().set_timesteps(num_inference_steps)

    errors = {}
    for count in (3, 5, 7, 10):
        try:
            Picky().set_timesteps(count)
        except Exception as error:
            errors[count] = error
    assert {count for count, error in errors.items() if is_on_purpose(error, Picky)} == {3, 5, 10}
    assert {count for count, error in errors.items() if refuses_count(error, count, Picky)} == {3, 5}
    message = verdicts_of(Picky)["runs"].message
    assert "set_timesteps(7) raises RuntimeError" in message
    assert "num_inference_steps=7" in message


@pytest.mark.parametrize("scheduler", [AmusedScheduler(mask_token_id=15), VQDiffusionScheduler(num_vec_classes=16)])
def test_token_ids_are_driven_and_named_and_not_green(scheduler):
    with pytest.raises(ConformanceFailure, match=r"no law could look at this scheduler\. \w+ takes token ids as samples, not images"):
        check_scheduler(scheduler)
    # Whoever knows it may expect it.
    expected = {"runs": "It draws tokens."}
    assert not any(verdict.gates for verdict in check_scheduler(scheduler, expected_failures=expected))


def test_the_command_line_says_how_many_laws_looked_and_fails_where_none_did(pytester):
    pytester.makepyfile(
        crashing="from tests.conformance.from_others import BareTensor\nfrom tests.conformance.test_never_green import Unknown\n"
    )
    pytester.syspathinsert()
    result = pytester.runpytest("--diffusion-scheduler=crashing:Unknown")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1? of 5? scheduler checks had something to look at."])
    result = pytester.runpytest("--diffusion-scheduler=crashing:BareTensor")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*no law could look at this scheduler. BareTensor.step returns a bare Tensor*"])
    result.stdout.fnmatch_lines(["1 of 5? scheduler checks had something to look at."])


class ThirdOrderMixesTheBatch(Multistep):
    """Only its third-order steps, which six steps reach and four do not, take a mean over the batch."""

    solver_order = 3

    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        found = super().step(model_output, timestep, sample)
        if 4 <= index < len(self.timesteps) - 1:
            found.prev_sample = found.prev_sample + 0.1 * (sample.mean() - sample[:1].mean())
        return found


class LargePlansOverflow(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        found = super().step(model_output, timestep, sample, eta, generator)
        if len(self.timesteps) == self.num_train_timesteps:
            found.prev_sample = found.prev_sample * float("nan")
        return found


class DropsAStep(DDIM):
    """One number of steps of the first hundred is rounded wrongly."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps == 61:
            self.timesteps = torch.cat([self.timesteps, torch.zeros(1, dtype=self.timesteps.dtype)])


class DiesAtOneTimestep(DDIM):
    """Noising dies where nobody looks: at one timestep of a hundred."""

    def add_noise(self, original_samples, noise, timesteps):
        if (timesteps == 489).any():
            raise IndexError("not found")
        return super().add_noise(original_samples, noise, timesteps)


class OverflowsInHalf(DDIM):
    """The noisiest image in half precision is a quarter too clean."""

    def add_noise(self, original_samples, noise, timesteps):
        found = super().add_noise(original_samples, noise, timesteps)
        return found * 0.75 if original_samples.dtype == torch.float16 and (timesteps > 900).any() else found


class DiesInTheMiddle(DDIM):
    """A run that starts at the fifth step dies."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.done = 0

    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        if self.done == 0 and len(self.timesteps) > 5 and timestep == self.timesteps[5]:
            raise IndexError("no history")
        self.done += 1
        return super().step(model_output, timestep, sample, eta, generator)


@pytest.mark.parametrize(
    ("scheduler", "check", "seen"),
    [
        (ThirdOrderMixesTheBatch, "batch_invariance", "image"),
        (LargePlansOverflow, "runs", "NaN"),
        (DropsAStep, "timesteps_well_formed", "Expected: 61 timesteps.\nSeen: 62."),
        (DiesAtOneTimestep, "forward_process", "add_noise(image, noise, [489.0]) raises IndexError: not found"),
        (OverflowsInHalf, "dtype_kept", "the values of float32 from noising in torch.float16"),
        (DiesInTheMiddle, "partial_start", "a run that starts at step 5 of"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_rarely_reached_branches_are_reached(scheduler, check, seen):
    (verdict,) = check_scheduler(scheduler, only=[check], raise_on_failure=False)
    assert verdict.outcome == "fail"
    assert seen in verdict.message


def test_each_claim_of_a_law_is_tried_and_has_its_own_case():
    class TwoMistakes(DDIM):
        def deviation(self, here, there, eta):
            return super().deviation(here, there, eta) * (1.2 if eta == 0.5 else 1.0 if eta == 0 else 0.7)

    (verdict,) = check_scheduler(TwoMistakes, only=["noise_amount"], raise_on_failure=False)
    assert verdict.measurement.value == 2
    assert "·noise with eta=0.5." in verdict.message
    assert "·noise with eta=1." in verdict.message
    assert verdict.message.count("Reproduce it:") == 2


def test_writing_into_the_configuration_object_is_seen():
    class Writes(EulerDiscreteScheduler):
        def set_timesteps(self, *args, **kwargs):
            super().set_timesteps(*args, **kwargs)
            self.config.beta_end = 0.5  # the attribute, not the entry

    (verdict,) = check_scheduler(Writes(), only=["config_untouched"], raise_on_failure=False)
    assert "config.beta_end was 0.02 and is 0.5" in verdict.message


def test_expected_failures_cover_all_that_gates_and_are_strict_about_skips():
    reason = {"given_noise": "The vendor is told."}
    (verdict,) = check_scheduler(DDIM, only=["given_noise"], expected_failures=reason, strict=True, raise_on_failure=False)
    assert verdict.gates
    assert "given_noise is skipped (DDIM.step takes no variance_noise), though its failure is expected" in verdict.message


def test_expected_failures_may_differ_by_scheduler():
    marks = parametrize_with_scheduler_checks(
        [DDIMScheduler(), DDIM], expected_failures=lambda one: {"velocity": "known"} if isinstance(one, DDIMScheduler) else {}
    )
    marked = [value.id for value in marks.args[1] if value.marks]
    assert marked == ["DDIMScheduler-velocity"]


def test_what_is_declared_holds_for_parametrized_tests_too():
    marks = parametrize_with_scheduler_checks([WithoutNoising], only=["point_mass_preserved"], kind="flow")
    (value,) = marks.args[1]
    scheduler, check = value.values
    assert check(scheduler).outcome == "pass"


def test_an_entry_that_is_never_read_is_said_to_be():
    (verdict,) = check_scheduler(LCMScheduler(), only=["unknown_values_refused"], raise_on_failure=False)
    assert "it runs without an error: timestep_spacing is never read" in verdict.message
    (verdict,) = check_scheduler(DDPMScheduler(), only=["unknown_values_refused"], raise_on_failure=False)
    assert "variance_type='no-such-choice' to be refused.\nSeen: it runs without an error." in verdict.message


def test_checks_of_which_none_applies_are_no_pass():
    with pytest.raises(ConformanceFailure, match=r"none of the chosen checks could look.*\. DDIM\.step takes no variance_noise"):
        check_scheduler(DDIM, only=["given_noise", "inversion_round_trip"])
    with pytest.raises(ConformanceFailure, match="no law could look at this scheduler"):
        check_scheduler(DDIM, num_inference_steps=[5000])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_scheduler(DDIM, only=[]), "only is empty; expected at least one name of a check"),
        (lambda: check_scheduler(DDIM, num_inference_steps=[]), "num_inference_steps is empty; expected at least one number"),
        (lambda: check_equivalence(DDIM, DDIM, num_inference_steps=[]), "num_inference_steps is empty; expected at least one number"),
        (lambda: parametrize_with_scheduler_checks([]), "schedulers is empty; expected at least one scheduler"),
        (lambda: parametrize_with_scheduler_checks([DDIM], only=[]), "only is empty"),
        (
            lambda: check_scheduler(DDIM, adapt=KDiffusionSampler, kind="flow"),
            "adapt and kind are given; what an adapter drives is declared",
        ),
    ],
)
def test_empty_lists_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_comparison_of_nothing_is_no_pass():
    verdicts = check_equivalence(DiesInStep, DiesInStep, raise_on_failure=False)
    assert {verdict.check: verdict.outcome for verdict in verdicts}["same_samples"] == "broken"
    assert (
        "nothing could be compared, because both die. 1 steps: step(model_output, 0, sample) raises RuntimeError: boom"
        in verdicts[1].message
    )


def test_a_plan_that_names_its_end_is_declared():
    verdicts = verdicts_of(NamesItsEnd)
    assert verdicts["runs"].outcome == "fail"
    assert "if its pipelines leave the last one out, declare names_end=True" in verdicts["runs"].message
    declared = check_scheduler(NamesItsEnd, names_end=True)
    assert {verdict.outcome for verdict in declared} == {"pass", "skipped"}
    assert {verdict.check: verdict.outcome for verdict in declared}["point_mass_preserved"] == "pass"


def test_strict_parametrized_tests_do_not_skip_what_must_fail(pytester):
    pytester.makepyfile(
        """
        import pytest
        from pytest_diffusion import parametrize_with_scheduler_checks
        from tests.conformance.from_scratch import DDIM

        @parametrize_with_scheduler_checks([DDIM], only=["given_noise"], expected_failures={"given_noise": "known"}, strict=True)
        def test_scheduler(scheduler, check):
            check(scheduler)
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*given_noise is skipped (DDIM.step takes no variance_noise), though its failure is expected*"])
