"""Laws of state: a run depends on its arguments alone, not on earlier runs, other schedulers or copies."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pytest_diffusion.conformance import loops, walking
from pytest_diffusion.conformance.calls import Crash, calling
from pytest_diffusion.conformance.laws import Broken, law
from pytest_diffusion.conformance.subject import Subject
from pytest_diffusion.models.schedulers import as_values, config_value
from pytest_diffusion.verdicts.errors import NotApplicable

_SOURCE = "diffusers' scheduler interface: set_timesteps is run before inference and starts it anew"
_SHAPE = (2, 3, 4, 4)


@law("two schedulers share nothing", source="an object's state is its own", counts=(6,), rests_on=("runs", "noise_is_normal"))
def instances_share_nothing(subject: Subject, counts: Sequence[int]) -> None:
    """Two schedulers that run in turns must give the same samples as each one alone. No state may be in the class or in a default."""
    for count in subject.deep_counts(*counts):
        alone = _states(subject, count)
        one, other = subject.made(), subject.made()
        subject.plan(one, count)
        subject.plan(other, count)
        if one is other:
            raise Broken("a new scheduler from every call of the factory", "the same object twice", count=count)
        length = len(as_values(one.timesteps))
        first = _states(subject, count, scheduler=one, last=max(length // 2, 1))
        _states(subject, count, scheduler=other, seed=1)
        rest = _continued(subject, one, first[-1], max(length // 2, 1))
        _require_same(alone, [*first, *rest], "a run during which another scheduler ran", count)


@law("a second run equals the first", source=_SOURCE, counts=(4, 9), rests_on=("runs", "instances_share_nothing"))
def second_run(subject: Subject, counts: Sequence[int]) -> None:
    """After `set_timesteps`, a used scheduler must give the same samples as a new one, after any earlier run."""
    for count in subject.deep_counts(*counts):
        fresh = _states(subject, count)
        used = subject.planned(subject.some_count)
        _states(subject, subject.some_count, scheduler=used)
        subject.plan(used, count)
        _require_same(fresh, _states(subject, count, scheduler=used), "a second run", count)
        for what, left in _left_by_others(subject):
            subject.plan(left, count)
            _require_same(fresh, _states(subject, count, scheduler=left), f"a run after {what}", count)
        _require_other_shift(subject, count)


def _require_other_shift(subject: Subject, count: int) -> None:
    """Raise Broken if a plan with another `mu` leaves something to the next one."""
    if (
        not config_value(subject.scheduler, "use_dynamic_shifting")
        or "mu" not in inspect.signature(subject.scheduler.set_timesteps).parameters
    ):
        return
    used, fresh = subject.planned(count, mu=0.4), subject.planned(count, mu=0.9)
    subject.plan(used, count, mu=0.9)
    _require_same(
        _states(subject, count, scheduler=fresh),
        _states(subject, count, scheduler=used),
        "a run with mu=0.9 after a plan with mu=0.4",
        count,
    )


def _left_by_others(subject: Subject) -> Iterator[tuple[str, Any]]:
    """A scheduler after an image-to-image run, and schedulers after a plan from the caller."""
    if hasattr(subject.scheduler, "set_begin_index"):
        begun = subject.planned(subject.some_count)
        with calling("set_begin_index(1)", begun):
            begun.set_begin_index(1)
        yield "one that began at step 1", begun
    for name in sorted({"timesteps", "sigmas"} & set(inspect.signature(subject.scheduler.set_timesteps).parameters)):
        planned, given = subject.planned(subject.some_count), subject.fresh()
        values = as_values(getattr(planned, name))[: len(planned.timesteps)].tolist()
        try:
            with calling(f"set_timesteps({name}=[...])"):
                given.set_timesteps(**subject.given(**{name: values}))
        except Crash:
            continue  # `argument_types` reports this, or the configuration allows no such plan
        yield f"a plan of given {name}", given


@law("an aborted run leaves nothing behind", source=_SOURCE, counts=(7, 20), rests_on=("runs", "second_run"), least=2)
def aborted_run(subject: Subject, counts: Sequence[int]) -> None:
    """A run that is stopped after any step, also inside a Runge-Kutta step, must not change the next run."""
    for count in subject.counts(*counts):
        fresh = _states(subject, count)
        length = len(as_values(subject.planned(count).timesteps))
        for stop in range(1, min(length, 6)):
            used = subject.planned(count)
            _states(subject, count, scheduler=used, last=stop)
            subject.plan(used, count)
            _require_same(fresh, _states(subject, count, scheduler=used), f"a run after one that was stopped after {stop} steps", count)


@law(
    "planning and stepping leave the configuration alone",
    source="diffusers' ConfigMixin: config is frozen",
    counts=(5,),
    rests_on=("runs", "instances_share_nothing"),
)
def config_untouched(subject: Subject, counts: Sequence[int]) -> None:
    """`set_timesteps` and `step` must not change the configuration, so that a scheduler saved after a run equals the loaded one."""
    for count in subject.counts(*counts):
        scheduler = subject.fresh()
        config = getattr(scheduler, "config", None)
        before = copy.deepcopy(_entries(config) | _mirrored(scheduler, config))
        subject.plan(scheduler, count)
        _states(subject, count, scheduler=scheduler)
        after = _entries(getattr(scheduler, "config", None)) | _mirrored(scheduler, config)
        changed = [key for key in {*before, *after} if not _equal(before.get(key), after.get(key))]
        if changed:
            key = min(changed)
            raise Broken("the same configuration after a run", f"{key} was {before.get(key)!r} and is {after.get(key)!r}", count=count)


@law(
    "copies and pickles go on where the original was",
    source="Python's copy and pickle protocols",
    counts=(6,),
    least=2,
    rests_on=("runs", "instances_share_nothing"),
)
def copies_behave(subject: Subject, counts: Sequence[int]) -> None:
    """A copied or pickled scheduler in the middle of a run must finish the run with the samples of the original."""
    if subject.is_adapted:
        raise NotApplicable(f"{subject.name} is driven through an adapter, which is no part of it.")
    for count in subject.deep_counts(*counts):
        whole = _states(subject, count)
        scheduler = subject.planned(count)
        half = max(len(as_values(scheduler.timesteps)) // 2, 1)
        first = _states(subject, count, scheduler=scheduler, last=half)
        with calling("copy.deepcopy(scheduler)"):
            copied = copy.deepcopy(scheduler)
        copies = [("a deep copy", copied)]
        # A class inside a function cannot be pickled; this is not an error of the scheduler.
        if "<locals>" not in subject.scheduler_class.__qualname__ and subject.scheduler_class.__module__ != "__main__":
            with calling("pickle.loads(pickle.dumps(scheduler))"):
                copies.append(("a pickled copy", pickle.loads(pickle.dumps(scheduler))))  # noqa: S301 - our own bytes
        for what, one in copies:
            _require_same(whole, [*first, *_continued(subject, one, first[-1], half)], f"the rest of a run by {what}", count)


def _states(subject: Subject, count: int, *, seed: int = 0, **rest: Any) -> list[torch.Tensor]:
    return loops.states(subject, count, walking.normal(*_SHAPE, seed=seed), replace=torch.zeros_like, **rest)


def _continued(subject: Subject, scheduler: Any, sample: torch.Tensor, first: int) -> list[torch.Tensor]:
    visits = walking.walk(subject, scheduler, sample.clone(), walking.smooth, first=first, replace=torch.zeros_like)
    return [visit.after for visit in visits]


def _require_same(fresh: list[torch.Tensor], seen: list[torch.Tensor], what: str, count: int) -> None:
    if len(fresh) != len(seen):
        raise Broken(f"{len(fresh)} steps", f"{what} takes {len(seen)}", count=count)
    for index, (one, other) in enumerate(zip(fresh, seen, strict=True)):
        if (not torch.equal(one, other) and not (one.isnan() == other.isnan()).all()) or float((one - other).nan_to_num().abs().max()) > 0:
            gap = float((one - other).abs().max())
            raise Broken("the samples of a fresh scheduler, bit for bit", f"{what} differs from step {index} on, by {gap:.4g}", count=count)


def _entries(config: Any) -> dict[str, Any]:
    """A configuration as a dictionary: diffusers' own, another mapping, or an object with attributes."""
    return dict(config) if isinstance(config, Mapping) else dict(getattr(config, "__dict__", {}))


def _mirrored(scheduler: Any, config: Any) -> dict[str, Any]:
    """Attributes beside the entries: of the configuration object itself, which diffusers sets too, and of the scheduler by their names."""
    names = list(_entries(config))
    kept = {f"config.{name}": vars(config)[name] for name in names if name in getattr(config, "__dict__", {})}
    own = getattr(scheduler, "__dict__", {})
    return kept | {f"scheduler.{name}": own[name] for name in names if name in own}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor | np.ndarray) or isinstance(other, torch.Tensor | np.ndarray):
        return np.array_equal(np.asarray(one), np.asarray(other))
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):
        return False
