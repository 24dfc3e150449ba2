"""CLIP of transformers, version 4 or 5: normalised embeddings of images and prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from pytest_diffusion.config.sources import load_source
from pytest_diffusion.config.versions import versions_text
from pytest_diffusion.data.batches import batch_size_of
from pytest_diffusion.data.hub import why
from pytest_diffusion.data.images import RESIZE_PROTOCOL, resize_images
from pytest_diffusion.demo import weights_folder
from pytest_diffusion.features.identity import tensors_hash
from pytest_diffusion.verdicts.errors import SetupError

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Scorer(Protocol):
    """A model that embeds images and prompts into one space, as CLIP does."""

    @property
    def name(self) -> str:
        """Name that is shown with figures."""

    def image_embeds(self, images: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (N, D) of uint8 images (N, 3, H, W)."""

    def text_embeds(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings (N, D) of prompts."""


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its tokenizer and pixel statistics."""

    name: str
    model: Any
    tokenizer: Any
    mean: torch.Tensor
    std: torch.Tensor

    @cached_property
    def identity(self) -> str:
        """Name and hash of the weights."""
        return f"{self.name}-{tensors_hash(self.model.state_dict())}"

    @property
    def protocol(self) -> dict[str, str]:
        """How its embeddings are made, apart from its name: weights, resizing, dtype and versions."""
        weights = self.identity.removeprefix(f"{self.name}-")
        return {"weights": weights, "resize": self.resize, "dtype": "float32", "versions": versions_text()}

    @property
    def resize(self) -> str:
        """How images of another size are resized."""
        side = int(self.model.config.vision_config.image_size)
        return f"{side}x{side}, {RESIZE_PROTOCOL}"

    def image_embeds(self, images: torch.Tensor, *, batch_size: int = 64) -> torch.Tensor:
        """Unit embeddings (N, D), float32, of uint8 images (N, 3, H, W)."""
        side = int(self.model.config.vision_config.image_size)
        device, dtype = next(self.model.parameters()).device, next(self.model.parameters()).dtype

        def embeds(rows: slice) -> torch.Tensor:
            pixels = (resize_images(images[rows], side, side).float() / 255 - self.mean) / self.std
            pooled = self.model.vision_model(pixels.to(device, dtype)).pooler_output
            return F.normalize(self.model.visual_projection(pooled).float().cpu(), dim=1)

        with torch.no_grad():
            return torch.cat(batch_size_of(self.model, batch_size).parts(len(images), embeds))

    def text_embeds(self, prompts: Sequence[str], *, batch_size: int = 256) -> torch.Tensor:
        """Unit embeddings (N, D), float32; each distinct prompt is encoded once."""
        distinct = list(dict.fromkeys(prompts))
        device = next(self.model.parameters()).device
        limit = int(self.model.config.text_config.max_position_embeddings)

        def embeds(rows: slice) -> torch.Tensor:
            tokens = self.tokenizer(distinct[rows], padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
            pooled = self.model.text_model(tokens.input_ids.to(device)).pooler_output
            return F.normalize(self.model.text_projection(pooled).float().cpu(), dim=1)

        with torch.no_grad():
            known = torch.cat(batch_size_of(self.model, batch_size).parts(len(distinct), embeds))
        place = {prompt: index for index, prompt in enumerate(distinct)}
        return known[[place[prompt] for prompt in prompts]]


def load_clip(name: str, *, device: str = "cpu") -> Clip:
    """CLIP by folder or hub id, or the demo's own as 'demo'; in float32.

    Raises SetupError with the reason when it cannot be loaded.
    """
    clip: Clip = load_source("scorer", name, device=device)
    return clip


def load_demo_clip(name: str, *, device: str) -> Clip:
    """The CLIP that was trained on the demo's scenes."""
    return _load(name, str(weights_folder() / "clip"), device)


def load_clip_at(name: str, *, device: str) -> Clip:
    """A CLIP of transformers, by folder or hub id."""
    return _load(name, name, device)


def _load(name: str, source: str, device: str) -> Clip:
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model = CLIPModel.from_pretrained(source, use_safetensors=True).float().to(device).eval()
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise SetupError(
            f"--diffusion-clip-model: {name} cannot be loaded: {why(error)} Give a local folder, or 'demo' for the demo and its copies."
        ) from error
    mean, std = _pixel_statistics(source)
    return Clip(name, model, tokenizer, torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None])


def _pixel_statistics(source: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation from the preprocessor's file; OpenAI's values where there is no file."""
    file = Path(source) / "preprocessor_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return values.get("image_mean", _MEAN), values.get("image_std", _STD)
