"""The autoencoders of every family: factor and shift as their pipelines apply them, wrong ones named, tiled and sliced ones heard."""

from dataclasses import replace

import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.data.images import resize_images
from pytest_diffusion.data.references import Reference
from pytest_diffusion.demo import reference_images
from pytest_diffusion.models.latents import LatentCodec
from tests.families.models import build

pytestmark = pytest.mark.filterwarnings("ignore")
FAMILIES = ["sd15", "sdxl", "sd3", "flux"]


@pytest.fixture(scope="module")
def reference():
    return Reference("demo", resize_images(reference_images(32), 64, 64))


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request, reference):
    """A family's pipeline whose encoder gives what its configuration promises: scaled latents of mean 0 and deviation 1."""
    pipeline = build(request.param)
    codec = LatentCodec.of(pipeline)
    encoded = codec.encode(reference.images)
    last = pipeline.vae.quant_conv if pipeline.vae.quant_conv is not None else pipeline.vae.encoder.conv_out
    channels = encoded.shape[1]
    raw = encoded / codec.scaling_factor + codec.shift
    gain = 1 / (codec.scaling_factor * raw.std())
    with torch.no_grad():
        last.weight[:channels] *= gain
        last.bias[:channels] = gain * (last.bias[:channels] - raw.mean()) + codec.shift.flatten()
    return pipeline


def test_latents_are_scaled_as_the_pipelines_scale_them(pipeline, reference):
    config, codec = pipeline.vae.config, LatentCodec.of(pipeline)
    pixels = reference.images[:4].float() / 127.5 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.mode()
        expected = (raw - (config.shift_factor or 0)) * config.scaling_factor
        assert torch.allclose(codec.encode(reference.images[:4]), expected, atol=1e-5)
        image = pipeline.vae.decode(expected / config.scaling_factor + (config.shift_factor or 0)).sample
    assert torch.allclose(codec.decode(expected), (image / 2 + 0.5).clamp(0, 1), atol=1e-5)
    encoded = codec.encode(reference.images)
    assert float(encoded.std()) == pytest.approx(1, abs=1e-3)
    assert float(encoded.mean()) == pytest.approx(0, abs=1e-3)


def test_missing_and_doubled_factors_are_named(pipeline, reference):
    codec = LatentCodec.of(pipeline)
    assert pd.assert_latent_std(codec, reference).outcome == "pass"
    factor = codec.scaling_factor
    with pytest.raises(pd.QualityFailure, match="It looks as if the VAE's scaling factor is missing") as missing:
        pd.assert_latent_std(replace(codec, scaling_factor=1.0), reference)
    assert f"A scaling factor of {factor:.2g}" in str(missing.value)
    assert "Latents of unit spread decode to a contrast of" in str(missing.value)
    with pytest.raises(pd.QualityFailure, match="It looks as if the VAE's scaling factor was applied twice"):
        pd.assert_latent_std(replace(codec, scaling_factor=factor**2), reference)


def test_an_ignored_shift_moves_the_latents_by_what_the_configuration_names(pipeline, reference):
    codec = LatentCodec.of(pipeline)
    ignored = replace(codec, shift=torch.zeros_like(codec.shift)).encode(reference.images)
    moved = float(codec.shift.flatten()[0]) * codec.scaling_factor
    assert float(ignored.mean()) == pytest.approx(moved, abs=1e-3)
    assert moved == pytest.approx({0.0609: 0.0932, 0.1159: 0.0419}.get(pipeline.vae.config.shift_factor, 0), abs=1e-3)


def test_slicing_changes_nothing_and_tiling_is_heard(pipeline, reference):
    vae, images = pipeline.vae, reference.images[:3]
    codec = LatentCodec.of(pipeline)
    whole = codec.encode(images)
    decoded = codec.decode(whole)
    try:
        vae.enable_slicing()
        assert torch.allclose(codec.encode(images), whole, atol=1e-5)
        assert torch.allclose(codec.decode(whole), decoded, atol=1e-5)
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 32, 4
        tiled = codec.encode(images)
        assert tiled.shape == whole.shape
        assert not torch.allclose(tiled, whole, atol=1e-5), "tiles have borders of their own"
        with torch.no_grad():
            own = vae.encode(images.float() / 127.5 - 1).latent_dist.mode()
        assert torch.allclose(tiled, (own - codec.shift) * codec.scaling_factor, atol=1e-5)
        assert codec.decode(whole).shape == decoded.shape
        half = build("sdxl").to(torch.float16) if vae.config.force_upcast and pipeline.vae.config.latent_channels == 4 else None
        if half is not None:
            half.vae.enable_tiling()
            assert LatentCodec.of(half).upcasts
            assert LatentCodec.of(half).vae.use_tiling
    finally:
        vae.disable_slicing()
        vae.disable_tiling()
