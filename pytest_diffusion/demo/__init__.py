"""The demo: a small trained Stable Diffusion, its classifier, its CLIP and its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pytest_diffusion.demo.judge import Judge

REFERENCE_SEED = 20_001
PROMPT_SEED = 20_002
NAMED_LAYER = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
"""The layer whose noun maps were trained to match the objects' masks."""


def weights_folder() -> Path:
    """The diffusers folder of the demo pipeline, with `clip/` and `judge.safetensors` beside its parts."""
    return Path(__file__).resolve().parent / "weights"


def reference_images(count: int) -> torch.Tensor:
    """Newly rendered images, uint8 (count, 3, 32, 32), that the demo was not trained on."""
    from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8

    return to_uint8(render(sample_scenes(count, seed=REFERENCE_SEED), seed=REFERENCE_SEED)[0])


def reference_captions(count: int) -> list[str]:
    """Captions of the `reference_images`."""
    from pytest_diffusion.demo.scenes import sample_scenes

    return [scene.caption for scene in sample_scenes(count, seed=REFERENCE_SEED)]


def reference_masks(count: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Masks of the object that each caption names first, bool (count, 32, 32), and the two words that name it."""
    import torch

    from pytest_diffusion.demo.scenes import KINDS, render, sample_scenes

    scenes = sample_scenes(count, seed=REFERENCE_SEED)
    words = [(scene.caption.split()[1], scene.caption.split()[2]) for scene in scenes]
    # "below" and "right of" name the second object first.
    slots = [0 if KINDS[scene.first] == pair else 1 for scene, pair in zip(scenes, words, strict=True)]
    return render(scenes, seed=REFERENCE_SEED)[1][torch.arange(count), slots] > 0.5, words


def prompts(count: int = 2000) -> list[str]:
    """Captions from the distribution of the training captions, with another seed."""
    from pytest_diffusion.demo.scenes import sample_scenes

    return [scene.caption for scene in sample_scenes(count, seed=PROMPT_SEED)]


def load_judge() -> Judge:
    """The demo's classifier in evaluation mode, float32."""
    from safetensors.torch import load_file

    from pytest_diffusion.demo.judge import Judge

    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(weights_folder() / "judge.safetensors").items()})
    return judge.eval()
