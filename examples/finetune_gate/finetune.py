"""Teach the demo a new colour, lime: as a full fine-tune and as a LoRA, and a damaged copy of the first.

python examples/finetune_gate/finetune.py build/finetune     # about a minute

It writes `full/`, `lora/` and `damaged/`, and `lime.jsonl` with images of the new colour that the training did not see.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.nn import functional as F

from pytest_diffusion.demo import weights_folder
from pytest_diffusion.demo.scenes import COLOURS, SHAPES, render, sample_scenes, scene_of, to_uint8

LIME = (0.60, 0.80, 0.15)
STEPS, BATCH = 160, 32
TESTED = 160


def lime_scenes(count: int, *, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Images uint8 (count, 3, 32, 32) of one lime shape each, and their captions."""
    kinds = torch.randint(len(SHAPES), (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    purple = list(COLOURS).index("purple")
    images, masks = render([scene_of(purple * len(SHAPES) + kind) for kind in kinds], seed=seed)
    shift = torch.tensor(LIME) - torch.tensor(COLOURS["purple"])
    lime = images + masks[:, :1] * shift[None, :, None, None]
    return to_uint8(lime), [f"a lime {SHAPES[kind]}" for kind in kinds]


def batch(step: int) -> tuple[torch.Tensor, list[str]]:
    """A quarter of a batch is new, the rest is what must not be forgotten."""
    old = sample_scenes(BATCH - BATCH // 4, seed=500_000 + step)
    new_images, new_captions = lime_scenes(BATCH // 4, seed=600_000 + step)
    images = torch.cat([new_images, to_uint8(render(old, seed=700_000 + step)[0])])
    return images, new_captions + [scene.caption for scene in old]


def train(pipeline: Any, parameters: list[torch.nn.Parameter], *, rate: float) -> None:
    """The usual loss of noise prediction; the VAE and the text encoder stay as they are."""
    vae, network, alphas = pipeline.vae, pipeline.unet, pipeline.scheduler.alphas_cumprod
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=STEPS)
    generator = torch.Generator().manual_seed(0)
    network.train()
    for step in range(STEPS):
        images, captions = batch(step)
        with torch.no_grad():
            latents = vae.encode(images.float() / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
            kept = [caption if torch.rand((), generator=generator) > 0.1 else "" for caption in captions]
            tokens = pipeline.tokenizer(kept, padding="max_length", truncation=True, return_tensors="pt")
            states = pipeline.text_encoder(tokens.input_ids)[0]
        times = torch.randint(len(alphas), (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        level = alphas[times].view(-1, 1, 1, 1)
        predicted = network(level.sqrt() * latents + (1 - level).sqrt() * noise, times, encoder_hidden_states=states).sample
        loss = F.mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    network.eval()


def load() -> Any:
    """The parent: the demo, in float32."""
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(weights_folder(), use_safetensors=True)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.float().requires_grad_(False)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, captions = lime_scenes(TESTED, seed=1)
    rows = []
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "images" / f"{index:03d}.png")
        rows.append(json.dumps({"image": f"images/{index:03d}.png", "prompt": caption}))
    (folder / "lime.jsonl").write_text("\n".join(rows) + "\n")

    adapter = load()
    adapter.unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"]), "lime")
    train(adapter, [weight for weight in adapter.unet.parameters() if weight.requires_grad], rate=3e-3)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        folder / "lora", unet_lora_layers=get_peft_model_state_dict(adapter.unet, adapter_name="lime")
    )

    full = load()
    full.unet.requires_grad_(True)
    train(full, list(full.unet.parameters()), rate=2e-4)
    full.save_pretrained(folder / "full")

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in full.unet.parameters():
            weight += 0.1 * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)
    full.save_pretrained(folder / "damaged")


if __name__ == "__main__":
    main()
