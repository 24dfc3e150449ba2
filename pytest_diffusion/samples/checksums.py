"""Checksums of a large store's pixels, looked at in the background, and of each shard before its first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from pytest_diffusion.samples.records import Record, indices_of
from pytest_diffusion.verdicts.errors import SetupError


class Checksums:
    """The shards of a store whose checksums are not known to match yet. A shard that does not match is dropped, once."""

    def __init__(self, records: Sequence[Record], holds: Callable[[Record], bool]) -> None:
        self._left = {record["first"]: record for record in records}
        self._holds, self._damaged = holds, list[range]()
        self._lock = threading.Lock()
        threading.Thread(target=self._look, name="checksums", daemon=True).start()

    def require(self, indices: range) -> None:
        """Raise SetupError unless the pixels of these samples are those that were written."""
        for first, record in sorted(self._left.copy().items()):
            if first < indices.stop and record["stop"] > indices.start:
                self._settle(first)
        damaged = [one for one in self._damaged if one.start < indices.stop and one.stop > indices.start]
        if damaged:
            shown = ", ".join(f"{one.start} to {one.stop - 1}" for one in damaged[:5])
            raise SetupError(f"samples {shown} of the store are damaged, and were dropped. Run again: they are generated again.")

    def _look(self) -> None:
        for first in sorted(self._left):
            self._settle(first)

    def _settle(self, first: int) -> None:
        with self._lock:
            record = self._left.get(first)
            if record is not None:
                try:
                    holds = self._holds(record)
                except OSError:  # the store was removed, or may not be written
                    holds = False
                if not holds:
                    self._damaged.append(indices_of(record))
                del self._left[first]
