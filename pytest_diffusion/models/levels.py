"""Noise levels: the weights of image and noise in a model's input at a timestep, and conversion between prediction types."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from pytest_diffusion.models.schedulers import as_values, config_value, has_own_sigma_range, is_flow, num_train_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable, unknown_name

Kind = Literal["vp", "sigma", "edm", "flow"]
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")


class NoiseLevel(NamedTuple):
    """Model input = alpha·x₀ + sigma·noise; both float64 scalars, alpha ≥ 0, sigma ≥ 0."""

    alpha: torch.Tensor
    sigma: torch.Tensor

    @classmethod
    def of_ratio(cls, ratio: torch.Tensor | float) -> NoiseLevel:
        """The variance-preserving level with sigma/alpha = ratio."""
        value = torch.as_tensor(ratio, dtype=torch.float64)
        alpha = (1 + value.square()).rsqrt()
        # At zero terminal SNR the input is pure noise.
        return cls(alpha, torch.where(torch.isinf(value), torch.ones_like(value), value * alpha))


def kind_of(scheduler: Any) -> Kind:
    """Form in which a scheduler keeps its samples.

    "vp": √ᾱ·x₀ + √(1−ᾱ)·noise. "sigma": x₀ + σ·noise, scaled to "vp" for the model. "edm": the same with
    Karras's preconditioning around the model. "flow": (1−σ)·x₀ + σ·noise.
    """
    if is_flow(scheduler):
        return "flow"
    if hasattr(scheduler, "precondition_inputs"):
        return "edm"
    # Variance-preserving samples start from unit noise, whatever the schedule.
    scaled = has_own_sigma_range(scheduler) or float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0
    return "sigma" if scaled and hasattr(scheduler, "sigmas") else "vp"


def level_of_timestep(scheduler: Any, timestep: torch.Tensor | float) -> NoiseLevel:
    """Noise level of the model's input at a training timestep; fractional timesteps are interpolated in log σ.

    Raises NotApplicable for a scheduler whose timesteps alone do not determine the level.
    """
    value = float(timestep)
    kind = kind_of(scheduler)
    if kind == "flow":
        sigma = torch.tensor(value / num_train_timesteps(scheduler), dtype=torch.float64)
        return NoiseLevel(1 - sigma, sigma)
    if kind == "edm":
        # Karras et al. condition on ln(σ)/4.
        return _preconditioned(torch.tensor(4 * value, dtype=torch.float64).exp(), _sigma_data(scheduler))
    if config_value(scheduler, "timestep_type") == "continuous" and config_value(scheduler, "prediction_type") == "v_prediction":
        return _preconditioned(torch.tensor(4 * value, dtype=torch.float64).exp(), 1.0)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise NotApplicable(f"{type(scheduler).__name__} has no alphas_cumprod: its timesteps alone give no noise level.")
    products = torch.as_tensor(alphas).to("cpu", torch.float64)
    below = min(max(int(value), 0), len(products) - 1)
    if value == below:
        return NoiseLevel(products[below].sqrt(), (1 - products[below]).sqrt())
    ratios = ((1 - products) / products).sqrt()
    above = min(below + 1, len(products) - 1)
    return NoiseLevel.of_ratio(torch.exp(ratios[below].log() + (value - below) * (ratios[above].log() - ratios[below].log())))


def level_in_loop(scheduler: Any, sample: torch.Tensor, model_input: torch.Tensor, timestep: torch.Tensor) -> NoiseLevel:
    """Noise level of `model_input`, which the scheduler made from `sample` in a sampling loop: by its σ, not the rounded timestep.

    Raises NotApplicable for a scheduler whose scaling matches none of its sigmas, or whose kind is not known.
    """
    kind = kind_of(scheduler)
    name = type(scheduler).__name__
    if kind == "sigma" and torch.equal(model_input, sample):
        # The model gets the unscaled sample, as the denoisers of k-diffusion do.
        sigma = torch.as_tensor(scheduler.sigmas[_step_index(scheduler, timestep)]).to("cpu", torch.float64)
        return NoiseLevel(torch.ones_like(sigma), sigma)
    if kind in ("sigma", "edm"):
        data = _sigma_data(scheduler) if kind == "edm" else 1.0
        # The scheduler scaled the sample by c_in = 1/√(σ² + σ_data²). This factor identifies the current σ.
        largest = sample.abs().flatten().argmax()
        scale = (model_input.flatten()[largest].double() / sample.flatten()[largest].double()).cpu()
        lists = [getattr(scheduler, attribute, None) for attribute in ("sigmas", "sigmas_interpol", "mid_point_sigma")]
        known = torch.cat([torch.as_tensor(values).to("cpu", torch.float64).reshape(-1) for values in lists if values is not None])
        known = known[known.isfinite()]  # KDPM2 has no finite interpolated sigma before its first
        scales = (known.square() + data**2).rsqrt()
        sigma = known[(scales - scale).abs().argmin()]
        if not abs(float((sigma.square() + data**2).rsqrt() / scale) - 1) < 1e-3:
            raise NotApplicable(f"{name} scales its samples by {float(scale):.4g}, which matches none of its sigmas.")
        return _preconditioned(sigma, data)
    if kind == "vp" and getattr(scheduler, "alphas_cumprod", None) is None:
        raise NotApplicable(f"{name} has no alphas_cumprod, so its noise levels are unknown.")
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != len(scheduler.timesteps) + 1:
        return level_of_timestep(scheduler, timestep)
    sigma = torch.as_tensor(sigmas[_step_index(scheduler, timestep)]).to("cpu", torch.float64)
    if kind == "vp":
        return NoiseLevel.of_ratio(sigma)
    if abs(float(timestep) / num_train_timesteps(scheduler) - float(sigma)) > 0.02:
        raise NotApplicable(f"{name} has sigma {float(sigma):.3g} at timestep {float(timestep):.4g}, which does not match a flow schedule.")
    return NoiseLevel(1 - sigma, sigma)


def as_prediction(
    pred_original_sample: torch.Tensor, model_input: torch.Tensor, level: NoiseLevel, prediction_type: str, *, scheduler: Any = None
) -> torch.Tensor:
    """Model output of a prediction type that is equivalent to a clean prediction; shapes (N, ...).

    "epsilon" is (x − α·x̂₀)/σ, "v_prediction" α·ε − σ·x̂₀, "flow_prediction" ε − x̂₀, "sample" x̂₀ itself; at σ = 0,
    where there is no noise to predict, ε is 0. For an EDM scheduler the output is the one that its preconditioning
    turns into x̂₀. Raises ValueError for another prediction type.
    """
    alpha, sigma = (value.to(model_input.device, model_input.dtype) for value in level)
    if scheduler is not None and kind_of(scheduler) == "edm":
        return _edm_output(pred_original_sample, model_input, level, prediction_type, _sigma_data(scheduler))
    if prediction_type == "sample":
        return pred_original_sample
    epsilon = (model_input - alpha * pred_original_sample) / sigma if float(level.sigma) > 0 else torch.zeros_like(model_input)
    if prediction_type == "epsilon":
        return epsilon
    if prediction_type == "v_prediction":
        return alpha * epsilon - sigma * pred_original_sample
    if prediction_type == "flow_prediction":
        return epsilon - pred_original_sample
    raise ValueError(unknown_name("prediction_type", prediction_type, PREDICTION_TYPES))


def clean_of(output: torch.Tensor, model_input: torch.Tensor, level: NoiseLevel, prediction_type: str) -> torch.Tensor:
    """The clean prediction x̂₀ of a model output of a prediction type; shapes (N, ...). The inverse of `as_prediction`.

    Raises ValueError for another prediction type.
    """
    alpha, sigma = (value.to(model_input.device, model_input.dtype) for value in level)
    if prediction_type == "sample":
        return output
    if prediction_type == "epsilon":
        return (model_input - sigma * output) / alpha
    if prediction_type == "v_prediction":
        return (alpha * model_input - sigma * output) / (alpha.square() + sigma.square())
    if prediction_type == "flow_prediction":
        return (model_input - sigma * output) / (alpha + sigma)
    raise ValueError(unknown_name("prediction_type", prediction_type, PREDICTION_TYPES))


def prediction_type_of(scheduler: Any) -> str:
    """Prediction type that the scheduler assumes for the model's output."""
    named = config_value(scheduler, "prediction_type") or getattr(scheduler, "prediction_type", None)
    return str(named) if named else ("flow_prediction" if kind_of(scheduler) == "flow" else "epsilon")


def _edm_output(clean: torch.Tensor, model_input: torch.Tensor, level: NoiseLevel, prediction_type: str, data: float) -> torch.Tensor:
    """F with x̂₀ = c_skip·x + c_out·F. Source: Karras et al. 2022 (arXiv:2206.00364), table 1."""
    sigma = float(level.sigma / level.alpha)
    total = sigma**2 + data**2
    out = sigma * data / total**0.5
    sample = model_input * total**0.5
    signs = {"epsilon": 1.0, "v_prediction": -1.0}
    if prediction_type not in signs:
        raise ValueError(unknown_name("prediction_type", prediction_type, signs))
    if sigma == 0:
        return torch.zeros_like(clean)
    output: torch.Tensor = (clean - data**2 / total * sample) / (signs[prediction_type] * out)
    return output


def _preconditioned(sigma: torch.Tensor, data: float) -> NoiseLevel:
    """Level of (x₀ + σ·noise)/√(σ² + σ_data²)."""
    scale = (sigma.square() + data**2).rsqrt()
    return NoiseLevel(scale, sigma * scale)


def _sigma_data(scheduler: Any) -> float:
    return float(config_value(scheduler, "sigma_data") or 1.0)


def _step_index(scheduler: Any, timestep: torch.Tensor) -> int:
    index = getattr(scheduler, "step_index", None)
    if index is not None:
        return int(index)
    found = (as_values(scheduler.timesteps) == torch.as_tensor(timestep).cpu()).nonzero()
    return int(found[0]) if len(found) else 0
