"""Laws of configuration: saving and loading, exchange between schedulers, unknown choices, and documented argument types."""

from __future__ import annotations

import ast
import inspect
import tempfile
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.calls import Crash, calling, quiet
from pytest_diffusion.conformance.laws import Broken, Claims, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values, config_value
from pytest_diffusion.verdicts.errors import NotApplicable

_CHOICES = (
    "prediction_type",
    "beta_schedule",
    "timestep_spacing",
    "algorithm_type",
    "solver_type",
    "variance_type",
    "final_sigmas_type",
    "interpolation_type",
    "sigma_schedule",
    "time_shift_type",
)
_UNKNOWN = "no-such-choice"


@law(
    "a saved configuration is loaded as it was",
    source="diffusers' ConfigMixin: save_config and from_config",
    counts=(4,),
    rests_on=("runs", "noise_is_normal"),
)
def config_round_trip(subject: Subject, counts: Sequence[int]) -> None:
    """A scheduler that is saved and loaded must have the same configuration and give the same samples."""
    if not hasattr(subject.scheduler, "save_config") or not hasattr(subject.scheduler_class, "from_config"):
        raise NotApplicable(f"{subject.name} has no save_config and from_config.")
    with tempfile.TemporaryDirectory() as folder:
        with calling("save_config(folder)"):
            subject.scheduler.save_config(folder)
        with calling("from_config(load_config(folder))"):
            loaded = Subject(subject.scheduler_class.from_config(subject.scheduler_class.load_config(folder)), **subject.declared)
    changed = [key for key in {*subject.config, *loaded.config} if not _alike(subject.config.get(key), loaded.config.get(key))]
    if changed:
        key = min(changed)
        raise Broken("the same configuration", f"{key} was {subject.config.get(key)!r} and is {loaded.config.get(key)!r}")
    loops.require_drivable(subject)
    for count in subject.counts(*counts):
        sample = walking.normal(1, 3, 4, 4)
        before, after = (loops.states(one, count, sample, replace=torch.zeros_like)[-1] for one in (subject, loaded))
        if not torch.equal(before, after):
            seen = f"samples that differ by {float((before - after).abs().max()):.4g}"
            raise Broken("the same samples from the loaded scheduler", seen, count=count)


@law("compatible schedulers exchange their configurations", source="diffusers: scheduler.compatibles share a configuration", counts=(4,))
def config_interchange(subject: Subject, counts: Sequence[int]) -> None:
    """`from_config` must accept the configuration of a compatible scheduler, because users replace a pipeline's scheduler this way."""
    others = [one for one in getattr(subject.scheduler, "compatibles", []) if one is not subject.scheduler_class]
    if not others:
        raise NotApplicable(f"{subject.name} names no compatible schedulers.")
    subject.require_kind()
    # from_config ignores entries that the class does not have, and entries that are defaults of the other class.
    own = inspect.signature(subject.scheduler_class).parameters
    tried: set[str] = set()
    for other in others:
        theirs = inspect.signature(other).parameters
        for changes in ((), *((one,) for one in _FOREIGN if one[0] in own and one[0] in theirs)):
            config = _config_of(other, changes)
            if config is None or config.get("prediction_type") not in (None, "epsilon") or "Inverse" in other.__name__:
                continue
            received = {name: config[name] for name in own if name in config and name not in config.get("_use_default_values", ())}
            if repr(received) in tried:
                continue
            tried.add(repr(received))
            what = f"from_config({other.__name__}({', '.join(f'{key}={value!r}' for key, value in changes)}).config)"
            try:
                with calling(what):
                    taken = Subject(subject.scheduler_class.from_config(config), **subject.declared_beside(received))
            except Crash as crash:
                if changes and isinstance(crash.error, ValueError | NotImplementedError):
                    continue  # the error names the choice that is not supported
                raise Broken("the default configuration of a compatible scheduler to be accepted", str(crash)) from crash
            for count in taken.counts(*counts):
                _require_finite(taken, count, what)
    if not tried:
        raise NotApplicable(f"no scheduler compatible with {subject.name} can be created here.")


@law("unknown choices are refused by name", source="diffusers raises for choices that it does not know", counts=(4,))
def unknown_values_refused(subject: Subject, counts: Sequence[int]) -> None:
    """A misspelt choice must raise an error that names it, in `step` at the latest. It must not run as another choice."""
    # With given betas, the name of a schedule is not used.
    unread = {"beta_schedule"} if config_value(subject.scheduler, "trained_betas") is not None else set()
    choices = [name for name in _CHOICES if isinstance(subject.config.get(name), str) and name not in unread]
    if not choices or not hasattr(subject.scheduler_class, "from_config"):
        raise NotApplicable(f"{subject.name} has no configuration with named choices, or no from_config.")
    loops.require_drivable(subject)
    claims = Claims()
    for name in choices:
        with claims.next():
            _require_refused(subject, name, counts)
    claims.settle()


def _require_refused(subject: Subject, name: str, counts: Sequence[int]) -> None:
    try:
        with quiet(), torch.no_grad():
            made = subject.scheduler_class.from_config(subject.scheduler.config, **{name: _UNKNOWN})
            other = Subject(made, **subject.declared_beside([name]))
            if name != "time_shift_type" or config_value(subject.scheduler, "use_dynamic_shifting"):
                for count in subject.counts(*counts):
                    loops.states(other, count, walking.normal(1, 3, 4, 4), replace=torch.zeros_like)
                why = "" if _is_read(subject.scheduler_class, name) else f": {name} is never read"
                raise Broken(f"{name}={_UNKNOWN!r} to be refused", f"it runs without an error{why}", count=counts[0])
    except Broken:
        raise
    except Exception as error:
        text = str(error)
        if _UNKNOWN not in text and name not in text:
            seen = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
            raise Broken(f"an error that names {name}={_UNKNOWN!r}", seen) from error


@law("documented argument types are taken", source="diffusers' scheduler interface: set_timesteps(timesteps=..., sigmas=...)", counts=(4,))
def argument_types(subject: Subject, counts: Sequence[int]) -> None:
    """`set_timesteps` must accept its own timesteps or sigmas as a list, a device as a string, and a count as a numpy integer."""
    parameters = inspect.signature(subject.scheduler.set_timesteps).parameters
    loops.require_levels(subject)
    for count in subject.counts(*counts):
        if "device" in parameters:
            with calling(f"set_timesteps({count}, device='cpu')"):
                subject.fresh().set_timesteps(count, **{**subject.needed_arguments, "device": "cpu"})
        with calling(f"set_timesteps({count}) with a whole number of numpy"):
            subject.plan(subject.fresh(), np.int64(count))  # type: ignore[arg-type]
        for name in ("sigmas", "timesteps"):
            if name in parameters and not (name == "timesteps" and subject.kind in ("edm", "flow")):
                _require_list(subject, count, name)
        if not {"device", "sigmas", "timesteps"} & set(parameters):
            raise NotApplicable(f"{subject.name}.set_timesteps accepts only a number of steps.")


_FOREIGN = (
    ("algorithm_type", "deis"),
    ("algorithm_type", "dpmsolver++"),
    ("solver_type", "logrho"),
    ("solver_type", "bh2"),
    ("solver_type", "midpoint"),
    ("final_sigmas_type", "zero"),
    ("variance_type", "fixed_small"),
    ("timestep_spacing", "trailing"),
    ("solver_order", 3),
)
"""Choices that exist in one solver family and not in another, so that `from_config` must translate them."""


@cache
def _config_of(scheduler_class: Any, changes: tuple[tuple[str, Any], ...]) -> Any:
    """A class's configuration with changes, or None if the class cannot be created (missing package, refused combination)."""
    try:
        with quiet():
            return scheduler_class(**dict(changes)).config
    except Exception:
        return None


def _is_read(scheduler_class: Any, name: str) -> bool:
    """Whether the source of the class, or of a base class that is no mixin, reads a parameter; True where there is no source."""
    for owner in scheduler_class.__mro__:
        if owner is object or owner.__name__.endswith("Mixin"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError, SyntaxError):
            return True
        for node in ast.walk(tree):
            read = (node.id if isinstance(node, ast.Name) else "", node.attr if isinstance(node, ast.Attribute) else "")
            if name in read or (isinstance(node, ast.Constant) and node.value == name):
                return True
    return False


def _require_list(subject: Subject, count: int, name: str) -> None:
    """Raise Broken unless `set_timesteps` accepts the planned timesteps or sigmas as a list."""
    planned = subject.planned(count)
    given = [float(value) for value in as_values(getattr(planned, name))]
    given = given[: len(planned.timesteps)]
    if name == "timesteps":
        given = [int(value) for value in given]
        if len(set(given)) < len(given):
            return
    scheduler = subject.fresh()
    call = f"set_timesteps({name}=[...])"
    arguments = subject.given(**{name: given})
    try:
        with calling(call):
            scheduler.set_timesteps(**arguments)
    except Crash as crash:
        text = str(crash.error)
        if isinstance(crash.error, ValueError) and name in text:
            return  # the error says which configuration does not allow them
        if not subject.is_of_diffusers and _takes_array(subject, name, given):
            return  # lists are documented by diffusers
        raise Broken(f"a list of {name} to be accepted", str(crash), count=count) from crash
    # Some schedulers expect the final sigma as the last entry of the list.
    seen = len(as_values(scheduler.timesteps))
    if seen not in (len(given), len(given) - (name == "sigmas")):
        raise Broken(f"{len(given)} timesteps from {len(given)} {name}", f"{seen}", count=count)


def _takes_array(subject: Subject, name: str, given: list[Any]) -> bool:
    try:
        with calling(f"set_timesteps({name}=array)"):
            subject.fresh().set_timesteps(**subject.given(**{name: np.array(given)}))
    except Crash:
        return False
    return True


def _require_finite(subject: Subject, count: int, what: str) -> None:
    try:
        subject.require_plain_step()
        states = loops.states(subject, count, walking.normal(1, 3, 4, 4), replace=torch.zeros_like)
    except Crash as crash:
        raise Broken(f"{what} to run", str(crash), count=count) from crash
    if not all(bool(torch.isfinite(state).all()) for state in states):
        raise Broken(f"finite samples from {what}", "samples that are not finite", count=count)


def _alike(one: object, other: object) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other)
    try:
        return bool(one == other) or (one != one and other != other)
    except (ValueError, RuntimeError):
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
