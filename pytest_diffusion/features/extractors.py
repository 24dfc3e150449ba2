"""Feature extractors by name: images in, features (and class probabilities where there are classes) out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from pytest_diffusion.data.objects import load_object
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.verdicts.errors import ModelError


@dataclass(frozen=True)
class Features:
    """Features (N, D), float32, class probabilities (N, K) or None, and how they were made.

    `statistics` holds their mean and covariance where the store kept them.
    """

    values: torch.Tensor
    probabilities: torch.Tensor | None
    extractor: str
    protocol: dict[str, Any] = field(default_factory=dict)
    statistics: FeatureStatistics | None = None


@dataclass(frozen=True)
class Extractor:
    """A named network that maps uint8 images (N, 3, H, W) to features and, perhaps, logits."""

    name: str
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    is_own_code: bool = False
    """Whether it is a user's function, which may change while its name stays."""
    resize: str = "none"
    """What becomes of images of another size."""

    @property
    def protocol(self) -> dict[str, Any]:
        """What a figure of these features rests on, as plain values."""
        return {"extractor": self.name, "resize": self.resize, "dtype": "float32", "versions": package_versions_text()}

    def __call__(self, images: torch.Tensor, *, batch_size: int = 64) -> Features:
        """Features of uint8 images (N, 3, H, W), in batches."""
        values, probabilities = [], []
        with torch.no_grad():
            for batch in images.split(batch_size):
                features, logits = self.run(batch)
                values.append(features.float().cpu())
                if logits is not None:
                    probabilities.append(logits.double().softmax(1).cpu())
        return Features(torch.cat(values), torch.cat(probabilities) if probabilities else None, self.name, self.protocol)


def load_extractor(name: str, *, device: str = "cpu") -> Extractor:
    """The extractor that `--diffusion-features` names.

    Raises ImportError or ModelError, with the way out, when it cannot be had.
    """
    kind, _, rest = name.partition(":")
    if name == "demo":
        return _demo(device)
    if name == "pixels":
        return _pixels()
    if kind == "inception":
        return _inception(rest, device)
    if kind == "clip":
        return _clip(rest, device)
    if kind == "dinov2":
        return _dinov2(rest, device)
    function = load_object(name, "--diffusion-features")
    return Extractor(name, lambda images: _checked(name, function(images.to(device)), len(images)), is_own_code=True)


def package_versions_text() -> str:
    """Versions of the packages that have a say in features, as one entry of a protocol."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pytest-diffusion"))


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Eight hex digits of named weights, so that a figure says which weights made it."""
    digest = hashlib.blake2b(digest_size=4)
    for key, tensor in sorted(tensors.items()):
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

    return Extractor(f"demo-judge-{tensors_hash(judge.state_dict())}", run)


def _pixels() -> Extractor:
    """The pixels themselves, of at most 16x16: enough for models whose law is known in pixels."""
    from pytest_diffusion.data.images import RESIZE_PROTOCOL, resize_images

    side = 16

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        small = resize_images(images, min(side, images.shape[-2]), min(side, images.shape[-1]))
        return small.flatten(1).float() / 255, None

    return Extractor("pixels", run, resize=f"at most {side}x{side}, {RESIZE_PROTOCOL}")


def _inception(weights: str, device: str) -> Extractor:
    from pytest_diffusion.features.inception import RESIZE_PROTOCOL, build_network, load_state

    state = load_state(weights or None)
    network = build_network(state).to(device)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features, logits = network(images.to(device))
        return features, logits

    return Extractor(f"inception-v3-compat-{tensors_hash(state)}", run, resize=RESIZE_PROTOCOL)


def _clip(name: str, device: str) -> Extractor:
    from pytest_diffusion.features.clip import load_clip

    clip = load_clip(name, device=device)
    return Extractor(f"clip:{clip.identity}", lambda images: (clip.image_embeds(images), None), resize=clip.resize)


def _dinov2(name: str, device: str) -> Extractor:
    from transformers import AutoModel

    from pytest_diffusion.data.images import RESIZE_PROTOCOL, resize_images

    try:
        model = AutoModel.from_pretrained(name, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise ModelError(f"--diffusion-features: dinov2:{name} cannot be loaded: {str(error).splitlines()[0]}") from error
    mean, std = torch.tensor((0.485, 0.456, 0.406))[:, None, None], torch.tensor((0.229, 0.224, 0.225))[:, None, None]

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels = (resize_images(images, 224, 224).float() / 255 - mean) / std
        return model(pixel_values=pixels.to(device)).last_hidden_state[:, 0], None

    return Extractor(f"dinov2:{name}-{tensors_hash(model.state_dict())}", run, resize=f"224x224, {RESIZE_PROTOCOL}")


def _checked(name: str, values: Any, count: int) -> tuple[torch.Tensor, None]:
    tensor = torch.as_tensor(values)
    if tensor.ndim != 2 or len(tensor) != count:
        raise ModelError(f"--diffusion-features: {name} returned shape {tuple(tensor.shape)} for {count} images; expected (N, D).")
    return tensor, None
