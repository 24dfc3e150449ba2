"""Each kind of damage changes the model while it lasts, and nothing is left of it."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.damage import DAMAGES, Damage, Target, damage
from pytest_diffusion.gate.kinds import all_damages, required_damages
from pytest_diffusion.models.fingerprint import config_text, fingerprint
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError

PROMPTS = ["a red circle", "a blue square", "a green triangle", "a purple circle"]
UNFIT = {"shift_factor", "lora_not_loaded", "lora_twice", "ema_not_applied"}
"""Kinds that do not fit the demo."""
KINDS = [one.name for one in all_damages()]


def state(pipeline):
    return fingerprint(pipeline), config_text(pipeline.scheduler.config), type(pipeline.scheduler).__name__


def own_attributes(pipeline):
    """Methods that stand in place of those of the class."""
    return {name for owner in (pipeline, pipeline.vae) for name in vars(owner) if callable(vars(owner)[name])}, len(
        pipeline.unet._forward_pre_hooks
    )


def samples(pipeline, settings):
    generators = [torch.Generator().manual_seed(settings.seed + number) for number in range(4)]
    guidance = settings.guidance_scale
    found = pipeline(PROMPTS, num_inference_steps=settings.steps, guidance_scale=guidance, generator=generators, output_type="pt")
    return found.images


@pytest.fixture(scope="module")
def subject(demo_pipeline):
    pipeline = copy.deepcopy(demo_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    settings = Settings(model="demo", steps=8, guidance_scale=4.0)
    return Target(pipeline, settings, PROMPTS), samples(pipeline, settings)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in UNFIT])
def test_damage_shows_in_the_samples_and_is_taken_back(subject, name):
    target, plain = subject
    one, before = DAMAGES[name], (state(target.pipeline), own_attributes(target.pipeline))
    with one.apply(target, one.usual, 0) as settings:
        changed = samples(target.pipeline, settings)
    distance = float((changed - plain).abs().mean())
    # Another kernel and another size of batches round differently, and that is all.
    assert distance > 1e-4 or (name == "other_batches" and distance < 1e-3)
    assert (state(target.pipeline), own_attributes(target.pipeline)) == before
    assert torch.equal(samples(target.pipeline, target.settings), plain)


@pytest.mark.parametrize("name", [one.name for one in all_damages() if one.is_continuous])
def test_a_stronger_damage_changes_more(subject, name):
    target, plain = subject
    distances = []
    for strength in (DAMAGES[name].strengths[0], DAMAGES[name].strengths[-1]):
        with DAMAGES[name].apply(target, strength, 0) as settings:
            distances.append(float((samples(target.pipeline, settings) - plain).abs().mean()))
    assert distances[0] < distances[1]


def test_an_error_inside_leaves_the_model_as_it_was(subject):
    target, _ = subject
    before = state(target.pipeline)
    seen = []

    def fails():
        with DAMAGES["denoiser_noise"].apply(target, 0.2, 0):
            seen.append(state(target.pipeline))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert seen != [before]
    assert state(target.pipeline) == before


@pytest.mark.parametrize("name", sorted(UNFIT))
def test_damage_that_does_not_fit_says_why_and_changes_nothing(subject, name):
    target, _ = subject
    before = state(target.pipeline)
    with pytest.raises(NotApplicable, match=r"^(its|it) "), DAMAGES[name].apply(target, 0.0, 0):
        pass
    assert state(target.pipeline) == before


def test_a_pixel_model_takes_what_fits_it(pixel_pipeline):
    target = Target(pixel_pipeline, Settings(steps=8))
    fitting = set()
    for one in all_damages():
        try:
            with one.apply(target, one.usual, 0):
                fitting.add(one.name)
        except NotApplicable:
            pass
    assert {"denoiser_noise", "block_zeroed", "prediction_type", "timestep_shift", "too_few_steps", "few_bits"} <= fitting
    assert not fitting & {"decoder_noise", "scaling_factor", "concept_moved", "guidance_lost", "prompts_shuffled"}


def test_weights_of_training_beside_their_average_are_tried(subject, tmp_path):
    target, _ = subject
    folder = tmp_path / "unet"
    folder.mkdir()
    weights = {name: tensor * 1.1 for name, tensor in target.pipeline.unet.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.non_ema.safetensors")
    own = Target(target.pipeline, Settings(model=str(tmp_path)), PROMPTS)
    name, before = next(iter(weights)), fingerprint(target.pipeline)
    with DAMAGES["ema_not_applied"].apply(own, 0.0, 0):
        assert torch.equal(target.pipeline.unet.state_dict()[name], weights[name])
    assert fingerprint(target.pipeline) == before


def test_adapters_lose_and_double_their_scale(subject):
    peft = pytest.importorskip("peft")
    pipeline = copy.deepcopy(subject[0].pipeline)
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = [one for one in pipeline.unet.modules() if hasattr(one, "lora_A")]
    target, before = Target(pipeline, Settings(), PROMPTS), [dict(one.scaling) for one in layers]
    for name, factor in (("lora_not_loaded", 0.0), ("lora_twice", 2.0)):
        with DAMAGES[name].apply(target, 0.0, 0):
            assert [list(one.scaling.values()) for one in layers] == [[factor * value for value in one.values()] for one in before]
        assert [dict(one.scaling) for one in layers] == before


def test_adapters_are_measured_though_weights_and_configurations_are_equal():
    assert DAMAGES["lora_not_loaded"].in_code
    assert DAMAGES["lora_twice"].in_code


@pytest.mark.parametrize(("batch", "repeated"), [(2, 1), (3, 1), (5, 2)])
def test_images_are_repeated_in_small_batches_too(subject, batch, repeated):
    target, _ = subject
    latents = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with DAMAGES["images_repeated"].apply(target, 0.5, 0):
        images = target.pipeline.vae.decode(latents, return_dict=False)[0]
    assert sum(torch.equal(image, images[0]) for image in images[1:]) == repeated


@pytest.mark.parametrize("name", ["images_repeated", "prompts_shuffled"])
def test_what_happens_within_a_batch_needs_one(subject, name):
    own = replace(subject[0], settings=replace(subject[0].settings, batch_size=1))
    own.pipeline.__dict__.pop("_batch_size", None)
    with (
        pytest.raises(NotApplicable, match="its batches hold one image"),
        DAMAGES[name].apply(Target(copy.deepcopy(own.pipeline), own.settings, PROMPTS), 0.5, 0),
    ):
        pass


def test_prompts_that_are_all_the_same_cannot_be_shuffled(subject):
    own = replace(subject[0], prompts=["a red circle"] * 4)
    with pytest.raises(NotApplicable, match="all its prompts are the same"), DAMAGES["prompts_shuffled"].apply(own, 0.0, 0):
        pass


def test_half_precision_is_damaged_by_as_much_as_asked_for():
    torch.manual_seed(0)
    part = torch.nn.Linear(64, 64)
    with torch.no_grad():
        part.weight[0] = 0
        part.weight[1] = 300 * torch.randn(64)
        part.bias.copy_(1e-4 * torch.randn(64))
    part.half()
    pipeline = SimpleNamespace(unet=part, components={"unet": part})
    target, before = Target(pipeline, Settings()), [weight.clone() for weight in part.parameters()]
    with DAMAGES["denoiser_noise"].apply(target, 0.1, 0):
        for weight, plain in zip(part.parameters(), before, strict=True):
            change = (weight - plain).float().square().mean().sqrt() / plain.float().square().mean().sqrt()
            assert float(change) == pytest.approx(0.1, rel=0.3)
    with DAMAGES["int8_weights"].apply(target, 0.0, 0):
        assert bool(part.weight.isfinite().all())
        assert torch.allclose(part.weight.float(), before[0].float(), atol=float(before[0].abs().max()) / 127)
    with DAMAGES["denoiser_noise"].apply(target, 0.1, 0):
        part.float()  # as a pipeline may that decodes in another dtype
    assert all(torch.equal(one, other) and one.dtype == torch.float16 for one, other in zip(part.parameters(), before, strict=True))


def test_weights_that_are_of_bfloat16_already_are_not_rounded(demo_copy):
    demo_copy.to(torch.bfloat16)
    with (
        pytest.raises(NotApplicable, match="of bfloat16 already"),
        DAMAGES["bfloat16_weights"].apply(Target(demo_copy, Settings()), 0.0, 0),
    ):
        pass


def test_a_kind_is_declared_once_and_with_one_of_its_strengths():
    with pytest.raises(ValueError, match="usual is 3; expected one of the strengths"):
        damage("of {}", strengths=(1, 2), usual=3)
    with pytest.raises(ValueError, match="There is already a damage named 'denoiser_noise'"):

        @damage("again")
        def denoiser_noise(target, strength, seed):
            yield target.settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("denoiser_nois", "expected one of"),
        ("denoiser_noise:none", "the strength of denoiser_noise is 'none'; expected a share above 0 and up to 1"),
        ("denoiser_noise:-1", "expected a share above 0"),
        ("denoiser_noise:5", "expected a share above 0 and up to 1"),
        ("denoiser_noise:inf", "expected a share above 0 and up to 1"),
        ("few_bits:7", "the strength of few_bits is '7'; expected one of 5, 4, 3"),
        ("channels_swapped:2", "channels_swapped has no strength"),
        ("bfloat16_weights", "the damage is 'bfloat16_weights'"),
    ],
)
def test_what_is_required_must_be_known(text, message):
    with pytest.raises(SettingsError, match=message):
        required_damages([text])


def test_requirements_have_the_usual_strength_or_their_own():
    found = required_damages(["denoiser_noise", "denoiser_noise:0.07", "few_bits:3", "channels_swapped"])
    assert [(one.damage.name, one.strength) for one in found] == [
        ("denoiser_noise", 0.05),
        ("denoiser_noise", 0.07),
        ("few_bits", 3.0),
        ("channels_swapped", 0.0),
    ]
    assert [one.text for one in found] == ["denoiser_noise:0.05", "denoiser_noise:0.07", "few_bits:3", "channels_swapped"]


def test_other_packages_add_damage(monkeypatch):
    from pytest_diffusion.config import extensions

    own = Damage("mirrored", "images are mirrored", DAMAGES["few_bits"].apply)
    monkeypatch.setattr(extensions, "extensions", lambda group: extensions.Extensions({"mirrored": own}, {}))
    try:
        assert own in all_damages()
        monkeypatch.setattr(extensions, "extensions", lambda group: extensions.Extensions({"other": json}, {}))
        with pytest.raises(SettingsError, match="the entry point other is a module; expected a Damage"):
            all_damages()
        monkeypatch.setattr(extensions, "extensions", lambda group: extensions.Extensions({}, {"x": "entry point x cannot be loaded"}))
        with pytest.raises(SettingsError, match="entry point x cannot be loaded"):
            all_damages()
    finally:
        DAMAGES.remove("mirrored")


def test_the_page_of_kinds_is_that_of_their_declarations():
    from docs.strength_page import PAGE, between, kinds

    written = PAGE.read_text(encoding="utf-8")
    assert written == between(written, "kinds", kinds()), "run: python -m docs.strength_page"
