"""What is a refusal of a scheduler, and what is a crash: a refusal is raised on purpose, by a statement of the scheduler's own code."""

from __future__ import annotations

import dis
import re
from types import TracebackType
from typing import Any

_ABOUT_STEPS = re.compile(r"steps?\b|divi|multiple|num_inference", re.IGNORECASE)
_PURPOSEFUL = (ValueError, AssertionError, NotImplementedError)


def refuses_count(error: BaseException, count: int, scheduler_class: Any) -> bool:
    """Whether an error of `set_timesteps` refuses a number of steps: raised on purpose, with a text about steps or this number."""
    text = str(error)
    return is_on_purpose(error, scheduler_class) and (bool(_ABOUT_STEPS.search(text)) or re.search(rf"\b{count}\b", text) is not None)


def is_on_purpose(error: BaseException, scheduler_class: Any) -> bool:
    """Whether a `raise` or an `assert` in the packages of the scheduler's classes raised the error, not torch, NumPy or an operator."""
    if not isinstance(error, _PURPOSEFUL):
        return False
    last = _last(error.__traceback__)
    if last is None:
        return False
    packages = {one.__module__.partition(".")[0] for one in scheduler_class.__mro__ if one is not object}
    if str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0] not in packages:
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _last(found: TracebackType | None) -> TracebackType | None:
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return found
