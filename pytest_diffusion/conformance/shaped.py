"""A scheduler that takes samples of one shape only, given the samples of the laws: their elements are repeated until the shape is full."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import torch

from pytest_diffusion.conformance.randomness import Draw

FEWEST = 1024
"""Elements of a sample on which the laws measure."""
_METHODS = ("step", "scale_model_input", "add_noise", "scale_noise", "get_velocity", "undo_step")


def require_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple. Raises ValueError for one that is no shape of a batch, or too small to measure on."""
    found = tuple(shape)
    if len(found) < 2 or not all(isinstance(one, int) and one > 0 for one in found):
        raise ValueError(f"shape is {found}; expected the batch and the dimensions of a sample, as (2, 16, 4, 8, 8).")
    if math.prod(found[1:]) < FEWEST:
        raise ValueError(f"shape is {found}, with {math.prod(found[1:])} elements in each sample; expected at least {FEWEST}.")
    return found


def shaped(scheduler: Any, shape: tuple[int, ...]) -> Any:
    """The same scheduler, whose methods take samples (N, ...) of any shape of up to as many elements, and see those of `shape`.

    What it does must treat each element alike; the sizes of batches are those of the caller.
    """
    own: Any = type(scheduler)
    scheduler.__class__ = _class_of(own, shape)
    return scheduler


@cache
def _class_of(own: Any, shape: tuple[int, ...]) -> Any:
    methods: dict[str, Any] = {name: _resized(getattr(own, name), shape) for name in _METHODS if callable(getattr(own, name, None))}

    def reduced(self: Any, protocol: Any) -> Any:
        plain = own.__new__(own)
        plain.__dict__.update(self.__dict__)
        return shaped, (plain, shape)

    methods |= {"__reduce_ex__": reduced, "__module__": own.__module__, "__qualname__": own.__qualname__}
    return type(own)(own.__name__, (own,), methods)


def _resized(method: Callable[..., Any], shape: tuple[int, ...]) -> Callable[..., Any]:
    @wraps(method)
    def resized(self: Any, *arguments: Any, **named: Any) -> Any:
        samples = [one for one in (*arguments, *named.values()) if _is_sample(one)]
        like = min(samples, key=lambda one: one.numel()) if samples else torch.zeros(1, 1)
        given = [_large(one, like, shape) for one in arguments]
        return _small_again(method(self, *given, **{name: _large(one, like, shape) for name, one in named.items()}), like, shape)

    return resized


def _is_sample(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1


def _large(value: Any, like: torch.Tensor, shape: tuple[int, ...]) -> Any:
    """A sample in the scheduler's shape; of a model output with a variance, each half."""
    if not _is_sample(value):
        return value
    if value[0].numel() == 2 * like[0].numel():
        return torch.cat([large(half, shape) for half in value.chunk(2, dim=1)], dim=1)
    return large(value, shape)


def large(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A sample (N, ...) as (N, *shape[1:]), with its elements repeated."""
    flat, wanted = value.reshape(len(value), -1), math.prod(shape[1:])
    return flat.repeat(1, -(-wanted // flat.shape[1]))[:, :wanted].reshape(len(value), *shape[1:])


def small(value: torch.Tensor, like: torch.Size) -> torch.Tensor:
    """The elements of (N, *shape[1:]) that a sample of the shape `like` has, in its shape."""
    return value.reshape(len(value), -1)[:, : math.prod(like[1:])].reshape(len(value), *like[1:])


def _small_again(returned: Any, like: torch.Tensor, shape: tuple[int, ...]) -> Any:
    if isinstance(returned, torch.Tensor):
        return small(returned, like.shape) if returned.shape[1:] == shape[1:] else returned
    if isinstance(returned, tuple | list):
        entries = [_small_again(one, like, shape) for one in returned]
        return type(returned)(*entries) if hasattr(returned, "_fields") else type(returned)(entries)
    if type(returned) is dict:
        return {name: _small_again(one, like, shape) for name, one in returned.items()}
    for name, one in list(getattr(returned, "__dict__", {}).items()):
        setattr(returned, name, _small_again(one, like, shape))
    return returned


def small_draws(draws: Sequence[Draw], like: torch.Size, shape: tuple[int, ...]) -> list[Draw]:
    """Draws of the scheduler's shape as those of a sample."""
    return [Draw(one.operator, small(one.values, like), one.normal) if one.values.shape[1:] == shape[1:] else one for one in draws]


def replacing(
    replace: Callable[[torch.Tensor], torch.Tensor], like: torch.Size, shape: tuple[int, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The replacement of a sample's draws, for draws of the scheduler's shape."""

    def replaced(values: torch.Tensor) -> torch.Tensor:
        if values.shape[1:] != shape[1:]:
            return replace(values)
        return large(replace(small(values, like)), shape)

    return replaced
