"""The helpers on plain scores, on images with a scorer, and on two pipelines: both ways."""

import copy

import numpy as np
import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.demo import reference_captions, reference_images
from pytest_diffusion.features.image_scores import tone_scorer

SCORES = np.random.default_rng(0).normal(30, 3, 400)
NOISE = np.random.default_rng(1).normal(0, 0.3, 400)


def test_scores_that_are_as_good_pass():
    verdict = pd.assert_not_worse(SCORES + NOISE, SCORES, margin=0.5)
    assert verdict.measurement.relation == "same"
    assert verdict.measurement.num_samples == 400
    assert pd.assert_not_worse(SCORES + 2, SCORES, margin=0.5).measurement.relation == "better"
    assert pd.assert_not_worse(SCORES - 2, SCORES, margin=0.5, less_is_better=True).measurement.relation == "better"


@pytest.mark.parametrize(("change", "options"), [(-1.0, {}), (1.0, {"less_is_better": True})])
def test_scores_that_are_worse_fail_with_what_was_seen(change, options):
    with pytest.raises(pd.QualityFailure, match=r"worse: change of quality is .* allowed at (least -0.5|most 0.5) \(given by the caller\)"):
        pd.assert_not_worse(SCORES + change + NOISE, SCORES, margin=0.5, name="quality", **options)


def test_too_few_pairs_cannot_tell():
    with pytest.raises(pd.InconclusiveFailure, match=r"cannot tell: change of score .* More than 4 pairs would be needed"):
        pd.assert_not_worse(SCORES[:4] + NOISE[:4], SCORES[:4], margin=0.1)


def test_pairs_of_one_prompt_count_together():
    shift = np.repeat(np.random.default_rng(2).normal(0, 1, 20), 20)
    pd.assert_not_worse(SCORES + shift, SCORES, margin=0.45)
    with pytest.raises(pd.InconclusiveFailure):
        pd.assert_not_worse(SCORES + shift, SCORES, margin=0.45, clusters=[index // 20 for index in range(400)])


def test_a_floor_above_the_margin_cannot_tell():
    with pytest.raises(pd.InconclusiveFailure, match="Two sound builds of the baseline differ by 1 on this machine"):
        pd.assert_not_worse(SCORES - 5, SCORES, margin=0.5, floor=1.0)


def test_equivalence_forbids_both_directions():
    pd.assert_equivalent(SCORES + NOISE, SCORES, margin=0.5)
    for change in (-1.0, 1.0):
        with pytest.raises(pd.QualityFailure, match=r"allowed between -0\.5 and 0\.5"):
            pd.assert_equivalent(SCORES + change, SCORES, margin=0.5)


def test_images_are_scored_by_a_scorer():
    images = reference_images(64)
    darker = (images.float() * 0.8).to(torch.uint8)
    pd.assert_equivalent(images, images, tone_scorer(), margin=0.05)
    with pytest.raises(pd.QualityFailure):
        pd.assert_not_worse(darker, images, lambda one, prompts: one.float().mean((1, 2, 3)), margin=5.0)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(400,\) and \(399,\); expected \(N,\) for the same N pairs"):
        pd.assert_not_worse(SCORES, SCORES[1:], margin=1.0)


def test_pipelines_are_compared_by_their_loss(demo_pipeline):
    images, captions = reference_images(96), reference_captions(96)
    same = pd.assert_denoising_not_worse(demo_pipeline, demo_pipeline, images, captions, margin=10.0)
    assert same.measurement.value == 0
    assert same.measurement.unit == "%"
    damaged = copy.deepcopy(demo_pipeline)
    with torch.no_grad():
        for index, weight in enumerate(damaged.unet.parameters()):
            weight += 0.1 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index))
    with pytest.raises(pd.QualityFailure, match=r"worse: change of denoising_loss is .* % \(N=96"):
        pd.assert_denoising_not_worse(damaged, demo_pipeline, images, captions, margin=10.0)
