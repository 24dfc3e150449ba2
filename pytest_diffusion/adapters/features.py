"""Feature extractors by name: images in, features (and class probabilities where there are classes) out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pytest_diffusion.adapters.objects import load_object
from pytest_diffusion.errors import ModelError, missing_package

INCEPTION_WEIGHTS = "PYTEST_DIFFUSION_INCEPTION_WEIGHTS"
"""Environment variable with the path of torch-fidelity's Inception weights, for machines without a network."""


class Features(NamedTuple):
    """Features (N, D), float32, class probabilities (N, K) or None, and the name of what made them."""

    values: torch.Tensor
    probabilities: torch.Tensor | None
    extractor: str


@dataclass(frozen=True)
class Extractor:
    """A named network that maps uint8 images (N, 3, H, W) to features and, perhaps, logits."""

    name: str
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    is_own_code: bool = False
    """Whether it is a user's function, which may change while its name stays."""

    def __call__(self, images: torch.Tensor, *, batch_size: int = 64) -> Features:
        """Features of uint8 images (N, 3, H, W), in batches."""
        values, probabilities = [], []
        with torch.no_grad():
            for batch in images.split(batch_size):
                features, logits = self.run(batch)
                values.append(features.float().cpu())
                if logits is not None:
                    probabilities.append(logits.double().softmax(1).cpu())
        return Features(torch.cat(values), torch.cat(probabilities) if probabilities else None, self.name)


def load_extractor(name: str, *, device: str = "cpu") -> Extractor:
    """The extractor that `--diffusion-features` names.

    Raises ImportError or ModelError, with the way out, when it cannot be had.
    """
    kind, _, rest = name.partition(":")
    if name == "demo":
        return _demo(device)
    if name == "inception":
        return _inception(device)
    if kind == "clip":
        return _clip(rest, device)
    if kind == "dinov2":
        return _dinov2(rest, device)
    function = load_object(name, "--diffusion-features")
    return Extractor(name, lambda images: _checked(name, function(images.to(device)), len(images)), is_own_code=True)


def module_hash(module: torch.nn.Module) -> str:
    """Eight hex digits of a module's weights, so that a figure says which weights made it."""
    digest = hashlib.blake2b(digest_size=4)
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _demo(device: str) -> Extractor:
    from pytest_diffusion.demo import load_judge

    judge = load_judge().to(device)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        from pytest_diffusion.demo.scenes import IMAGE_SIZE

        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise ModelError(
                f"--diffusion-features=demo sees 32x32 images; the samples are {images.shape[-1]}x{images.shape[-2]}. "
                "Choose --diffusion-features for this model: inception, clip:PATH_OR_ID or dinov2:PATH_OR_ID."
            )
        pixels = images.to(device).float() / 255
        return judge.features(pixels), judge(pixels).first

    return Extractor(f"demo-judge-{module_hash(judge)}", run)


def _inception(device: str) -> Extractor:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except Exception as error:
        # A broken torchvision raises RuntimeError from inside the import, so every kind is caught.
        raise missing_package(
            "torch-fidelity", f"--diffusion-features=inception ({type(error).__name__}: {error})", "'pytest-diffusion[inception]'"
        ) from error
    try:
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=os.environ.get(INCEPTION_WEIGHTS) or None
        )
    except OSError as error:
        raise ModelError(
            f"--diffusion-features=inception: its weights cannot be fetched or read: {error}. "
            f"On a machine without a network, put their file there and name it in {INCEPTION_WEIGHTS}."
        ) from error
    network = network.to(device).eval()

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features, logits = network(images.to(device))
        return features, logits

    return Extractor(f"inception-v3-compat-{module_hash(network)}", run)


def _clip(name: str, device: str) -> Extractor:
    from pytest_diffusion.adapters.clip import load_clip

    clip = load_clip(name, device=device)
    return Extractor(f"clip:{name}-{module_hash(clip.model)}", lambda images: (clip.image_embeds(images), None))


def _dinov2(name: str, device: str) -> Extractor:
    from transformers import AutoModel

    from pytest_diffusion.adapters.images import resize_images

    try:
        model = AutoModel.from_pretrained(name, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise ModelError(f"--diffusion-features: dinov2:{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    mean, std = torch.tensor((0.485, 0.456, 0.406))[:, None, None], torch.tensor((0.229, 0.224, 0.225))[:, None, None]

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels = (resize_images(images, 224, 224).float() / 255 - mean) / std
        return model(pixel_values=pixels.to(device)).last_hidden_state[:, 0], None

    return Extractor(f"dinov2:{name}-{module_hash(model)}", run)


def _checked(name: str, values: Any, count: int) -> tuple[torch.Tensor, None]:
    tensor = torch.as_tensor(values)
    if tensor.ndim != 2 or len(tensor) != count:
        raise ModelError(f"--diffusion-features: {name} returned shape {tuple(tensor.shape)} for {count} images; expected (N, D).")
    return tensor, None
