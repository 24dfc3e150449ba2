"""Feature extractors by name: images in, features (and class probabilities where there are classes) out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.config.sources import load_source
from pytest_diffusion.config.versions import versions_text
from pytest_diffusion.data.batches import batch_size_of
from pytest_diffusion.data.hub import why
from pytest_diffusion.data.objects import load_object
from pytest_diffusion.features.identity import Features, tensors_hash
from pytest_diffusion.verdicts.errors import SetupError


@dataclass(frozen=True)
class Extractor:
    """A named network that maps uint8 images (N, 3, H, W) to features and, perhaps, logits."""

    name: str
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
    is_own_code: bool = False
    """Whether it is a user's function, which may change while its name stays."""
    resize: str = "none"
    """How images of another size are resized."""

    @property
    def protocol(self) -> dict[str, Any]:
        """How these features are made, as plain values: extractor, resizing, dtype and versions."""
        return {"extractor": self.name, "resize": self.resize, "dtype": "float32", "versions": versions_text()}

    def __call__(self, images: torch.Tensor, *, batch_size: int = 64) -> Features:
        """Features of uint8 images (N, 3, H, W), in batches."""
        values, probabilities = [], []
        with torch.no_grad():
            for features, logits in batch_size_of(self.run, batch_size).parts(len(images), lambda rows: self._on_the_cpu(images[rows])):
                values.append(features)
                if logits is not None:
                    probabilities.append(logits.double().softmax(1))
        return Features(torch.cat(values), torch.cat(probabilities) if probabilities else None, self.name, self.protocol)

    def _on_the_cpu(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features, logits = self.run(images)
        return features.float().cpu(), logits.cpu() if logits is not None else None


def load_extractor(name: str, *, device: str = "cpu") -> Extractor:
    """The extractor that `--diffusion-features` names.

    Raises ImportError or SetupError, with a remedy, when it cannot be loaded.
    """
    extractor: Extractor = load_source("extractor", name, device=device)
    return extractor


def load_demo(name: str, *, device: str) -> Extractor:
    """The demo's classifier, for 32x32 images: its features and the logits of the first object."""
    from pytest_diffusion.demo import load_judge

    judge = load_judge().to(device)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        from pytest_diffusion.demo.scenes import IMAGE_SIZE

        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            raise SetupError(
                f"--diffusion-features=demo needs 32x32 images; the samples are {images.shape[-1]}x{images.shape[-2]}. "
                "Choose --diffusion-features for this model: inception, clip:PATH_OR_ID or dinov2:PATH_OR_ID."
            )
        pixels = images.to(device).float() / 255
        return judge.features(pixels), judge(pixels).first

    return Extractor(f"demo-judge-{tensors_hash(judge.state_dict())}", run)


def load_pixels(name: str, *, device: str) -> Extractor:
    """The pixel values in [0, 1], at most 16x16: enough for models whose distribution is known in pixels."""
    from pytest_diffusion.data.images import RESIZE_PROTOCOL, resize_images

    side = 16

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        small = resize_images(images, min(side, images.shape[-2]), min(side, images.shape[-1]))
        return small.flatten(1).float() / 255, None

    return Extractor("pixels", run, resize=f"at most {side}x{side}, {RESIZE_PROTOCOL}")


def load_inception(name: str, *, device: str) -> Extractor:
    """Inception v3 as FID defines it, with downloaded weights or those of `inception:WEIGHTS_FILE`."""
    from pytest_diffusion.features.inception import RESIZE_PROTOCOL, build_network, load_state

    state = load_state(name.partition(":")[2] or None)
    network = build_network(state).to(device)

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features, logits = network(images.to(device))
        return features, logits

    return Extractor(f"inception-v3-compat-{tensors_hash(state)}", run, resize=RESIZE_PROTOCOL)


def load_clip_features(name: str, *, device: str) -> Extractor:
    """Image embeddings of the CLIP of `clip:PATH_OR_ID`."""
    from pytest_diffusion.features.clip import load_clip

    clip = load_clip(name.partition(":")[2], device=device)
    return Extractor(f"clip:{clip.identity}", lambda images: (clip.image_embeds(images), None), resize=clip.resize)


def load_dinov2(value: str, *, device: str) -> Extractor:
    """Class token of the DINOv2 of `dinov2:PATH_OR_ID`."""
    from transformers import AutoModel

    from pytest_diffusion.data.images import RESIZE_PROTOCOL, resize_images

    name = value.partition(":")[2]
    try:
        model = AutoModel.from_pretrained(name, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise SetupError(f"--diffusion-features: dinov2:{name} cannot be loaded: {why(error)}") from error
    mean, std = torch.tensor((0.485, 0.456, 0.406))[:, None, None], torch.tensor((0.229, 0.224, 0.225))[:, None, None]

    def run(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels = (resize_images(images, 224, 224).float() / 255 - mean) / std
        return model(pixel_values=pixels.to(device)).last_hidden_state[:, 0], None

    return Extractor(f"dinov2:{name}-{tensors_hash(model.state_dict())}", run, resize=f"224x224, {RESIZE_PROTOCOL}")


def load_own_function(name: str, *, device: str) -> Extractor:
    """A user's function of `package.module:callable`: uint8 images (N, 3, H, W) to features (N, D)."""
    function = load_object(name, "--diffusion-features")
    return Extractor(name, lambda images: _checked(name, function(images.to(device)), len(images)), is_own_code=True)


def _checked(name: str, values: Any, count: int) -> tuple[torch.Tensor, None]:
    tensor = torch.as_tensor(values)
    if tensor.ndim != 2 or len(tensor) != count:
        raise SetupError(f"--diffusion-features: {name} returned shape {tuple(tensor.shape)} for {count} images; expected (N, D).")
    return tensor, None
