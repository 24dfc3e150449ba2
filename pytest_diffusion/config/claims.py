"""Work that several processes share: pieces are claimed, not dealt, so that a slow or dead process holds nobody up.

A claim is a file in a folder that all of them see, renewed by its holder while it works. That of a dead process is taken over:
at once on its own machine, elsewhere after `LEASE` seconds without renewal. For a cache in an object store there is a claim in that
store too. Two processes that make the same piece all the same, after a network was cut in two, make the same bytes.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pytest_diffusion.config.remote_claims import RemoteClaims
from pytest_diffusion.verdicts.errors import SetupError

CLAIMS = "claims"
"""Folder of an entry of the cache in which processes claim what they make."""
LEASE = 30.0
"""Seconds after which a claim that is not renewed may be taken; all processes of a job must agree on it."""
MISSES = 8
"""Pieces in a row that others had, after which it is looked anew which are free. Of pieces that are all claimed, no more are asked for
before the next pause: a dead process is found by the many that wait."""
_SHORTEST, _LONGEST = 0.05, 5.0
"""Seconds between two looks at pieces that other processes make."""
_RANKS = (("RANK", "WORLD_SIZE"), ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"))
"""Environment variables by which torchrun (and accelerate), and xdist, tell a process its number and how many there are."""


class Place(NamedTuple):
    """The number of this process among those of its job, and how many they are."""

    rank: int
    world: int


def place() -> Place:
    """The place of this process, by its environment; 0 of 1 where nothing tells it."""
    for names in _RANKS:
        index, count = (os.environ.get(name, "").removeprefix("gw") for name in names)
        if index.isdigit() and count.isdigit() and int(index) < int(count):
            return Place(int(index), int(count))
    return Place(0, 1)


def local_rank() -> int | None:
    """The number of this process among those of its job on this machine; None where it is the only one."""
    if (told := os.environ.get("LOCAL_RANK", "")).isdigit():
        return int(told)
    own = place()
    return own.rank if own.world > 1 else None


def share(
    pieces: Sequence[range],
    folder: Path,
    *,
    unfinished: Callable[[Sequence[range]], list[range]],
    make: Callable[[range], None],
    say: Callable[[str], object],
    patience: float = 10.0,
) -> None:
    """Have every piece made, by this process or by another one that shares `folder`; returns when `unfinished` finds none.

    `unfinished` gives those of some pieces that are not made yet; `make` makes one. Processes begin at different pieces. Whoever
    waits for others tells `say` for whom, every `patience` seconds. Raises what `make` raises, with its claim given back, and SetupError
    where nothing can be claimed.
    """
    from filelock import SoftFileLease

    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    elsewhere, empty = RemoteClaims(folder), Empty()
    own = place()
    first = own.rank * len(pieces) // own.world
    waiting = unfinished([*pieces[first:], *pieces[:first]])
    # Kept, because a lease is taken over by whoever has watched it for long enough.
    leases = {piece: SoftFileLease(folder / f"{piece.start:07d}.lock", lease_duration=LEASE) for piece in waiting}
    begun = told = time.monotonic()
    pause = _SHORTEST
    while waiting:
        before, misses = len(waiting), 0
        for piece in to_try(waiting, folder):
            if misses == MISSES and not elsewhere.has_store:
                break
            misses += 1
            with _writing(folder):
                is_here = _claimed(leases[piece], empty)
            if not is_here:
                continue
            try:
                with elsewhere.claimed(leases[piece].lock_file) as is_ours:
                    if is_ours and unfinished([piece]):
                        make(piece)
                        misses = 0
            finally:
                leases[piece].release()
        waiting = unfinished(waiting)
        if len(waiting) < before:
            pause = _SHORTEST
            continue
        if waiting:
            now = time.monotonic()
            if now - told >= patience:
                owner = leases[waiting[0]].owner
                who = f"process {owner.pid} on {owner.hostname}" if owner is not None else "another process"
                say(f"waiting for {who}, which works on the same in {folder.parent} ({now - begun:.0f} s so far)")
                told = now
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)


def to_try(waiting: Sequence[range], folder: Path) -> list[range]:
    """The pieces that nobody has claimed, in order; where there are none, a few of those that somebody has, who may be dead.

    One listing of the folder: with a thousand processes, asking for the claim of each piece costs more than to make one.
    """
    with _writing(folder):
        names = set(os.listdir(folder))  # noqa: PTH208 - there may be thousands
    free = [piece for piece in waiting if f"{piece.start:07d}.lock" not in names]
    # A generator of its own: processes whose random numbers are seeded alike must not all ask for the same ones.
    return free or random.Random(uuid.uuid4().int).sample(list(waiting), min(len(waiting), MISSES))  # noqa: S311


def is_claimed(folder: Path) -> bool:
    """Whether anybody holds a claim in the folder or below it, renewed in the last minutes."""
    for path in folder.rglob(f"{CLAIMS}/*.lock"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime < 4 * LEASE:
                return True
    return False


class Empty:
    """Claims without a word in them: their process lost its machine between making and writing the file. No lease takes them over."""

    def __init__(self) -> None:
        self._since: dict[Path, float] = {}

    def is_removed(self, path: Path) -> bool:
        """Whether an empty claim was there for `LEASE` seconds of watching, and is gone now."""
        try:
            is_empty = path.stat().st_size == 0
        except OSError:
            is_empty = False
        if not is_empty:
            self._since.pop(path, None)
            return False
        if time.monotonic() - self._since.setdefault(path, time.monotonic()) < LEASE:
            return False
        path.unlink(missing_ok=True)
        return True


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"Nothing can be claimed in {folder}: {error}. Free disk space, or choose another folder with --diffusion-cache-dir; "
            "what is there is kept."
        ) from error


def _claimed(lease: object, empty: Empty) -> bool:
    from filelock import SoftFileLease, Timeout

    assert isinstance(lease, SoftFileLease)
    for _ in range(2):
        try:
            lease.acquire(timeout=0)
        except Timeout:
            if not empty.is_removed(Path(lease.lock_file)):
                return False
        else:
            return True
    return False
