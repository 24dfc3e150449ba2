"""The records of a store: one sealed file for each shard, written after its pixels, that says what they are."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_diffusion.config.cache import StoreWarning, checksum, read_json, remove_unless, write_text
from pytest_diffusion.samples.ranges import gaps, within

_NAME = re.compile(r"(\d{7,})-(\d{7,})\.json")
Record = dict[str, Any]


class Records:
    """The records in a folder that belong to one store. Reading raises OSError where the folder cannot be read."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self._store = folder, store
        self._known: dict[str, tuple[tuple[int, int], Record]] = {}
        """Records by their file's name, with its time and size: a million images have thousands."""

    def all(self) -> list[Record]:
        """The sealed records, by their first index. One that is not whole is deleted with a warning."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            name = _NAME.fullmatch(path.name)
            if name is None:
                continue  # "0000000-0000064 (1).json", "._0000000-0000064.json": copies by other programs
            remove_unless(path, Path.is_file)
            record = self._read(path, (int(name[1]), int(name[2])))
            if record is not None:
                found.append(record)
            else:
                self.drop(range(int(name[1]), int(name[2])))
        return found

    def unrecorded(self, wanted: Sequence[range]) -> list[range]:
        """The parts of ranges for which there is no record, by the names of the files alone."""
        if not wanted or (len(wanted) == 1 and self._path(wanted[0]).is_file()):
            return []
        names = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        present = [range(int(name[1]), int(name[2])) for name in names if name is not None]
        stop = max(one.stop for one in wanted)
        missing = gaps(present, range(stop), stop)
        return [part for one in wanted for part in within(missing, one)]

    def write(self, indices: range, record: Record) -> None:
        """Write the record of a shard: from now on its pixels count as complete."""
        whole = {"first": indices.start, "stop": indices.stop, "store": self._store, **record}
        write_text(self._path(indices), json.dumps({**whole, "seal": _seal(whole)}, indent=1))

    def drop(self, indices: range) -> None:
        """Delete the record of a damaged shard with a warning."""
        if os.access(self.folder, os.W_OK):
            self._path(indices).unlink(missing_ok=True)
        text = f"Samples {indices.start} to {indices.stop - 1} in {self.folder.parent} are damaged and are generated again."
        warnings.warn(text, StoreWarning, stacklevel=3)

    def _read(self, path: Path, ends: tuple[int, int]) -> Record | None:
        try:
            status = path.stat()
        except OSError:
            return None
        state = (status.st_mtime_ns, status.st_size)
        if (known := self._known.get(path.name)) is not None and known[0] == state:
            return known[1]
        record = read_json(path)
        seal = record.pop("seal", None)
        if seal != _seal(record) or record["store"] != self._store or (record["first"], record["stop"]) != ends:
            return None
        self._known[path.name] = state, record
        return record

    def _path(self, indices: range) -> Path:
        return self.folder / f"{indices.start:07d}-{indices.stop:07d}.json"


def indices_of(record: Record) -> range:
    """The samples of a record's shard."""
    return range(record["first"], record["stop"])


def _seal(record: Record) -> str:
    """Checksum of all of a record."""
    return checksum(json.dumps(record, sort_keys=True))
