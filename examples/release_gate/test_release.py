"""Tests of your own beside the built-in checklist; run with `pytest --diffusion-model=demo examples/release_gate`."""

import pytest
import torch

from pytest_diffusion import assert_clip_score_above, assert_log_snr_range, assert_slerp_smooth, record_attention, slerp

LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def test_schedule_is_that_of_stable_diffusion(diffusion_scheduler):
    assert_log_snr_range(diffusion_scheduler, thresholds="sd15")


def test_samples_fit_their_prompts(diffusion_samples, diffusion_clip):
    assert_clip_score_above(diffusion_samples, diffusion_clip, at_least=60)


def test_latent_paths_are_smooth(diffusion_paths):
    assert_slerp_smooth(diffusion_paths, at_most=6)


def test_the_noun_is_where_the_picture_differs_from_its_background(diffusion_pipeline, diffusion_report):
    """Attention of one call, by word: maps (steps, layers, tokens, h, w) of the steps that are asked for."""
    prompt = "a red circle"
    with record_attention(diffusion_pipeline, layers=[LAYER], steps=[9, 19]) as record:
        image = diffusion_pipeline(prompt, num_inference_steps=20, generator=torch.Generator().manual_seed(0), output_type="pt").images[0]
    maps = record.maps(size=image.shape[-2:])[-1, 0]
    words = dict(record.words(0))
    noun = maps[words["circle"]].mean(0)
    drawn = image.amax(0) - image.amin(0) > 0.25  # the demo's background is grey
    diffusion_report.add_number("attention of the noun on the object", float(noun[drawn].sum() / noun.sum()))
    assert noun[drawn].mean() > 3 * noun[~drawn].mean()


def test_half_way_between_two_images(diffusion_latents, diffusion_reference, diffusion_report):
    """Your own figures and numbers join the report."""
    start, end = diffusion_latents.encode(diffusion_reference.images[:2])
    middle = diffusion_latents.decode(slerp(start, end, 0.5)[None])[0]
    diffusion_report.add_figure("half-way", (middle * 255).round().to(torch.uint8))
    diffusion_report.add_number("mean level", float(middle.mean()))
    assert middle.isfinite().all()


@pytest.mark.diffusion(steps=5, num_samples=8)
def test_few_steps_still_give_finite_images(diffusion_samples):
    """The marker overrides options for one test."""
    assert len(diffusion_samples.images) == 8
    assert diffusion_samples.finite.all()
