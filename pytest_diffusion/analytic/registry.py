"""The registry of closed-form models, and `create_model`, which builds and fits one by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from pytest_diffusion.config.registry import Registry
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name

if TYPE_CHECKING:
    from pytest_diffusion.analytic.base import AnalyticModel

M = TypeVar("M", bound="type[AnalyticModel]")
MODELS: Registry[Any] = Registry("closed-form model")
_OWN = ("finite", "gaussian", "locality", "unet")


def register_model(name: str) -> Callable[[M], M]:
    """Decorator that registers a subclass of `AnalyticModel` for `create_model` and `--diffusion-model=analytic:NAME`.

    Raises ValueError for a name that is taken by another class.
    """

    def add(model_class: M) -> M:
        # A module that is imported again registers the same class again.
        MODELS.add(name, model_class, declared=model_class)
        return model_class

    return add


def model_names() -> list[str]:
    """Names that `create_model` knows."""
    for module in _OWN:
        importlib.import_module(f"pytest_diffusion.analytic.{module}")
    return sorted(MODELS.names)


def create_model(name: str, dataset: torch.Tensor | Iterable[torch.Tensor] | None = None, **params: Any) -> AnalyticModel:
    """A closed-form model by name, fitted to `dataset`: images (N, C, H, W) in [−1, 1], or an iterable of such batches.

    `params` go to the model's constructor; all take `scheduler` (default: DDIM over 1,000 linear betas) and
    `num_inference_steps`. Raises SettingsError for an unknown name (listing those that exist) or parameter,
    and ValueError for images of another shape or range.
    """
    names = model_names()
    if name not in names:
        raise SettingsError(unknown_name("the analytic model", name, names))
    try:
        model: AnalyticModel = MODELS[name](**params)
    except TypeError as error:
        raise SettingsError(f"the analytic model {name!r}: {error}") from error
    return model.fit(dataset) if dataset is not None else model


def is_built_in(name: str) -> bool:
    """Whether a name is a model of this package. Users do not change its code, so cached samples of it stay valid."""
    return name in model_names() and MODELS[name].__module__.startswith("pytest_diffusion.")


def is_own_code(value: str) -> bool:
    """Whether `analytic:NAME` runs a class from outside this package."""
    return not is_built_in(value.partition(":")[2])
