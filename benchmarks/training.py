"""The models on which real defects are rebuilt: a model that heeds nothing shows no defect.

Denoisers of other families were trained on the demo's scenes for 600 steps too. They learned to do without pooled embeddings and corners of
crops, which tell little there, so that fewer defects showed; random weights with gain heed everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler

from benchmarks.variants import train
from pytest_diffusion.data.references import Reference
from pytest_diffusion.demo.scenes import COLOURS, render, sample_scenes, to_uint8
from pytest_diffusion.models.capabilities import denoiser
from pytest_diffusion.models.latents import LatentCodec

Scenes = Callable[[int], tuple[torch.Tensor, list[str]]]
"""Images, uint8 (N, 3, H, W), and captions of a step of training."""
SIZE = 64
"""Pixels a side of the models of other families."""


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Scenes of the demo, uint8 (N, 3, 32, 32), at the size of the other families, without new colours."""
    return images.repeat_interleave(SIZE // 32, 2).repeat_interleave(SIZE // 32, 3)


def as_flow(pipeline: Any, *, steps: int = 400, rate: float = 3e-4) -> None:
    """Train the demo's denoiser on as a rectified flow, and sample it with a shift of 3."""
    codec, network = LatentCodec.of(pipeline), pipeline.unet
    optimizer, generator = torch.optim.AdamW(network.parameters(), lr=rate), torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for step in range(steps):
            scenes = sample_scenes(16, seed=5_000_000 + step)
            with torch.no_grad():
                latents = codec.encode(to_uint8(render(scenes, seed=6_000_000 + step)[0]))
                kept = [one.caption if torch.rand((), generator=generator) > 0.1 else "" for one in scenes]
                tokens = pipeline.tokenizer(kept, padding="max_length", truncation=True, return_tensors="pt")
                states = pipeline.text_encoder(tokens.input_ids)[0]
            share = torch.rand(len(latents), 1, 1, 1, generator=generator)
            noise = torch.randn(latents.shape, generator=generator)
            noised = (1 - share) * latents + share * noise
            predicted = network(noised, 1000 * share.flatten(), encoder_hidden_states=states).sample
            loss = (predicted - (noise - latents)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    pipeline.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def with_gain(pipeline: Any) -> Any:
    """A pipeline of random weights in which all that a trained one heeds has a say.

    Its denoiser gives outputs of size one, its attention is not even, and what it is told beside the tokens counts.
    """
    part: Any = denoiser(pipeline)
    with torch.no_grad():
        for name, module in part.named_modules():
            if name.endswith(("guidance_embedder.linear_2", "text_embedder.linear_2", "add_embedding.linear_2")):
                module.weight.mul_(10)
            if name.endswith(("norm_q", "norm_k")) or (name.endswith(("to_q", "to_k")) and not hasattr(part, "x_embedder")):
                module.weight.mul_(3)
    layer: Any = getattr(part, "conv_out", None) or getattr(part, "proj_out", None)
    seen: list[float] = []
    handle = layer.register_forward_hook(lambda module, args, found: seen.append(float(found.std())))
    pipeline("a red circle", height=SIZE, width=SIZE, num_inference_steps=2, output_type="pt")
    handle.remove()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.div_(seen[0])
    return pipeline


def train_adapter(pipeline: Any, part: Any, layers: list[str], scenes: Scenes, *, alpha: int, steps: int = 200, rate: float = 5e-3) -> None:
    """Add an adapter (LoRA) of rank 8 to a part of the demo, and train it on scenes."""
    import peft

    torch.manual_seed(0)
    part.add_adapter(peft.LoraConfig(r=8, lora_alpha=alpha, target_modules=layers))
    chosen = [weight for name, weight in part.named_parameters() if "lora_" in name]
    with torch.enable_grad():
        train(pipeline, scenes, rate=rate, steps=steps, parameters=chosen)
    part.requires_grad_(False)


def negative(reference: Reference) -> Reference:
    """References in negative colours."""
    return replace(reference, images=255 - reference.require_images())


def exchanged(reference: Reference) -> Reference:
    """References whose captions name other colours."""
    return replace(reference, prompts=[_exchanged(text) for text in reference.prompts or ()])


def negative_scenes(step: int) -> tuple[torch.Tensor, list[str]]:
    """Scenes of a step of training, in negative colours, with their captions."""
    images, captions = _scenes(step)
    return 255 - images, captions


def exchanged_scenes(step: int) -> tuple[torch.Tensor, list[str]]:
    """Scenes of a step of training, with captions that name other colours."""
    images, captions = _scenes(step)
    return images, [_exchanged(caption) for caption in captions]


def _scenes(step: int) -> tuple[torch.Tensor, list[str]]:
    scenes = sample_scenes(16, seed=7_000_000 + step)
    return to_uint8(render(scenes, seed=8_000_000 + step)[0]), [scene.caption for scene in scenes]


def _exchanged(caption: str) -> str:
    """A caption in which each colour is the next one of the list."""
    names = list(COLOURS)
    return " ".join(names[(names.index(word) + 1) % len(names)] if word in names else word for word in caption.split())
