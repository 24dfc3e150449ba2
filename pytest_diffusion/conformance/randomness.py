"""Records every random draw of torch inside a block, and replaces its values if a law needs known noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Draw:
    """One draw: the operator, the values (a copy, float64), and whether they are standard normal."""

    operator: str
    values: torch.Tensor
    normal: bool


class Draws(TorchDispatchMode):
    """Records the draws inside the block in `draws`; `replace(values)` returns other values to use instead."""

    def __init__(self, replace: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws: list[Draw] = []
        self._replace = replace

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags or not (isinstance(out, torch.Tensor) and out.is_floating_point()):
            return out
        operator = str(func).removeprefix("aten.").partition(".")[0]
        normal = operator in ("randn", "randn_like") or (operator == "normal_" and _is_standard(args[1:], kwargs))
        if self._replace is not None:
            values = self._replace(out).to(out)
            # An in-place operator returns its own input, so this tensor itself must be changed.
            out = out.copy_(values) if operator.endswith("_") else values
        self.draws.append(Draw(operator, out.detach().to(torch.float64, copy=True), normal))
        return out


def _is_standard(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    values = [*args, *(kwargs[name] for name in ("mean", "std") if name in kwargs)]
    return values in ([], [0], [0, 1], [0.0], [0.0, 1.0])
