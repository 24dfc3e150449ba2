"""Sound schedulers of other authors are judged and pass; what cannot be judged says why in one sentence, and is not green."""

import pytest
import torch
from diffusers import DDIMScheduler
from numpy import linspace

from pytest_diffusion import ConformanceFailure, check_scheduler
from tests.conformance import from_others as others
from tests.conformance.from_scratch import DDIM, FlowEuler

EXPECTED = {"DrawsForNothing": {"deterministic_draws_nothing"}}
"""A draw that nothing needs is a finding of its own."""
MUST_PASS = ("runs", "point_mass_preserved", "terminal_step", "timesteps_well_formed", "second_run", "batch_invariance")


def judged(scheduler, **declared):
    return {verdict.check: verdict for verdict in check_scheduler(scheduler, raise_on_failure=False, **declared)}


def gating(verdicts):
    return {name for name, verdict in verdicts.items() if verdict.gates}


@pytest.mark.parametrize("scheduler", others.FOREIGN, ids=lambda one: one.__name__)
def test_sound_schedulers_pass_and_are_looked_at(scheduler):
    verdicts = judged(scheduler)
    assert gating(verdicts) == EXPECTED.get(scheduler.__name__, set())
    assert {verdicts[name].outcome for name in MUST_PASS} == {"pass"}


@pytest.mark.parametrize("shift", [3.0, 5.0, 6.0])
def test_a_shift_of_training_and_plan_is_applied_once(shift):
    class Wan(others.ShiftedInBoth):
        def __init__(self):
            super().__init__(shift)

    verdicts = judged(Wan)
    assert gating(verdicts) == set()
    assert verdicts["timesteps_cover"].outcome == "pass"


def test_and_twice_is_caught():
    class InThePlan(others.ShiftedInBoth):
        def shares(self, count):
            return others.shifted(super().shares(count), self.shift)

    class AtTheCleanEnd(FlowEuler):
        """FlowMatchEuler's: the plan goes down to a clean end that has the shift already (#13243)."""

        shift = 3.0

        def __init__(self):
            super().__init__()
            even = 1 - (1000 - torch.arange(1000, 0, -1, dtype=torch.float64)) / 1000
            self.sigmas = others.shifted(even, self.shift)
            self.timesteps = self.sigmas * self.num_train_timesteps
            self.last = float(self.sigmas[-1])

        def shares(self, count):
            return others.shifted(torch.linspace(1, self.last, count, dtype=torch.float64), self.shift)

    for scheduler in (InThePlan, AtTheCleanEnd):
        verdicts = judged(scheduler)
        assert gating(verdicts) == {"timesteps_cover"}
        assert "training steps from sigma" in verdicts["timesteps_cover"].message


def test_a_large_shift_leaves_euler_of_order_one():
    class LTX(others.Shares):
        def __init__(self):
            super().__init__(278.0)

    assert judged(LTX)["convergence_order"].outcome == "pass"


def test_levels_are_read_off_the_noising_and_a_wrong_step_is_off_by_so_much():
    class ThreeTimes(others.Shares):
        def velocity(self, model_output):
            return 3 * model_output

    class Half(others.TowardsTheData):
        def velocity(self, model_output):
            return model_output / 2

    message = judged(ThreeTimes)["point_mass_preserved"].message
    assert "gives 1.5·image and 1·noise, off by 1, if the model gives the velocity" in message
    message = judged(Half)["point_mass_preserved"].message
    assert "off by 0.25, if the model gives the velocity image − noise, which is the nearest of all conventions" in message


def test_what_nothing_tells_is_declared():
    for scheduler in (others.WithoutNoising, others.RisingSigmas):
        assert "it is unknown how it represents its samples" in judged(scheduler)["point_mass_preserved"].message
        verdicts = judged(scheduler, kind="flow")
        assert gating(verdicts) == set()
        assert verdicts["point_mass_preserved"].outcome == "pass"
        assert verdicts["convergence_order"].outcome == "pass"
    # Declared as it is not, it fails.
    assert "point_mass_preserved" in gating(judged(others.WithoutNoising, kind="flow", prediction_type="epsilon"))
    with pytest.raises(ValueError, match=r"kind is 'flows'; expected one of: edm, flow, sigma, vp\. Did you mean 'flow'\?"):
        check_scheduler(others.WithoutNoising, kind="flows")


def test_arguments_of_plans_and_steps_are_handed_on():
    with pytest.raises(ConformanceFailure, match="missing 1 required keyword-only argument: 'stretch'"):
        check_scheduler(others.Guided)
    verdicts = judged(others.Guided, plan={"stretch": 7.0}, step={"omega": 10})
    assert gating(verdicts) == set()
    assert verdicts["point_mass_preserved"].outcome == "pass"


def test_what_is_declared_holds_for_saved_and_given_plans_too():
    class Configured(others.ShiftedInThePlan):
        shift = 1.0

        def set_timesteps(self, num_inference_steps=None, device=None, shift=1.0, sigmas=None):
            shares = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)[:-1] if sigmas is None else torch.tensor(sigmas)
            self.sigmas = torch.cat([others.shifted(shares.double(), shift), torch.zeros(1)])
            self.timesteps = self.sigmas[:-1] * self.num_train_timesteps
            self.step_index = None

    verdicts = judged(Configured, plan={"shift": 5.0})
    assert gating(verdicts) == set()
    assert verdicts["given_sigmas"].outcome == "pass"


def test_own_refusals_by_name_are_no_failures():
    class Images(DDIM):
        def step(self, model_output, timestep, sample, eta=0.0, generator=None):
            if sample.ndim != 4:
                raise ValueError(f"the sample has to be 4D, not {sample.ndim}D")
            return super().step(model_output, timestep, sample, eta, generator)

    class Dies(Images):
        def step(self, model_output, timestep, sample, eta=0.0, generator=None):
            return super().step(model_output, timestep, sample.permute(0, 1, 2, 3), eta, generator)

    verdicts = judged(Images)
    assert gating(verdicts) == set()
    assert verdicts["ranks"].message == "Images refuses samples of shape (2, 48): the sample has to be 4D, not 2D"
    assert gating(judged(Dies)) == {"ranks"}


def test_numpy_betas_are_their_documented_type():
    verdicts = judged(DDIMScheduler(trained_betas=linspace(1e-4, 0.02, 1000).astype("float32")))
    assert gating(verdicts) == set()
    assert verdicts["config_untouched"].outcome == "pass"
    assert verdicts["named_betas"].outcome == "pass"


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (others.BareTensor, "BareTensor.step returns a bare Tensor; a pipeline reads `prev_sample`, or the first entry of a tuple"),
        (others.Tables, "Tables.timesteps has the shape (5, 1); a loop needs one number for each step."),
        (others.NoTimesteps, "NoTimesteps has no `timesteps` after set_timesteps; a sampling loop goes through them."),
    ],
)
def test_another_interface_is_named_in_one_sentence_and_is_not_green(scheduler, reason):
    verdicts = judged(scheduler)
    assert gating(verdicts) == {"runs"}
    assert verdicts["runs"].outcome == "broken"
    assert f"no law could look at this scheduler. {reason}" in verdicts["runs"].message
    assert "Traceback" not in verdicts["runs"].message


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (others.OtherPrediction, "OtherPrediction has a prediction_type of 'score'; there are laws for epsilon, "),
        (others.NeedsMore, "NeedsMore.step needs model_output, timestep, sample, unconditional_output"),
    ],
)
def test_what_the_laws_cannot_know_is_skipped_with_a_reason(scheduler, reason):
    verdicts = judged(scheduler)
    assert gating(verdicts) == set()
    assert reason in verdicts["point_mass_preserved"].message
