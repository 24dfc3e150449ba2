"""The user's own attention stays in charge: sliced, fused, compiled, IP-Adapter, low-rank layers; and nothing is left behind."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

from pytest_diffusion import record_attention
from pytest_diffusion.attention.recorder import attention_layers
from pytest_diffusion.verdicts.errors import ModelError
from tests.families.models import WIDTH, build
from tests.families.test_capture import run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def sd15():
    return build("sd15")


def recorded(pipeline, name="sd15", **changes):
    with record_attention(pipeline, steps=[0]) as record:
        images = run(pipeline, name, **changes)
    return images, record


def first_maps(record):
    return {name: layer.steps[0] for name, layer in record.layers.items()}


def assert_same(maps, others, atol=1e-6):
    assert maps.keys() == others.keys()
    assert all(torch.allclose(maps[name], others[name], atol=atol) for name in maps)


@pytest.mark.parametrize("change", ["sliced", "explicit"])
def test_other_processors_show_the_same_maps(sd15, change):
    _, fused = recorded(sd15)
    if change == "sliced":
        sd15.enable_attention_slicing(1)
    else:
        sd15.unet.set_attn_processor(AttnProcessor())
    plain = run(sd15, "sd15")
    images, record = recorded(sd15)
    assert (images == plain).all()
    assert_same(first_maps(record), first_maps(fused))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_fused_projections_show_the_same_maps(name):
    pipeline = build(name)
    _, before = recorded(pipeline, name)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    network.fuse_qkv_projections()
    plain = run(pipeline, name)
    images, record = recorded(pipeline, name)
    assert (images == plain).all()
    assert_same(first_maps(record), first_maps(before), atol=1e-5)


@pytest.mark.parametrize("how", ["module", "network", "blocks"])
def test_a_compiled_denoiser_is_recorded(sd15, how):
    """Compiled without a code generator, so the images agree to the last bit."""
    _, before = recorded(sd15)
    if how == "module":
        sd15.unet = torch.compile(sd15.unet, backend="eager")
    elif how == "network":
        sd15.unet.compile(backend="eager")
    else:
        sd15.unet.mid_block.compile(backend="eager")
    plain = run(sd15, "sd15")
    images, record = recorded(sd15)
    assert (images == plain).all()
    assert_same(first_maps(record), first_maps(before))
    assert (run(sd15, "sd15") == plain).all()


def test_an_ip_adapter_keeps_its_image(sd15):
    """A processor with keyword arguments of its own, and text states that come with image states beside them."""
    torch.manual_seed(1)
    names = [name for name in sd15.unet.attn_processors if "attn2" in name]
    own = dict(sd15.unet.attn_processors)
    for name in names:
        width = sd15.unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        own[name] = IPAdapterAttnProcessor2_0(width, WIDTH, num_tokens=(4,), scale=[1.0])
    sd15.unet.set_attn_processor(own)
    sd15.unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(16, WIDTH, num_image_text_embeds=4)])
    sd15.unet.config.encoder_hid_dim_type = "ip_image_proj"
    masks = {"ip_adapter_masks": [torch.ones(1, 1, 64, 96)]}
    embeds = torch.randn(4, 1, 16)  # two negative, two positive

    def adapted(**changes):
        return {"ip_adapter_image_embeds": [embeds], "cross_attention_kwargs": masks, **changes}

    plain = run(sd15, "sd15", **adapted())
    images, record = recorded(sd15, **adapted())
    assert (images == plain).all()
    other = {"ip_adapter_masks": [torch.zeros(1, 1, 64, 96)]}
    assert not (run(sd15, "sd15", **adapted(cross_attention_kwargs=other)) == plain).all(), "the mask must be heard"
    assert all(layer.is_cross and layer.row_error < 1e-5 for layer in record.layers.values())
    assert [word for word, _ in record.words(0)] == ["a", "red", "bicycle"]


def test_low_rank_layers_are_part_of_what_is_recorded(sd15):
    """A linear layer wrapped as LoRA libraries wrap it: its own output plus a low-rank one."""

    class LowRank(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down = torch.nn.Linear(base.in_features, 2, bias=False)
            self.up = torch.nn.Linear(2, base.out_features, bias=False)

        def forward(self, states):
            return self.base(states) + self.up(self.down(states))

    _, before = recorded(sd15)
    torch.manual_seed(2)
    for name in attention_layers(sd15):
        attn = sd15.unet.get_submodule(name)
        attn.to_q, attn.to_k = LowRank(attn.to_q), LowRank(attn.to_k)
    plain = run(sd15, "sd15")
    images, record = recorded(sd15)
    assert (images == plain).all()
    name = attention_layers(sd15)[0]
    attn, maps = sd15.unet.get_submodule(name), record.layers[name].steps[0]
    taken = {}
    hooks = [
        getattr(attn, part).register_forward_hook(lambda _, args, out, part=part: taken.setdefault(part, out)) for part in ("to_q", "to_k")
    ]
    run(sd15, "sd15")
    for hook in hooks:
        hook.remove()
    query, key = (taken[part][2:].unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in ("to_q", "to_k"))
    expected = (query @ key.transpose(2, 3) * attn.scale).softmax(-1).mean(1)
    assert torch.allclose(maps.flatten(2).transpose(1, 2), expected, atol=1e-5)
    assert not torch.allclose(maps, first_maps(before)[name], atol=1e-5)


def hooks_of(pipeline):
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    modules = [module for part in parts for module in part.modules()]
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def test_nothing_is_left_behind_after_an_exception(sd15):
    processors, hooks = sd15.unet.attn_processors, hooks_of(sd15)

    def fail(*_):
        assert hooks_of(sd15) > hooks
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), record_attention(sd15):
        run(sd15, "sd15", callback_on_step_end=fail)
    assert sd15.unet.attn_processors == processors
    assert hooks_of(sd15) == hooks
    assert recorded(sd15)[1].layers, "the pipeline can be recorded again"


def test_nested_use_is_refused_and_leaves_the_outer_block_at_work(sd15):
    with record_attention(sd15) as outer:
        with pytest.raises(ModelError, match="already recording this pipeline; leave the outer block first"), record_attention(sd15):
            pass
        run(sd15, "sd15")
    assert outer.layers


def test_two_pipelines_are_recorded_side_by_side(sd15):
    other = copy.deepcopy(sd15)
    with record_attention(sd15) as first, record_attention(other) as second:
        run(sd15, "sd15")
        run(other, "sd15")
    assert_same({name: layer.late for name, layer in first.layers.items()}, {name: layer.late for name, layer in second.layers.items()})
