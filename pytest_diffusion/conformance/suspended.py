"""A sampler that calls its model itself, stopped at each call, so that a loop can drive it step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class _Stop(BaseException):
    """Ends a sampler that nobody waits for."""


class Suspended:
    """A run of `sampler(model, sample, sigmas, **arguments)` in a thread of its own, which stands still in each call of its model.

    Modes that record or replace draws hold for a thread, so the sampler runs under those of whoever answers it.
    """

    def __init__(self, sampler: Callable[..., Any], sample: torch.Tensor, sigmas: torch.Tensor, **arguments: Any) -> None:
        self.is_over = False
        self._to_sampler: SimpleQueue[Any] = SimpleQueue()
        self._to_loop: SimpleQueue[Any] = SimpleQueue()
        work = _Work(self._to_sampler, self._to_loop, _get_current_dispatch_mode_stack())
        threading.Thread(target=work.run, args=(sampler, sample.clone(), sigmas, arguments), daemon=True).start()
        self.sample = self._wait()
        """The sample of the call at which it stands, or of the end."""

    def answer(self, output: torch.Tensor) -> torch.Tensor:
        """Give the model's output; returns the sample of the next call, or of the end. Raises RuntimeError after the end."""
        if self.is_over:
            raise RuntimeError("the sampler has ended, and asks its model no more.")
        self._to_sampler.put((output, _get_current_dispatch_mode_stack()))
        self.sample = self._wait()
        return self.sample

    def _wait(self) -> torch.Tensor:
        kind, value = self._to_loop.get()
        if kind == "error":
            self.is_over = True
            raise value
        self.is_over = kind == "end"
        sample: torch.Tensor = value
        return sample

    def __del__(self) -> None:
        if not self.is_over:
            self._to_sampler.put(None)


class _Work:
    """The sampler's side; it holds no reference to `Suspended`, which ends it when it is forgotten."""

    def __init__(self, to_sampler: SimpleQueue[Any], to_loop: SimpleQueue[Any], modes: Sequence[Any]) -> None:
        self._to_sampler, self._to_loop = to_sampler, to_loop
        self._first_modes, self._modes = list(modes), ExitStack()
        self._is_forgotten = False

    def run(self, sampler: Callable[..., Any], sample: torch.Tensor, sigmas: torch.Tensor, arguments: dict[str, Any]) -> None:
        try:
            self._enter(self._first_modes)
            with torch.no_grad():
                found = sampler(self._model, sample, sigmas, **arguments)
            self._modes.close()
            self._to_loop.put(("end", found))
        except _Stop:
            pass
        except BaseException as error:
            self._modes.close()
            self._to_loop.put(("error", error))

    def _enter(self, modes: Sequence[Any]) -> None:
        for mode in modes:
            self._modes.enter_context(mode)

    def _model(self, sample: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self._modes.close()
        if self._is_forgotten:
            raise _Stop  # also where the sampler caught the first one
        self._to_loop.put(("call", sample))
        answer = self._to_sampler.get()
        if answer is None:
            self._is_forgotten = True
            raise _Stop
        output, modes = answer
        self._enter(modes)
        given: torch.Tensor = output
        return given
