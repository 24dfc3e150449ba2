"""The base of closed-form models: denoise, every prediction type, and sampling with any scheduler of a known kind."""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_diffusion.models.levels import NoiseLevel, as_prediction, level_in_loop, level_of_timestep, prediction_type_of
from pytest_diffusion.models.schedulers import config_value, with_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable

Dataset = torch.Tensor | Iterable[torch.Tensor]


class SamplingOutput(NamedTuple):
    """Samples (N, C, H, W), float32, and the trajectory if it was requested.

    `timesteps` (T,); `trajectory_xt` (T + 1, N, C, H, W), the scheduler's samples from noise to image;
    `trajectory_x0` (T, N, C, H, W), the clean prediction at each evaluation.
    """

    images: torch.Tensor
    timesteps: torch.Tensor
    trajectory_xt: torch.Tensor | None = None
    trajectory_x0: torch.Tensor | None = None


class ModelOutput(NamedTuple):
    """A model's output (N, C, H, W), under the name that diffusers uses."""

    sample: torch.Tensor


Observer = Callable[[torch.Tensor, NoiseLevel, torch.Tensor], None]


class AnalyticModel(nn.Module, ABC):
    """A denoiser that is known exactly. Subclasses implement `fit` and `posterior_mean`; the other methods use these two.

    Images are float (N, C, H, W) in [−1, 1]. Fitted values are stored in buffers, so that `state_dict`, `to` and
    the fingerprint include them.
    """

    def __init__(self, *, scheduler: Any = None, num_inference_steps: int = 50) -> None:
        super().__init__()
        self.scheduler = scheduler if scheduler is not None else default_scheduler()
        self.num_inference_steps = num_inference_steps
        self.image_shape: tuple[int, ...] = ()

    @abstractmethod
    def fit(self, dataset: Dataset) -> AnalyticModel:
        """The model itself, fitted to images (N, C, H, W) in [−1, 1] or to an iterable of batches of them."""

    @abstractmethod
    def posterior_mean(self, sample: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """E[x₀ | sample = alpha·x₀ + sigma·noise], (N, C, H, W)."""

    @property
    def device(self) -> torch.device:
        """Device of the buffers."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the samples that `sample` draws; `denoise` accepts other dtypes too."""
        return torch.float32

    @property
    def config(self) -> dict[str, Any]:
        """The plain values that the model was built with; the fingerprint is computed from them."""
        plain = {name: value for name, value in vars(self).items() if not name.startswith("_") and isinstance(value, str | int | float)}
        return {**plain, "model": type(self).__name__, "sample_size": list(self.image_shape[1:])}

    @torch.no_grad()
    def denoise(self, sample: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """The clean prediction x̂₀ (N, C, H, W) for a model input at a timestep of the scheduler's training schedule.

        The input is the one that a UNet would get: for a scheduler with samples x₀ + σ·noise, the result of `scale_model_input`.
        """
        self._require_fit()
        return self.posterior_mean(sample, level_of_timestep(self.scheduler, timestep))

    def predict(self, sample: torch.Tensor, timestep: torch.Tensor | float, prediction_type: str | None = None) -> torch.Tensor:
        """`denoise`, converted to "epsilon", "sample", "v_prediction" or "flow_prediction" (default: the scheduler's type)."""
        level = level_of_timestep(self.scheduler, timestep)
        clean = self.denoise(sample, timestep)
        return as_prediction(clean, sample, level, prediction_type or prediction_type_of(self.scheduler), scheduler=self.scheduler)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | float) -> ModelOutput:
        """The output that a diffusers UNet would return: `predict` in the scheduler's prediction type, as `.sample`."""
        return ModelOutput(self.predict(sample, timestep))

    def score(self, sample: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """∇ log p(sample) at the timestep's noise level: −ε̂/σ. Source: arXiv:2011.13456, section 3; Tweedie 1956."""
        return -self.predict(sample, timestep, "epsilon") / level_of_timestep(self.scheduler, timestep).sigma.to(sample)

    def prepare_latents(
        self, num_samples: int, *, generator: torch.Generator | Sequence[torch.Generator] | None = None, scheduler: Any = None
    ) -> torch.Tensor:
        """Noise (N, C, H, W), float32, at the scheduler's first noise level. A list of generators has one for each sample."""
        self._require_fit()
        if generator is None or isinstance(generator, torch.Generator):
            noise = torch.randn(num_samples, *self.image_shape, generator=generator)
        else:
            noise = torch.stack([torch.randn(self.image_shape, generator=one) for one in generator])
        return noise.to(self.device) * float(getattr(scheduler or self.scheduler, "init_noise_sigma", 1.0))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        batch_size: int = 64,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_intermediates: bool = False,
        num_inference_steps: int | None = None,
        scheduler: Any = None,
        observer: Observer | None = None,
    ) -> SamplingOutput:
        """Samples drawn with `scheduler` (default: the model's own). The scheduler is copied and does not change.

        `observer` is called at each evaluation with model input, noise level and clean prediction.
        Raises ValueError if the list of generators has another length, and NotApplicable if the kind of scheduler is unknown.
        """
        scheduler = with_timesteps(scheduler if scheduler is not None else self.scheduler, num_inference_steps or self.num_inference_steps)
        if isinstance(generator, Sequence) and len(generator) != num_samples:
            raise ValueError(f"{len(generator)} generators were given for {num_samples} samples.")
        noise = self.prepare_latents(num_samples, generator=generator, scheduler=scheduler)
        parts = []
        for start in range(0, num_samples, batch_size):
            own = generator[start : start + batch_size] if isinstance(generator, Sequence) else generator
            parts.append(self._run(copy.deepcopy(scheduler), noise[start : start + batch_size], own, return_intermediates, observer))
        images = torch.cat([part.images for part in parts])
        if not return_intermediates:
            return SamplingOutput(images, scheduler.timesteps)
        states, clean = (torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("trajectory_xt", "trajectory_x0"))
        return SamplingOutput(images, scheduler.timesteps, states, clean)

    def _run(self, scheduler: Any, sample: torch.Tensor, generator: Any, keep: bool, observer: Observer | None) -> SamplingOutput:
        prediction_type = prediction_type_of(scheduler)
        parameters = _step_parameters(scheduler)
        extra: dict[str, Any] = {"generator": generator} if "generator" in parameters else {}
        states, clean = [sample], []
        for index, timestep in enumerate(scheduler.timesteps):
            if "prev_timestep" in parameters:
                extra["prev_timestep"] = scheduler.timesteps[index + 1] if index + 1 < len(scheduler.timesteps) else None
            model_input = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
            level = level_in_loop(scheduler, sample, model_input, timestep)
            estimate = self.posterior_mean(model_input, level)
            output = as_prediction(estimate, model_input, level, prediction_type, scheduler=scheduler)
            sample = scheduler.step(output, timestep, sample, **extra).prev_sample
            if observer is not None:
                observer(model_input, level, estimate)
            if keep:
                states.append(sample)
                clean.append(estimate)
        if not keep:
            return SamplingOutput(sample, scheduler.timesteps)
        return SamplingOutput(sample, scheduler.timesteps, torch.stack(states), torch.stack(clean))

    def _require_fit(self) -> None:
        if not self.image_shape:
            raise ValueError(f"{type(self).__name__} is not fitted: call fit(images), or give create_model a dataset.")


def default_scheduler() -> Any:
    """DDIM over 1,000 linear betas, without clipping, which would change the distribution of the samples."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(clip_sample=False)


def batches(dataset: Dataset) -> Iterable[torch.Tensor]:
    """Batches of images, float (n, C, H, W), checked one by one. Raises ValueError for a wrong shape or range and for non-finite values."""
    shape: torch.Size | None = None
    for batch in dataset.split(1024) if isinstance(dataset, torch.Tensor) else dataset:
        if not isinstance(batch, torch.Tensor) or batch.ndim != 4 or not batch.is_floating_point():
            seen = f"{tuple(batch.shape)}, {batch.dtype}" if isinstance(batch, torch.Tensor) else type(batch).__name__
            raise ValueError(f"the dataset gave {seen}; expected float images (N, C, H, W) in [-1, 1].")
        if shape is not None and batch.shape[1:] != shape:
            raise ValueError(f"the dataset contains images of shape {tuple(batch.shape[1:])} after images of shape {tuple(shape)}.")
        shape = batch.shape[1:]
        low, high = (float(value) for value in batch.aminmax())
        # NaN fails every comparison.
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"the dataset gave images between {low:.3g} and {high:.3g}; expected [-1, 1].")
        yield batch


def whole(dataset: Dataset) -> torch.Tensor:
    """All images of a dataset, float32 (N, C, H, W). Raises ValueError if there are none."""
    parts = [batch.float() for batch in batches(dataset)]
    if not parts or not sum(map(len, parts)):
        raise ValueError("the dataset holds no images.")
    return torch.cat(parts)


def _step_parameters(scheduler: Any) -> set[str]:
    """Names of the parameters of the scheduler's `step`. Raises NotApplicable if a denoiser alone cannot provide them."""
    name, parameters = type(scheduler).__name__, inspect.signature(scheduler.step).parameters
    if str(config_value(scheduler, "variance_type")).startswith("learned"):
        raise NotApplicable(f"{name} needs a learned variance, which a closed-form model does not predict.")
    required = [key for key, one in parameters.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if beyond := [key for key in required if key not in ("model_output", "timestep", "sample")]:
        raise NotApplicable(f"{name}.step also needs {', '.join(beyond)}, which a denoiser does not provide.")
    return set(parameters)
