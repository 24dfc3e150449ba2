"""The scheduler under test as the laws know it: the form of its samples, their noise levels, and what its model predicts."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any, cast, get_args

from pytest_diffusion.conformance.calls import Crash, quiet
from pytest_diffusion.conformance.candidate import Candidate
from pytest_diffusion.conformance.noising import noised, some_image
from pytest_diffusion.conformance.readings import Reading, declared_levels, read_off
from pytest_diffusion.conformance.refusals import refuses_entries
from pytest_diffusion.models.levels import PREDICTION_TYPES, Kind, kind_of, prediction_type_of
from pytest_diffusion.models.schedulers import as_values, config_value, num_train_timesteps
from pytest_diffusion.verdicts.errors import NotApplicable, unknown_name

KINDS = get_args(Kind)
TOWARDS_DATA = "image_minus_noise"
"""The velocity of a flow towards the data, the negative of "flow_prediction"."""


class Subject(Candidate):
    """A candidate with the properties that the laws use.

    `kind` is the form of its samples and `prediction_type` the model's output, where its attributes do not tell them. The other
    arguments are those of `Candidate`. Raises ValueError for an unknown kind or prediction type.
    """

    def __init__(self, scheduler_or_factory: Any, *, kind: str | None = None, prediction_type: str | None = None, **rest: Any) -> None:
        for what, value, choices in (("kind", kind, KINDS), ("prediction_type", prediction_type, (*PREDICTION_TYPES, TOWARDS_DATA))):
            if value is not None and value not in choices:
                raise ValueError(unknown_name(what, value, choices))
        super().__init__(scheduler_or_factory, **rest)
        self._kind, self.told_prediction_type = kind, prediction_type
        """The prediction type by the caller's word, or by trial."""
        self._has_readings = kind is not None
        self.hides_noise: bool | None = None
        """Whether it adds noise that torch does not draw; None until that was tried."""
        self.refuses_outputs: bool | None = None
        """Whether `step` refuses the outputs of the suite's models on purpose; None until a loop has tried."""

    @property
    def declared(self) -> dict[str, Any]:
        """What the caller declared of the scheduler, as arguments of another Subject of its class."""
        told = {
            "plan": self.plan_arguments,
            "step": self.step_arguments,
            "names_end": self.names_end,
            "shape": self.shape,
            "kind": self._kind,
            "prediction_type": self.told_prediction_type,
        }
        return {name: one for name, one in told.items() if one}

    @cached_property
    def kind(self) -> Kind:
        """How the scheduler represents samples after `set_timesteps`, see `models.levels.kind_of`.

        Where its attributes do not tell, it is read off its noising, and `reading_of` gives the noise levels.
        """
        if self.is_adapted:
            self._has_readings = True
            return cast(Kind, self.scheduler.adapter.kind)
        if self._kind is not None:
            return cast(Kind, self._kind)
        try:
            planned = self.planned(self.some_count)
        except (Crash, NotApplicable):
            return kind_of(self.scheduler)
        kind = kind_of(planned)
        # The noise of a flow that is no inverse falls along its plan, whatever its timesteps do.
        misleads = kind == "flow" and self.rises and not self._is_inverse_by_name
        if (misleads or not _tells_levels(planned, kind)) and self.noising_by(kind) is not None:
            reading = read_off(planned, str(self.noising_by(kind)))
            if reading is not None:
                self._has_readings = True
                return reading.kind
        return kind

    @property
    def has_readings(self) -> bool:
        """Whether its noise levels are not told by its attributes."""
        return bool(self.kind) and self._has_readings

    @property
    def reading_source(self) -> str:
        """Where noise levels come from that its attributes do not tell."""
        if self.is_adapted:
            return "told by its adapter"
        return "read off its noising" if self._kind is None else f"declared by kind={self._kind!r}"

    def reading_of(self, planned: Any) -> Reading | None:
        """The noise levels of a plan, where attributes do not tell them; None where they do. Raises NotApplicable if nothing does."""
        kind = self.kind
        if not self.has_readings:
            return None
        if self.is_adapted:
            return cast(Reading, planned.reading())
        found = read_off(planned, str(self.noising_by(kind))) if self._kind is None else declared_levels(planned, kind, rises=self.rises)
        if found is None:
            how = f"declared as {kind!r}, and has no sigmas" if self._kind is not None else "read at some plans only"
            raise NotApplicable(f"{self.name} has noise levels that are {how}.")
        return found

    @property
    def prediction_type(self) -> str:
        """Prediction type that the scheduler expects of the model."""
        if self.told_prediction_type is not None:
            return self.told_prediction_type
        if self.is_prediction_declared or self.kind != "flow":
            return prediction_type_of(self.scheduler)
        return "flow_prediction"

    @property
    def is_prediction_declared(self) -> bool:
        """Whether the configuration or an attribute names the prediction type. Several velocities of a flow are called "v_prediction"."""
        named = config_value(self.scheduler, "prediction_type") or getattr(self.scheduler, "prediction_type", None)
        return bool(named) and not (named == "v_prediction" and self.kind == "flow" and not self.is_of_diffusers)

    @property
    def is_inverse(self) -> bool:
        """Whether its timesteps increase, from clean to noisy; a flow's may increase towards the data."""
        if self.has_readings:
            return False  # levels fall along a plan that was read
        if self._is_inverse_by_name:
            return True  # `inverse_direction` holds it to that
        is_known = self.kind != "vp" or getattr(self.scheduler, "alphas_cumprod", None) is not None
        return is_known and self.rises

    @property
    def _is_inverse_by_name(self) -> bool:
        return any("Inverse" in owner.__name__ for owner in self.scheduler_class.__mro__)

    @property
    def noising(self) -> str | None:
        """Name of the method that adds noise to clean images."""
        return self.noising_by(self.kind)

    def noising_by(self, kind: Kind) -> str | None:
        """Name of the method that adds noise to clean images of a kind."""
        names = ("scale_noise", "add_noise") if kind == "flow" else ("add_noise", "scale_noise")
        return next((name for name in names if callable(getattr(self.scheduler, name, None))), None)

    def noising_method(self) -> str:
        """Name of the method that adds noise. Raises NotApplicable if there is none, or if it is not implemented."""
        self.require_kind()
        if self.noising is None:
            raise NotApplicable(f"{self.name} has neither add_noise nor scale_noise.")
        scheduler = self.planned(self.some_count)
        try:
            noised(scheduler, self.noising, some_image(), some_image(), as_values(scheduler.timesteps)[:1])
        except Crash as crash:
            if isinstance(crash.error, NotImplementedError):
                raise NotApplicable(f"{self.name} does not implement {self.noising}: {crash.error}") from crash
        return self.noising

    def require_kind(self) -> None:
        """Raise NotApplicable if it is unknown how the scheduler represents its samples, or what its model predicts."""
        if self.kind == "vp" and not self._has_readings and getattr(self.scheduler, "alphas_cumprod", None) is None:
            raise NotApplicable(
                f"{self.name} has no alphas_cumprod and no noising, so it is unknown how it represents its samples. "
                "Declare it: check_scheduler(..., kind=...)."
            )
        if hasattr(self.scheduler, "get_scalings_for_boundary_condition"):
            raise NotApplicable(
                f"{self.name} wraps the model in the boundary condition of consistency models, for which there is no exact denoiser here."
            )
        known = ("epsilon", "v_prediction") if self.kind == "edm" and not self._has_readings else (*PREDICTION_TYPES, TOWARDS_DATA)
        if self.prediction_type not in known:
            raise NotApplicable(f"{self.name} has a prediction_type of {self.prediction_type!r}; there are laws for {', '.join(known)}.")

    def with_config(self, **changes: Any) -> Subject:
        """The same class in another configuration. Raises NotApplicable if an entry does not exist or is refused."""
        known = self._defaults
        if not hasattr(self.scheduler_class, "from_config") or not set(changes) <= set(known):
            lacking = [key for key in changes if key not in known] or ["from_config"]
            raise NotApplicable(f"{self.name} has no {', '.join(lacking)}.")
        shown = ", ".join(f"{key}={value!r}" for key, value in changes.items())
        try:
            with quiet():
                return Subject(self.scheduler_class.from_config(self.scheduler.config, **changes), **self.declared_beside(changes))
        except Exception as error:
            if refuses_entries(error, changes, self.scheduler_class):
                raise NotApplicable(f"{self.name} does not take {shown}: {error}") from error
            raise Crash(f"from_config(..., {shown})", error) from error

    def declared_beside(self, changes: Collection[str]) -> dict[str, Any]:
        """What the caller declared, for another configuration: without what the changed entries say otherwise."""
        told = self.declared
        if "prediction_type" in changes or "use_flow_sigmas" in changes:
            told.pop("prediction_type", None)
        if "use_flow_sigmas" in changes:
            told.pop("kind", None)
        return told


def _tells_levels(planned: Any, kind: Kind) -> bool:
    """Whether the attributes of a planned scheduler tell the noise levels of its samples."""
    if kind == "vp":
        return getattr(planned, "alphas_cumprod", None) is not None
    sigmas = getattr(planned, "sigmas", None)
    if kind != "flow" or sigmas is None:
        return kind != "flow"
    shares = as_values(planned.timesteps).double() / num_train_timesteps(planned)
    return len(sigmas) >= len(shares) and float((as_values(sigmas).double()[: len(shares)] - shares).abs().max()) < 0.02
