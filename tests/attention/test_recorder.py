import pytest
import torch

from pytest_diffusion import record_attention
from pytest_diffusion.attention.recorder import attention_layers
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable

PROMPTS = ["a red circle", "a blue square above a green cross"]


def run(pipeline, **arguments):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    defaults = {"num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "pt", "generator": generators}
    return pipeline(PROMPTS, **{**defaults, **arguments}).images


def processors(pipeline):
    return {name: module.processor for name, module in pipeline.unet.named_modules() if hasattr(module, "processor")}


def test_recording_changes_nothing(demo_copy):
    before = processors(demo_copy)
    plain = run(demo_copy)
    with record_attention(demo_copy) as record:
        recorded = run(demo_copy)
    assert torch.equal(plain, recorded)
    assert processors(demo_copy) == before
    assert len(record.layers) == 7
    assert all(layer.is_cross and layer.row_error < 1e-5 for layer in record.layers.values())
    assert record.layers["mid_block.attentions.0.transformer_blocks.0.attn2"].entropies().shape == (4, 2)


def test_maps_are_the_softmax_of_the_hooked_projections(demo_copy):
    """Against Q and K taken by hooks, the conditional half, averaged over heads by hand."""
    name = attention_layers(demo_copy)[0]
    attn = demo_copy.unet.get_submodule(name)
    taken = {}
    hooks = [
        attn.to_q.register_forward_hook(lambda _, args, out: taken.setdefault("q", out)),
        attn.to_k.register_forward_hook(lambda _, args, out: taken.setdefault("k", out)),
    ]
    run(demo_copy, num_inference_steps=1)
    for hook in hooks:
        hook.remove()
    query, key = (taken[part][2:].unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in ("q", "k"))
    probs = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    with record_attention(demo_copy, layers=[name], steps=[0]) as record:
        run(demo_copy, num_inference_steps=1)
    maps = record.layers[name].steps[0]
    assert torch.allclose(maps.flatten(2).transpose(1, 2), probs, atol=1e-5)


def test_without_guidance_the_whole_batch_is_conditional(demo_copy):
    with record_attention(demo_copy) as record:
        run(demo_copy, guidance_scale=1.0)
    assert record.layers["mid_block.attentions.0.transformer_blocks.0.attn2"].entropies().shape == (4, 2)


def test_tokens_and_content(demo_copy):
    with record_attention(demo_copy) as record:
        run(demo_copy, num_inference_steps=1)
    words = [token.removesuffix("</w>") for token, kept in zip(record.tokens[0], record.content[0], strict=True) if kept]
    assert words == ["a", "red", "circle"]
    assert record.token_index(1, "square") == 3
    assert record.token_index(1, "cross") == 7
    with pytest.raises(ValueError, match="'star' is not among the tokens"):
        record.token_index(0, "star")


def test_processors_come_back_after_an_exception(demo_copy):
    before = processors(demo_copy)
    with pytest.raises(ZeroDivisionError), record_attention(demo_copy):
        raise ZeroDivisionError
    assert processors(demo_copy) == before


def test_nested_use_and_unknown_layers_are_refused(demo_copy):
    with record_attention(demo_copy), pytest.raises(ModelError, match="already recording"), record_attention(demo_copy):
        pass
    with pytest.raises(ModelError, match="'nothing' is not an attention layer"), record_attention(demo_copy, layers=["nothing"]):
        pass


def test_prompt_embeds_alone_are_refused(demo_copy):
    embeds, negative = demo_copy.encode_prompt(PROMPTS, "cpu", 1, True)
    with pytest.raises(ModelError, match="recorded no token ids"), record_attention(demo_copy):
        demo_copy(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=1)


def test_a_pixel_model_has_none(pixel_pipeline):
    with pytest.raises(NotApplicable, match="not conditioned on text"):
        attention_layers(pixel_pipeline)


def test_memory_does_not_grow_with_steps(demo_copy):
    """What is kept: one number per step, layer and prompt, and two maps per layer."""

    def kept(steps):
        with record_attention(demo_copy) as record:
            run(demo_copy, num_inference_steps=steps)
        return sum(
            layer.early.numel() + layer.late.numel() + sum(map_.numel() for map_ in layer.steps.values())
            for layer in record.layers.values()
        )

    assert kept(12) == kept(4)
