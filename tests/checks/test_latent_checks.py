"""Latent checks: the demo's own parts pass, broken ones are named."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.adapters.clip import load_clip
from pytest_diffusion.adapters.latents import LatentCodec
from pytest_diffusion.adapters.references import Reference
from pytest_diffusion.demo import reference_images
from pytest_diffusion.samples.prompts import DirectionPair
from pytest_diffusion.samples.trials import Direction


@pytest.fixture(scope="module")
def codec(demo_pipeline):
    return LatentCodec.of(demo_pipeline)


@pytest.fixture(scope="module")
def reference():
    return Reference("demo", reference_images(800), sizes={"32x32": 800})


def test_the_demos_latent_space_passes(codec, reference):
    for assertion in (
        pd.assert_vae_psnr_above,
        pd.assert_latent_std,
        pd.assert_slerp_smooth,
        pd.assert_slerp_drift,
        pd.assert_ood_auroc_above,
        pd.assert_ood_false_alarms_below,
    ):
        assert assertion(codec, reference, thresholds="demo").outcome == "pass", assertion


@pytest.mark.parametrize(
    ("factor", "message"),
    [(1.0, "scaling factor is missing"), (0.18215**2, "scaling factor was applied twice"), (0.6, "scaling factor is wrong")],
)
def test_a_wrong_scaling_factor_is_named(codec, reference, factor, message):
    with pytest.raises(pd.QualityFailure, match=message):
        pd.assert_latent_std(replace(codec, scaling_factor=factor), reference)


def test_a_vae_that_loses_the_image_is_seen(codec, reference):
    broken = replace(codec, vae=copy.deepcopy(codec.vae))
    with torch.no_grad():
        broken.vae.decoder.conv_out.weight *= 0.3
    with pytest.raises(pd.QualityFailure, match="round-trip PSNR is"):
        pd.assert_vae_psnr_above(broken, reference)


@dataclass
class Jumping:
    """A codec whose decoder shows another image from the middle of every path on."""

    inner: LatentCodec

    def encode(self, images):
        return self.inner.encode(images)

    def decode(self, latents):
        frames = self.inner.decode(latents)
        frames[len(frames) // 2 :] = 1 - frames[len(frames) // 2 :]
        return frames


def test_a_jump_in_the_path_is_found(codec, reference):
    with pytest.raises(pd.QualityFailure, match="The jump lies between frames 7 and 8"):
        pd.assert_slerp_smooth(Jumping(codec), reference)


def test_a_path_that_runs_back_is_found(codec, reference):
    class Folding(Jumping):
        def decode(self, latents):
            frames = self.inner.decode(latents)
            return torch.cat([frames[::2], frames[::2].flip(0)[1:]])

    with pytest.raises(pd.QualityFailure, match=r"share of steps that drift away is 0\.5"):
        pd.assert_slerp_drift(Folding(codec), reference)


def test_an_encoder_that_sees_nothing_has_no_auroc(codec, reference):
    class Blind(Jumping):
        def encode(self, images):
            return torch.randn(len(images), 4, 8, 8, generator=torch.Generator().manual_seed(len(images)))

    with pytest.raises(pd.QualityFailure, match="AUROC for"):
        pd.assert_ood_auroc_above(Blind(codec), reference)


def test_references_that_change_half_way_score_as_outliers(codec, reference):
    drifting = reference.images.clone()
    drifting[400:][1::2] = 255 - drifting[400:][1::2]
    with pytest.raises(pd.QualityFailure, match="share of references flagged as outliers"):
        pd.assert_ood_false_alarms_below(codec, replace(reference, images=drifting))


def test_twenty_references_are_not_enough(codec, reference):
    with pytest.raises(pd.InconclusiveFailure, match="10 reference images, at least 100 are needed"):
        pd.assert_ood_auroc_above(codec, replace(reference, images=reference.images[:20]))


def test_semantic_direction():
    from pytest_diffusion.demo.scenes import render, scene_of, to_uint8

    clip = load_clip("demo")
    source = to_uint8(render([scene_of(0)] * 32, seed=1)[0])
    target = to_uint8(render([scene_of(16)] * 32, seed=1)[0])
    pair = DirectionPair("a red circle", "a blue circle")
    assert pd.assert_semantic_direction(Direction(pair, source, target), clip).measurement.value > 0.8
    scattered = to_uint8(render([scene_of(index % 24) for index in range(32)], seed=2)[0])
    random = to_uint8(render([scene_of((index * 7 + 5) % 24) for index in range(32)], seed=3)[0])
    with pytest.raises(pd.QualityFailure, match="moves different samples in different directions"):
        pd.assert_semantic_direction(Direction(pair, scattered, random), clip, at_least=0.5)


def test_large_latents_are_pooled_before_their_covariance_is_formed():
    from pytest_diffusion.checks.latents import _flat

    assert _flat(torch.zeros(2, 16, 128, 128)).shape == (2, 1024)
    assert _flat(torch.zeros(2, 4, 8, 8)).shape == (2, 256)
