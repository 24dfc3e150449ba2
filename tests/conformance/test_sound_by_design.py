"""Designs that look like faults, and the faults that look like them: restarts, Euler-Maruyama, plans by the size of the image."""

import math
from types import SimpleNamespace

import pytest
import torch

from pytest_diffusion import check_scheduler
from tests.conformance.from_scratch import DDIM, FlowEuler


def judged(scheduler, **rest):
    return {verdict.check: verdict for verdict in check_scheduler(scheduler, raise_on_failure=False, **rest)}


def gating(verdicts):
    return {name for name, verdict in verdicts.items() if verdict.gates}


class Restarts(DDIM):
    """From the middle of a plan, one step goes back up with new noise (arXiv:2306.14878)."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        plain = self.timesteps.tolist()
        middle = len(plain) // 2
        self.visited = plain if len(plain) < 6 else plain[: middle + 1] + plain[middle - 1 :]
        self.timesteps, self.number = torch.tensor(self.visited), None

    def back(self, here, there, sample, generator):
        return (there / here).sqrt() * sample + (1 - there / here).sqrt() * self.draw(sample, generator)

    def step(self, model_output, timestep, sample, generator=None):
        self.number = self.visited.index(int(timestep)) if self.number is None else self.number
        after = [*self.visited, -1][self.number + 1]
        goes_up = after > self.visited[self.number]
        self.number += 1
        here, there = self.product(timestep), self.product(after)
        if goes_up:
            return self.gave(self.back(here, there, sample.double(), generator).to(sample))
        clean, noise = self.clean_and_noise(model_output.double(), sample.double(), here)
        return self.gave((there.sqrt() * clean + (1 - there).sqrt() * noise).to(sample))


class RestartsTooFar(Restarts):
    """The noise of the way back is that of the deviation, and not of the variance."""

    def back(self, here, there, sample, generator):
        return (there / here).sqrt() * sample + (1 - (there / here).sqrt()).sqrt() * self.draw(sample, generator)


class OutOfOrder(Restarts):
    """Goes back up without new noise: two timesteps of the plan are exchanged."""

    def set_timesteps(self, num_inference_steps, device=None):
        DDIM.set_timesteps(self, num_inference_steps)
        plain = self.timesteps.tolist()
        if len(plain) > 5:
            plain[2], plain[3] = plain[3], plain[2]
        self.visited, self.number = plain, None
        self.timesteps = torch.tensor(plain)

    def back(self, here, there, sample, generator):
        return (there / here).sqrt() * sample


class ReverseDiffusion:
    """The reverse-diffusion predictor of score SDEs: an Euler-Maruyama step, exact only with infinitely many steps (arXiv:2011.13456)."""

    order = 1
    init_noise_sigma = 20.0
    noise_factor = 1.0

    def __init__(self):
        self.config = {"sigma_min": 0.02, "sigma_max": 20.0, "num_train_timesteps": 1000}

    def set_timesteps(self, num_inference_steps, device=None):
        levels = torch.logspace(math.log10(20), math.log10(0.02), num_inference_steps, dtype=torch.float64)
        self.sigmas = torch.cat([levels, torch.zeros(1)])
        self.timesteps = levels.clone()

    def step(self, model_output, timestep, sample, generator=None):
        place = int((self.timesteps - float(timestep)).abs().argmin())
        here, there = self.sigmas[place], self.sigmas[place + 1]
        state, noise = sample.double(), model_output.double()
        if there == 0:
            return SimpleNamespace(prev_sample=(state - here * noise).to(sample))
        change = here**2 - there**2
        arrived = state - change / here * noise + self.noise_factor * change.sqrt() * DDIM.draw(self, state, generator)
        return SimpleNamespace(prev_sample=arrived.to(sample))

    def add_noise(self, original_samples, noise, timesteps):
        return original_samples + noise * timesteps.view(-1, *[1] * (noise.ndim - 1)).to(noise)


class TooNoisy(ReverseDiffusion):
    noise_factor = 1.1


class LevelsExchanged(ReverseDiffusion):
    """Euler's deterministic step, which arrives wherever it is sent; two levels of the plan are exchanged."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps > 5:
            self.sigmas[[2, 3]] = self.sigmas[[3, 2]]
        self.timesteps = self.sigmas[:-1].clone()

    def step(self, model_output, timestep, sample, generator=None):
        place = int((self.timesteps - float(timestep)).abs().argmin())
        arrived = sample.double() + (self.sigmas[place + 1] - self.sigmas[place]) * model_output.double()
        return SimpleNamespace(prev_sample=arrived.to(sample))


class BySize(FlowEuler):
    """The shift of its plan follows from the size of the image."""

    def __init__(self):
        super().__init__()
        self.sigmas = torch.linspace(1, 1 / 1000, 1000, dtype=torch.float64)
        self.timesteps = self.sigmas * 1000

    def set_timesteps(self, num_inference_steps, device=None, height=1024, width=1024):
        super().set_timesteps(num_inference_steps)
        shift = math.sqrt(height * width) / 256
        shares = self.sigmas / (1 + (shift - 1) * self.sigmas) * shift
        self.sigmas, self.timesteps = shares, shares[:-1] * self.num_train_timesteps


class ShiftedUnasked(BySize):
    """The same shift, and nothing that the caller could say about it."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)


@pytest.mark.parametrize("scheduler", [Restarts, ReverseDiffusion])
def test_sound_designs_raise_no_alarm(scheduler):
    verdicts = judged(scheduler)
    assert {verdicts[name].message for name in gating(verdicts)} == set()
    assert verdicts["runs"].outcome == "pass"


@pytest.mark.parametrize(
    ("scheduler", "law", "seen"),
    [
        (RestartsTooFar, "point_mass_preserved", "·noise"),
        (OutOfOrder, "timesteps_well_formed", "is followed by"),
        (TooNoisy, "point_mass_preserved", "·noise"),
        (LevelsExchanged, "timesteps_well_formed", "is followed by"),
    ],
)
def test_faults_that_look_like_them_are_found(scheduler, law, seen):
    verdicts = judged(scheduler)
    assert law in gating(verdicts)
    assert seen in verdicts[law].measurement.hint


def test_a_plan_by_the_size_of_the_image_is_no_second_shift():
    sound = judged(BySize, only=["timesteps_cover"])["timesteps_cover"]
    assert "BySize shapes its plan by height, by a formula of its own." in sound.message
    verdict = judged(ShiftedUnasked, only=["timesteps_cover"])["timesteps_cover"]
    assert verdict.outcome == "fail"
    assert "training steps from sigma" in verdict.message


def test_what_is_exact_in_the_limit_only_is_skipped_with_its_reason():
    verdicts = judged(ReverseDiffusion, only=["point_mass_preserved", "weak_convergence"])
    assert "only with infinitely many steps" in verdicts["point_mass_preserved"].message
    assert verdicts["weak_convergence"].outcome == "pass"


def test_an_order_of_a_solver_under_the_name_of_evaluations_is_explained():
    class Named(DDIM):
        order = 2

    verdict = judged(Named, only=["timesteps_well_formed"])["timesteps_well_formed"]
    assert verdict.outcome == "fail"
    assert "the order of a solver that evaluates once is `solver_order`" in verdict.message


def test_a_crash_between_the_usual_numbers_of_steps_is_told_once():
    class DiesAt28(DDIM):
        def step(self, model_output, timestep, sample, eta=0.0, generator=None):
            if len(self.timesteps) == 28:
                raise IndexError("list index out of range")
            return super().step(model_output, timestep, sample, eta, generator)

    assert gating(judged(DiesAt28)) == {"runs"}
