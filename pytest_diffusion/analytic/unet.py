"""A trained UNet2DModel of diffusers with the interface of the closed-form models, and with its intermediate features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.analytic.base import AnalyticModel, Dataset
from pytest_diffusion.analytic.registry import register_model
from pytest_diffusion.models.levels import NoiseLevel, kind_of, prediction_type_of
from pytest_diffusion.verdicts.errors import ModelError


@register_model("baseline_unet")
class BaselineUNet(AnalyticModel):
    """A DDPM UNet from a diffusers folder (a pipeline with `unet/` and `scheduler/`, or the UNet's own), or the module itself.

    `features` lists names of modules of the UNet; `last_features` holds their outputs in the last call.
    Raises ValueError for flow-matching and EDM schedulers, which have no timesteps of a DDPM training.
    """

    def __init__(self, *, folder: str | Path | None = None, unet: Any = None, features: Sequence[str] = (), **rest: Any) -> None:
        if (folder is None) == (unet is None):
            raise ValueError("baseline_unet takes either folder=... or unet=...")
        if folder is not None:
            unet, own = _load(Path(folder))
            rest.setdefault("scheduler", own)
        super().__init__(**rest)
        if kind_of(self.scheduler) not in ("vp", "sigma"):
            raise ValueError(f"{type(self.scheduler).__name__} has no timesteps of a DDPM training.")
        self.unet = unet.eval()
        self.image_shape = (unet.config.in_channels, *_sides(unet.config.sample_size))
        self.last_features: dict[str, torch.Tensor] = {}
        known = dict(unet.named_modules())
        for name in features:
            if name not in known:
                raise ValueError(f"the UNet has no module {name!r}; its top ones are {', '.join(key for key, _ in unet.named_children())}.")
            known[name].register_forward_hook(lambda module, args, output, name=name: self._keep(name, output))

    def fit(self, dataset: Dataset) -> BaselineUNet:
        """The model unchanged, because it is already trained."""
        return self

    @torch.no_grad()
    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        timestep = self._timestep(level)
        output = self.unet(sample.to(self.unet.dtype), timestep.to(sample.device)).sample.to(sample.dtype)
        alpha, sigma = (value.to(sample) for value in level)
        prediction_type = prediction_type_of(self.scheduler)
        if prediction_type == "sample":
            clean: torch.Tensor = output
        elif prediction_type == "v_prediction":
            clean = alpha * sample - sigma * output
        else:
            clean = (sample - sigma * output) / alpha
        return clean

    def _timestep(self, level: NoiseLevel) -> torch.Tensor:
        """The training timestep of a noise level; fractional if the level lies between two timesteps."""
        products = torch.as_tensor(self.scheduler.alphas_cumprod).double()
        ratios = ((1 - products) / products).sqrt().log()
        wanted = (level.sigma / level.alpha).clamp(min=1e-12).log()
        if not bool(torch.isfinite(wanted)):
            return torch.tensor(float(len(ratios) - 1))
        above = int(torch.searchsorted(ratios, wanted).clamp(1, len(ratios) - 1))
        share = ((wanted - ratios[above - 1]) / (ratios[above] - ratios[above - 1])).clamp(0, 1)
        value = above - 1 + share
        return value.round() if abs(float(value - value.round())) < 1e-4 else value.float()

    def _keep(self, name: str, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        self.last_features[name] = tensor.detach()


def _load(folder: Path) -> tuple[Any, Any]:
    from diffusers import DDPMScheduler, UNet2DModel

    unet_folder = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        unet = UNet2DModel.from_pretrained(unet_folder, use_safetensors=True, local_files_only=True)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler") if (folder / "scheduler").is_dir() else DDPMScheduler()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"baseline_unet: {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return unet, scheduler


def _sides(size: Any) -> tuple[int, int]:
    if size is None:
        raise ModelError("baseline_unet: the UNet's config has no sample_size.")
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
