"""The sample store: a folder named by a hash of everything that changes a sample, written in shards, verified when read.

    manifest.json                   description of the samples, for people; nothing rests on it
    images.npy                      uint8 (N, 3, H, W), to be mapped into memory
    shards/0000000-0000064.json     seeds, prompts, shape and checksum of images 0 to 63, written after their pixels
    claims/                         what the processes that share the work are making now
    features-*.safetensors          features of the images, one file for each extractor

A record is sealed: its own checksum covers all of it, and the store to which it belongs. A shard is used only when its
record is whole and the checksum of its pixels matches. A process may therefore be killed at any moment, and disk errors are
detected. A larger number of samples extends the same folder.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.cache import (
    CLAIMS,
    SAMPLES,
    StoreWarning,
    checksum,
    checksum_of,
    discard_leftovers,
    mark_used,
    read_json,
    write_text,
)
from pytest_diffusion.samples.array_file import HEADER, header, shape_of, write_at
from pytest_diffusion.verdicts.errors import SetupError

FORMAT = 4
"""Layout version, part of every address: stores of another layout are not read."""
_NAME = re.compile(r"(\d{7,})-(\d{7,})\.json")


@dataclass(frozen=True)
class Samples:
    """Generated images, uint8 (N, 3, H, W), memory-mapped, with the prompt and the seed of each.

    `finite` (N,) is False where the model gave nan or infinity, which uint8 cannot represent.
    """

    images: torch.Tensor
    prompts: list[str] | None
    seeds: list[int]
    finite: torch.Tensor
    folder: Path | None = None
    generated: int = 0
    """How many were generated in this run; 0 when all were found in the store."""


class SampleStore:
    """One content-addressed folder of samples. Raises SetupError where the folder cannot be written or is full."""

    def __init__(self, root: Path, identity: dict[str, Any]) -> None:
        text = json.dumps({**identity, "format": FORMAT}, sort_keys=True)
        self.root = root
        self.folder = root / SAMPLES / checksum(text, size=10)
        self.identity = identity
        with self._writing():
            _remove_unless(self.folder, Path.is_dir)
            _remove_unless(self.folder / "shards", Path.is_dir)
            (self.folder / "shards").mkdir(parents=True, exist_ok=True)
            for name in ("store.lock", "images.npy", "manifest.json"):
                _remove_unless(self.folder / name, Path.is_file)

    @property
    def claims(self) -> Path:
        """The folder in which processes claim shards."""
        return self.folder / CLAIMS

    def held_samples(self) -> int:
        """Number of samples with a sealed record."""
        return sum(len(_indices(record)) for record in self._records())

    def missing(self, count: int, shard_size: int) -> list[range]:
        """Index ranges below `count` that are not stored, cut at multiples of `shard_size`. Damaged shards are dropped."""
        records = self._records()
        if records and self.is_writable():
            with self._writing():
                self._reserve(count, records[0]["shape"])  # repairs a damaged header, length or manifest
        return _gaps((_indices(record) for record in records if self._holds(record)), range(count), shard_size)

    def unrecorded(self, wanted: Sequence[range]) -> list[range]:
        """The parts of ranges for which there is no record, by the names of the files alone."""
        if not wanted or (len(wanted) == 1 and self._path(wanted[0]).is_file()):
            return []
        with self._writing():
            names = [_NAME.fullmatch(path.name) for path in (self.folder / "shards").iterdir()]
            present = [range(int(name[1]), int(name[2])) for name in names if name is not None]
        stop = max(one.stop for one in wanted)
        gaps = _gaps(present, range(stop), stop)
        return [part for one in wanted for part in _within(gaps, one)]

    def write(self, indices: range, images: NDArray[np.uint8], record: dict[str, Any], *, count: int) -> None:
        """Write the pixels, then the record that marks them as complete. `images` uint8 (n, 3, H, W)."""
        pixels = np.ascontiguousarray(images)
        kept = {
            "first": indices.start,
            "stop": indices.stop,
            "store": self.folder.name,
            "shape": list(pixels.shape[1:]),
            "dtype": str(pixels.dtype),
            "checksum": checksum(pixels.data),
            **record,
        }
        with self._writing():
            (self.folder / "shards").mkdir(parents=True, exist_ok=True)  # the cache may have been removed meanwhile
            self._reserve(max(count, indices.stop), kept["shape"])
            file = os.open(self.folder / "images.npy", os.O_WRONLY)
            try:
                write_at(file, pixels, HEADER + indices.start * pixels[0].nbytes)
                os.fsync(file)
            finally:
                os.close(file)
            write_text(self._path(indices), json.dumps({**kept, "seal": _seal(kept)}, indent=1))

    def read(self, count: int, prompts: list[str] | None, seeds: list[int], generated: int) -> Samples:
        """The first `count` samples, of which `missing` has found none; the images are memory-mapped copy-on-write.

        Raises SetupError where they are not there.
        """
        try:
            images = torch.from_numpy(np.load(self.folder / "images.npy", mmap_mode="c"))[:count]
        except (OSError, ValueError) as error:
            raise SetupError(f"{self.folder / 'images.npy'} cannot be read: {error}. Run again: what is missing is generated.") from error
        finite, known = torch.ones(count, dtype=torch.bool), 0
        for record in self._records():
            held = range(record["first"], min(record["stop"], count))
            finite[held.start : held.stop] = torch.tensor(record["finite"][: len(held)], dtype=torch.bool)
            known += len(held)
        if len(images) < count or known < count:
            raise SetupError(f"{self.folder} lost samples while they were used: was the cache removed? Run again.")
        mark_used(self.folder / "manifest.json")
        return Samples(images, prompts, seeds, finite, self.folder, generated)

    def is_writable(self) -> bool:
        return os.access(self.folder, os.W_OK)

    def discard_leftovers(self) -> None:
        """Remove incomplete files of killed processes, and what does not belong there."""
        for folder in (self.folder, self.folder / "shards"):
            discard_leftovers(folder)

    def _reserve(self, count: int, shape: Sequence[int]) -> None:
        """Make room for `count` images in images.npy; disk space is used only when pixels are written.

        The file is never shorter than the last index of any record, and not shortened while its header and its length agree.
        """
        file = os.open(self.folder / "images.npy", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if self._agreed(file, shape) < count or not self._has_manifest(self._agreed(file, shape), shape):
                with self._alone():
                    self._make_room(file, count, shape)
        finally:
            os.close(file)

    def _make_room(self, file: int, count: int, shape: Sequence[int]) -> None:
        count = max(count, self._agreed(file, shape), *(record["stop"] for record in self._records()), 0)
        head, held = header((count, *shape)), os.fstat(file).st_size
        found = os.pread(file, HEADER, 0)
        if found != head:
            if held and shape_of(found) is None:
                _warn(f"The header of {self.folder / 'images.npy'} was damaged and is written again.")
            os.pwrite(file, head, 0)
        if held != (size := HEADER + count * int(np.prod(shape))):
            os.ftruncate(file, size)
        if not self._has_manifest(count, shape):
            write_text(self.folder / "manifest.json", self._manifest(count, shape))

    def _agreed(self, file: int, shape: Sequence[int]) -> int:
        """Images of this shape for which images.npy has room by its header and by its length; 0 where the two do not agree."""
        found = shape_of(os.pread(file, HEADER, 0))
        if found is None or found[1:] != tuple(shape) or os.fstat(file).st_size != HEADER + int(np.prod(found)):
            return 0
        return found[0]

    def _manifest(self, count: int, shape: Sequence[int]) -> str:
        return json.dumps({"count": count, "shape": list(shape), "format": FORMAT, **self.identity}, indent=2) + "\n"

    def _has_manifest(self, count: int, shape: Sequence[int]) -> bool:
        path = self.folder / "manifest.json"
        return path.is_file() and path.read_bytes() == self._manifest(count, shape).encode()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the length of images.npy meanwhile."""
        from filelock import FileLock

        with FileLock(self.folder / "store.lock"):
            yield

    def _holds(self, record: dict[str, Any]) -> bool:
        """Whether a shard's pixels match its record; if not, its record is deleted with a warning."""
        indices, size = _indices(record), int(np.prod(record["shape"]))
        try:
            if checksum_of(self._bytes_at(HEADER + indices.start * size, len(indices) * size)) == record["checksum"]:
                return True
        except OSError:
            pass
        self._drop(self._path(indices), f"Samples {indices.start} to {indices.stop - 1} in {self.folder} are damaged")
        return False

    def _drop(self, path: Path, what: str) -> None:
        if self.is_writable():
            path.unlink(missing_ok=True)
        _warn(f"{what} and are generated again.")

    def _bytes_at(self, offset: int, size: int) -> Iterator[bytes]:
        """The bytes of images.npy from `offset`, piece by piece."""
        with (self.folder / "images.npy").open("rb") as file:
            file.seek(offset)
            while size > 0 and (piece := file.read(min(size, 1 << 24))):
                yield piece
                size -= len(piece)

    def _records(self) -> list[dict[str, Any]]:
        """The sealed records of this store, by their first index. A record that is not whole is deleted with a warning."""
        found = []
        for path in sorted((self.folder / "shards").glob("*.json")):
            name = _NAME.fullmatch(path.name)
            if name is None:
                continue  # "0000000-0000064 (1).json", "._0000000-0000064.json": copies by other programs
            _remove_unless(path, Path.is_file)
            record = read_json(path)
            seal = record.pop("seal", None)
            if (
                seal == _seal(record)
                and record["store"] == self.folder.name
                and (record["first"], record["stop"]) == tuple(map(int, name.groups()))
            ):
                found.append(record)
            else:
                self._drop(path, f"Samples {int(name[1])} to {int(name[2]) - 1} in {self.folder} are damaged")
        return found

    def _path(self, indices: range) -> Path:
        return self.folder / "shards" / f"{indices.start:07d}-{indices.stop:07d}.json"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SetupError(
                f"The cache folder {self.root} cannot be written: {error}. "
                "Existing samples are kept. Free disk space, or choose another folder with --diffusion-cache-dir; "
                "the next run continues from them."
            ) from error


def _seal(record: dict[str, Any]) -> str:
    """Checksum of all of a record."""
    return checksum(json.dumps(record, sort_keys=True))


def _indices(record: dict[str, Any]) -> range:
    return range(record["first"], record["stop"])


def _gaps(present: Iterable[range], wanted: range, size: int) -> list[range]:
    """What ranges leave out of the wanted one, cut at multiples of `size`."""
    gaps, start = list[range](), wanted.start
    for one in [*sorted(present, key=lambda indices: indices.start), range(wanted.stop, wanted.stop)]:
        while start < min(one.start, wanted.stop):
            end = min(start - start % size + size, one.start, wanted.stop)
            gaps.append(range(start, end))
            start = end
        start = max(start, one.stop)
    return gaps


def _within(gaps: Sequence[range], wanted: range) -> Iterator[range]:
    """The parts of ranges, which are in order and do not overlap, that lie in the wanted one."""
    for gap in itertools.islice(gaps, bisect_right(gaps, wanted.start, key=lambda one: one.stop), None):
        if gap.start >= wanted.stop:
            return
        yield range(max(gap.start, wanted.start), min(gap.stop, wanted.stop))


def _remove_unless(path: Path, is_right: Callable[[Path], bool]) -> None:
    """Remove what stands in the place of a file or folder of ours, a link included, with a warning."""
    if is_right(path) or not (path.exists() or path.is_symlink()):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    _warn(f"{path} was not what it should be, and is made again.")


def _warn(text: str) -> None:
    warnings.warn(text, StoreWarning, stacklevel=3)
