"""Schedulers with another interface, driven as if they had diffusers' one: samplers as functions, ADM's diffusion objects, NumPy arrays."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from pytest_diffusion.conformance.readings import Reading
from pytest_diffusion.conformance.suspended import Suspended
from pytest_diffusion.models.levels import Kind, NoiseLevel
from pytest_diffusion.verdicts.errors import NotApplicable


class Adapter(Protocol):
    """What the suite must know of a scheduler with another interface. One object is one run at a time."""

    kind: Kind
    """"vp", "sigma", "edm" or "flow": the form of its samples."""
    prediction_type: str
    """What its model gives: "epsilon", "sample" (the image), "v_prediction", "flow_prediction" or "image_minus_noise"."""
    takes_generator: bool
    """Whether `step` draws from the generator that it is given."""

    def plan(self, num_inference_steps: int) -> Sequence[float]:
        """Begin a new run: what the model is told at each of its evaluations, in order."""

    def noise_at(self, index: int) -> tuple[float, float]:
        """Weights of image and noise in the sample before evaluation `index` of the plan; after the last one for the index beyond it."""

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        """The sample after evaluation `index`, shape and dtype of `sample` (N, ...). `generator` is a torch.Generator or None."""


_SOME = 4


def _order_of(adapter: Adapter) -> tuple[int, bool]:
    """Evaluations of the model in a step, and whether steps differ in them, as where some go back to more noise.

    It is what more steps need more, so that one evaluation at the end is not counted as one of each step.
    """
    lengths = []
    for count in (_SOME, 2 * _SOME, 4 * _SOME):
        try:
            lengths.append(len(adapter.plan(count)))
        except Exception:
            break  # made for a few numbers of steps; or the laws report it
    if len(lengths) < 2:
        return (max(1, math.ceil(lengths[0] / _SOME)) if lengths else 1), False
    more, rest = lengths[1] - lengths[0], lengths[-1] - lengths[1]
    if more % _SOME or (len(lengths) > 2 and rest != 2 * more):
        return 1, True
    return max(1, more // _SOME), False


class Adapted:
    """An adapter with the interface of diffusers' schedulers, as the suite drives it."""

    def __init__(self, adapter: Adapter, name: str) -> None:
        self.adapter, self.name = adapter, name
        self.prediction_type = adapter.prediction_type
        self.order, self.has_uneven_steps = _order_of(adapter)
        self.init_noise_sigma = 1.0
        self.timesteps = torch.zeros(0)
        self.step_index: int | None = None

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Plan a run."""
        told = [float(value) for value in self.adapter.plan(num_inference_steps)]
        self.timesteps = torch.tensor(told, dtype=torch.float64)
        alpha, sigma = self.adapter.noise_at(0)
        self.init_noise_sigma = sigma / alpha if self.adapter.kind in ("sigma", "edm") else 1.0
        self.step_index = None

    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: Any = None) -> tuple[torch.Tensor]:
        """One evaluation of the model."""
        if self.step_index is None:
            places = (self.timesteps == float(timestep)).nonzero().flatten()
            self.step_index = int(places[-1 if self.order > 1 else 0])
        index, self.step_index = self.step_index, self.step_index + 1
        return (self.adapter.step(model_output, index, sample, generator),)

    def reading(self) -> Reading:
        """The noise levels of the plan."""
        levels = [
            NoiseLevel(*(torch.tensor(weight, dtype=torch.float64) for weight in self.adapter.noise_at(index)))
            for index in range(len(self.timesteps) + 1)
        ]
        return Reading(self.adapter.kind, levels[:-1], levels[-1])


class KDiffusionSampler:
    """A sampler as a function `sampler(model, x, sigmas, ...)`, as k-diffusion and ComfyUI have them; the model gives the clean image.

    `sigmas(n)` are the n + 1 noise levels of n steps, the last one 0; by default Karras's from 14.6 to 0.03. Other arguments go to the
    function. A parameter `noise_sampler` gets one that draws from the loop's generator.
    """

    kind: Kind = "sigma"
    prediction_type = "sample"

    def __init__(self, sampler: Callable[..., Any], *, sigmas: Callable[[int], torch.Tensor] | None = None, **arguments: Any) -> None:
        self._sampler, self._ramp, self._arguments = sampler, sigmas or karras_sigmas, arguments
        self.takes_generator = "noise_sampler" in inspect.signature(sampler).parameters
        self._sigmas = torch.zeros(1)
        self._told: list[float] = []
        self._run: Suspended | None = None

    def plan(self, num_inference_steps: int) -> list[float]:
        """The sigmas at which the sampler asks its model, found out by a run on nothing."""
        self._sigmas = self._ramp(num_inference_steps)
        self._run = None
        told: list[float] = []

        def model(sample: torch.Tensor, sigma: Any, **_: Any) -> torch.Tensor:
            told.append(float(torch.as_tensor(sigma).flatten()[0]))
            return torch.zeros_like(sample)

        with torch.random.fork_rng(devices=[]):
            nothing = torch.zeros(1, 1, 2, 2)
            self._sampler(model, nothing, self._sigmas, **self._given(None, nothing))
        self._told = told
        return told

    def noise_at(self, index: int) -> tuple[float, float]:
        """1 and σ. The first sample has the first σ of the plan, also where the sampler adds noise before it asks its model."""
        if index == 0 or index >= len(self._told):
            return 1.0, float(self._sigmas[0 if index == 0 else -1])
        return 1.0, self._told[index]

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        """Go on from one call of the model to the next one, or to the sampler's end."""
        if self._run is None or self._run.is_over:
            first = self._place_of(index)
            self._run = Suspended(self._sampler, sample, self._sigmas[first:].to(sample.device), **self._given(generator, sample))
        # A sampler may be over without a question, where one sigma is left.
        found: torch.Tensor = self._run.sample if self._run.is_over else self._run.answer(model_output)
        if self._run.is_over:
            self._run = None
        return found

    def _place_of(self, index: int) -> int:
        """The place in the plan at which a run begins with evaluation `index`. Raises NotApplicable for one between two places."""
        if index == 0:
            return 0
        gaps = (self._sigmas - self._told[index]).abs()
        first = int(gaps.argmin())
        if float(gaps[first]) > 1e-5 * max(1.0, self._told[index]):
            raise NotApplicable(f"evaluation {index} is at sigma {self._told[index]:.5g}, and no run begins between two sigmas of a plan.")
        return first

    def _given(self, generator: Any, sample: torch.Tensor) -> dict[str, Any]:
        parameters = inspect.signature(self._sampler).parameters
        given: dict[str, Any] = {"disable": True} if "disable" in parameters else {}
        if self.takes_generator:
            given["noise_sampler"] = _NoiseOf(generator, sample)
        return {**given, **self._arguments}


class _NoiseOf:
    """A noise sampler of k-diffusion that draws from torch's generators, for samples like a given one."""

    def __init__(self, generator: Any, sample: torch.Tensor) -> None:
        self._generators = generator if isinstance(generator, list) else [generator]
        self._shape, self._device = tuple(sample.shape), sample.device

    def __call__(self, *_: Any) -> torch.Tensor:
        each = (1, *self._shape[1:]) if len(self._generators) > 1 else self._shape
        drawn = [torch.randn(each, generator=one, device=self._device if one is None else one.device) for one in self._generators]
        return torch.cat(drawn).to(self._device)


def karras_sigmas(count: int, *, sigma_min: float = 0.0292, sigma_max: float = 14.6146, rho: float = 7.0) -> torch.Tensor:
    """N + 1 noise levels from `sigma_max` to `sigma_min` and 0, float32. Source: Karras et al. 2022, arXiv:2206.00364, equation 5."""
    share = torch.linspace(0, 1, count, dtype=torch.float64)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(ends[0] + share * (ends[1] - ends[0])) ** rho, torch.zeros(1)]).float()


class ADMDiffusion:
    """An object with `p_sample` or `ddim_sample(model, x, t)` and a NumPy `alphas_cumprod`, as ADM's GaussianDiffusion and its copies.

    `make(n)` returns the object for n steps, respaced as in SpacedDiffusion. The model gives the noise, or what `prediction_type` says;
    with a `learned_variance`, in twice the channels, the second half for the smallest variance.
    """

    kind: Kind = "vp"
    takes_generator = False

    def __init__(
        self,
        make: Callable[[int], Any],
        *,
        method: str = "p_sample",
        prediction_type: str = "epsilon",
        learned_variance: bool = False,
        **arguments: Any,
    ) -> None:
        self._make, self._method, self._arguments, self._learns = make, method, arguments, learned_variance
        self.prediction_type = prediction_type
        self._diffusion: Any = None

    def plan(self, num_inference_steps: int) -> list[float]:
        """The numbers of the steps, from the last one to 0."""
        self._diffusion = self._make(num_inference_steps)
        return [float(index) for index in reversed(range(len(self._diffusion.alphas_cumprod)))]

    def noise_at(self, index: int) -> tuple[float, float]:
        """√ᾱ and √(1 − ᾱ); the clean image after the last step."""
        products = self._diffusion.alphas_cumprod
        product = float(products[len(products) - 1 - index]) if index < len(products) else 1.0
        return math.sqrt(product), math.sqrt(1 - product)

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        """One call of the method."""
        timestep = torch.full((len(sample),), len(self._diffusion.alphas_cumprod) - 1 - index, dtype=torch.long, device=sample.device)
        # Of a range between two variances, −1 is the smaller one.
        output = torch.cat([model_output, -torch.ones_like(model_output)], dim=1) if self._learns else model_output
        found = getattr(self._diffusion, self._method)(lambda *_, **__: output, sample, timestep, **self._arguments)
        arrived: torch.Tensor = found["sample"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
        return arrived.to(sample.dtype)


class NumpyScheduler:
    """A scheduler with `set_timesteps`, `timesteps`, `step` and `add_noise` whose arrays are NumPy's, or convert to them (MLX, JAX).

    `make()` returns a new one, and `array` turns a NumPy array into its own kind.
    """

    takes_generator = False

    def __init__(
        self,
        make: Callable[[], Any],
        *,
        kind: Kind = "vp",
        prediction_type: str = "epsilon",
        array: Callable[[Any], Any] = np.asarray,
        end: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        self._make, self._array, self._end = make, array, end
        self.kind, self.prediction_type = kind, prediction_type
        self._scheduler: Any = None

    def plan(self, num_inference_steps: int) -> list[float]:
        """Its own timesteps."""
        self._scheduler = self._make()
        self._scheduler.set_timesteps(num_inference_steps)
        return [float(value) for value in np.asarray(self._scheduler.timesteps)]

    def noise_at(self, index: int) -> tuple[float, float]:
        """Read off `add_noise`; `end` after the last step."""
        timesteps = np.asarray(self._scheduler.timesteps)
        if index >= len(timesteps):
            return self._end
        ones, zeros = np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1))
        told = self._array(timesteps[index : index + 1])
        weights = [
            float(np.asarray(self._scheduler.add_noise(self._array(image), self._array(noise), told)).reshape(-1)[0])
            for image, noise in ((ones, zeros), (zeros, ones))
        ]
        return weights[0], weights[1]

    def step(self, model_output: torch.Tensor, index: int, sample: torch.Tensor, generator: Any) -> torch.Tensor:
        """One step on arrays; bfloat16, which NumPy lacks, goes through float32."""
        own, output = (self._array((one.float() if one.dtype == torch.bfloat16 else one).cpu().numpy()) for one in (sample, model_output))
        found = self._scheduler.step(output, np.asarray(self._scheduler.timesteps)[index], own)
        found = found[0] if isinstance(found, tuple) else getattr(found, "prev_sample", found)
        return torch.from_numpy(np.array(found)).to(sample)


def adapted(source: Any, adapt: Callable[[Any], Adapter]) -> Callable[[], Adapted]:
    """A function that makes a scheduler of diffusers' interface from another one."""

    def make() -> Adapted:
        adapter = adapt(source)
        lacking = [
            name for name in ("kind", "prediction_type", "takes_generator", "plan", "noise_at", "step") if not hasattr(adapter, name)
        ]
        if lacking:
            raise TypeError(f"adapt returned {type(adapter).__name__}, which has no {' and no '.join(lacking)}.")
        return Adapted(adapter, getattr(source, "__name__", type(source).__name__))

    return make
