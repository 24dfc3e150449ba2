"""Samplers with other interfaces are driven by adapters, and judged like all others."""

from functools import partial

import pytest
import torch

from pytest_diffusion import ADMDiffusion, KDiffusionSampler, NumpyScheduler, check_scheduler
from pytest_diffusion.conformance.adapters import Adapted, karras_sigmas
from pytest_diffusion.conformance.suspended import Suspended
from tests.conformance import samplers

SOUND = [
    (samplers.sample_euler, KDiffusionSampler, {"convergence_order"}),
    (samplers.sample_heun, KDiffusionSampler, {"convergence_order"}),
    (samplers.sample_dpmpp_2m, KDiffusionSampler, {"convergence_order"}),
    (samplers.sample_ancestral, KDiffusionSampler, {"weak_convergence", "generator_honoured", "generator_list"}),
    (samplers.sample_two_stage, KDiffusionSampler, {"noise_is_normal", "generator_honoured"}),
    (samplers.GaussianDiffusion, ADMDiffusion, {"weak_convergence"}),
    (samplers.GaussianDiffusion, partial(ADMDiffusion, method="ddim_sample"), {"convergence_order"}),
    (samplers.ArrayDDIM, NumpyScheduler, {"convergence_order"}),
]
BROKEN = [
    (samplers.sample_euler_too_far, KDiffusionSampler, "point_mass_preserved", "1.4293·noise"),
    (samplers.sample_heun_by_first_slope, KDiffusionSampler, "convergence_order", "order 1.00"),
    (samplers.TooLittleNoise, ADMDiffusion, "point_mass_preserved", "0.00010061·noise"),
]


@pytest.mark.parametrize(("source", "adapt", "judged"), SOUND)
def test_sound_samplers_pass(source, adapt, judged):
    verdicts = {verdict.check: verdict.outcome for verdict in check_scheduler(source, adapt=adapt)}
    assert set(verdicts.values()) == {"pass", "skipped"}
    always = {"runs", "point_mass_preserved", "terminal_step", "timesteps_well_formed", "batch_invariance", "partial_start", "second_run"}
    assert {verdicts[name] for name in judged | always} == {"pass"}


@pytest.mark.parametrize(("source", "adapt", "check", "seen"), BROKEN)
def test_broken_samplers_fail_the_right_check(source, adapt, check, seen):
    failed = [verdict for verdict in check_scheduler(source, adapt=adapt, raise_on_failure=False) if verdict.gates]
    assert [verdict.check for verdict in failed] == [check]
    assert seen in failed[0].message
    assert f"check_scheduler({source.__name__}, adapt=..., only=['{check}']" in failed[0].message


def test_sigmas_with_dimensions_keep_the_dtype_and_an_unused_draw_is_no_noise():
    verdicts = {
        verdict.check: verdict
        for verdict in check_scheduler(samplers.sample_euler_broadcast, adapt=KDiffusionSampler, raise_on_failure=False)
    }
    # What is drawn for nothing is a finding of its own; the sampler is judged as the ODE solver that it is.
    assert [name for name, verdict in verdicts.items() if verdict.gates] == ["deterministic_draws_nothing"]
    assert verdicts["dtype_kept"].outcome == verdicts["convergence_order"].outcome == "pass"


def test_an_adapter_must_be_whole():
    class Half:
        kind, prediction_type = "vp", "epsilon"

    with pytest.raises(TypeError, match="adapt returned Half, which has no takes_generator and no plan and no noise_at and no step"):
        check_scheduler(samplers.sample_euler, adapt=lambda source: Half())


def test_a_sampler_stands_still_in_each_call_of_its_model():
    sigmas = karras_sigmas(3)
    run = Suspended(samplers.sample_euler, torch.ones(1, 1, 2, 2), sigmas)
    states = [run.answer(torch.zeros(1, 1, 2, 2)) for _ in range(3)]
    assert run.is_over
    wanted = torch.ones(1, 1, 2, 2)
    for index, state in enumerate(states):
        wanted = wanted * sigmas[index + 1] / sigmas[index]
        assert torch.allclose(state, wanted.float())


def test_an_error_of_the_sampler_is_raised_where_it_is_driven():
    def dies(model, x, sigmas):
        model(x, sigmas[0])
        raise KeyError("lost")

    run = Suspended(dies, torch.ones(1), torch.ones(2))
    with pytest.raises(KeyError, match="lost"):
        run.answer(torch.zeros(1))
    assert run.is_over


def test_the_ramp_is_karras():
    sigmas = karras_sigmas(10)
    assert len(sigmas) == 11
    assert sigmas[-1] == 0
    steps = (sigmas[:-1] ** (1 / 7)).diff()
    assert torch.allclose(steps, steps[0])
    assert (float(sigmas[0]), float(sigmas[-2])) == pytest.approx((14.6146, 0.0292))


def test_an_adapted_scheduler_has_the_plan_of_its_adapter():
    scheduler = Adapted(KDiffusionSampler(samplers.sample_heun), "sample_heun")
    assert scheduler.order == 2
    scheduler.set_timesteps(3)
    assert len(scheduler.timesteps) == 5
    reading = scheduler.reading()
    assert [float(level.sigma) for level in reading.levels] == pytest.approx(scheduler.timesteps.tolist())
    assert float(reading.end.sigma) == 0
