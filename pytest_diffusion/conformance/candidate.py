"""A scheduler under test: how it is made, configured and planned, and what its `step` takes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pytest_diffusion.conformance.adapters import Adapted
from pytest_diffusion.conformance.calls import Crash, begin_journal, calling
from pytest_diffusion.conformance.refusals import refuses_count
from pytest_diffusion.conformance.shaped import require_shape, shaped
from pytest_diffusion.conformance.signatures import is_same, parameters_of
from pytest_diffusion.models.schedulers import as_values, config_value, fewest_steps, num_train_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable

EXTRAS = ("generator", "prev_timestep", "original_image", "mask")
"""Arguments that a loop can pass to `step` besides model output, timestep and sample."""


class Candidate:
    """A scheduler, or a class or function that creates one; fresh copies and plans of it.

    `arguments` are those of the constructor, where they are known. `plan` and `step` are arguments that every `set_timesteps` and every
    `step` gets besides. With `names_end`, the last of its timesteps is the end of the plan, and no step starts there. With a `shape`
    (N, ...), it is given samples of this shape alone. Raises TypeError for an object that does not have `set_timesteps`, and `step` or
    `add_noise`, and ValueError for a shape that is none.
    """

    def __init__(
        self,
        scheduler_or_factory: Any,
        *,
        arguments: Mapping[str, Any] | None = None,
        plan: Mapping[str, Any] | None = None,
        step: Mapping[str, Any] | None = None,
        names_end: bool = False,
        shape: Sequence[int] | None = None,
    ) -> None:
        is_one = hasattr(scheduler_or_factory, "step") or hasattr(scheduler_or_factory, "add_noise")
        self._is_factory = isinstance(scheduler_or_factory, type) or not is_one
        if self._is_factory and not callable(scheduler_or_factory):
            raise TypeError(
                f"{type(scheduler_or_factory).__name__} is not a scheduler: it has no step, and cannot be called to create one."
            )
        self._source = scheduler_or_factory
        first = scheduler_or_factory() if self._is_factory else scheduler_or_factory
        self.is_adapted = isinstance(first, Adapted)
        self.name = str(first.name) if self.is_adapted else type(first).__name__
        wanted = ("set_timesteps",) if callable(getattr(first, "add_noise", None)) else ("set_timesteps", "step")
        if missing := [method for method in wanted if not callable(getattr(first, method, None))]:
            raise TypeError(f"{self.name} is not a scheduler: it has no {' and no '.join(missing)}.")
        if not self._is_factory:
            self._source = _copied(first)
        self.scheduler_class: Any = type(first)
        self.shape = None if shape is None else require_shape(shape)
        """The only shape of samples that it takes, where that is declared."""
        self.scheduler = first if self.shape is None else shaped(first if self._is_factory else _copied(first), self.shape)
        self._unused: Any = None
        self._seen: dict[int, Any] = {}
        self._refused: dict[int, Crash | None] = {}
        self.gives_samples = self.gives_plans = False
        """Whether a step has given a sample, and a plan timesteps: where one does, none may give nothing."""
        self.is_told_each: bool | None = None
        """Whether `step` takes a timestep for each image; None until a loop has tried."""
        self.names_end = names_end
        """Whether the last of its timesteps is the end of the plan, at which no step starts."""
        self._arguments = arguments
        self.plan_arguments, self.step_arguments = dict(plan or {}), dict(step or {})

    @property
    def num_train_timesteps(self) -> int:
        """Length of the training schedule."""
        return num_train_timesteps(self.scheduler)

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration without private entries; empty if it has none."""
        config = getattr(self.scheduler, "config", None)
        entries = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
        return {key: value for key, value in entries.items() if not str(key).startswith("_")}

    @property
    def own_values(self) -> dict[str, Any]:
        """Entries of the configuration that differ from the constructor's defaults."""
        return {key: value for key, value in self.config.items() if key in self._defaults and not is_same(self._defaults[key], value)}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the constructor that differ from its defaults: as they were given, by the configuration, or by attributes."""
        if self._arguments is not None:
            return dict(self._arguments)
        if self.is_adapted:
            return {}
        if self.config or isinstance(self._source, type):
            return self.own_values
        own = getattr(self.scheduler, "__dict__", {})
        return {key: own[key] for key, default in self._defaults.items() if key in own and not is_same(default, own[key])}

    @property
    def needed_arguments(self) -> dict[str, Any]:
        """Arguments that `set_timesteps` needs besides a plan: those declared, and `mu`, if the shift depends on the size of the image."""
        parameters = self.plan_parameters
        found: dict[str, Any] = {}
        if config_value(self.scheduler, "use_dynamic_shifting") and "mu" in parameters:
            # The shift that diffusers uses for the longest image of the training resolution.
            found["mu"] = float(config_value(self.scheduler, "max_shift") or 1.15)
        if "device" in parameters and parameters["device"].default is inspect.Parameter.empty:
            found["device"] = "cpu"
        return {**found, **self.plan_arguments}

    @cached_property
    def plan_parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of `set_timesteps`, those that it hands on included."""
        return parameters_of(self.scheduler, self.scheduler_class, "set_timesteps")

    def given(self, **plan: Any) -> dict[str, Any]:
        """Arguments of `set_timesteps` for a plan of the caller's, `timesteps` or `sigmas`."""
        first = next(iter(inspect.signature(self.scheduler.set_timesteps).parameters.values()))
        number = {} if first.default is not first.empty or first.name in plan else {first.name: len(next(iter(plan.values())))}
        return {**number, **self.needed_arguments, **plan}

    @property
    def is_configured(self) -> bool:
        """Whether it has diffusers' configuration."""
        return bool(self.config) and hasattr(self.scheduler_class, "from_config")

    @property
    def is_of_diffusers(self) -> bool:
        """Whether its `step`, or one that it overrides, is of diffusers, whose classes have diffusers' conventions."""
        return any(owner.__module__.startswith("diffusers.") and "step" in vars(owner) for owner in self.scheduler_class.__mro__)

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """Defaults of the constructor's parameters; where it takes **kwargs, also those of its base classes."""
        found: dict[str, Any] = {}
        for owner in self.scheduler_class.__mro__:
            if owner is object or "__init__" not in vars(owner):
                continue
            parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
            for one in parameters:
                if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                    found.setdefault(one.name, one.default)
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
        return found

    @cached_property
    def step_parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of `step`, those that it hands on included. Raises NotApplicable for a class without `step` (score SDEs)."""
        if not callable(getattr(self.scheduler, "step", None)):
            raise NotApplicable(f"{self.name} has no step.")
        return parameters_of(self.scheduler, self.scheduler_class, "step")

    @property
    def noisy(self) -> dict[str, Any]:
        """Arguments with which `step` adds noise: an `eta` of 1 if its default is 0."""
        parameter = self.step_parameters.get("eta")
        return {"eta": 1.0} if parameter is not None and parameter.default == 0 else {}

    @cached_property
    def some_count(self) -> int:
        """A small number of inference steps that it accepts. Raises Crash if it refuses them all."""
        tried = (5, 4, 3, 2, 10, 1, 8, 6, 12, 16, 20, 25, 28, 30, 50, 100, self.num_train_timesteps)
        counts = self.counts(*tried)
        if not counts:
            raise next(filter(None, (self._refusal(count) for count in tried)), None) or NotApplicable(
                f"{self.name} supports none of the tested numbers of inference steps."
            )
        return counts[0]

    @cached_property
    def rises(self) -> bool:
        """Whether its timesteps increase along a plan."""
        timesteps = as_values(self.planned(self.some_count).timesteps)
        return len(timesteps) > 1 and float(timesteps[0]) < float(timesteps[-1]) and not hasattr(self.scheduler, "undo_step")

    @cached_property
    def tells_whole_timesteps(self) -> bool:
        """Whether the model is told whole timesteps."""
        timesteps = as_values(self.planned(self.some_count).timesteps).double()
        return bool((timesteps == timesteps.round()).all()) and float(timesteps.max()) > 1

    def counts(self, *wanted: int) -> list[int]:
        """Those of the `wanted` numbers of inference steps that it supports: at most the training steps, and not refused by an error."""
        most = int(config_value(self.scheduler, "original_inference_steps") or self.num_train_timesteps)
        known = [count for count in dict.fromkeys(wanted) if fewest_steps(self.scheduler) <= count <= most]
        return [count for count in known if self._refusal(count) is None]

    def deep_counts(self, *wanted: int) -> list[int]:
        """The same, each at least twice the order: with fewer steps, a multistep solver never leaves its start-up."""
        names = ("solver_order", "predictor_order", "corrector_order", "pndm_order", "order")
        orders = [config_value(self.scheduler, name) or getattr(self.scheduler, name, None) for name in names]
        order = max([1, *(int(one) for one in orders if isinstance(one, int | float))])
        return self.counts(*(max(count, 2 * order) for count in wanted)) or self.counts(*wanted)

    def refused(self, *wanted: int) -> dict[int, str]:
        """Those of the `wanted` numbers of inference steps that it refuses on purpose, with its words."""
        found = {count: self._refusal(count) for count in wanted if 0 < count <= self.num_train_timesteps}
        return {count: str(crash.error) for count, crash in found.items() if crash is not None}

    def _refusal(self, count: int) -> Crash | None:
        """The error by which it refuses a number of steps on purpose."""
        if count not in self._refused:
            self._refused[count] = None
            try:
                self._seen[count] = self.planned(count)
            except Crash as crash:
                self._refused[count] = crash if refuses_count(crash.error, count, self.scheduler_class) else None
            except NotApplicable:
                pass  # the law itself will say so
        return self._refused[count]

    def made(self) -> Any:
        """A scheduler that was made anew, where there is a class or function that makes one, else a copy."""
        made = self._source() if self._is_factory else _copied(self._source)
        return made if self.shape is None else shaped(made, self.shape)

    def fresh(self) -> Any:
        """A new, unused scheduler. Constructors may be slow, so it is a copy where one can be made."""
        if self._unused is None:
            self._unused = self.made()
        return _copied(self._unused) if self._can_copy else self.made()

    def planned(self, num_inference_steps: int, **arguments: Any) -> Any:
        """A fresh scheduler after `set_timesteps`. Raises Crash."""
        scheduler = self.fresh()
        begin_journal(scheduler)
        self.plan(scheduler, num_inference_steps, **arguments)
        return scheduler

    def seen_plan(self, num_inference_steps: int) -> Any:
        """A scheduler after `set_timesteps`, to look at and not to use. Raises Crash."""
        self._refusal(num_inference_steps)
        seen = self._seen.get(num_inference_steps)
        return self.planned(num_inference_steps) if seen is None else seen

    @cached_property
    def _can_copy(self) -> bool:
        """Whether it can be copied."""
        try:
            copy.deepcopy(self._unused)
        except Exception:
            return False
        return True

    def plan(self, scheduler: Any, num_inference_steps: int, **arguments: Any) -> None:
        """Call `set_timesteps` with the number of steps and the arguments that the configuration needs. Raises Crash."""
        arguments = {**self.needed_arguments, **arguments}
        with calling(
            f"set_timesteps({', '.join([str(num_inference_steps), *(f'{key}={arguments[key]!r}' for key in arguments)])})", scheduler
        ):
            scheduler.set_timesteps(num_inference_steps, **arguments)
        self._require_timesteps(scheduler, num_inference_steps)

    def _require_timesteps(self, scheduler: Any, count: int) -> None:
        """Raise NotApplicable unless plans are lists of numbers, and Crash where this one is none, or empty, and others are."""
        timesteps = getattr(scheduler, "timesteps", None)
        why = ""
        if timesteps is None:
            why = f"{self.name} has no `timesteps` after set_timesteps; a sampling loop goes through them."
        elif (values := as_values(timesteps)).ndim != 1:
            why = f"{self.name}.timesteps has the shape {tuple(values.shape)}; a loop needs one number for each step."
        if not why and len(as_values(timesteps)):
            self.gives_plans = True
        elif why and not self.gives_plans:
            raise NotApplicable(why)
        else:
            raise Crash(f"set_timesteps({count})", TypeError(why or f"{self.name}.timesteps is empty."))

    def require_any_shape(self) -> None:
        """Raise NotApplicable if it is given samples of a declared shape alone."""
        if self.shape is not None:
            raise NotApplicable(f"{self.name} is given samples of the declared shape {self.shape} alone.")

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


def _copied(scheduler: Any) -> Any:
    try:
        return copy.deepcopy(scheduler)
    except Exception as error:
        raise TypeError(f"{type(scheduler).__name__} cannot be copied ({error}); give the class or a function that makes one.") from error
