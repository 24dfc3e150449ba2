"""Models larger than memory: smaller batches when memory runs out, and modules that accelerate offloads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pytest_diffusion.verdicts.errors import ModelError

_Result = TypeVar("_Result")


@dataclass
class BatchSize:
    """Number of samples in a batch. It is halved when memory runs out and stays halved for later batches."""

    size: int

    def run(self, work: Callable[[int], _Result]) -> _Result:
        """Result of `work(size)`, with the size halved until it fits into memory. Raises ModelError when one sample does not fit."""
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                if self.size == 1:
                    raise ModelError(f"Out of memory even with a batch size of 1: {str(error).splitlines()[0]}") from error
            # Outside the handler, whose traceback would keep the tensors of the failed batch alive.
            clear_device_cache(garbage_collection=True)
            self.size //= 2


def is_offloaded(parts: Iterable[torch.nn.Module]) -> bool:
    """Whether accelerate moves any of these modules to a device only while it runs, or has split them over devices."""
    return any(hasattr(part, "_hf_hook") for part in parts)


def whole_state_dict(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's tensors by name, including offloaded ones."""
    from accelerate.utils.modeling import get_state_dict_offloaded_model

    state: dict[str, Any] = part.state_dict()
    return get_state_dict_offloaded_model(part) if any(tensor.is_meta for tensor in state.values()) else state
