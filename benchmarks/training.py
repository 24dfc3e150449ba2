"""Short training of the models on which real defects are rebuilt: a model that heeds nothing shows no defect.

Text encoders and VAEs of other families keep their random weights: they are fixed functions of captions and images, which is all that a
denoiser needs to learn from them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8
from pytest_diffusion.models.capabilities import denoiser, takes
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.levels import as_prediction, prediction_type_of
from pytest_diffusion.models.one_call import DenoiserCall
from pytest_diffusion.models.schedulers import num_train_timesteps

SIZE = 64
"""Pixels a side of the models of other families."""
_CROPS = 9
"""Corners of crops, in steps of 8 pixels along both sides, for models that are told of them."""


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


def trained(pipeline: Any, *, steps: int = 600, rate: float = 2e-3, batch: int = 16) -> Any:
    """A pipeline whose denoiser has learned the demo's scenes, from the captions and, where it takes them, corners of crops."""
    codec, network = LatentCodec.of(pipeline), denoiser(pipeline)
    assert network is not None
    network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    settings = Settings(height=SIZE, width=SIZE, device="cpu")
    kind, total = prediction_type_of(pipeline.scheduler), num_train_timesteps(pipeline.scheduler)
    for step in range(steps):
        scenes = sample_scenes(batch, seed=5_000_000 + step)
        images, told = enlarged(to_uint8(render(scenes, seed=6_000_000 + step)[0])), dict[str, Any]()
        if takes(pipeline, "crops_coords_top_left"):
            top, left = (8 * int(torch.randint(_CROPS, (), generator=generator)) for _ in range(2))
            images, told["crops_coords_top_left"] = cropped(images, top, left), (top, left)
        seeds = list(range(step * batch, (step + 1) * batch))
        captions = [one.caption if torch.rand((), generator=generator) > 0.1 else "" for one in scenes]
        with torch.no_grad():
            latents = codec.encode(images)
            call = DenoiserCall.catch(pipeline, captions, settings, seeds=seeds, step=0, guidance_scale=1.0, **told)
        noise = torch.randn(latents.shape, generator=generator)
        there = call.at(float(torch.randint(1, total, (), generator=generator)))
        noised = there.noised(latents, noise)
        with torch.enable_grad():
            loss = (there.evaluated(noised) - as_prediction(latents, noised, there.level, kind)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    network.requires_grad_(False)
    return pipeline


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


def cropped(images: torch.Tensor, top: int, left: int) -> torch.Tensor:
    """Images (N, 3, H, W) from which rows above and columns on the left are cut; the last ones are repeated."""
    rest = F.pad(images.float(), (0, left, 0, top), mode="replicate")
    return rest[..., top:, left:].to(images.dtype)
