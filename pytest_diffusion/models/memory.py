"""Models larger than memory: modules that accelerate moves to a device only while they run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def is_offloaded(parts: Iterable[torch.nn.Module]) -> bool:
    """Whether accelerate moves any of these modules to a device only while it runs, or has split them over devices."""
    return any(hasattr(part, "_hf_hook") for part in parts)


def whole_state_dict(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's tensors by name, including offloaded ones."""
    from accelerate.utils.modeling import get_state_dict_offloaded_model

    state: dict[str, Any] = part.state_dict()
    return get_state_dict_offloaded_model(part) if any(tensor.is_meta for tensor in state.values()) else state
