"""Samplers with other interfaces are driven by adapters, and judged like all others."""

import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from pytest_diffusion import ADMDiffusion, KDiffusionSampler, NumpyScheduler, check_scheduler
from pytest_diffusion.conformance.adapters import Adapted, _NoiseOf, karras_sigmas
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


def sample_churned(model, x, sigmas, noise_sampler=None):
    """Euler that raises the noise by a fifth before each evaluation (arXiv:2206.00364, algorithm 2), also before the first one."""
    for sigma, after in pairwise(sigmas):
        hat = sigma * 1.2
        x = x + (hat**2 - sigma**2) ** 0.5 * noise_sampler(sigma, hat)
        denoised = model(x, hat * x.new_ones(len(x)))
        x = x + ((x - denoised) / hat * (after - hat)).to(x.dtype)
    return x


def test_noise_that_is_added_before_the_first_evaluation_is_seen():
    verdicts = {verdict.check: verdict for verdict in check_scheduler(sample_churned, adapt=KDiffusionSampler, raise_on_failure=False)}
    assert not [verdict.message for verdict in verdicts.values() if verdict.gates]
    assert {verdicts[name].outcome for name in ("runs", "point_mass_preserved", "noise_is_normal", "generator_honoured")} == {"pass"}
    assert "no run begins between two sigmas" in verdicts["partial_start"].message


def sample_with_a_last_look(model, x, sigmas):
    """Euler, and the model once more at the last sigma."""
    if len(sigmas) < 2:
        return x
    for sigma, after in pairwise(sigmas):
        x = x + ((x - model(x, sigma * x.new_ones(len(x)))) / sigma * (after - sigma)).to(x.dtype)
    return model(x, sigmas[-1] * x.new_ones(len(x)))


def test_one_evaluation_more_is_not_one_of_each_step_and_a_sampler_may_end_without_a_question():
    assert Adapted(KDiffusionSampler(sample_with_a_last_look), "it").order == 1
    run = Suspended(sample_with_a_last_look, torch.ones(1, 1, 2, 2), torch.ones(1))
    assert run.is_over
    assert torch.equal(run.sample, torch.ones(1, 1, 2, 2))
    with pytest.raises(RuntimeError, match="asks its model no more"):
        run.answer(torch.zeros(1))
    assert {
        verdict.outcome for verdict in check_scheduler(sample_with_a_last_look, adapt=KDiffusionSampler, only=["runs", "partial_start"])
    } <= {
        "pass",
        "skipped",
    }


def test_a_sampler_that_nobody_waits_for_ends_also_where_it_catches_all():
    def catches(model, x, sigmas):
        try:
            model(x, sigmas[0])
        except BaseException:
            pass
        return model(x, sigmas[0])

    before = set(threading.enumerate())
    run = Suspended(catches, torch.ones(1), torch.ones(2))
    (thread,) = set(threading.enumerate()) - before
    del run
    thread.join(timeout=30)
    assert not thread.is_alive()


class OwnRandomNumbers(samplers.ArrayDDIM):
    """DDPM with NumPy's generator."""

    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)

    def step(self, output, timestep, sample):
        place = int(np.nonzero(self.timesteps == timestep)[0][0])
        here = self.product(timestep)
        there = self.product(self.timesteps[place + 1]) if place + 1 < len(self.timesteps) else 1.0
        clean = (sample - np.sqrt(1 - here) * output) / np.sqrt(here)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        kept = np.sqrt(max(1 - there - variance, 0))
        drawn = np.sqrt(variance) * self.random.standard_normal(sample.shape)
        return (np.sqrt(there) * clean + kept * output + drawn).astype(sample.dtype)


def test_noise_that_numpy_draws_is_not_looked_at_and_raises_no_alarm():
    verdicts = {verdict.check: verdict for verdict in check_scheduler(OwnRandomNumbers, adapt=NumpyScheduler)}
    assert verdicts["noise_is_normal"].message == "OwnRandomNumbers adds noise that torch does not draw, which cannot be looked at."
    assert "so its runs cannot be compared" in verdicts["second_run"].message
    assert {verdicts[name].outcome for name in ("runs", "point_mass_preserved", "terminal_step")} == {"pass"}


def sample_restart(model, x, sigmas, noise_sampler=None):
    """Euler that goes back to a higher sigma once, in plans of six steps or more (arXiv:2306.14878)."""
    for index, (sigma, after) in enumerate(pairwise(sigmas)):
        x = x + ((x - model(x, sigma * x.new_ones(len(x)))) / sigma * (after - sigma)).to(x.dtype)
        if index == 3 and len(sigmas) > 6:
            high = sigmas[2]
            x = x + (high**2 - after**2) ** 0.5 * noise_sampler(after, high)
            x = x + ((x - model(x, high * x.new_ones(len(x)))) / high * (after - high)).to(x.dtype)
    return x


def test_a_sampler_that_goes_back_to_more_noise_raises_no_alarm():
    assert Adapted(KDiffusionSampler(sample_restart), "it").has_uneven_steps
    assert not Adapted(KDiffusionSampler(samplers.sample_heun), "it").has_uneven_steps
    verdicts = {verdict.check: verdict for verdict in check_scheduler(sample_restart, adapt=KDiffusionSampler, raise_on_failure=False)}
    assert not [verdict.message for verdict in verdicts.values() if verdict.gates]
    assert verdicts["runs"].outcome == verdicts["point_mass_preserved"].outcome == "pass"


class LearnsItsVariance(samplers.GaussianDiffusion):
    def p_sample(self, model, sample, timestep, **rest):
        output = model(sample, timestep)
        noise, share = output.chunk(2, dim=1)
        assert bool((share == -1).all())
        return super().p_sample(lambda *_, **__: noise, sample, timestep, **rest)


def test_adm_objects_may_learn_their_variance():
    found = check_scheduler(LearnsItsVariance, adapt=partial(ADMDiffusion, learned_variance=True), only=["runs", "point_mass_preserved"])
    assert {verdict.outcome for verdict in found} == {"pass"}


def test_noise_is_drawn_where_its_generators_are():
    sample = torch.zeros(3, 2, device="meta")
    assert _NoiseOf(None, sample)().device == sample.device
    drawn = _NoiseOf([torch.Generator().manual_seed(seed) for seed in (1, 2, 3)], torch.zeros(3, 2))()
    assert torch.equal(drawn[1:2], torch.randn(1, 2, generator=torch.Generator().manual_seed(2)))
