"""What an author writes: one decorator. Below it, what the suite says of the first try."""

from first_try import FirstTry
from hypothesis import given, settings
from sampler import FasterScheduler, sample_euler
from scheduler import AncestralScheduler

from pytest_diffusion import KDiffusionSampler, check_equivalence, check_scheduler, parametrize_with_scheduler_checks
from pytest_diffusion.conformance.strategies import samples, timesteps


@parametrize_with_scheduler_checks([AncestralScheduler(), AncestralScheduler(prediction_type="v_prediction")])
def test_scheduler(scheduler, check):
    check(scheduler)


def test_the_first_try_breaks_what_it_gets_wrong():
    failed = {
        verdict.check: verdict.message for verdict in check_scheduler(FirstTry(), raise_on_failure=False) if verdict.outcome == "fail"
    }
    # The schedule leaps past its own timesteps, and float32 rounding repeats one in a thousand steps.
    assert "step 0 (timestep 999) gives" in failed["point_mass_preserved"]
    assert "it changes although a generator is given" in failed["generator_honoured"]
    assert "differs from separate calls" in failed["forward_is_pure"]


def test_a_sampler_that_calls_its_model_itself():
    check_scheduler(sample_euler, adapt=KDiffusionSampler)


def test_the_faster_one_gives_the_same_samples():
    check_equivalence(FasterScheduler, AncestralScheduler)


@settings(max_examples=20, deadline=None)
@given(image=samples(shape=(2, 3, 4, 4)), timestep=timesteps(AncestralScheduler()))
def test_noising_keeps_the_image_at_its_share(image, timestep):
    scheduler = AncestralScheduler()
    noised = scheduler.add_noise(image, 0 * image, timestep.repeat(2))
    assert (noised - scheduler.alphas_cumprod[timestep].sqrt() * image).abs().max() < 1e-6
