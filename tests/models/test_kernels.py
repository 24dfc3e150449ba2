"""Compiled, laid out channels-last: the samples stay the same within rounding, and have an address of their own."""

from dataclasses import replace

import pytest
import torch

from pytest_diffusion.attention.recorder import record_attention
from pytest_diffusion.config.settings import resolve
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.kernels import apply_protocol, kernels_of, protocol_of
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples.generate import generate_images, sample_identity
from pytest_diffusion.verdicts.errors import ModelError, SettingsError
from tests.families.models import build

PROMPTS = ["a red circle", "a blue square"]


def settings_of(**options):
    return replace(resolve(options={"model": "demo", **options}, ini={})[0], steps=2)


def images_of(pipeline, settings):
    return torch.as_tensor(generate_images(pipeline, PROMPTS, [0, 1], settings))


def test_a_plain_pipeline_has_no_protocol_of_its_own(demo_pipeline):
    assert protocol_of(demo_pipeline, settings_of()) == {}
    facts = kernels_of(demo_pipeline)
    assert set(facts) == {"attention"}
    assert "AttnProcessor2_0 (" in facts["attention"]


def test_channels_last_gives_the_same_images_at_an_address_of_their_own(demo_pipeline):
    plain, settings = settings_of(), settings_of(memory_format="channels_last", device="cpu")
    pipeline = load_pipeline(settings)
    assert protocol_of(pipeline, settings) == {"memory_format": "channels_last"}
    # What was asked for and is not so is not said to be so.
    assert protocol_of(demo_pipeline, settings) == {}
    assert fingerprint(pipeline) == fingerprint(demo_pipeline)
    assert (images_of(pipeline, settings) - images_of(demo_pipeline, plain)).abs().max() < 1e-3
    found, other = (sample_identity(*one) for one in ((pipeline, PROMPTS, settings), (demo_pipeline, PROMPTS, plain)))
    assert {name for name in found if found[name] != other.get(name)} == {"memory_format"}


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_denoiser_gives_the_same_images_and_its_attention_is_recorded():
    settings, pipeline = settings_of(compile="default"), build("pixart")
    before = images_of(pipeline, settings), fingerprint(pipeline)
    apply_protocol(pipeline, settings)
    assert protocol_of(pipeline, settings) == {"compile": "default"}
    assert "compiled" in kernels_of(pipeline)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (images_of(pipeline, settings) - before[0]).abs().max() < 1e-3
    assert fingerprint(pipeline) == before[1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    with record_attention(pipeline) as record:
        images_of(pipeline, settings)
    assert record.layers


def test_a_pipeline_without_a_denoiser_cannot_be_compiled():
    pipeline = load_pipeline(settings_of())
    pipeline.unet = None
    with pytest.raises(ModelError, match="--diffusion-compile: StableDiffusionPipeline has no UNet or transformer to compile"):
        apply_protocol(pipeline, settings_of(compile="default"))


@pytest.mark.parametrize(("option", "text"), [("compile", "fast"), ("memory_format", "nhwc")])
def test_unknown_values_are_refused(option, text):
    with pytest.raises(SettingsError, match=f"--diffusion-{option.replace('_', '-')}.*{text}"):
        settings_of(**{option: text})


def test_weights_are_laid_out_as_they_were_asked_for(demo_copy):
    demo_copy.unet.to(memory_format=torch.channels_last)
    settings = settings_of(memory_format="contiguous_format")
    apply_protocol(demo_copy, settings)
    assert protocol_of(demo_copy, settings) == {}
    demo_copy.unet.extra = torch.nn.Conv3d(2, 2, 3)
    with pytest.raises(ModelError, match="--diffusion-memory-format: unet cannot be laid out as channels_last"):
        apply_protocol(demo_copy, settings_of(memory_format="channels_last"))
