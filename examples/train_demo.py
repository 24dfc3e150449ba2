"""Train the demo model from scratch: tokenizer, judge, VAE, CLIP, UNet; then export.

`examples/evaluate_demo.py` says how good the result is.

    python examples/train_demo.py                      # everything, about an hour on two CPU cores
    python examples/train_demo.py --stages unet export # one stage again
    python examples/train_demo.py --device cuda

Every stage writes checkpoints to --work-dir and goes on from the newest one, so that a killed run loses
at most a minute of work. The batch of step n depends on the seed and n alone, so a resumed run sees
what an undisturbed one would have. Figures go to WORK_DIR/log.jsonl, one JSON object a line.
The result lies in WORK_DIR/export; copy it over pytest_diffusion/demo/weights to ship it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from pytest_diffusion.demo import NAMED_LAYER
from pytest_diffusion.demo.judge import Judge, read, targets
from pytest_diffusion.demo.scenes import KINDS, LAYOUTS, RELATIONS, Scene, caption_of, render, sample_scenes, to_uint8

SCALING_FACTOR = 0.18215
MAX_LENGTH = 16
POOL_SIZE = 40_000
STAGES = ("tokenizer", "judge", "vae", "clip", "unet", "export")
# Widths are the largest that keep all weights within 8 MB in fp16.
UNET_WIDTHS = (64, 96)
VAE_WIDTHS = (16, 32, 48)


class Run:
    """What the stages share: the folder, the device, the seed and the log."""

    def __init__(self, work_dir: Path, device: str, seed: int) -> None:
        self.work_dir, self.device, self.seed = work_dir, torch.device(device), seed
        work_dir.mkdir(parents=True, exist_ok=True)

    def log(self, stage: str, **figures: float | int | str) -> None:
        line = json.dumps({"stage": stage, "time": round(time.time(), 1), **figures})
        with (self.work_dir / "log.jsonl").open("a") as file:
            file.write(line + "\n")
        sys.stderr.write(line + "\n")

    def generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def pool(self, count: int = POOL_SIZE, seed: int = 1) -> tuple[torch.Tensor, list[Scene]]:
        """Rendered uint8 images and their scenes, kept on disk between stages."""
        scenes = sample_scenes(count, seed=self.seed + seed)
        path = self.work_dir / f"pool-{count}-{self.seed + seed}.safetensors"
        if not path.exists():
            save_file({"images": to_uint8(render(scenes, seed=self.seed + seed)[0])}, path)
        return load_file(path)["images"], scenes

    def masks(self) -> torch.Tensor:
        """Coverage of the first and the second object in each latent position, (N, 2, 8, 8), of the pool's images."""
        path = self.work_dir / f"masks-{POOL_SIZE}-{self.seed + 1}.safetensors"
        if not path.exists():
            rendered = render(sample_scenes(POOL_SIZE, seed=self.seed + 1), seed=self.seed + 1)[1]
            save_file({"masks": F.avg_pool2d(rendered, 4)}, path)
        return load_file(path)["masks"]

    def held_out(self, count: int = 2000) -> tuple[torch.Tensor, list[Scene]]:
        images, scenes = self.pool(count, seed=2)
        return images.float().div(255).to(self.device), scenes

    def tokenizer(self) -> CLIPTokenizer:
        return CLIPTokenizer.from_pretrained(self.work_dir / "tokenizer")


def train(
    run: Run,
    stage: str,
    modules: dict[str, nn.Module],
    loss_of: Callable[[int, torch.Generator], torch.Tensor],
    *,
    steps: int,
    groups: list[dict],
    ema: dict[str, nn.Module] | None = None,
    report: Callable[[], dict[str, float]] | None = None,
) -> None:
    """Run AdamW for `steps` with warm-up and cosine decay, with checkpoints and an optional running average."""
    path = run.work_dir / f"{stage}.pt"
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-4)
    peaks = [group["lr"] for group in optimizer.param_groups]
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=run.device)
        for name, module in modules.items():
            module.load_state_dict(state[name])
        for name, module in (ema or {}).items():
            module.load_state_dict(state[f"ema.{name}"])
        if state["steps"] == steps:
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]

    def save(step: int) -> None:
        state = {name: module.state_dict() for name, module in modules.items()}
        state |= {f"ema.{name}": module.state_dict() for name, module in (ema or {}).items()}
        torch.save({**state, "optimizer": optimizer.state_dict(), "step": step, "steps": steps}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    saved, average = time.monotonic(), 0.0
    for step in range(first, steps):
        scale = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * scale
        loss = loss_of(step, run.generator(step))
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(0.999, (step + 1) / (step + 10))
        for name, module in (ema or {}).items():
            with torch.no_grad():
                for kept, live in zip(module.parameters(), modules[name].parameters(), strict=True):
                    kept.lerp_(live, 1 - decay)
        average = loss.item() if step == first else 0.98 * average + 0.02 * loss.item()
        if not math.isfinite(average):
            raise FloatingPointError(f"{stage}: the loss is {average} at step {step}; nothing was overwritten in {path}.")
        if (step + 1) % 250 == 0:
            run.log(stage, step=step + 1, loss=round(average, 5))
        if time.monotonic() - saved > 60:
            save(step + 1)
            saved = time.monotonic()
    if first < steps:
        save(steps)
    if report:
        run.log(stage, done=steps, **report())


def tokenizer_stage(run: Run) -> None:
    """A byte-pair vocabulary in which each word of the captions is one token, in the CLIP file format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    words = sorted(
        {word for relation in RELATIONS for word in caption_of(0, 1, relation).split()} | {"an"} | {word for kind in KINDS for word in kind}
    )
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    # Each word often, and each letter once, so that the base alphabet is complete.
    model.train_from_iterator(
        words * 50 + letters, trainers.BpeTrainer(vocab_size=1000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False)
    )
    trained = json.loads(model.to_str())["model"]
    base = letters + [letter + "</w>" for letter in letters]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in trained["merges"]]
    tokens = base + [merge.replace(" ", "") for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder = run.work_dir / "tokenizer"
    folder.mkdir(exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_LENGTH, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = run.tokenizer()
    for word in words:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise AssertionError(f"The word {word!r} became {len(ids)} tokens; expected 1.")
    run.log("tokenizer", entries=len(vocabulary), words=len(words))


def judge_stage(run: Run) -> None:
    """The judge, taught with noise and blur so that its verdict on imperfect samples is robust."""
    images, scenes = run.pool()
    layout, first, second = targets(scenes)
    judge = seeded(run, Judge).train()

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(images), (64,), generator=generator)
        pixels = augment(images[batch].float() / 255, generator).to(run.device)
        logits = judge(pixels)
        return sum(
            F.cross_entropy(logit, target[batch].to(run.device), label_smoothing=0.02)
            for logit, target in zip(logits, (layout, first, second), strict=True)
        )

    def report() -> dict[str, float]:
        pixels, held = run.held_out()
        with torch.no_grad():
            noisy = (pixels + 0.05 * torch.randn(pixels.shape, generator=run.generator(0)).to(pixels)).clamp(0, 1)
            return {
                "accuracy": read(judge.eval()(pixels), held).order.float().mean().item(),
                "accuracy_noisy": read(judge(noisy), held).order.float().mean().item(),
            }

    train(run, "judge", {"judge": judge}, loss_of, steps=3000, groups=[{"params": judge.parameters(), "lr": 2e-3}], report=report)


def vae_stage(run: Run) -> None:
    """An AutoencoderKL with f = 4; its latents are then standardised per channel inside the 1x1 convolutions."""
    images, _ = run.pool()
    vae = seeded(run, build_vae).to(memory_format=torch.channels_last)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        pixels = images[torch.randint(len(images), (32,), generator=generator)].float().div(127.5).sub(1)
        pixels = pixels.to(run.device, memory_format=torch.channels_last)
        posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(pixels)
        error = vae.decode(posterior.mean + posterior.std * noise).sample - pixels
        return error.abs().mean() + 4 * error.square().mean() + 1e-4 * posterior.kl().mean() / 256

    def report() -> dict[str, float]:
        standardise_latents(vae, images[:4000].float().div(127.5).sub(1).to(run.device))
        save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, run.work_dir / "vae.safetensors")
        pixels, _ = run.held_out()
        with torch.no_grad():
            latents = vae.encode(pixels * 2 - 1).latent_dist.mean
            decoded = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        mse = (decoded - pixels).square().mean((1, 2, 3))
        return {"psnr": (-10 * mse.log10()).mean().item(), "scaled_latent_std": (latents * SCALING_FACTOR).std().item()}

    train(run, "vae", {"vae": vae}, loss_of, steps=7000, groups=[{"params": vae.parameters(), "lr": 2e-3}], report=report)


def clip_stage(run: Run) -> None:
    """CLIP with hard negatives (the same objects, the relation turned round) and a shared attribute head."""
    images, scenes = run.pool()
    tokenizer = run.tokenizer()
    clip = seeded(run, lambda: build_clip(tokenizer))
    # One linear reading of the scene from either tower: it makes both encode relations from the first steps.
    reader = nn.Linear(64, len(LAYOUTS) + len(KINDS) + len(KINDS) + 1).to(run.device)
    keys = torch.tensor([scene_key(scene) for scene in scenes])
    layout, first, second = targets(scenes)

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(images), (128,), generator=generator)
        mirrored = [mirror(scenes[i]) for i in batch.tolist()]
        negatives = [scene for scene in mirrored if scene is not None]
        texts = [scenes[i].caption for i in batch.tolist()] + [scene.caption for scene in negatives]
        text_keys = torch.cat([keys[batch], torch.tensor([scene_key(scene) for scene in negatives], dtype=torch.long)])
        pixels = augment(images[batch].float() / 255, generator).mul(2).sub(1).to(run.device)
        image_embeds, text_embeds = embed_images(clip, pixels), embed_texts(clip, tokenizer, texts)
        logits = clip.logit_scale.exp().clamp(max=50) * image_embeds @ text_embeds.T
        match = (keys[batch][:, None] == text_keys).float().to(run.device)
        loss = -(match / match.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
        columns = match[:, : len(batch)]
        loss = loss - (columns / columns.sum(0) * logits[:, : len(batch)].log_softmax(0)).sum(0).mean()
        for embeds in (image_embeds, text_embeds[: len(batch)]):
            readings = reader(embeds * 8).split((len(LAYOUTS), len(KINDS), len(KINDS) + 1), dim=1)
            loss = (
                loss
                + sum(
                    F.cross_entropy(reading, target[batch].to(run.device))
                    for reading, target in zip(readings, (layout, first, second), strict=True)
                )
                / 2
            )
        return loss

    def report() -> dict[str, float]:
        pixels, held = run.held_out()
        clip.eval()
        with torch.no_grad():
            image_embeds = embed_images(clip, pixels * 2 - 1)
            right = (image_embeds * embed_texts(clip, tokenizer, [scene.caption for scene in held])).sum(1)
            pairs = [index for index, scene in enumerate(held) if scene.second is not None]
            wrong = embed_texts(clip, tokenizer, [mirror(held[i]).caption for i in pairs])
            return {
                "cosine": right.mean().item(),
                "relation_accuracy": (right[pairs] > (image_embeds[pairs] * wrong).sum(1)).float().mean().item(),
            }

    train(
        run,
        "clip",
        {"clip": clip, "reader": reader},
        loss_of,
        steps=3500,
        groups=[{"params": [*clip.parameters(), *reader.parameters()], "lr": 1.5e-3}],
        report=report,
    )


def unet_stage(run: Run) -> None:
    """The UNet and its copy of CLIP's text encoder, trained together on latents (epsilon, min-SNR weights).

    The words that name an object are taught to look at it, by the divergence between the object's mask and
    their map in one layer (after TokenCompose, arXiv:2312.03626): left alone, a small UNet reads everything
    from the padding, and there would be nothing for attention checks to see.
    """
    images, scenes = run.pool()
    tokenizer = run.tokenizer()
    text_encoder = build_text_encoder(run, tokenizer)
    vae = load_vae(run)
    unet = seeded(run, build_unet)
    with torch.no_grad():
        posteriors = [vae.encode(chunk.float().div(127.5).sub(1).to(run.device)).latent_dist for chunk in images.split(500)]
    means = torch.cat([posterior.mean for posterior in posteriors]) * SCALING_FACTOR
    stds = torch.cat([posterior.std for posterior in posteriors]) * SCALING_FACTOR
    run.log("unet", latent_mean=means.mean().item(), latent_std=means.std().item())
    input_ids = tokenize(tokenizer, [scene.caption for scene in scenes])
    empty = tokenize(tokenizer, [""])
    scheduler = build_scheduler()
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = (snr.clamp(max=5) / snr).to(run.device)
    masks, places = run.masks(), word_places(scenes)
    watched = WatchedAttention()
    unet.get_submodule(NAMED_LAYER).processor = watched

    def loss_of(step: int, generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(images), (64,), generator=generator)
        draws = [torch.randn((64, *means.shape[1:]), generator=generator).to(run.device) for _ in range(2)]
        latents = means[batch] + stds[batch] * draws[0]
        # Stratified timesteps: every batch sees the whole range, which steadies the gradient.
        timesteps = ((torch.arange(64) + torch.rand(64, generator=generator)) / 64 * 1000).long().clamp(max=999)
        dropped = torch.rand(64, 1, generator=generator) < 0.1
        ids = torch.where(dropped, empty, input_ids[batch]).to(run.device)
        noisy = scheduler.add_noise(latents, draws[1], timesteps.to(run.device))
        states = text_encoder(ids).last_hidden_state
        predicted = unet(noisy, timesteps.to(run.device), encoder_hidden_states=states).sample
        loss = (weights[timesteps] * (predicted - draws[1]).square().mean((1, 2, 3))).mean()
        # What is still noise cannot be pointed at, so clean timesteps count for more.
        visible = (scheduler.alphas_cumprod[timesteps] * ~dropped[:, 0]).to(run.device)
        return loss + GROUNDING_WEIGHT * (visible * grounding_loss(watched.probs, masks[batch], places[batch])).mean()

    train(
        run,
        "unet",
        {"unet": unet, "text_encoder": text_encoder},
        loss_of,
        steps=UNET_STEPS,
        groups=[{"params": unet.parameters(), "lr": 1.2e-3}, {"params": text_encoder.parameters(), "lr": 4e-4}],
        ema={"unet": copy.deepcopy(unet), "text_encoder": copy.deepcopy(text_encoder)},
    )


def export_stage(run: Run) -> None:
    """The running averages as a diffusers folder in fp16, with CLIP and the judge beside it."""
    folder = run.work_dir / "export"
    pipeline = trained_pipeline(run).to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    clip = seeded(run, lambda: build_clip(run.tokenizer()))
    clip.load_state_dict(torch.load(run.work_dir / "clip.pt", weights_only=True)["clip"])
    clip.to(torch.float16).save_pretrained(folder / "clip")
    pixels = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"shortest_edge": 32}}
    (folder / "clip" / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n")
    # The vocabulary as it was built: its two files load with every version of transformers.
    for target in (folder / "tokenizer", folder / "clip"):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (target / name).unlink(missing_ok=True)
        shutil.copytree(run.work_dir / "tokenizer", target, dirs_exist_ok=True)
    judge = Judge()
    judge.load_state_dict(torch.load(run.work_dir / "judge.pt", weights_only=True)["judge"])
    save_file(judge.to(torch.float16).state_dict(), folder / "judge.safetensors")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    run.log("export", megabytes=round(size / 1e6, 2))


class WatchedAttention:
    """Cross-attention with an explicit softmax, whose probabilities (B, pixels, tokens), mean over heads, stay for the loss."""

    probs: torch.Tensor

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
        **_: object,
    ) -> torch.Tensor:
        query, key, value = (
            attn.head_to_batch_dim(layer(states))
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states))
        )
        probs = attn.get_attention_scores(query, key, attention_mask)
        self.probs = probs.unflatten(0, (-1, attn.heads)).mean(1)
        return attn.to_out[0](attn.batch_to_head_dim(probs @ value))


def grounding_loss(probs: torch.Tensor, masks: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """KL divergence (B,) from each object's mask to the maps of its colour and its shape word, mean over words."""
    masks, places = masks.flatten(2).to(probs), places.to(probs.device)
    target = masks / masks.sum(2, keepdim=True).clamp(min=1e-6)
    total = torch.zeros(len(probs), device=probs.device)
    for word in range(2):
        index = places[:, :, word].clamp(min=0)[:, None].expand(-1, probs.shape[1], -1)
        maps = probs.gather(2, index).transpose(1, 2)  # (B, objects, pixels)
        maps = maps / maps.sum(2, keepdim=True).clamp(min=1e-6)
        divergence = (torch.xlogy(target, target) - target * maps.clamp(min=1e-6).log()).sum(2)
        total = total + (divergence * (places[:, :, word] >= 0)).sum(1)
    return total / (places >= 0).sum((1, 2))


def word_places(scenes: list[Scene]) -> torch.Tensor:
    """Token places (N, 2, 2) of the colour and the shape word of the first and the second object; -1 where there is none."""
    places = torch.full((len(scenes), 2, 2), -1)
    for row, scene in enumerate(scenes):
        words = scene.caption.split()
        phrases = [torch.tensor([2, 3])]  # after the start token and the article
        if scene.second is not None:
            phrases.append(torch.tensor([len(words) - 1, len(words)]))
        if "below" in words or "right" in words:
            phrases.reverse()
        places[row, : len(phrases)] = torch.stack(phrases)
    return places


def seeded(run: Run, build: Callable[[], nn.Module]) -> nn.Module:
    """A freshly initialised module whose weights depend on the run's seed alone."""
    torch.manual_seed(run.seed)
    return build().to(run.device)


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=32,
        scaling_factor=SCALING_FACTOR,
    )


def load_vae(run: Run) -> AutoencoderKL:
    vae = build_vae()
    vae.load_state_dict(load_file(run.work_dir / "vae.safetensors"))
    return vae.to(run.device).eval()


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=UNET_WIDTHS,
        norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=64,
        attention_head_dim=4,
    )


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    common = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 64}
    text = {
        **common,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    vision = {**common, "num_hidden_layers": 3, "image_size": 32, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def build_text_encoder(run: Run, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    clip = seeded(run, lambda: build_clip(tokenizer))
    clip.load_state_dict(torch.load(run.work_dir / "clip.pt", weights_only=True, map_location=run.device)["clip"])
    encoder = CLIPTextModel(clip.config.text_config).to(run.device)
    donor = clip.text_model.state_dict()
    prefix = "text_model." if any(name.startswith("text_model.") for name in encoder.state_dict()) else ""
    encoder.load_state_dict({prefix + name.removeprefix("text_model."): value for name, value in donor.items()})
    return encoder


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def trained_pipeline(run: Run) -> StableDiffusionPipeline:
    tokenizer = run.tokenizer()
    state = torch.load(run.work_dir / "unet.pt", weights_only=True, map_location="cpu")
    unet, text_encoder = build_unet(), build_text_encoder(run, tokenizer)
    unet.load_state_dict(state["ema.unet"])
    text_encoder.load_state_dict(state["ema.text_encoder"])
    return StableDiffusionPipeline(
        vae=load_vae(run),
        text_encoder=text_encoder.to("cpu").eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def standardise_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Fold an affine map per channel into both 1x1 convolutions: scaled latents get mean 0 and deviation 1."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pixels.split(500)])
        mean, scale = latents.mean((0, 2, 3)), 1 / (latents.std((0, 2, 3)) * SCALING_FACTOR)
        count = len(mean)
        vae.quant_conv.weight[:count] *= scale[:, None, None, None]
        vae.quant_conv.bias[:count] = (vae.quant_conv.bias[:count] - mean) * scale
        vae.quant_conv.bias[count:] += 2 * scale.log()  # the second half is log-variance
        vae.post_quant_conv.bias += (vae.post_quant_conv.weight[:, :, 0, 0] * mean).sum(1)
        vae.post_quant_conv.weight /= scale[None, :, None, None]


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images in [0, 1] with noise, blur and tint of random strength; a quarter is left as it is."""
    count = len(pixels)
    pick = torch.rand(count, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.where(pick < 0.35, blurred, pixels)
    strength = 0.12 * torch.rand(count, 1, 1, 1, generator=generator) * (pick < 0.75)
    noise = torch.randn(pixels.shape, generator=generator)
    tint = 0.3 * torch.randn(count, 3, 1, 1, generator=generator)
    return (pixels + strength * (noise + tint)).clamp(0, 1)


def scene_key(scene: Scene) -> int:
    return (LAYOUTS.index(scene.layout) * 25 + scene.first) * 25 + (24 if scene.second is None else scene.second)


def mirror(scene: Scene) -> Scene | None:
    """The scene with its two objects exchanged, captioned from the other side."""
    if scene.second is None:
        return None
    relation = "above" if scene.layout == "vertical" else "left of"
    if scene.caption.count(" below ") or scene.caption.count(" right of "):
        relation = {"above": "below", "left of": "right of"}[relation]
        caption = caption_of(scene.first, scene.second, relation)
    else:
        caption = caption_of(scene.second, scene.first, relation)
    return Scene(scene.layout, scene.second, scene.first, caption)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt").input_ids


def embed_images(clip: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    return F.normalize(clip.visual_projection(clip.vision_model(pixels).pooler_output), dim=1)


def embed_texts(clip: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    ids = tokenize(tokenizer, texts).to(clip.device)
    return F.normalize(clip.text_projection(clip.text_model(ids).pooler_output), dim=1)


UNET_STEPS = 5_000
GROUNDING_WEIGHT = 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("build/demo"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options = parser.parse_args()
    run = Run(options.work_dir, options.device, options.seed)
    for stage in options.stages:
        globals()[f"{stage}_stage"](run)


if __name__ == "__main__":
    main()
