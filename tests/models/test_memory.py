"""Models larger than memory: batches shrink, offloaded parts are left where accelerate put them."""

import diffusers
import pytest
import torch
from accelerate import cpu_offload

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.demo import reference_images
from pytest_diffusion.models.capabilities import device_of
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples.generate import generate_images
from pytest_diffusion.verdicts.errors import ModelError

SETTINGS = Settings(steps=2, guidance_scale=4.0)


@pytest.fixture
def offloaded(demo_copy):
    for name in ("unet", "vae", "text_encoder"):
        cpu_offload(getattr(demo_copy, name), execution_device="cpu")
    assert next(demo_copy.unet.parameters()).is_meta
    return demo_copy


def test_an_offloaded_pipeline_is_the_same_model(offloaded, demo_pipeline):
    assert fingerprint(offloaded) == fingerprint(demo_pipeline)
    assert device_of(offloaded) == torch.device("cpu")
    one, other = (generate_images(pipeline, ["a red circle"], [0], SETTINGS) for pipeline in (offloaded, demo_pipeline))
    assert (one == other).all()
    images = reference_images(3)
    codec, own = LatentCodec.of(offloaded), LatentCodec.of(demo_pipeline)
    assert codec.device == torch.device("cpu")
    assert torch.equal(codec.encode(images), own.encode(images))
    assert torch.equal(codec.decode(own.encode(images)), own.decode(own.encode(images)))


def test_offloaded_parts_are_not_moved_and_keep_their_dtype(offloaded, monkeypatch):
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: offloaded)
    monkeypatch.setattr(type(offloaded), "to", lambda *args, **kwargs: pytest.fail("it was moved"))
    assert load_pipeline(Settings(model="demo", device="cpu")) is offloaded
    with pytest.raises(ModelError, match=r"--diffusion-dtype: the parts of demo are offloaded; load them as bfloat16\."):
        load_pipeline(Settings(model="demo", device="cpu", dtype="bfloat16"))


@pytest.mark.parametrize("fits", [2, 0])
def test_the_vae_takes_fewer_images_where_memory_runs_out(demo_copy, fits):
    sizes = []

    def forget(module, args):
        sizes.append(len(args[0]))
        if len(args[0]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    codec = LatentCodec.of(demo_copy)
    latents = codec.encode(reference_images(5))
    expected = codec.decode(latents)
    demo_copy.vae.decoder.register_forward_pre_hook(forget)
    if fits:
        assert torch.allclose(codec.decode(latents), expected, atol=1e-5)
        assert sizes[-3:] == [2, 2, 1]
    else:
        with pytest.raises(ModelError, match="Out of memory even with a batch size of 1"):
            codec.decode(latents)


def test_large_images_go_through_the_vae_a_few_at_a_time(demo_copy):
    sizes = []

    def encoded(images):
        sizes.append(len(images))
        return torch.zeros(len(images), 8, images.shape[-2] // 2, images.shape[-1] // 2)

    demo_copy.vae.encoder.forward = encoded
    LatentCodec.of(demo_copy).encode(torch.zeros(3, 3, 1024, 512, dtype=torch.uint8))
    LatentCodec.of(demo_copy).encode(reference_images(40))
    assert sizes == [2, 1, 32, 8]


def test_a_watermark_is_left_out(demo_copy, monkeypatch):
    """Stable Diffusion XL's pipeline marks images, and not latents, where invisible-watermark is installed."""
    demo_copy.watermark = object()
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: demo_copy)
    assert load_pipeline(Settings(model="demo", device="cpu")).watermark is None
