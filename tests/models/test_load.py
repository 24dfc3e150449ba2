import copy

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.demo import reference_images, weights_folder
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import family
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.load import family_of_index, load_pipeline
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable, SetupError


def test_the_demo_is_a_genuine_stable_diffusion(demo_pipeline):
    assert type(demo_pipeline) is StableDiffusionPipeline
    assert not demo_pipeline.unet.training
    assert next(demo_pipeline.unet.parameters()).dtype == torch.float32
    size = sum(file.stat().st_size for file in weights_folder().rglob("*") if file.is_file())
    assert size <= 8_000_000


def test_families_by_capability(demo_pipeline, pixel_pipeline):
    assert family(demo_pipeline) == "sd15"
    assert family_of_index("demo", demo_pipeline.scheduler) == "sd15"
    assert family(pixel_pipeline) == "ddpm"
    flow = copy.copy(demo_pipeline)
    flow.scheduler = FlowMatchEulerDiscreteScheduler()
    assert family(flow) == "flow"


def test_folder_dtype_and_scheduler(tmp_path, demo_pipeline):
    demo_pipeline.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(Settings(model=str(tmp_path / "model"), device="cpu", dtype="bfloat16", scheduler="EulerDiscreteScheduler"))
    assert next(loaded.unet.parameters()).dtype == torch.bfloat16
    assert type(loaded.scheduler).__name__ == "EulerDiscreteScheduler"


def test_module_callable(tmp_path, monkeypatch, demo_pipeline):
    (tmp_path / "my_models.py").write_text(
        "from pytest_diffusion.demo import weights_folder\nfrom diffusers import DiffusionPipeline\n"
        "def make():\n    return DiffusionPipeline.from_pretrained(weights_folder())\ndef wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(load_pipeline(Settings(model="my_models:make", device="cpu")), DiffusionPipeline)
    with pytest.raises(ModelError, match="returned int; expected a callable pipeline"):
        load_pipeline(Settings(model="my_models:wrong", device="cpu"))


def test_weights_that_are_missing_or_corrupt_are_said_to_be(tmp_path, demo_pipeline):
    folder = tmp_path / "model"
    demo_pipeline.save_pretrained(folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model cannot be loaded"):
        load_pipeline(Settings(model=str(folder), device="cpu"))


def test_an_unreachable_hub_is_said_to_be():
    with pytest.raises(ModelError, match="nobody/nothing cannot be loaded"):
        load_pipeline(Settings(model="nobody/nothing", device="cpu"))


def test_fingerprint_follows_the_weights(demo_copy):
    before = fingerprint(demo_copy)
    assert fingerprint(demo_copy) == before
    with torch.no_grad():
        demo_copy.unet.conv_in.bias[0] += 1e-3
    assert fingerprint(demo_copy) != before


def test_fingerprint_follows_scales_that_are_no_weights(demo_copy):
    """The scale of a LoRA, and of an attention processor, is an attribute."""
    from peft import LoraConfig

    plain = fingerprint(demo_copy)
    demo_copy.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="gaussian"))
    adapted = fingerprint(demo_copy)
    demo_copy.unet.set_adapters("default", 0.5)
    halved = fingerprint(demo_copy)
    demo_copy.unet.disable_adapters()
    disabled = fingerprint(demo_copy)
    processor = next(module for module in demo_copy.unet.modules() if hasattr(module, "processor")).processor
    processor.scale = [0.3]
    assert len({plain, adapted, halved, disabled, fingerprint(demo_copy)}) == 5


def test_a_run_does_not_change_the_fingerprint(demo_copy):
    before = fingerprint(demo_copy)
    demo_copy("a red circle", num_inference_steps=1, output_type="pt")
    assert fingerprint(demo_copy) == before


def test_progress_bar_settings_survive(demo_copy):
    demo_copy.set_progress_bar_config(desc="mine")
    call_pipeline(demo_copy, prompts=["a red circle"], seeds=[0], settings=Settings(steps=1))
    assert demo_copy._progress_bar_config == {"desc": "mine"}


def test_latents_have_unit_spread_and_come_back(demo_pipeline):
    codec = LatentCodec.of(demo_pipeline)
    images = reference_images(64)
    latents = codec.encode(images)
    assert latents.shape == (64, 4, 8, 8)
    assert 0.9 < float(latents.std()) < 1.1
    assert float((codec.decode(latents) - images / 255).square().mean()) < 10**-3.2  # 32 dB


def test_pixel_models_have_no_codec(pixel_pipeline):
    with pytest.raises(NotApplicable, match="has no VAE"):
        LatentCodec.of(pixel_pipeline)


def test_clip_embeds_each_prompt_once_and_in_order():
    clip = load_clip("demo")
    one, two = clip.text_embeds(["a red circle"]), clip.text_embeds(["a blue square", "a red circle", "a blue square"])
    assert torch.allclose(one[0], two[1], atol=1e-6)
    assert torch.equal(two[0], two[2])
    assert torch.allclose(two.norm(dim=1), torch.ones(3), atol=1e-5)
    with pytest.raises(ModelError, match="--diffusion-clip-model: no/clip cannot be loaded"):
        load_clip("no/clip")


def test_extractors(tmp_path, monkeypatch):
    images = reference_images(70)
    demo = load_extractor("demo")
    whole, parts = demo(images), demo(images, batch_size=32)
    assert whole.values.shape == (70, 128)
    assert whole.probabilities.shape == (70, 24)
    assert torch.allclose(whole.values, parts.values, atol=1e-4)
    assert load_extractor(f"clip:{weights_folder() / 'clip'}")(images[:3]).values.shape == (3, 64)
    (tmp_path / "my_features.py").write_text(
        "def means(images):\n    return images.float().mean((2, 3))\ndef wrong(images):\n    return images.float().mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_extractor("my_features:means")(images).values.shape == (70, 3)
    with pytest.raises(ModelError, match=r"returned shape \(\) for 64 images"):
        load_extractor("my_features:wrong")(images)
    with pytest.raises(ModelError, match="needs 32x32 images; the samples are 64x64"):
        demo(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_inception_without_its_package_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install 'pytest-diffusion\[inception\]'"):
        load_extractor("inception")


def test_a_broken_set_up_in_a_loader_is_not_the_models_fault(tmp_path, monkeypatch):
    (tmp_path / "broken_set_up.py").write_text(
        "from pytest_diffusion import SetupError\ndef make():\n    raise SetupError('the licence server is off.')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match=r"^--diffusion-model: the licence server is off\.$"):
        load_pipeline(Settings(model="broken_set_up:make", device="cpu"))
