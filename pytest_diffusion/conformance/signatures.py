"""What signatures and configurations of a class say: parameters that it hands on to its base classes, and equal entries."""

from __future__ import annotations

import inspect
from typing import Any


def parameters_of(scheduler: Any, scheduler_class: Any, method: str) -> dict[str, inspect.Parameter]:
    """Parameters of a method; where it takes **kwargs, also the optional ones of the same method of its base classes."""
    found = dict(inspect.signature(getattr(scheduler, method)).parameters)
    takes_more = next((name for name, one in found.items() if one.kind is one.VAR_KEYWORD), None)
    owners = [owner for owner in scheduler_class.__mro__ if method in vars(owner)][1:]
    if takes_more is not None and owners:
        del found[takes_more]
        base = list(inspect.signature(getattr(owners[0], method)).parameters.items())[1:]
        found |= {name: one for name, one in base if name not in found and one.default is not one.empty}
    return found


def is_same(one: Any, other: Any) -> bool:
    """Whether two entries of a configuration are equal; lists and tuples of the same values are."""
    try:
        return bool(one == other) or (isinstance(one, tuple | list) and list(one) == list(other))
    except (TypeError, ValueError, RuntimeError):
        return False
