"""What recording attention costs: CPU and memory over a plain run, beside an explicit softmax everywhere and beside keeping all maps.

    python -m benchmarks.attention [--rounds 5] [--size 32]

The subject is a Stable Diffusion 1.5 UNet as released at a fifth of its width (random weights, 77 tokens) on latents of `--size`,
whose layers do real work; the demo's UNet is measured beside it, whose layers are so small that dispatch is what it costs.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.timing import interleaved, row
from pytest_diffusion import record_attention
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.load import load_pipeline

UNET = Path(__file__).parents[1] / "tests" / "data" / "zoo" / "stable-diffusion-v1-5" / "unet.json"
PROMPTS = ["a red circle", "a blue square"]


class KeepingAll:
    """Explicit attention that keeps the probabilities of every step, as notebooks do."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self.kept = kept

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key, value = (attn.head_to_batch_dim(project(encoder_hidden_states)) for project in (attn.to_k, attn.to_v))
        probs = attn.get_attention_scores(query, key)
        self.kept.append(probs.detach().cpu())
        output: torch.Tensor = attn.to_out[0](attn.batch_to_head_dim(probs @ value))
        return output


def wide(size: int) -> StableDiffusionPipeline:
    """The demo with a wider UNet and 77 tokens."""
    pipeline = load_pipeline(Settings(model="demo", device="cpu"))
    values = {key: value for key, value in json.loads(UNET.read_text()).items() if not key.startswith("_")}
    values |= {"block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 64, "sample_size": size}
    torch.manual_seed(0)
    pipeline.tokenizer.model_max_length = 77
    text = CLIPTextConfig(**{**pipeline.text_encoder.config.to_dict(), "max_position_embeddings": 77})
    pipeline.register_modules(unet=UNet2DConditionModel(**values).eval(), text_encoder=CLIPTextModel(text).eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(pipeline: StableDiffusionPipeline, steps: int) -> None:
    """Latents only: decoding is no part of what is compared."""
    generators = [torch.Generator().manual_seed(index) for index in range(len(PROMPTS))]
    pipeline(PROMPTS, num_inference_steps=steps, generator=generators, output_type="latent")


def recorded(pipeline: StableDiffusionPipeline, steps: int) -> int:
    """Record every layer; returns the bytes that are kept."""
    with record_attention(pipeline) as record:
        run(pipeline, steps)
    tensors = [
        tensor
        for layer in record.layers.values()
        for tensor in (layer.early, layer.late, *layer.entropy)
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def with_processors(pipeline: StableDiffusionPipeline, make: Callable[[], Any], steps: int, *, only_text: bool) -> None:
    """A run with other processors, in attn2 alone or everywhere."""
    own = dict(pipeline.unet.attn_processors)
    pipeline.unet.set_attn_processor({name: make() if "attn2" in name or not only_text else one for name, one in own.items()})
    run(pipeline, steps)
    pipeline.unet.set_attn_processor(own)


def measure(name: str, pipeline: StableDiffusionPipeline, rounds: int, steps: int) -> None:
    """Three ratios of CPU over a plain run, and two of memory."""
    kept: list[torch.Tensor] = []

    def keep_all() -> None:
        kept.clear()
        with_processors(pipeline, lambda: KeepingAll(kept), steps, only_text=True)

    plain, ours, explicit, keeping = interleaved(
        rounds,
        lambda: run(pipeline, steps),
        lambda: recorded(pipeline, steps),
        lambda: with_processors(pipeline, AttnProcessor, steps, only_text=False),
        keep_all,
    )
    row(f"{name}: recorded, CPU over a plain run", ours / plain, "<= 1.05", ours <= 1.05 * plain, f"{plain:.2f} s plain")
    row(f"{name}: diffusers' explicit attention everywhere", explicit / plain, "> ours", explicit > ours)
    row(f"{name}: all maps kept", keeping / plain, "> ours", keeping > ours)
    once, twice = recorded(pipeline, steps), recorded(pipeline, 2 * steps)
    row(f"{name}: memory kept, twice the steps over once", twice / once, "<= 1.01", twice <= 1.01 * once, f"{once / 1e6:.2f} MB")
    everything = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    row(f"{name}: memory of all maps over ours", everything / once, ">= 10", everything >= 10 * once, f"{everything / 1e6:.1f} MB")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    measure(f"UNet of SD 1.5, narrow, {arguments.size}x{arguments.size}", wide(arguments.size), arguments.rounds, arguments.steps)
    demo = load_pipeline(Settings(model="demo", device="cpu"))
    demo.set_progress_bar_config(disable=True)
    measure("demo, 8x8", demo, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
