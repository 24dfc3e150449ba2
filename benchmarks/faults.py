"""Real defects of pipelines, loaders and engines, from public threads, each rebuilt as a change of a model of the family it belongs to.

The demo stands for Stable Diffusion 1 and 2. Other families are models of tests/families, whose weights are random, with a last layer of
such a gain that the denoiser has a say in the samples: what is asked of the gate there is whether a port differs from its parent, not
whether its pictures are worse.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderOutput

from benchmarks.training import exchanged, exchanged_scenes, negative, negative_scenes, train_adapter
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.gate.damage import Apply, Damage, Target, kept_attribute, kept_config, kept_weights

DEMO, FLOW = "demo", "flow"
"""The demo as it is; and its denoiser trained on as a rectified flow, with a shift of 3 when it samples."""


@dataclass(frozen=True)
class Fault:
    """One defect: where it was reported, what was wrong, and how it is rebuilt."""

    damage: Damage
    threads: tuple[str, ...]
    fact: str
    family: str = DEMO
    before: Callable[[Any], None] | None = None
    """What the parent has, that the fault takes away: a negative prompt, an adapter."""
    of: Callable[[Reference], Reference] | None = None
    """The references of a parent that was made for other images or captions than the demo's."""


FAULTS: list[Fault] = []


def fault(
    threads: str,
    fact: str,
    *,
    family: str = DEMO,
    in_code: bool = True,
    before: Callable[[Any], None] | None = None,
    of: Callable[[Reference], Reference] | None = None,
) -> Callable[[Callable[[Target], Iterator[Settings | None]]], None]:
    """Decorator that adds a fault: a generator that changes the target and yields, or yields other settings of the run."""

    def register(function: Callable[[Target], Iterator[Settings | None]]) -> None:
        made = contextmanager(function)

        @contextmanager
        def apply(target: Target, strength: float, seed: int) -> Iterator[Settings]:
            with made(target) as settings:
                yield settings or target.settings

        own: Apply = apply
        FAULTS.append(Fault(Damage(function.__name__, fact, own, in_code=in_code), tuple(threads.split()), fact, family, before, of))

    return register


def encoding(pipeline: Any, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Any:
    """A context in which what `encode_prompt` returns is changed."""
    encode = pipeline.encode_prompt
    return kept_attribute(pipeline, "encode_prompt", lambda *args, **kwargs: change(encode(*args, **kwargs)))


def with_arguments(pipeline: Any, **changes: Any) -> Any:
    """A context in which `encode_prompt` gets other arguments."""
    encode = pipeline.encode_prompt
    return kept_attribute(pipeline, "encode_prompt", lambda *args, **kwargs: encode(*args, **{**kwargs, **changes}))


def decoding(pipeline: Any, of_latents: Callable[[torch.Tensor], torch.Tensor], of_images: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A context in which latents are changed before they are decoded, and images after it."""
    decode = pipeline.vae.decode

    def changed(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = decode(of_latents(latents), *args, **kwargs)
        return (of_images(result[0]),) if isinstance(result, tuple) else type(result)(sample=of_images(result.sample))

    return kept_attribute(pipeline.vae, "decode", changed)


def same(values: torch.Tensor) -> torch.Tensor:
    """Nothing is changed."""
    return values


@contextmanager
def telling(part: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A denoiser that is told other timesteps."""

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "timestep" in kwargs:
            return args, {**kwargs, "timestep": change(torch.as_tensor(kwargs["timestep"]))}
        return (args[0], change(torch.as_tensor(args[1])), *args[2:]), kwargs

    handle = part.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def tokenizing(tokenizer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A tokenizer whose ids, (N, L), are changed."""
    own = type(tokenizer)

    class Changed(own):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = super().__call__(*args, **kwargs)
            if isinstance(found["input_ids"], torch.Tensor):
                found["input_ids"] = change(found["input_ids"].clone())
            return found

    Changed.__name__ = own.__name__
    tokenizer.__class__ = Changed
    try:
        yield
    finally:
        tokenizer.__class__ = own


# Text.


@fault("easydiffusion/sdkit#56", "the last but one layer of the text encoder in place of the last (clip skip off by one)", in_code=False)
def clip_skip(target: Target) -> Iterator[None]:
    encoder: Any = getattr(target.text_encoder, "text_model", target.text_encoder).encoder
    layers = encoder.layers
    encoder.layers = layers[:-1]
    try:
        yield
    finally:
        encoder.layers = layers


@fault("huggingface/diffusers#1721 d8ahazard/sd_dreambooth_extension#62", "the final norm of the text encoder is left out", in_code=False)
def final_norm_missing(target: Target) -> Iterator[None]:
    model = getattr(target.text_encoder, "text_model", target.text_encoder)
    norm = model.final_layer_norm
    model.final_layer_norm = torch.nn.Identity()
    try:
        yield
    finally:
        model.final_layer_norm = norm


@fault("huggingface/diffusers#8506 AUTOMATIC1111/stable-diffusion-webui#12037", "the prompt is cut after a few tokens")
def prompt_truncated(target: Target) -> Iterator[None]:
    end = target.pipeline.tokenizer.eos_token_id

    def cut(ids: torch.Tensor) -> torch.Tensor:
        ids[:, 5:] = end  # the demo's captions have seven tokens, as long ones have more than 77
        return ids

    with tokenizing(target.pipeline.tokenizer, cut):
        yield


@fault("huggingface/diffusers#2832 huggingface/diffusers#2201", "prompts are padded with another token")
def other_padding(target: Target) -> Iterator[None]:
    end = target.pipeline.tokenizer.eos_token_id

    def padded(ids: torch.Tensor) -> torch.Tensor:
        after = (ids == end).cumsum(1) > 1
        return ids.masked_fill(after, 0)

    with tokenizing(target.pipeline.tokenizer, padded):
        yield


def with_negative_prompt(pipeline: Any) -> None:
    """The parent is run with a negative prompt."""
    encode = pipeline.encode_prompt

    def own(*args: Any, **kwargs: Any) -> Any:
        prompt = args[0] if args else kwargs.get("prompt")
        count = len(prompt) if isinstance(prompt, list) else 1
        negative = ["a small purple triangle"] * count
        kept = args[:4] if len(args) > 4 else args
        return encode(*kept, **{**kwargs, "negative_prompt": negative})

    pipeline.encode_prompt = own


@fault("invoke-ai/InvokeAI#8256 huggingface/diffusers#14499", "the negative prompt is ignored", before=with_negative_prompt)
def negative_ignored(target: Target) -> Iterator[None]:
    with kept_attribute(target.pipeline, "encode_prompt", type(target.pipeline).encode_prompt.__get__(target.pipeline)):
        yield


# Guidance and steps.


@fault("ArchiMickey/Just-a-DiT#9 stepfun-ai/Step1X-Edit#91", "timesteps go to the denoiser as shares of 1 in place of 0 to 1000")
def timesteps_in_shares(target: Target) -> Iterator[None]:
    with telling(target.denoiser, lambda timestep: timestep / 1000):
        yield


@fault(
    "huggingface/diffusers#9405 modelscope/DiffSynth-Studio#1025 kohya-ss/musubi-tuner#729",
    "timesteps are rounded to bfloat16 on their way to the embedding",
)
def timesteps_rounded(target: Target) -> Iterator[None]:
    with telling(target.denoiser, lambda timestep: timestep.to(torch.bfloat16).to(timestep.dtype)):
        yield


@fault("flashinfer-ai/flashinfer#3819", "sines and cosines of the timestep's embedding change places")
def sinusoid_halves_exchanged(target: Target) -> Iterator[None]:
    projection: Any = target.denoiser.time_proj
    with kept_attribute(projection, "flip_sin_to_cos", not projection.flip_sin_to_cos):
        yield


# Schedulers.


def with_scheduler(target: Target, **changes: Any) -> Any:
    """A context with a scheduler of the same class and another configuration."""
    own = target.pipeline.scheduler
    return kept_attribute(target.pipeline, "scheduler", type(own).from_config({**own.config, **changes}))


@fault("huggingface/diffusers#9171 invoke-ai/InvokeAI#7495", "another prediction type is read from the checkpoint", in_code=False)
def prediction_type_read(target: Target) -> Iterator[None]:
    with kept_config(target.pipeline.scheduler, prediction_type="v_prediction"):
        yield


# Decoders.


@fault("deforum/sd-webui-deforum#8", "images are BGR in place of RGB")
def colours_reversed(target: Target) -> Iterator[None]:
    with decoding(target.pipeline, same, lambda images: images[:, [2, 1, 0]]):
        yield


@fault(
    "bcmi/GPSDiffusion-Object-Shadow-Generation-SDXL#7 tdrussell/diffusion-pipe#545",
    "decoded images are taken for 0 to 1 where they are -1 to 1",
)
def range_mistaken(target: Target) -> Iterator[None]:
    with decoding(target.pipeline, same, lambda images: 2 * images - 1):
        yield


@fault(
    "vladmandic/sdnext#2193 apple/ml-stable-diffusion#304 cumulo-autumn/StreamDiffusion#114",
    "the decoder overflows in half precision, and large latents give black images",
)
def decoder_overflows(target: Target) -> Iterator[None]:
    def overflown(latents: torch.Tensor) -> torch.Tensor:
        peak = latents.abs().amax((1, 2, 3), keepdim=True)
        return torch.where(peak > 0.95 * peak.median() * 1.2, torch.nan, latents)

    with decoding(target.pipeline, overflown, same):
        yield


@fault("huggingface/diffusers#3384 Comfy-Org/ComfyUI#163", "tiles of the decoder are put together without blending")
def tiles_with_seams(target: Target) -> Iterator[None]:
    decode = target.vae.decode

    def tiled(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        is_object = kwargs.pop("return_dict", True)
        kwargs, rows = {**kwargs, "return_dict": False}, list[torch.Tensor]()
        for half in latents.chunk(2, 2):
            rows.append(torch.cat([decode(part, *args, **kwargs)[0] for part in half.chunk(2, 3)], 3))
        images = torch.cat(rows, 2)
        return DecoderOutput(sample=images) if is_object else (images,)

    with kept_attribute(target.vae, "decode", tiled):
        yield


# Weights.


@fault(
    "huggingface/diffusers#1818 AUTOMATIC1111/stable-diffusion-webui#1986",
    "the weights of training in place of their average",
    in_code=False,
)
def average_not_used(target: Target) -> Iterator[None]:
    from benchmarks.variants import fine_tuned

    with kept_weights(target.denoiser), torch.enable_grad():
        fine_tuned(1e-3, steps=40)(target.pipeline, 0)  # what an average would have smoothed
        yield


@fault("Lightricks/LTX-2#172 leejet/stable-diffusion.cpp#1898", "the scale of one quantised layer is lost", in_code=False)
def layer_scale_lost(target: Target) -> Iterator[None]:
    layer = next(module for name, module in target.denoiser.named_modules() if name.endswith("attn2.to_out.0"))
    with kept_weights(layer):
        next(layer.parameters()).mul_(16)
        yield


@fault("MiniMax-AI/MiniMax-H3#48", "keys and values change places in the conversion of one block", in_code=False)
def keys_and_values_exchanged(target: Target) -> Iterator[None]:
    block: Any = next(module for name, module in target.denoiser.named_modules() if name.endswith("attn1"))
    with kept_weights(block):
        keys = block.to_k.weight.clone()
        block.to_k.weight.copy_(block.to_v.weight)
        block.to_v.weight.copy_(keys)
        yield


@fault("ml-explore/mlx-examples#1434", "the epsilon of the norms is another one in the conversion")
def other_epsilon(target: Target) -> Iterator[None]:
    norms = [one for one in target.denoiser.modules() if isinstance(one, torch.nn.GroupNorm)]
    with ExitStack() as kept:
        for one in norms:
            kept.callback(setattr, one, "eps", one.eps)
            one.eps = 1e-6 if one.eps != 1e-6 else 1e-5
        yield


def with_adapter(pipeline: Any) -> None:
    """The parent has an adapter (LoRA), trained on scenes in negative colours, whose alpha is a quarter of its rank."""
    train_adapter(pipeline, pipeline.unet, ["to_q", "to_k", "to_v", "to_out.0"], negative_scenes, alpha=2)


def with_text_adapter(pipeline: Any) -> None:
    """The parent has an adapter on its text encoder, trained on captions whose colours are exchanged."""
    train_adapter(pipeline, pipeline.text_encoder, ["q_proj", "v_proj"], exchanged_scenes, alpha=8)


def rescaled(target: Target, factor: float) -> Any:
    """A context in which all adapters have so many times their scale."""
    kept = ExitStack()
    layers: Sequence[Any] = [one for one in target.denoiser.modules() if hasattr(one, "lora_A")]
    for layer in layers:
        kept.enter_context(kept_attribute(layer, "scaling", {name: factor * value for name, value in layer.scaling.items()}))
    return kept


@fault(
    "sgl-project/sglang#16935 huggingface/diffusers#6087 ostris/ai-toolkit#157",
    "the alpha of an adapter is ignored",
    before=with_adapter,
    of=negative,
)
def alpha_lost(target: Target) -> Iterator[None]:
    with rescaled(target, 4.0):
        yield


@fault(
    "huggingface/diffusers#13188 vladmandic/sdnext#4987",
    "the adapter's keys for the text encoder are skipped without a word",
    in_code=False,
    before=with_text_adapter,
    of=exchanged,
)
def adapter_keys_skipped(target: Target) -> Iterator[None]:
    with kept_weights(target.text_encoder):
        for name, weight in target.text_encoder.named_parameters():
            if "lora_B" in name:
                weight.zero_()
        yield


@fault("Haoming02/sd-webui-forge-classic#795", "an adapter has no effect on a compiled denoiser", before=with_adapter, of=negative)
def adapter_without_effect(target: Target) -> Iterator[None]:
    with rescaled(target, 0.0):
        yield


# Engines.


@fault("easydiffusion/easydiffusion#83", "the seed goes on by one for each batch, and not for each image of it")
def seeds_overlap(target: Target) -> Iterator[None]:
    prepare, calls = target.pipeline.prepare_latents, [0]

    def overlapping(*args: Any, **kwargs: Any) -> torch.Tensor:
        generators = next((one for one in [*args, *kwargs.values()] if isinstance(one, list) and isinstance(one[0], torch.Generator)), [])
        for place, generator in enumerate(generators):
            generator.manual_seed(target.settings.seed + calls[0] + place)
        calls[0] += 1
        latents: torch.Tensor = prepare(*args, **kwargs)
        return latents

    with kept_attribute(target.pipeline, "prepare_latents", overlapping):
        yield


@fault(
    "sgl-project/sglang#35054 vllm-project/vllm-omni#2240",
    "a cache of the denoiser gives the output of the step before at every other step",
)
def stale_cache(target: Target) -> Iterator[None]:
    part, kept = target.denoiser, list[Any]()
    forward = part.forward

    def cached(*args: Any, **kwargs: Any) -> Any:
        if kept and kept[0][0].shape == args[0].shape:
            return kept.pop()[1]
        found = forward(*args, **kwargs)
        kept[:] = [(args[0], found)]
        return found

    with kept_attribute(part, "forward", cached):
        yield


# Other families.


@fault(
    "huggingface/diffusers#6923 apple/ml-stable-diffusion#300 hpcaitech/Open-Sora#493",
    "the scaling factor of another family: 0.18215 and not 0.13025",
    family="sdxl",
    in_code=False,
)
def scaling_of_another(target: Target) -> Iterator[None]:
    with kept_config(target.vae, scaling_factor=0.18215):
        yield


def with_mean_and_deviation(pipeline: Any) -> None:
    """Latents of the parent have a mean and a deviation of their own."""
    pipeline.vae.register_to_config(latents_mean=[0.4, -0.3, 0.2, 0.1], latents_std=[1.5, 0.7, 1.2, 0.9])


@fault(
    "huggingface/diffusers#7132 NVIDIA/DreamDojo#13",
    "mean and deviation of the latents are left out",
    family="sdxl",
    in_code=False,
    before=with_mean_and_deviation,
)
def mean_and_deviation_left_out(target: Target) -> Iterator[None]:
    with kept_config(target.vae, latents_mean=None, latents_std=None):
        yield


@fault("huggingface/transformers#24650", "the pooled embedding is that of another token", family="sdxl")
def pooled_elsewhere(target: Target) -> Iterator[None]:
    encoder: Any = target.pipeline.text_encoder_2

    def hook(module: torch.nn.Module, args: Any, found: Any) -> Any:
        found["text_embeds"] = encoder.text_projection(found.last_hidden_state[:, 1])
        return found

    handle = encoder.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@fault("Nerogar/OneTrainer#775", "pooled embeddings of prompt and negative prompt change places", family="sdxl")
def pooled_reversed(target: Target) -> Iterator[None]:
    def reversed_(found: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*found[:2], found[3], found[2]) if found[3] is not None else found

    with encoding(target.pipeline, reversed_):
        yield


@fault("huggingface/diffusers#6547 huggingface/diffusers#5614", "the corner of the crop is counted from another width", family="sdxl")
def crop_mistaken(target: Target) -> Iterator[None]:
    make = target.pipeline._get_add_time_ids

    def mistaken(*args: Any, **kwargs: Any) -> torch.Tensor:
        ids: torch.Tensor = make(*args, **kwargs).clone()
        ids[:, 3] = ids[:, 1]
        return ids

    with kept_attribute(target.pipeline, "_get_add_time_ids", mistaken):
        yield


@fault("huggingface/diffusers#12306", "pooled embeddings of a batch are in another order than its prompts", family="sd3")
def pooled_out_of_order(target: Target) -> Iterator[None]:
    with encoding(target.pipeline, lambda found: (*found[:2], found[2].roll(1, 0), *found[3:])):
        yield


@fault("huggingface/diffusers#13243", "the shift of a flow's plan is applied twice", family=FLOW, in_code=False)
def flow_shift_twice(target: Target) -> Iterator[None]:
    with with_scheduler(target, flow_shift=target.pipeline.scheduler.config.flow_shift**2):
        yield


@fault("huggingface/diffusers#14001", "scale and shift of the last norm change places in a conversion", family="flux", in_code=False)
def scale_and_shift_exchanged(target: Target) -> Iterator[None]:
    layer: Any = target.denoiser.norm_out
    with kept_weights(layer):
        for weight in layer.linear.parameters():
            weight.copy_(weight.roll(len(weight) // 2, 0))
        yield


@fault("vllm-project/vllm-omni#2433", "the guidance that is embedded has no effect", family="flux")
def guidance_ignored(target: Target) -> Iterator[None]:
    forward = target.denoiser.forward

    def without(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, "guidance": 0 * kwargs["guidance"]})

    with kept_attribute(target.denoiser, "forward", without):
        yield


@fault("xdit-project/xDiT#546", "the mask of the first prompt is used for all of a batch", family="pixart")
def mask_of_the_first(target: Target) -> Iterator[None]:
    with encoding(target.pipeline, lambda found: (found[0], found[1][:1].expand_as(found[1]), *found[2:])):
        yield


@fault("vllm-project/vllm-omni#7576 leejet/stable-diffusion.cpp#1697", "the shift of a flow's plan is lost", family=FLOW, in_code=False)
def flow_shift_lost(target: Target) -> Iterator[None]:
    with with_scheduler(target, flow_shift=1.0):
        yield


@fault("huggingface/diffusers#14671 huggingface/diffusers#8887", "the shift factor of the latents is left out", family="sd3", in_code=False)
def shift_factor_left_out(target: Target) -> Iterator[None]:
    with kept_config(target.vae, shift_factor=0.0):
        yield


@fault("huggingface/diffusers#13920 bghira/SimpleTuner#2038", "positions of the image are all zero in the rotary embedding", family="flux")
def positions_lost(target: Target) -> Iterator[None]:
    forward = target.denoiser.forward

    def lost(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, "img_ids": torch.zeros_like(kwargs["img_ids"])})

    with kept_attribute(target.denoiser, "forward", lost):
        yield


@fault("sgl-project/sglang#22059", "the guidance that is embedded is multiplied by 1000 twice", family="flux")
def embedded_guidance(target: Target) -> Iterator[None]:
    forward = target.denoiser.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, "guidance": 1000 * kwargs["guidance"]})

    with kept_attribute(target.denoiser, "forward", twice):
        yield


@fault(
    "huggingface/diffusers#12294 huggingface/diffusers#11536 mosaicml/diffusion#147",
    "the mask of the prompt's padding is ignored",
    family="pixart",
)
def mask_ignored(target: Target) -> Iterator[None]:
    def unmasked(found: tuple[Any, ...]) -> tuple[Any, ...]:
        return (found[0], torch.ones_like(found[1]), *found[2:])

    with encoding(target.pipeline, unmasked):
        yield


def copied(pipeline: Any) -> Any:
    """A copy that may be changed."""
    return copy.deepcopy(pipeline)
