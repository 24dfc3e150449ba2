"""Recorded attention of every family against what its layers really handed to fused attention."""

import contextlib

import pytest
import torch
from torch.nn import functional as F

from pytest_diffusion import record_attention
from pytest_diffusion.attention.recorder import attention_layers
from pytest_diffusion.attention.tokens import word_places
from pytest_diffusion.models.capabilities import denoiser
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable
from tests.families.models import FAMILIES, build

pytestmark = pytest.mark.filterwarnings("ignore")
WITH_TEXT = [name for name in FAMILIES if name not in ("dit", "ddpm")]
PROMPTS = ["a red bicycle", "a blue car"]
ARGUMENTS = {"pixart": {"use_resolution_binning": False, "clean_caption": False}, "turbo": {"guidance_scale": 0.0}}
JOINT = {"sd3", "flux"}


@pytest.fixture(scope="module")
def families():
    return {name: build(name) for name in WITH_TEXT}


def run(pipeline, name, **changes):
    count = len(PROMPTS) * changes.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    arguments = {"num_inference_steps": 2, "height": 64, "width": 96, "output_type": "np", "generator": generators}
    return pipeline(PROMPTS, **{**arguments, **ARGUMENTS.get(name, {}), **changes}).images


@contextlib.contextmanager
def fused_inputs(pipeline, layers):
    """Queries, keys and masks of the first call of fused attention inside each of the layers."""
    network, taken, inside = denoiser(pipeline), {}, []
    original = F.scaled_dot_product_attention

    def watching(query, key, value, attn_mask=None, **kwargs):
        if inside:
            taken.setdefault(inside[-1], (query, key, attn_mask))
        return original(query, key, value, attn_mask=attn_mask, **kwargs)

    handles = []
    for name in layers:
        module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    F.scaled_dot_product_attention = watching
    try:
        yield taken
    finally:
        F.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()


def explicit(name, query, key, mask, tokens, rows):
    """Mean over heads of softmax(Q·Kᵀ/√d) of the image's queries and the text's keys, (rows, pixels, tokens)."""
    scores = query.double() @ key.double().transpose(2, 3) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    if name == "sd3":  # the image first
        scores = scores[:, :, :-tokens, -tokens:]
    elif name == "flux":  # the text first
        scores = scores[:, :, tokens:, :tokens]
    return scores.softmax(-1).mean(1)[rows]


@pytest.mark.parametrize("per_prompt", [1, 2])
@pytest.mark.parametrize("name", WITH_TEXT)
def test_maps_are_what_the_layers_computed(families, name, per_prompt):
    """To 1e-5, in every layer, on latents of 8x12, whatever the guidance and the number of images a prompt."""
    pipeline = families[name]
    layers = attention_layers(pipeline)
    changes = {"num_images_per_prompt": per_prompt, "num_inference_steps": 4}
    plain = run(pipeline, name, **changes)
    with fused_inputs(pipeline, layers) as taken, record_attention(pipeline, steps=[0]) as record:
        recorded = run(pipeline, name, **changes)
    assert (plain == recorded).all()
    assert set(record.layers) == set(layers)
    count = len(PROMPTS) * per_prompt
    assert record.predictions == (1 if name in ("lcm", "turbo", "flux") else 2)
    for layer in layers:
        one = record.layers[layer]
        assert one.is_cross
        assert one.is_joint == (name in JOINT)
        maps = one.steps[0]
        assert maps.shape[0] == count
        height, width = maps.shape[2:]
        assert height < width
        expected = explicit(name, *taken[layer], maps.shape[1], slice(-count, None))
        assert torch.allclose(maps.flatten(2).transpose(1, 2).double(), expected, atol=1e-5), layer
        assert one.row_error < 1e-5


@pytest.mark.parametrize("name", WITH_TEXT)
def test_words_are_found_where_the_tokenizers_put_them(families, name):
    pipeline = families[name]
    with record_attention(pipeline) as record:
        run(pipeline, name)
    marks, tokens = record.text.marks[0], record.tokens[0]
    words = record.words(0)
    assert [word for word, _ in words][:3] == ["a", "red", "bicycle"]
    places = words[2][1]
    assert len(places) > 1, "a word of several sub-word tokens"
    assert word_places(tokens, "Bicycle") == places
    assert record.token_index(0, "bicycle") == places[-1]
    assert set(marks) == {"content", "special", "padding"}
    if name == "sd3":
        assert [word for word, _ in words] == ["a", "red", "bicycle"] * 2
        assert set(record.text.sources) == {"tokenizer", "tokenizer_3"}
        assert len(tokens) == 77 + 256
    elif name == "flux":
        assert set(record.text.sources) == {"tokenizer_2"}
        assert len(tokens) == 512


def test_two_prompts_of_sdxl_share_their_places(families):
    with record_attention(families["sdxl"]) as record:
        run(families["sdxl"], "sdxl", num_inference_steps=1, prompt_2=["a red square", "a green car"])
    assert (
        record.tokens[1][:5] == ["<|startoftext|>", "a</w>", "blue</w>|green</w>", "c|c", "a|a"] or "blue</w>|green</w>" in record.tokens[1]
    )


def test_sd3_without_t5_pads_its_place():
    pipeline = build("sd3")
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    with record_attention(pipeline) as record:
        run(pipeline, "sd3", num_inference_steps=1)
    assert [word for word, _ in record.words(0)] == ["a", "red", "bicycle"]
    assert record.text.marks[0][77:] == ["padding"] * 256


def test_the_self_attention_of_sd3_named_attn2_is_not_taken_for_cross_attention(families):
    assert "transformer_blocks.0.attn2" in dict(denoiser(families["sd3"]).named_modules())
    assert attention_layers(families["sd3"]) == [f"transformer_blocks.{index}.attn" for index in range(3)]
    with record_attention(families["sd3"], layers=["transformer_blocks.0.attn2"]) as record:
        run(families["sd3"], "sd3", num_inference_steps=1)
    assert not record.layers["transformer_blocks.0.attn2"].is_cross


@pytest.mark.parametrize(("name", "reason"), [("dit", "not conditioned on text"), ("ddpm", "not conditioned on text")])
def test_models_without_text_say_so(name, reason):
    with pytest.raises(NotApplicable, match=reason):
        attention_layers(build(name))


def test_true_guidance_of_flux_is_left_out():
    """The negative prompt is a call of its own, of which nothing is recorded."""
    pipeline = build("flux")
    with record_attention(pipeline, steps=[0, 1]) as alone:
        run(pipeline, "flux")
    with record_attention(pipeline, steps=[0, 1]) as guided:
        run(pipeline, "flux", true_cfg_scale=3.0, negative_prompt=["a dog", "a house"])
    layer = next(iter(alone.layers))
    assert len(guided.timesteps) == len(alone.timesteps) == 2
    assert torch.equal(guided.layers[layer].steps[0], alone.layers[layer].steps[0])
    assert not torch.equal(guided.layers[layer].steps[1], alone.layers[layer].steps[1])


def test_skip_layer_guidance_of_sd3_is_left_out(families):
    with record_attention(families["sd3"]) as record:
        run(
            families["sd3"],
            "sd3",
            num_inference_steps=4,
            skip_guidance_layers=[1],
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
        )
    assert len(record.timesteps) == 4
    assert record.layers["transformer_blocks.0.attn"].entropies().shape == (4, 2)


def test_a_batch_that_does_not_fit_its_prompts_is_refused(families):
    pipeline = families["sd15"]
    embeds, negative = pipeline.encode_prompt(["a red car"] * 3, "cpu", 1, True)
    with record_attention(pipeline):
        pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
        with pytest.raises(ModelError, match="6 rows for 2 prompts with 2 predictions each"):
            pipeline(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=1, output_type="latent")
