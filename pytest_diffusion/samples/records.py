"""The records of a store: one sealed file for each shard, written after its pixels, that says what they are."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_diffusion.config.cache import StoreWarning, checksum, parsed_json, read_json, remove_unless, written_whole
from pytest_diffusion.config.published import fetched, is_published, published_names, unpublish
from pytest_diffusion.samples.ranges import gaps, within

_NAME = re.compile(r"(\d{7,})-(\d{7,})\.json")
Record = dict[str, Any]


class Records:
    """The records in a folder that belong to one store. Reading raises OSError where the folder cannot be read."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder, self._store = folder, store
        self._refused = set[str]()
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
            record = self._read(path)
            if record is not None:
                found.append(record)
            else:
                self.drop(range(int(name[1]), int(name[2])))
        return found

    def unrecorded(self, wanted: Sequence[range], *, lists: bool = False) -> list[range]:
        """The parts of ranges for which there is no record, by the names of the files alone.

        A single range is taken for one shard, and a store behind the folder asked for it alone, unless `lists` says otherwise.
        """
        if not wanted or (len(wanted) == 1 and self._path(wanted[0]).is_file()):
            return []
        names = set(os.listdir(self.folder)) if self.folder.is_dir() else set()  # noqa: PTH208 - there may be thousands
        if len(wanted) == 1 and wanted[0].stop < 10**7 and not lists:
            first, end = (f"{at:07d}-" for at in (wanted[0].start, wanted[0].stop))
            names = {name for name in names if first <= name < end}  # a shard lies in one cell of the grid
            own = self._path(wanted[0])
            names |= {own.name} if own.name not in self._refused and is_published(own) else set()
        else:
            names |= self._published()
        # Most shards are whole, under their own names.
        wanted = [one for one in wanted if _name(one) not in names]
        if not wanted:
            return []
        present = list(_ranges(names))
        stop = max(one.stop for one in wanted)
        missing = gaps(present, range(stop), stop)
        return [part for one in wanted for part in within(missing, one)]

    def write(self, indices: range, record: Record, *, publishes: bool = True) -> None:
        """Write the record of a shard: from now on its pixels count as complete."""
        whole = {"first": indices.start, "stop": indices.stop, "store": self._store, **record}
        self._write(indices, whole, publishes=publishes)

    def elsewhere(self, count: int) -> list[range]:
        """Shards below `count` whose records are in the store behind the folder, and not here."""
        here = {path.name for path in self.folder.iterdir()}
        return sorted((one for one in _ranges(self._published() - here) if one.start < count), key=lambda one: one.start)

    def fetch(self, indices: range) -> Record | None:
        """The record of a shard in the store behind the folder, if it is whole; it is not kept here."""
        data = fetched(self._path(indices))
        return self.of(parsed_json(data), self._path(indices).name) if data is not None else None

    def opened(self, path: Path) -> Record | None:
        """The record in a file; None where it is not whole, or of another store or shard."""
        return self.of(read_json(path), path.name)

    def of(self, record: Record, name: str) -> Record | None:
        """A record without its seal; None where it is not whole, or of another store or of another shard than its file's name says."""
        seal, ends = record.pop("seal", None), _NAME.fullmatch(name)
        if ends is None or seal != _seal(record) or record["store"] != self._store:
            return None
        return record if (record["first"], record["stop"]) == (int(ends[1]), int(ends[2])) else None

    def overlook(self, shards: Iterable[range]) -> None:
        """Take shards of the store behind the folder for missing, since it did not answer."""
        self._refused |= {self._path(indices).name for indices in shards}

    def refuse(self, indices: range) -> None:
        """Take a shard of the store behind the folder, which is damaged, for missing, and remove its record there."""
        self._refused.add(self._path(indices).name)
        unpublish(self._path(indices))

    def keep(self, indices: range, record: Record) -> None:
        """Keep a fetched record here: from now on its pixels count as complete."""
        self._write(indices, record, publishes=False)

    def drop(self, indices: range) -> None:
        """Delete the record of a damaged shard with a warning."""
        if os.access(self.folder, os.W_OK):
            self._path(indices).unlink(missing_ok=True)
        text = f"Samples {indices.start} to {indices.stop - 1} in {self.folder.parent} are damaged and are generated again."
        warnings.warn(text, StoreWarning, stacklevel=3)

    def _write(self, indices: range, record: Record, *, publishes: bool) -> None:
        with written_whole(self._path(indices), publishes=publishes) as part:
            part.write_text(_sealed(record), encoding="utf-8")

    def _published(self) -> set[str]:
        return published_names(self.folder) - self._refused

    def _read(self, path: Path) -> Record | None:
        try:
            status = path.stat()
        except OSError:
            return None
        state = (status.st_mtime_ns, status.st_size)
        if (known := self._known.get(path.name)) is not None and known[0] == state:
            return known[1]
        record = self.opened(path)
        if record is not None:
            self._known[path.name] = state, record
        return record

    def _path(self, indices: range) -> Path:
        return self.folder / _name(indices)


def _name(indices: range) -> str:
    return f"{indices.start:07d}-{indices.stop:07d}.json"


def indices_of(record: Record) -> range:
    """The samples of a record's shard."""
    return range(record["first"], record["stop"])


def _ranges(names: Iterable[str]) -> Iterator[range]:
    """The shards whose records have these names."""
    for name in map(_NAME.fullmatch, names):
        if name is not None:
            yield range(int(name[1]), int(name[2]))


def _sealed(record: Record) -> str:
    return json.dumps({**record, "seal": _seal(record)}, indent=1)


def _seal(record: Record) -> str:
    """Checksum of all of a record."""
    return checksum(json.dumps(record, sort_keys=True))
