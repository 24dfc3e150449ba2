"""Pipelines that are not Stable Diffusion: what they return, how they are guided, which family they belong to."""

from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from pytest_diffusion.checks.determinism import guidance_effect, guidance_linearity
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.demo import reference_images
from pytest_diffusion.models import schedulers
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import family, image_size
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable

PIXELS = np.array([10, 100, 250], dtype=np.uint8)


class Returns:
    """A user's pipeline that returns images in a form of its own."""

    def __init__(self, images):
        self.images = images

    def __call__(self, batch_size=1, generator=None):
        return SimpleNamespace(images=self.images)


@pytest.mark.parametrize(
    "images",
    [
        [Image.fromarray(np.broadcast_to(PIXELS, (8, 8, 3)).copy())] * 2,
        np.broadcast_to(PIXELS, (2, 8, 8, 3)),
        np.broadcast_to(PIXELS / 255.0, (2, 8, 8, 3)),
        torch.from_numpy(np.broadcast_to(PIXELS / 255.0, (2, 8, 8, 3)).copy()).permute(0, 3, 1, 2),
    ],
    ids=["PIL", "uint8", "float NHWC", "tensor NCHW"],
)
def test_every_common_form_gives_the_same_pixels(images):
    made = call_pipeline(Returns(images), prompts=None, seeds=[0, 1], settings=Settings())
    assert made.shape == (2, 8, 8, 3)
    assert np.allclose(made[1, 4, 4] * 255, PIXELS, atol=0.01)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8, 3), -0.5), "floats between -0.5 and -0.5; expected images in"),
        (np.zeros((1, 8, 8, 3)), r"shape \(1, 8, 8, 3\) for 2 seeds"),
        (np.zeros((2, 8, 8, 4)), r"shape \(2, 8, 8, 4\) for 2 seeds"),
    ],
)
def test_what_would_be_a_guess_is_refused(images, message):
    with pytest.raises(ModelError, match=message):
        call_pipeline(Returns(images), prompts=None, seeds=[0, 1], settings=Settings())


def test_the_vocabulary_is_part_of_the_fingerprint(demo_copy):
    before = fingerprint(demo_copy)
    demo_copy.tokenizer.model_max_length = 8
    assert fingerprint(demo_copy) != before


@pytest.mark.parametrize(("dtype", "steps"), [("float16", 50), ("float16", 20)])
def test_half_precision_bends_no_line(demo_copy, dtype, steps):
    demo_copy.to(getattr(torch, dtype))
    trials = Trials(demo_copy, ["a red circle", "a blue square"], Settings(steps=steps, guidance_scale=4.0))
    assert guidance_linearity(trials).value <= 0.02


def test_bfloat16_says_that_rounding_hides_the_line(demo_copy):
    demo_copy.to(torch.bfloat16)
    with pytest.raises(NotApplicable, match=r"rounding in torch\.bfloat16 hides"):
        guidance_linearity(Trials(demo_copy, ["a red circle"], Settings(steps=50)))


def test_distilled_models_have_no_classifier_free_guidance(demo_copy):
    demo_copy.unet.register_to_config(time_cond_proj_dim=256)
    for check in (guidance_effect, guidance_linearity):
        with pytest.raises(NotApplicable, match="is distilled"):
            check(Trials(demo_copy, ["a red circle"], Settings(steps=2)))


def test_a_pipeline_without_a_callback_cannot_be_seen(demo_copy):
    class Deaf(type(demo_copy)):
        def __call__(self, prompt, guidance_scale=7.5, generator=None, output_type="pil", num_inference_steps=50):
            raise AssertionError("not to be called")

    demo_copy.__class__ = Deaf
    with pytest.raises(NotApplicable, match="has no callback_on_step_end"):
        guidance_effect(Trials(demo_copy, ["a red circle"], Settings(steps=2)))


def test_an_edm_schedule_gets_no_preset_of_vp_schedules(demo_copy, pixel_pipeline):
    for pipeline in (demo_copy, pixel_pipeline):
        pipeline.scheduler = diffusers.EDMEulerScheduler()
        assert family(pipeline) == "default"


def test_flow_sigmas_of_a_vp_class():
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    curve = schedulers.log_snr(scheduler)
    assert torch.isfinite(curve[:-1]).all()
    assert 10 < float(curve[0]) < 14.5
    with pytest.raises(NotApplicable, match="has no effect"):
        schedulers.alphas_cumprod(scheduler)


def test_the_size_of_pipelines_that_say_it_themselves(demo_copy):
    demo_copy.default_sample_size = 16
    assert image_size(demo_copy, Settings()) == (64, 64)
    assert image_size(demo_copy, Settings(height=128)) == (128, 64)


def test_means_and_spreads_per_channel(demo_copy):
    plain = LatentCodec.of(demo_copy)
    images = reference_images(8)
    raw = plain.encode(images) / plain.scaling_factor
    demo_copy.vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0, 2.0, 4.0, 4.0], scaling_factor=1.0)
    codec = LatentCodec.of(demo_copy)
    encoded = codec.encode(images)
    assert torch.allclose(encoded[:, 2], (raw[:, 2] - 3) / 4, atol=1e-4)
    assert torch.allclose(codec.decode(encoded), plain.decode(plain.encode(images)), atol=1e-4)


@pytest.mark.parametrize("upcasts", [True, False])
def test_a_vae_runs_in_float32_where_its_pipeline_runs_it_so(demo_copy, monkeypatch, upcasts):
    """`force_upcast` is true of most VAEs, and only pipelines with `upcast_vae` read it."""
    if upcasts:
        monkeypatch.setattr(type(demo_copy), "upcast_vae", lambda self: None, raising=False)
    demo_copy.to(torch.float16)
    demo_copy.vae.register_to_config(force_upcast=True)
    seen = []
    demo_copy.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    before = {name: tensor.clone() for name, tensor in demo_copy.vae.state_dict().items()}
    LatentCodec.of(demo_copy).decode(torch.zeros(1, 4, 8, 8))
    assert seen == [torch.float32 if upcasts else torch.float16]
    assert all(torch.equal(tensor, before[name]) for name, tensor in demo_copy.vae.state_dict().items())
    assert demo_copy.vae.dtype == torch.float16


def test_the_safety_checker_paints_nothing_black(monkeypatch, demo_copy):
    """A checker that flags everything is switched off in a model loaded by name."""

    class FlagsEverything(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, images, clip_input):
            return np.zeros_like(images), [True] * len(images)

    demo_copy.register_modules(safety_checker=FlagsEverything())
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: demo_copy)
    loaded = load_pipeline(Settings(model="demo", device="cpu"))
    assert loaded.safety_checker is None
    made = call_pipeline(loaded, prompts=["a red circle"], seeds=[0], settings=Settings(steps=2))
    assert made.max() > 0.5


def test_a_device_that_is_not_there_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match=r"--diffusion-device: demo cannot be moved to cuda"):
        load_pipeline(Settings(model="demo", device="cuda"))
