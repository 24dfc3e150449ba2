"""Adapters (LoRA) on a pipeline: the keys of diffusers, kohya and peft, loaded by diffusers, and how much they change."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.parsers import split_lora
from pytest_diffusion.models.capabilities import denoiser, modules
from pytest_diffusion.verdicts.errors import ModelError, missing_package

_FLAG = "--diffusion-lora"
_PEFT_PREFIX = "base_model.model."
_DOWN = ("lora_A.weight", "lora_down.weight", "lora.down.weight")
"""How the keys of one of an adapter's two matrices end."""
_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class LoraChange:
    """What an adapter does to the weights of a pipeline."""

    name: str
    layers: int
    """Layers that have an adapter."""
    relative: float
    """Norm of all changes, as a share of the norm of the weights that they change."""


def add_lora(pipeline: Any, text: str) -> LoraChange:
    """Put the adapter that `PATH[:SCALE]` names on a pipeline. Raises ModelError where it does not fit, with the reason.

    A file, or a folder as diffusers or peft saves it. The keys may be those of diffusers, of kohya (`lora_unet_...`) or of peft.
    """
    try:
        import peft  # noqa: F401 - diffusers needs it
    except ImportError:
        raise missing_package("peft", _FLAG, "pytest-diffusion[peft]") from None
    path, scale = split_lora(text)
    file = _file_of(Path(path))
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(f"{_FLAG}: {type(pipeline).__name__} of diffusers takes no adapters.")
    state = _state(file)
    try:
        if all(key.startswith(_PEFT_PREFIX) for key in state):
            pipeline.load_lora_weights(_of_peft(file, state, pipeline), adapter_name="candidate")
        else:
            # By its path, since diffusers keeps the scale among the file's metadata.
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="candidate")
        adapted = [part for part in modules(pipeline).values() if "candidate" in getattr(part, "peft_config", {})]
        if not adapted:
            raise ModelError(f"none of its keys fits a layer of {type(pipeline).__name__}")
        if scale != 1:
            pipeline.set_adapters("candidate", adapter_weights=scale)
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, NotImplementedError, OSError) as error:
        raise ModelError(f"{_FLAG}: {file} does not fit {type(pipeline).__name__}: {str(error).splitlines()[0]}") from error
    change = _change(pipeline, file.name)
    held = sum(key.endswith(_DOWN) for key in state)
    if change.layers < held:
        raise ModelError(
            f"{_FLAG}: {change.layers} of the {held} layers of {file} fit {type(pipeline).__name__}; was it trained on another model?"
        )
    return change


def _file_of(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(
                f"{_FLAG}: {path} is not a .safetensors file; pickled adapters can run code and are refused: convert it first."
            )
        return path
    found = [path / name for name in _FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise ModelError(f"{_FLAG}: the folder {path} holds {len(found)} adapters; name one file of safetensors.")
    return found[0]


def _state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of an adapter. Raises ModelError for a file that cannot be read, or has none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{_FLAG}: {file} cannot be read: {error}") from error
    if not any("lora" in key.lower() for key in state):
        raise ModelError(f"{_FLAG}: {file} holds no adapter: none of its {len(state)} keys names a LoRA.")
    return state


def _of_peft(file: Path, state: dict[str, torch.Tensor], pipeline: Any) -> dict[str, torch.Tensor]:
    """The tensors of peft by keys that diffusers reads; peft trains the denoiser alone."""
    part = next(name for name, module in modules(pipeline).items() if module is denoiser(pipeline))
    return {f"{part}.{key.removeprefix(_PEFT_PREFIX)}": tensor for key, tensor in _scaled(file, state).items()}


def _scaled(file: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of peft with the scale in them that peft keeps in a file beside: alpha by rank, or by its root for rsLoRA."""
    path = file.parent / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    alpha = config.get("lora_alpha")
    if alpha is None:
        return state
    root, patterns = 0.5 if config.get("use_rslora") else 1.0, config.get("alpha_pattern") or {}

    def scaled(key: str, tensor: torch.Tensor) -> torch.Tensor:
        layer = key.removeprefix(_PEFT_PREFIX).partition(".lora_")[0]
        own = next((value for pattern, value in patterns.items() if re.search(rf"(^|\.){pattern}$", layer)), alpha)
        return tensor * (own / tensor.shape[1] ** root) if ".lora_B." in key else tensor

    return {key: scaled(key, tensor) for key, tensor in state.items()}


def _change(pipeline: Any, name: str) -> LoraChange:
    layers, changed, whole = 0, 0.0, 0.0
    for part in modules(pipeline).values():
        layered: Iterable[Any] = part.modules()
        for module in layered:
            if not hasattr(module, "lora_A") or not hasattr(module, "get_delta_weight"):
                continue
            for adapter in module.active_adapters:
                if adapter in module.lora_A:
                    layers += 1
                    changed += float(module.get_delta_weight(adapter).detach().double().square().sum())
                    whole += float(module.get_base_layer().weight.detach().double().square().sum())
    return LoraChange(name, layers, (changed / whole) ** 0.5 if whole else 0.0)
