"""Claims in an object store, for machines that share nothing else: an object that only one process can create, renewed while it works."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_diffusion.config.remote import Remote, remote_of

RENEWAL, EXPIRY = 20.0, 90.0
"""Seconds between two renewals of a claim, and seconds without any after which it may be taken."""


class RemoteClaims:
    """The claims of a folder in the store behind it. Without a store, or where it cannot create an object once, all is ours.

    A store that does not answer holds nobody up either: what is made twice is the same.
    """

    def __init__(self, folder: Path) -> None:
        self._found = remote_of(folder)
        self._seen: dict[str, tuple[bytes | None, float]] = {}
        """By name, the claim of another process as it was last seen to change, and when by our own clock."""

    @property
    def has_store(self) -> bool:
        """Whether others may hold pieces whose claims cannot be seen in the folder."""
        return self._found is not None

    @contextmanager
    def claimed(self, lock_file: str) -> Iterator[bool]:
        """Whether the claim is ours in the block; it is given back after it."""
        if self._found is None:
            yield True
            return
        remote, folder = self._found
        name = f"{folder}/{Path(lock_file).stem}.json"
        try:
            is_ours = remote.create(name, _text()) is not False or self._take_over(remote, name)
        except Exception:
            yield True
            return
        if not is_ours:
            yield False
            return
        ended = threading.Event()
        renewal = threading.Thread(target=_renew, args=(remote, name, ended), name="claim", daemon=True)
        renewal.start()
        try:
            yield True
        finally:
            ended.set()
            renewal.join()
            _quietly(remote.remove_one, name)

    def _take_over(self, remote: Remote, name: str) -> bool:
        """Take a claim that has not changed for `EXPIRY` seconds."""
        found = remote.get(name)
        known, since = self._seen.get(name, (None, 0.0))
        if found is None or found != known:
            self._seen[name] = found, time.monotonic()
            return False
        if time.monotonic() - since < EXPIRY:
            return False
        remote.put(name, _text())
        del self._seen[name]
        return True


def _renew(remote: Remote, name: str, ended: threading.Event) -> None:
    while not ended.wait(RENEWAL):
        _quietly(remote.put, name, _text())


def _quietly(action: object, *arguments: object) -> None:
    assert callable(action)
    try:
        action(*arguments)
    except Exception:  # noqa: S110 - the claim expires by itself, and what is made twice is the same
        pass


def _text() -> bytes:
    """Who claims; no two are equal, so that a renewal can be seen."""
    return json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "token": uuid.uuid4().hex}).encode()
