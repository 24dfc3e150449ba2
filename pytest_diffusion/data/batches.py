"""Batches that fit into memory: they are halved when memory runs out, and stay halved for the same model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

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

    def parts(self, count: int, work: Callable[[slice], _Result]) -> list[_Result]:
        """Results of `work` on successive slices of `count` rows; where memory runs out, only that slice is tried again, halved."""
        results, start = list[_Result](), 0

        def next_part(size: int) -> tuple[slice, _Result]:
            rows = slice(start, min(start + size, count))
            return rows, work(rows)

        while start < count:
            rows, result = self.run(next_part)
            results.append(result)
            start = rows.stop
        return results


_KNOWN: WeakKeyDictionary[Any, dict[int, BatchSize]] = WeakKeyDictionary()


def batch_size_of(model: object, start: int) -> BatchSize:
    """The batch size of a model (a pipeline, a network, a function) whose batches begin with `start` samples.

    It is the same for all that use the model, so that memory runs out once and not in each stage anew.
    """
    try:
        return _KNOWN.setdefault(model, {}).setdefault(start, BatchSize(start))
    except TypeError:  # an object of the user's that cannot be referred to weakly, or has no hash
        return BatchSize(start)
