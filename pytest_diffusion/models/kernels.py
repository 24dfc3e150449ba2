"""How forward passes are computed: compiled, in which memory layout, in which precision and by which attention kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.capabilities import denoiser, device_of, is_compiled, modules
from pytest_diffusion.verdicts.errors import ModelError


def apply_protocol(pipeline: Any, settings: Settings) -> None:
    """Lay the weights out and compile the denoiser as the settings say.

    Raises ModelError for a pipeline without a denoiser to compile, and for a part that cannot have the layout, as one with convolutions
    in three dimensions.
    The denoiser is compiled in place (`torch.nn.Module.compile`) at its first call, so that weights and their names stay what they are.
    Checks that hook into the denoiser run it uncompiled.
    """
    if settings.memory_format is not None:
        for name, part in modules(pipeline).items():
            try:
                part.to(memory_format=getattr(torch, settings.memory_format))  # type: ignore[call-overload]
            except RuntimeError as error:
                raise ModelError(f"--diffusion-memory-format: {name} cannot be laid out as {settings.memory_format}: {error}.") from error
    if settings.compile is not None:
        network = denoiser(pipeline)
        if network is None:
            raise ModelError(f"--diffusion-compile: {type(pipeline).__name__} has no UNet or transformer to compile.")
        network.compile(mode=settings.compile)


def protocol_of(pipeline: Any, settings: Settings) -> dict[str, Any]:
    """What of this may change the bytes of a sample, as the pipeline is, not as it was asked for; a user may have built it.

    Empty for an uncompiled pipeline with contiguous weights. On CUDA, also whether matrix products round to TF32.
    """
    found: dict[str, Any] = {}
    if is_compiled(pipeline):
        found["compile"] = settings.compile or "by the model's own code"
    if any(_is_channels_last(weight) for part in modules(pipeline).values() for weight in part.parameters()):
        found["memory_format"] = "channels_last"
    if device_of(pipeline).type == "cuda":
        found["tf32"] = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
    return found


def _is_channels_last(weight: torch.Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def kernels_of(pipeline: Any) -> dict[str, str]:
    """Facts for the report: precision of matrix products, and who computes attention."""
    part = denoiser(pipeline)
    found = Counter(type(one.processor).__name__ for one in part.modules() if hasattr(one, "processor")) if part is not None else Counter()
    attention = ", ".join(f"{name} ({count} layers)" for name, count in found.most_common())
    facts = {"attention": attention} if attention else {}
    if is_compiled(pipeline):
        facts["compiled"] = "the denoiser, but for checks that hook into it"
    if device_of(pipeline).type == "cuda":
        enabled = {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "memory efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cuDNN": torch.backends.cuda.cudnn_sdp_enabled(),
            "plain": torch.backends.cuda.math_sdp_enabled(),
        }
        facts["attention kernels allowed"] = ", ".join(name for name, is_on in enabled.items() if is_on)
        rounded = {"matrix products": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
        facts["TF32"] = ", ".join(name for name, is_on in rounded.items() if is_on) or "off"
    return facts
