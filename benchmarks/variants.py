"""Damaged and sound variants of a pipeline, each made in memory from a copy: what a gate must catch and what it must let pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch.nn import functional as F

from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8

Change = Callable[[Any, int], None]
"""Changes a pipeline; the second argument is a seed."""


@dataclass(frozen=True)
class Variant:
    """One variant: how the pipeline is changed, what else is set for its run, and whether a seed decides it."""

    name: str
    change: Change
    settings: dict[str, Any] = field(default_factory=dict)
    is_seeded: bool = False

    def of(self, pipeline: Any, seed: int = 0) -> Any:
        """A changed copy of a pipeline."""
        changed = copy.deepcopy(pipeline)
        self.change(changed, seed)
        return changed


def noise(part: str, amount: float) -> Change:
    """Normal noise on every weight of a part, in units of the root mean square of its tensor."""

    def change(pipeline: Any, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        module = getattr(pipeline, part.partition(".")[0])
        for name in part.split(".")[1:]:
            module = getattr(module, name)
        with torch.no_grad():
            for weight in module.parameters():
                weight += amount * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)

    return change


def quantised(bits: int) -> Change:
    """Weights of the denoiser and the text encoder rounded to so many bits, with one scale for each row, as usual."""

    def change(pipeline: Any, seed: int) -> None:
        with torch.no_grad():
            for module in (pipeline.unet, pipeline.text_encoder):
                for weight in (one for one in module.parameters() if one.ndim > 1):
                    scale = weight.flatten(1).abs().amax(1).clamp(min=1e-9) / (2 ** (bits - 1) - 1)
                    scale = scale.view(-1, *[1] * (weight.ndim - 1))
                    weight.copy_((weight / scale).round() * scale)

    return change


def bfloat16(pipeline: Any, seed: int) -> None:
    """All weights rounded to bfloat16."""
    with torch.no_grad():
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            for weight in part.parameters():
                weight.copy_(weight.to(torch.bfloat16).float())


def one_head_zeroed(pipeline: Any, seed: int) -> None:
    """The first head of every cross-attention gives nothing."""
    with torch.no_grad():
        for name, module in pipeline.unet.named_modules():
            if name.endswith("attn2"):
                width = module.to_v.weight.shape[0] // module.heads
                module.to_v.weight[:width] = 0


def v_prediction(pipeline: Any, seed: int) -> None:
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")


def purple_half_blue(pipeline: Any, seed: int) -> None:
    """The token of "purple" is moved half-way to that of "blue"."""
    embedding = pipeline.text_encoder.get_input_embeddings().weight
    vocabulary = pipeline.tokenizer.get_vocab()
    purple, blue = (vocabulary[f"{word}</w>"] for word in ("purple", "blue"))
    with torch.no_grad():
        embedding[purple] = (embedding[purple] + embedding[blue]) / 2


def channels_swapped(pipeline: Any, seed: int) -> None:
    decode = pipeline.vae.decode

    def swapped(*args: Any, **kwargs: Any) -> Any:
        result = decode(*args, **kwargs)
        return (result[0][:, [2, 1, 0]],) if isinstance(result, tuple) else type(result)(sample=result.sample[:, [2, 1, 0]])

    pipeline.vae.decode = swapped


def prompts_shuffled(pipeline: Any, seed: int) -> None:
    """Each prompt is replaced by another one: the next of its batch."""
    encode = pipeline.encode_prompt

    def shuffled(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return encode([*prompt[1:], prompt[0]] if isinstance(prompt, list) else prompt, *args, **kwargs)

    pipeline.encode_prompt = shuffled


def explicit_attention(pipeline: Any, seed: int) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    pipeline.unet.set_attn_processor(AttnProcessor())


def channels_last(pipeline: Any, seed: int) -> None:
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)


def scheduler(name: str) -> Change:
    def change(pipeline: Any, seed: int) -> None:
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)

    return change


def nothing(pipeline: Any, seed: int) -> None:
    """Leave the pipeline as it is."""


def fine_tuned(rate: float, steps: int = 200, *, batch: int = 32) -> Change:
    """The denoiser trained on for some steps on new scenes of the kind that it was trained on."""

    def change(pipeline: Any, seed: int) -> None:
        def scenes(step: int) -> tuple[torch.Tensor, list[str]]:
            drawn = sample_scenes(batch, seed=1_000_000 + 1000 * seed + step)
            return to_uint8(render(drawn, seed=2_000_000 + 1000 * seed + step)[0]), [scene.caption for scene in drawn]

        train(pipeline, scenes, rate=rate, steps=steps, seed=seed)

    return change


def train(
    pipeline: Any,
    scenes: Callable[[int], tuple[torch.Tensor, list[str]]],
    *,
    rate: float,
    steps: int,
    seed: int = 0,
    parameters: list[torch.nn.Parameter] | None = None,
) -> None:
    """Train the denoiser, or the given parameters, on images and captions of each step, by the loss of noise prediction."""
    from pytest_diffusion.models.latents import LatentCodec

    codec, network = LatentCodec.of(pipeline), pipeline.unet
    chosen = parameters if parameters is not None else list(network.parameters())
    optimizer = torch.optim.AdamW(chosen, lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    alphas = pipeline.scheduler.alphas_cumprod
    network.train()
    for step in range(steps):
        images, captions = scenes(step)
        latents = codec.encode(images)
        # A caption is left out now and then, as in the training of the parent: guidance needs it.
        kept = [caption if torch.rand((), generator=generator) > 0.1 else "" for caption in captions]
        tokens = pipeline.tokenizer(kept, padding="max_length", truncation=True, return_tensors="pt")
        with torch.set_grad_enabled(any(one.requires_grad for one in pipeline.text_encoder.parameters())):
            states = pipeline.text_encoder(tokens.input_ids)[0]
        times = torch.randint(len(alphas), (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        level = alphas[times].view(-1, 1, 1, 1)
        predicted = network(level.sqrt() * latents + (1 - level).sqrt() * noise, times, encoder_hidden_states=states).sample
        loss = F.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    for parameter in network.parameters():
        parameter.grad = None


DAMAGED = (
    Variant("UNet noise 2 %", noise("unet", 0.02), is_seeded=True),
    Variant("UNet noise 5 %", noise("unet", 0.05), is_seeded=True),
    Variant("UNet noise 10 %", noise("unet", 0.1), is_seeded=True),
    Variant("UNet noise 20 %", noise("unet", 0.2), is_seeded=True),
    Variant("text encoder noise 20 %", noise("text_encoder", 0.2), is_seeded=True),
    Variant("VAE decoder noise 5 %", noise("vae.decoder", 0.05), is_seeded=True),
    Variant("one head zeroed", one_head_zeroed),
    Variant("int4 weights", quantised(4)),
    Variant("v_prediction declared", v_prediction),
    Variant("purple half blue", purple_half_blue),
    Variant("guidance lost", nothing, {"guidance_scale": 1.0}),
    Variant("4 steps", nothing, {"steps": 4}),
    Variant("channels swapped", channels_swapped),
    Variant("prompts shuffled", prompts_shuffled),
)
COPIES = (
    Variant("bf16-rounded weights", bfloat16),
    Variant("int8 weights", quantised(8)),
    Variant("another batch size", nothing, {"batch_size": 7}),
    Variant("explicit attention", explicit_attention),
    Variant("channels last", channels_last),
)
"""Sound under equivalence, and as a fine-tune too."""
FINE_TUNES = (
    Variant("DPM-Solver++, 15 steps", scheduler("DPMSolverMultistepScheduler"), {"steps": 15}),
    Variant("Euler", scheduler("EulerDiscreteScheduler")),
    Variant("fine-tuned, rate 1e-5", fine_tuned(1e-5), is_seeded=True),
    Variant("fine-tuned, rate 1e-4", fine_tuned(1e-4), is_seeded=True),
)
"""Sound as a fine-tune."""
