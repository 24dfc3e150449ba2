"""The code that shows a broken law again; it is executed before it is printed."""

from __future__ import annotations

import importlib
from typing import Any

from pytest_diffusion.conformance.calls import Crash, quiet
from pytest_diffusion.conformance.laws import Broken, Law, Several, findings_of, signature
from pytest_diffusion.conformance.signatures import is_same
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.verdicts.errors import NotApplicable

_LONGEST = 400
"""Characters of a constructor's call that is still shown."""


def rebuilt(subject: Subject, arguments: dict[str, Any]) -> Subject:
    """The same class with other arguments of its constructor."""
    own = subject.arguments
    changes = {name for name in {*own, *arguments} if name not in own or name not in arguments or not is_same(own[name], arguments[name])}
    with quiet():
        return Subject(subject.scheduler_class(**arguments), **subject.declared_beside(changes))


def found_again(one: Law, subject: Subject, count: int, error: Broken | Crash) -> Broken | Crash | None:
    """The same finding on another subject at one number of inference steps (at those of the law for 0), or None."""
    try:
        one.function(subject, [count] if count else list(one.counts))
    except (Broken, Crash, Several) as seen:
        return next((found for found in findings_of(seen) if signature(found) == signature(error)), None)
    except NotApplicable:
        return None
    return None


def expression(subject: Subject, arguments: dict[str, Any]) -> str:
    """The call of the constructor; the name of what an adapter was made from."""
    if subject.is_adapted:
        return subject.name
    return f"{subject.name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def snippet(one: Law, subject: Subject, arguments: dict[str, Any], count: int, error: Broken | Crash) -> str:
    """Lines that show the finding again, or why there are none: they were executed, all but the call of the suite."""
    made = expression(subject, arguments)
    if subject.is_adapted:
        steps = f", num_inference_steps=[{count}]" if count else ""
        return f"    check_scheduler({made}, adapt=..., only=[{one.name!r}]{steps})  # with your adapter"
    imports = _import(subject)
    namespace: dict[str, Any] = {subject.name: subject.scheduler_class}
    if len(made) > _LONGEST:
        return _without_code(subject, "fills more than a line can show")
    try:
        exec(imports, namespace)  # noqa: S102 - the class under test, as the reader will import it
        with quiet():
            again = Subject(eval(made, namespace), **subject.declared)  # noqa: S307 - our own text
        if found_again(one, again, count, error) is None:
            return _without_code(subject, "does not show it again")
    except Exception as problem:
        return _without_code(subject, f"cannot be written as code ({type(problem).__name__})")
    steps = f", num_inference_steps=[{count}]" if count and count not in one.counts else ""
    declared = "".join(f", {key}={value!r}" for key, value in subject.declared.items())
    lines = [
        imports or f"# {subject.name} is defined inside a function, so it cannot be imported.",
        "from pytest_diffusion import check_scheduler",
        f"check_scheduler({made}, only=[{one.name!r}]{steps}{declared})",
    ]
    return "\n".join(f"    {line}" for line in lines)


def _without_code(subject: Subject, why: str) -> str:
    return f"    (no code: {subject.name} made from its recorded arguments {why}; pass your own object to check_scheduler)"


def _import(subject: Subject) -> str:
    """How users import the class: from `diffusers` for its own ones; empty for one that is defined inside a function."""
    owner: type = subject.scheduler_class
    module = "diffusers" if owner.__module__.startswith("diffusers.") else owner.__module__
    if "<locals>" in owner.__qualname__ or getattr(importlib.import_module(module), owner.__name__, None) is not owner:
        return ""
    return f"from {module} import {owner.__name__}"
