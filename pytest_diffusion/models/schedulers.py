"""Capabilities and noise schedule of a scheduler of any class: VP, sigma, EDM or flow matching."""

from __future__ import annotations

import ast
import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from pytest_diffusion.config.sources import load_source
from pytest_diffusion.data.objects import load_object
from pytest_diffusion.maths.schedule import log_snr_of_alphas_cumprod, log_snr_of_flow_sigmas, log_snr_of_sigmas
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError, unknown_name


class Scheduler(Protocol):
    """The interface that the schedule checks need: a scheduler of diffusers or your own."""

    def set_timesteps(self, num_inference_steps: int) -> Any:
        """Set the timesteps of a run; other arguments depend on the scheduler."""


def config_value(scheduler: Any, name: str, default: Any = None) -> Any:
    """A value of the scheduler's config, or `default` where it has none."""
    config = getattr(scheduler, "config", None) or {}
    return config.get(name, default) if callable(getattr(config, "get", None)) else getattr(config, name, default)


def attribute(scheduler: Any, name: str) -> Any:
    """An attribute of a scheduler that may not be planned yet; None where it has none, or raises because it is not."""
    try:
        return getattr(scheduler, name, None)
    except Exception:
        return None


def is_set(scheduler: Any, name: str) -> bool:
    """Whether a value of the scheduler's config is there and not False, 0 or empty; it may be an array."""
    value = config_value(scheduler, name)
    return bool(len(value)) if hasattr(value, "__len__") else bool(value)


def num_train_timesteps(scheduler: Any) -> int:
    """Length of the training schedule, 1000 where the scheduler has no such value."""
    own = config_value(scheduler, "num_train_timesteps") or getattr(scheduler, "num_train_timesteps", None)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    return int(own or (len(alphas) if alphas is not None else 1000))


def is_flow(scheduler: Any) -> bool:
    """Whether samples are (1−σ)·x₀ + σ·noise: a flow-matching schedule."""
    if config_value(scheduler, "use_flow_sigmas") or config_value(scheduler, "prediction_type") == "flow_prediction":
        return True
    if hasattr(scheduler, "alphas_cumprod"):
        return False
    return hasattr(scheduler, "scale_noise") or _steps_in_shares(scheduler)


def _steps_in_shares(scheduler: Any) -> bool:
    """Whether all sigmas lie in (0, 1] and each timestep is its sigma times the length of the training schedule."""
    sigmas, timesteps = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
    if sigmas is None or timesteps is None or not len(timesteps) or len(sigmas) not in (len(timesteps), len(timesteps) + 1):
        return False
    shares = torch.as_tensor(sigmas).to("cpu", torch.float64)[: len(timesteps)]
    told = torch.as_tensor(timesteps).to("cpu", torch.float64) / num_train_timesteps(scheduler)
    return bool(((shares > 0) & (shares <= 1)).all()) and float((shares - told).abs().max()) < 2e-3


def has_own_sigma_range(scheduler: Any) -> bool:
    """Whether sigmas come from `sigma_min` and `sigma_max` and not from `alphas_cumprod` (EDM, SVD)."""
    return config_value(scheduler, "sigma_min") is not None and config_value(scheduler, "sigma_max") is not None and not is_flow(scheduler)


def evaluations_per_step(scheduler: Any) -> int:
    """Model evaluations in one inference step: 2 for Heun and KDPM2, which repeat timesteps by design."""
    return int(getattr(scheduler, "order", 1))


def revisits_timesteps(scheduler: Any) -> bool:
    """Whether `timesteps` goes back by design: Runge-Kutta warm-up (PNDM), resampling (RePaint), or restarts of an adapted sampler."""
    goes_back = hasattr(scheduler, "prk_timesteps") or hasattr(scheduler, "plms_timesteps") or hasattr(scheduler, "undo_step")
    return goes_back or bool(getattr(scheduler, "has_uneven_steps", False))


def as_values(values: Any) -> torch.Tensor:
    """Timesteps or sigmas as a tensor on the CPU; schedulers store them as tensors, lists, or arrays of any stride."""
    if isinstance(values, torch.Tensor):
        return values.cpu()
    # Reversed arrays of one entry count as contiguous, and torch refuses their negative stride.
    return torch.from_numpy(np.array(np.asarray(values).tolist(), dtype=np.asarray(values).dtype))


def fewest_steps(scheduler: Any) -> int:
    """Smallest number of inference steps that a scheduler supports: PNDM's Runge-Kutta warm-up needs as many as its order."""
    warms_up = hasattr(scheduler, "prk_timesteps") and not config_value(scheduler, "skip_prk_steps")
    return int(getattr(scheduler, "pndm_order", 1)) if warms_up else 1


def with_timesteps(scheduler: Any, num_inference_steps: int) -> Any:
    """A copy of the scheduler after `set_timesteps`; the caller's object is not changed."""
    fresh = copy.deepcopy(scheduler)
    arguments = {}
    if config_value(scheduler, "use_dynamic_shifting"):
        # The shift that diffusers uses for the longest image of the training resolution.
        arguments["mu"] = float(config_value(scheduler, "max_shift", 1.15))
    fresh.set_timesteps(num_inference_steps, **arguments)
    return fresh


def alphas_cumprod(scheduler: Any) -> torch.Tensor:
    """ᾱ at each training timestep, float64 (T,). Raises NotApplicable where the schedule has no ᾱ."""
    values = getattr(scheduler, "alphas_cumprod", None)
    if values is None:
        raise NotApplicable(f"{type(scheduler).__name__} has no alphas_cumprod: its schedule is given by sigmas.")
    if has_own_sigma_range(scheduler) or is_flow(scheduler):
        raise NotApplicable(f"{type(scheduler).__name__} uses its own sigmas, so its alphas_cumprod has no effect.")
    return torch.as_tensor(values).to("cpu", torch.float64)


def betas(scheduler: Any) -> torch.Tensor:
    """Betas at each training timestep, float64 (T,). Raises NotApplicable where there are none."""
    values = getattr(scheduler, "betas", None)
    if values is None or has_own_sigma_range(scheduler) or is_flow(scheduler):
        raise NotApplicable(f"{type(scheduler).__name__} has no betas: its schedule is given by sigmas.")
    return torch.as_tensor(values).to("cpu", torch.float64)


def log_snr(scheduler: Any) -> torch.Tensor:
    """Log-SNR in nats from the cleanest to the noisiest training timestep, float64 (T,).

    log(ᾱ/(1−ᾱ)) for VP schedules, −2·log σ for EDM, 2·log((1−σ)/σ) for flow matching; −inf is allowed
    at the noisy end. Raises NotApplicable for a scheduler that has none of these.
    """
    if is_flow(scheduler):
        sigmas = _training_sigmas(scheduler)
        return log_snr_of_flow_sigmas(sigmas)
    if has_own_sigma_range(scheduler):
        return log_snr_of_sigmas(_training_sigmas(scheduler))
    if getattr(scheduler, "alphas_cumprod", None) is not None:
        return log_snr_of_alphas_cumprod(alphas_cumprod(scheduler))
    return log_snr_of_sigmas(_training_sigmas(scheduler))


def build_scheduler(name: str | None, base: Any, config: Sequence[str] = ()) -> Any:
    """A scheduler of class `name` (default: that of `base`) from the config of `base`, changed by entries "key=value".

    `name` is a class of diffusers or `package.module:Class`. Raises SettingsError for an unknown class or
    one that the config does not fit.
    """
    scheduler_class = type(base) if name is None else scheduler_class_of(name)
    if not hasattr(scheduler_class, "from_config"):
        raise SettingsError(
            f"--diffusion-scheduler: {name or scheduler_class.__name__} has no from_config, "
            "so it cannot be built from the model's scheduler config."
        )
    return scheduler_class.from_config(base.config, **config_entries(scheduler_class, config))


def scheduler_class_of(name: str) -> Any:
    """The class that `--diffusion-scheduler` names. Raises SettingsError for an unknown one."""
    return load_source("scheduler", name)


def load_class(name: str) -> Any:
    """A scheduler class of diffusers. Raises SettingsError for an unknown one."""
    import diffusers

    known = [item for item in dir(diffusers) if item.endswith("Scheduler")]
    if name not in known:
        raise SettingsError(unknown_name("--diffusion-scheduler", name, known))
    return getattr(diffusers, name)


def load_own_class(name: str) -> Any:
    """The class, or function that makes a scheduler, at `package.module:Class`."""
    return load_object(name, "--diffusion-scheduler")


def config_entries(scheduler_class: Any, entries: Sequence[str]) -> dict[str, Any]:
    """Texts "key=value" as keyword arguments of a class: Python literals, or text. Raises SettingsError for an unknown key."""
    return arguments_of(scheduler_class, entries, f"--diffusion-scheduler-config of {scheduler_class.__name__}")


def arguments_of(function: Any, entries: Sequence[str], option: str) -> dict[str, Any]:
    """Texts "key=value" as keyword arguments of a function or class, see `config_entries`."""
    known = inspect.signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in known.values())
    values: dict[str, Any] = {}
    for entry in entries:
        key, _, text = entry.partition("=")
        if key not in known and not takes_any:
            raise SettingsError(unknown_name(option, key, known))
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def _training_sigmas(scheduler: Any) -> torch.Tensor:
    """Positive sigmas over the training schedule, ascending, float64 (T,)."""
    sigmas = getattr(scheduler, "sigmas", None)
    planned = has_own_sigma_range(scheduler) or config_value(scheduler, "use_flow_sigmas")
    if sigmas is None or planned or len(sigmas) < num_train_timesteps(scheduler) // 2:
        if not hasattr(scheduler, "set_timesteps"):
            raise NotApplicable(f"{type(scheduler).__name__} has neither alphas_cumprod nor sigmas.")
        sigmas = getattr(with_timesteps(scheduler, num_train_timesteps(scheduler)), "sigmas", None)
    if sigmas is None:
        raise NotApplicable(f"{type(scheduler).__name__} has neither alphas_cumprod nor sigmas.")
    values = torch.as_tensor(sigmas).to("cpu", torch.float64)
    values = values[values > 0]
    if len(values) < 2 or not math.isfinite(float(values.sum())):
        raise NotApplicable(f"{type(scheduler).__name__} has {len(values)} usable sigmas; at least 2 are needed.")
    return values.flip(0) if values[0] > values[-1] else values
