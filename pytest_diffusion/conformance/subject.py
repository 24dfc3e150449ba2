"""The scheduler under test: fresh copies, its interface, and its errors, which are kept apart from those of this package."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from pytest_diffusion.models.levels import Kind, kind_of, prediction_type_of
from pytest_diffusion.models.schedulers import as_values, config_value, fewest_steps, num_train_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable

EXTRAS = ("generator", "prev_timestep", "original_image", "mask")
"""Arguments that a loop can pass to `step` besides model output, timestep and sample."""


class Crash(Exception):  # noqa: N818 - the scheduler's error, not ours
    """The scheduler raised an error. Fields: `call`, the call as text; `error`, the exception."""

    def __init__(self, call: str, error: BaseException) -> None:
        super().__init__(
            f"{call} raises {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
        )
        self.call, self.error = call, error


class Subject:
    """A scheduler, or a class or function that creates one, with the properties that the laws use.

    Raises TypeError for an object that does not have `set_timesteps`, and `step` or `add_noise`.
    """

    def __init__(self, scheduler_or_factory: Any) -> None:
        is_one = hasattr(scheduler_or_factory, "step") or hasattr(scheduler_or_factory, "add_noise")
        self._is_factory = isinstance(scheduler_or_factory, type) or not is_one
        if self._is_factory and not callable(scheduler_or_factory):
            raise TypeError(
                f"{type(scheduler_or_factory).__name__} is not a scheduler: it has no step, and cannot be called to create one."
            )
        self._source = scheduler_or_factory
        first = scheduler_or_factory() if self._is_factory else scheduler_or_factory
        self.name = type(first).__name__
        wanted = ("set_timesteps",) if callable(getattr(first, "add_noise", None)) else ("set_timesteps", "step")
        if missing := [method for method in wanted if not callable(getattr(first, method, None))]:
            raise TypeError(f"{self.name} is not a scheduler: it has no {' and no '.join(missing)}.")
        if not self._is_factory:
            self._source = _copied(first)
        self.scheduler = first
        self.scheduler_class: Any = type(first)

    @cached_property
    def kind(self) -> Kind:
        """How the scheduler represents samples after `set_timesteps`, see `models.levels.kind_of`."""
        try:
            return kind_of(self.planned(self.some_count))
        except (Crash, NotApplicable):
            return kind_of(self.scheduler)

    @property
    def noisy(self) -> dict[str, Any]:
        """Arguments with which `step` adds noise: an `eta` of 1 if its default is 0."""
        parameter = self.step_parameters.get("eta")
        return {"eta": 1.0} if parameter is not None and parameter.default == 0 else {}

    @property
    def prediction_type(self) -> str:
        """Prediction type that the scheduler expects of the model."""
        return prediction_type_of(self.scheduler)

    @property
    def num_train_timesteps(self) -> int:
        """Length of the training schedule."""
        return num_train_timesteps(self.scheduler)

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration without private entries; empty if it has none."""
        config = getattr(self.scheduler, "config", None)
        return {key: value for key, value in config.items() if not key.startswith("_")} if isinstance(config, Mapping) else {}

    @property
    def own_values(self) -> dict[str, Any]:
        """Entries of the configuration that differ from the constructor's defaults."""
        defaults = {name: one.default for name, one in inspect.signature(self.scheduler_class).parameters.items()}
        return {key: value for key, value in self.config.items() if key in defaults and not _same(defaults[key], value)}

    @property
    def step_parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of `step`. Raises NotApplicable for a class without `step` (score SDEs)."""
        if not callable(getattr(self.scheduler, "step", None)):
            raise NotApplicable(f"{self.name} has no step.")
        return inspect.signature(self.scheduler.step).parameters

    @property
    def noising(self) -> str | None:
        """Name of the method that adds noise to clean images."""
        names = ("scale_noise", "add_noise") if self.kind == "flow" else ("add_noise", "scale_noise")
        return next((name for name in names if callable(getattr(self.scheduler, name, None))), None)

    @cached_property
    def some_count(self) -> int:
        """A small number of inference steps that it accepts. Raises NotApplicable if it accepts none."""
        counts = self.counts(5, 4, 3, 2, 10, 1)
        if not counts:
            raise NotApplicable(f"{self.name} accepts none of the tested numbers of inference steps (1 to 5, 10).")
        return counts[0]

    @cached_property
    def is_inverse(self) -> bool:
        """Whether its timesteps increase, from clean to noisy."""
        timesteps = as_values(self.planned(self.some_count).timesteps)
        return len(timesteps) > 1 and float(timesteps[0]) < float(timesteps[-1]) and not hasattr(self.scheduler, "undo_step")

    def counts(self, *wanted: int) -> list[int]:
        """Those of the `wanted` numbers of inference steps that it supports: at most the training steps, and not refused by an error."""
        most = int(config_value(self.scheduler, "original_inference_steps") or self.num_train_timesteps)
        return [count for count in dict.fromkeys(wanted) if fewest_steps(self.scheduler) <= count <= most and not self._refuses(count)]

    def _refuses(self, count: int) -> bool:
        try:
            self.planned(count)
        except Crash as crash:
            # Other errors (of PNDM, for example) are ValueErrors too; the message of a refusal is about steps or divisors.
            return isinstance(crash.error, ValueError) and re.search(r"step|divi|multiple", str(crash.error)) is not None
        return False

    def require_kind(self) -> None:
        """Raise NotApplicable if it is unknown how the scheduler represents its samples."""
        if self.kind == "vp" and getattr(self.scheduler, "alphas_cumprod", None) is None:
            raise NotApplicable(f"{self.name} has no alphas_cumprod, and it is unknown how it represents its samples.")
        if hasattr(self.scheduler, "get_scalings_for_boundary_condition"):
            raise NotApplicable(
                f"{self.name} wraps the model in the boundary condition of consistency models, for which there is no exact denoiser here."
            )

    def fresh(self) -> Any:
        """A new, unused scheduler."""
        return self._source() if self._is_factory else _copied(self._source)

    def planned(self, num_inference_steps: int, **arguments: Any) -> Any:
        """A fresh scheduler after `set_timesteps`. Raises Crash."""
        scheduler = self.fresh()
        self.plan(scheduler, num_inference_steps, **arguments)
        return scheduler

    def plan(self, scheduler: Any, num_inference_steps: int, **arguments: Any) -> None:
        """Call `set_timesteps` with the number of steps and the arguments that the configuration needs. Raises Crash."""
        if config_value(scheduler, "use_dynamic_shifting") and "mu" in inspect.signature(scheduler.set_timesteps).parameters:
            # The shift that diffusers uses for the longest image of the training resolution.
            arguments.setdefault("mu", float(config_value(scheduler, "max_shift") or 1.15))
        with calling(f"set_timesteps({num_inference_steps})"):
            scheduler.set_timesteps(num_inference_steps, **arguments)

    def with_config(self, **changes: Any) -> Subject:
        """The same class in another configuration. Raises NotApplicable if an entry does not exist or is refused."""
        known = inspect.signature(self.scheduler_class).parameters
        if not hasattr(self.scheduler_class, "from_config") or not set(changes) <= set(known):
            lacking = [key for key in changes if key not in known] or ["from_config"]
            raise NotApplicable(f"{self.name} has no {', '.join(lacking)}.")
        try:
            with quiet():
                return Subject(self.scheduler_class.from_config(self.scheduler.config, **changes))
        except (ValueError, NotImplementedError, TypeError, AssertionError, ImportError) as error:
            shown = ", ".join(f"{key}={value!r}" for key, value in changes.items())
            raise NotApplicable(f"{self.name} does not take {shown}: {error}") from error

    def require_plain_step(self) -> None:
        """Raise NotApplicable if `step` needs an argument that a loop with a denoiser does not have."""
        if any(one.kind is one.VAR_POSITIONAL for one in self.step_parameters.values()):
            return
        first, rest = list(self.step_parameters)[:3], list(self.step_parameters.items())[3:]
        beyond = [name for name, one in rest if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD and name not in EXTRAS]
        if len(first) < 3:
            raise NotApplicable(
                f"{self.name}.step takes {', '.join(first) or 'no arguments'}; a loop passes a model output, a timestep and a sample."
            )
        if beyond:
            raise NotApplicable(
                f"{self.name}.step needs {', '.join([*first, *beyond])}; a sampling loop has only a model output, a timestep and a sample."
            )


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Turn each error of the scheduler inside the block into a Crash; its warnings are ignored."""
    try:
        with quiet(), torch.no_grad():
            yield
    except Exception as error:
        raise Crash(what, error) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings inside the block: a deprecation does not break a law."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _copied(scheduler: Any) -> Any:
    try:
        return copy.deepcopy(scheduler)
    except Exception as error:
        raise TypeError(f"{type(scheduler).__name__} cannot be copied ({error}); give the class or a function that makes one.") from error


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other) or (isinstance(one, tuple | list) and list(one) == list(other))
    except (TypeError, ValueError, RuntimeError):
        return False
