import copy
from types import SimpleNamespace

import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.checks.determinism import (
    batch_invariance,
    guidance_effect,
    guidance_linearity,
    prompt_sensitivity,
    same_seed,
    seeds_differ,
)
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import NotApplicable

PROMPTS = ["a red circle", "a blue square above a green cross", "a yellow triangle", "a purple cross"]
SETTINGS = Settings(steps=4, guidance_scale=4.0)


@pytest.fixture
def trials(demo_copy):
    return Trials(demo_copy, PROMPTS, SETTINGS)


def test_the_demo_passes(trials):
    for assertion in (
        pd.assert_same_seed,
        pd.assert_batch_invariance,
        pd.assert_seeds_differ,
        pd.assert_guidance_effect,
        pd.assert_guidance_linearity,
    ):
        assert assertion(trials).outcome == "pass"


def test_the_pixel_model_passes_what_applies(pixel_pipeline):
    trials = Trials(pixel_pipeline, None, SETTINGS)
    for assertion in (pd.assert_same_seed, pd.assert_batch_invariance, pd.assert_seeds_differ):
        assert assertion(trials).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match="has no guidance_scale"):
        pd.assert_guidance_effect(trials)


def wrap_unet(pipeline, change):
    """Let `change` alter what the UNet returns."""
    unet = pipeline.unet
    forward = unet.forward

    def altered(sample, timestep, encoder_hidden_states=None, **kwargs):
        output = forward(sample, timestep, encoder_hidden_states=encoder_hidden_states, **kwargs)
        return (change(output[0]), *output[1:])

    unet.forward = altered


def test_hidden_randomness_is_seen(trials):
    wrap_unet(trials.pipeline, lambda output: output + 0.3 * torch.randn_like(output))
    with pytest.raises(pd.QualityFailure, match="draws from another source than the generator"):
        pd.assert_same_seed(trials)


def test_leakage_between_samples_is_seen(trials):
    wrap_unet(trials.pipeline, lambda output: output - 0.5 * output.mean(0, keepdim=True))
    with pytest.raises(pd.QualityFailure, match="mixes the samples of a batch"):
        pd.assert_batch_invariance(trials)


def test_what_reduced_precision_may_explain_is_not_judged(trials):
    """In bfloat16 other batch sizes may differ by more than half a level without a fault."""
    trials.pipeline.to(torch.bfloat16)
    wrap_unet(trials.pipeline, lambda output: output - 0.5 * output.mean(0, keepdim=True))
    with pytest.raises(pd.QualityFailure, match=r"reported and not judged: rounding in bfloat16 may explain it"):
        pd.assert_batch_invariance(trials)


def test_a_deaf_generator_is_seen(trials):
    pipeline = trials.pipeline
    own = pipeline.prepare_latents
    pipeline.prepare_latents = lambda *args, **kwargs: own(*args, **kwargs) * 0
    with pytest.raises(pd.QualityFailure, match="is the generator used"):
        pd.assert_seeds_differ(trials)


def test_a_deaf_text_encoder_is_seen(trials):
    encoder = copy.deepcopy(trials.pipeline.text_encoder)
    trials.pipeline.text_encoder = encoder
    encoder.register_forward_hook(lambda module, args, output: (torch.zeros_like(output[0]), output[1]))
    with pytest.raises(pd.QualityFailure, match="the prompt has no effect"):
        pd.assert_guidance_effect(trials)


def test_clipped_guidance_is_seen(trials):
    # Per sample of the doubled batch, so that the clipping bends the guided prediction.
    scheduler = trials.pipeline.scheduler
    own = scheduler.step
    scheduler.step = lambda output, *args, **kwargs: own(output.clamp(-0.7, 0.7), *args, **kwargs)
    with pytest.raises(pd.QualityFailure, match="rescaled or clipped after guidance"):
        pd.assert_guidance_linearity(trials)


def first_steps(bend):
    """Latents that follow the guidance scale on a line, plus a bend that is `bend` times the rounding of their dtype."""
    base = torch.full((4, 4, 8, 8), 1.0, dtype=torch.float64)
    eps = torch.finfo(torch.float32).eps
    return {2.0: base, 4.0: base * (1 + 1e-3) - bend * eps / 2, 6.0: base * (1 + 2e-3)}


@pytest.mark.parametrize(("bend", "expected"), [(1.9, 0.0), (100, (100 - 2) * 2.0**-23 / 2e-3)])
def test_only_what_two_units_of_rounding_explain_is_forgiven(bend, expected):
    steps = first_steps(bend)
    stand_in = SimpleNamespace(first_step=steps.get, denoiser_dtype=torch.float32, settings=SimpleNamespace(steps=4))
    assert guidance_linearity(stand_in).value == pytest.approx(expected, abs=1e-5)


def test_differences_are_counted_by_image_and_measured_in_levels():
    """Of four images one pixel of the second changes by 48 levels, and all of the last by 3."""
    plain = torch.full((4, 3, 4, 4), 100, dtype=torch.uint8)
    other = plain.clone()
    other[1, 0, 2, 3] = 148
    other[3] = 97
    trials = SimpleNamespace(plain=plain, again=other, one_by_one=other, coarse_rounding="bfloat16")
    repeated, batched = same_seed(trials), batch_invariance(trials)
    assert repeated.value == 48
    assert repeated.hint == "2 of 4 images changed: something draws from another source than the generator."
    assert same_seed(SimpleNamespace(plain=plain, again=plain)).hint == ""
    assert batched.value == pytest.approx((48 + 48 * 3) / (4 * 48))
    assert batched.hint.startswith("Sample 3 changes most")
    assert batched.series == {"largest": 48}
    assert batched.unjudged.startswith("rounding in bfloat16 may explain it")
    other[3] = 99
    assert batch_invariance(trials).value == pytest.approx(0.5)
    assert batch_invariance(trials).unjudged == "", "half a level is judged"


def test_the_two_images_that_are_most_alike_are_named():
    images = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    images[0], images[1], images[2], images[3] = 10, 200, 100, 197
    measured = seeds_differ(SimpleNamespace(of_one_prompt=([5, 6, 7, 8], images)))
    assert measured.value == 3
    assert "Seeds 6 and 8 give almost the same image" in measured.hint
    sides = {"a red circle": images, "a blue square": images.flip(0)}
    assert prompt_sensitivity(SimpleNamespace(of_two_prompts=sides)).value == 100


def test_the_effect_of_guidance_is_relative_to_the_latents_without_it():
    steps = {1.0: torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 5.0: torch.tensor([[3.0, 6.0], [8.0, 4.0]])}
    measured = guidance_effect(SimpleNamespace(first_step=steps.get))
    assert (measured.value, measured.num_samples) == (2, 2)


def test_guidance_that_rounding_hides_is_not_judged():
    steps = {scale: torch.full((2, 2), 1 + 2**-9 * scale) for scale in (2.0, 4.0, 6.0)}
    trials = SimpleNamespace(first_step=steps.get, denoiser_dtype=torch.bfloat16, settings=SimpleNamespace(steps=30))
    with pytest.raises(NotApplicable, match=r"rounding in torch.bfloat16 hides the effect of guidance in one of 30 steps; try float32"):
        guidance_linearity(trials)
    trials.first_step = lambda scale: steps[2.0]
    with pytest.raises(NotApplicable, match="there is no line to follow"):
        guidance_linearity(trials)
