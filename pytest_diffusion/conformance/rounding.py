"""Directed rounding: the scalars that a scheduler computes are rounded up or down, as another processor might do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_INEXACT = frozenset(
    {"add", "sub", "rsub", "mul", "div", "reciprocal", "pow", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "sin", "cos"}
)


class Rounded(TorchDispatchMode):
    """Inside the block, every float32 scalar is rounded in one `direction` from its exact value: +1 up or -1 down.

    Processors and libraries differ in the last bit of a power or a root. A law that holds for both directions holds on
    all of them. Exact results and samples do not change: only scalars decide whether the argument of a root is negative.
    """

    def __init__(self, direction: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = math.copysign(math.inf, direction)

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = str(func).removeprefix("aten.").partition(".")[0]
        if operator not in _INEXACT or not isinstance(out, torch.Tensor) or out.dtype != torch.float32 or out.numel() != 1:
            return out
        exact = func(*[_widened(value) for value in args], **{name: _widened(value) for name, value in kwargs.items()})
        nearest = exact.to(torch.float32)
        gap = float(exact) - float(nearest)
        if gap == 0 or not math.isfinite(gap):
            return out
        # The nearest number may lie on the wrong side of the exact one.
        on_this_side = (gap < 0) == (self._limit > 0)
        return nearest if on_this_side else torch.nextafter(nearest, torch.full_like(nearest, self._limit))


def _widened(value: Any) -> Any:
    return value.to(torch.float64) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value
