"""Hypothesis strategies for diffusion: schedules, scheduler configurations, timesteps, and tensors of noise and images."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from pytest_diffusion.models.levels import PREDICTION_TYPES
from pytest_diffusion.models.schedulers import fewest_steps, num_train_timesteps

CHOICES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "steps_offset": (0, 1),
    "set_alpha_to_one": (True, False),
    "clip_sample": (False, True),
    "rescale_betas_zero_snr": (False, True),
    "variance_type": ("fixed_small", "fixed_large"),
    "solver_order": (1, 2, 3),
    "solver_type": ("midpoint", "heun", "bh1", "bh2"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"),
    "lower_order_final": (True, False),
    "euler_at_final": (False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_lu_lambdas": (False, True),
    "skip_prk_steps": (True, False),
    "sigma_schedule": ("karras", "exponential"),
    "shift": (1.0, 3.0),
    "predict_x0": (True, False),
}
"""Values that released checkpoints use. The most common is first, because Hypothesis shrinks towards the first."""


def betas(*, num_train_timesteps: int = 1000, max_beta: float = 0.999) -> st.SearchStrategy[torch.Tensor]:
    """Beta schedules as float32 tensors (T,), non-decreasing in (0, max_beta]: linear in β, linear in √β, or cosine.

    Raises ValueError for fewer than 2 timesteps and for `max_beta` outside (0, 1).
    """
    if num_train_timesteps < 2:
        raise ValueError(f"num_train_timesteps is {num_train_timesteps}; expected at least 2.")
    if not 0 < max_beta < 1:
        raise ValueError(f"max_beta is {max_beta}; expected a number between 0 and 1.")
    ends = st.tuples(st.floats(1e-5, 1e-3), st.floats(2e-3, 5e-2)).map(
        lambda pair: (pair[0], min(pair[1] * 1000 / num_train_timesteps, max_beta))
    )

    def build(drawn: tuple[str, tuple[float, float]]) -> torch.Tensor:
        shape, (first, last) = drawn
        if shape == "linear":
            return torch.linspace(first, last, num_train_timesteps)
        if shape == "scaled_linear":
            return torch.linspace(first**0.5, last**0.5, num_train_timesteps).square()
        share = torch.linspace(0, 1, num_train_timesteps + 1, dtype=torch.float64)
        products = ((share + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - products[1:] / products[:-1]).clamp(max=max_beta).float()

    return st.tuples(st.sampled_from(("linear", "scaled_linear", "squaredcos_cap_v2")), ends).map(build)


def prediction_types(*, flow: bool = False) -> st.SearchStrategy[str]:
    """Names of prediction types; with `flow`, also that of flow matching."""
    return st.sampled_from(PREDICTION_TYPES if flow else PREDICTION_TYPES[:3])


def scheduler_configs(scheduler_class: Any, *, exclude: Sequence[str] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Keyword arguments of a scheduler class: its parameters with named choices, in combinations that it accepts.

    Only values that differ from the class's defaults are in the dictionary, so that the smallest example is the shortest.
    Raises ValueError for names in `exclude` that the class does not have.
    """
    parameters = inspect.signature(scheduler_class).parameters
    if unknown := [name for name in exclude if name not in parameters]:
        raise ValueError(f"{scheduler_class.__name__} has no parameter {', '.join(unknown)} to exclude.")
    known = {
        name: st.sampled_from([parameters[name].default, *(value for value in values if value != parameters[name].default)])
        for name, values in CHOICES.items()
        if name in parameters and name not in exclude and parameters[name].default in values
    }

    def own(drawn: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in drawn.items() if value != parameters[name].default}

    return st.fixed_dictionaries(known).map(own).filter(lambda config: _is_taken(scheduler_class, config))


def num_inference_steps(*, min_value: int = 1, max_value: int = 50) -> st.SearchStrategy[int]:
    """Numbers of inference steps. Raises ValueError for an empty range."""
    if not 1 <= min_value <= max_value:
        raise ValueError(f"min_value and max_value are {min_value} and {max_value}; expected 1 <= min_value <= max_value.")
    return st.integers(min_value, max_value)


def timesteps(scheduler: Any) -> st.SearchStrategy[torch.Tensor]:
    """Timesteps, 0-dimensional tensors: from the scheduler's plan if it has one, otherwise from its training schedule."""
    planned = getattr(scheduler, "timesteps", None)
    values = torch.as_tensor(planned) if planned is not None and len(planned) else torch.arange(num_train_timesteps(scheduler))
    return st.integers(0, len(values) - 1).map(lambda index: values[index])


def samples(
    *, shape: Sequence[int] = (2, 4, 8, 8), dtype: torch.dtype = torch.float32, bound: float = 1.0
) -> st.SearchStrategy[torch.Tensor]:
    """Clean images: tensors of a shape, uniform in [−bound, bound]."""
    return _tensors(shape, lambda generator: bound * (2 * torch.rand(tuple(shape), generator=generator) - 1), dtype)


def latents(*, shape: Sequence[int] = (2, 4, 8, 8), dtype: torch.dtype = torch.float32) -> st.SearchStrategy[torch.Tensor]:
    """Initial latents: standard normal tensors of a shape."""
    return _tensors(shape, lambda generator: torch.randn(tuple(shape), generator=generator), dtype)


def noise_like(sample: torch.Tensor) -> st.SearchStrategy[torch.Tensor]:
    """Standard normal noise of a sample's shape, dtype and device."""
    return latents(shape=tuple(sample.shape), dtype=sample.dtype).map(lambda noise: noise.to(sample.device))


def _tensors(shape: Sequence[int], build: Callable[[torch.Generator], torch.Tensor], dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    if not shape or any(int(side) < 1 for side in shape):
        raise ValueError(f"shape is {tuple(shape)}; expected at least one side, each at least 1.")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; expected a floating-point dtype.")
    return st.integers(0, 2**32 - 1).map(lambda seed: build(torch.Generator().manual_seed(seed)).to(dtype))


def _is_taken(scheduler_class: Any, config: dict[str, Any]) -> bool:
    # At most one choice of sigmas, because all classes with several choices refuse two of them.
    if sum(bool(config.get(name)) for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas")) > 1:
        return False
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        return False  # at zero SNR the noise does not determine the image
    try:
        scheduler = scheduler_class(**config)
        scheduler.set_timesteps(max(4, fewest_steps(scheduler)))
    except (ValueError, NotImplementedError, ImportError):
        return False
    return True
