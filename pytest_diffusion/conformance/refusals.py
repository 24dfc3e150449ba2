"""What is a refusal of a scheduler, and what is a crash: a refusal is raised on purpose, by a statement of the scheduler's own code."""

from __future__ import annotations

import dis
import re
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

_ABOUT_STEPS = re.compile(r"\bsteps?\b|\bdivi|\bmultiple|num_inference", re.IGNORECASE)
_PURPOSEFUL = (ValueError, AssertionError, NotImplementedError)
_NEVER_OWN = {"torch", "numpy", *sys.stdlib_module_names}
"""Packages that may stand among a scheduler's base classes; what they raise is no word of the scheduler's author."""


def refuses_count(error: BaseException, count: int, scheduler_class: Any) -> bool:
    """Whether an error of `set_timesteps` refuses a number of steps: raised on purpose, with a text about steps or this number."""
    text = str(error)
    return is_on_purpose(error, scheduler_class) and (bool(_ABOUT_STEPS.search(text)) or re.search(rf"\b{count}\b", text) is not None)


def refuses_entries(error: BaseException, entries: Mapping[str, Any], scheduler_class: Any) -> bool:
    """Whether an error of a constructor refuses entries of the configuration: raised on purpose, for a missing package, or by name."""
    text = str(error)
    named = any(str(word) in text for name, value in entries.items() for word in (name, value))
    return named or isinstance(error, ImportError) or is_on_purpose(error, scheduler_class)


def is_on_purpose(error: BaseException, scheduler_class: Any) -> bool:
    """Whether a `raise` or an `assert` in the packages of the scheduler's classes raised the error, not torch, NumPy or an operator."""
    if not isinstance(error, _PURPOSEFUL):
        return False
    last = _last(error.__traceback__)
    if last is None:
        return False
    packages = {one.__module__.partition(".")[0] for one in scheduler_class.__mro__} - (_NEVER_OWN - {"__main__"})
    if str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0] not in packages:
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _last(found: TracebackType | None) -> TracebackType | None:
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return found
