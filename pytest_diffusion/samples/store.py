"""The sample store: a folder named by a hash of everything that changes a sample, written in shards, verified when read.

    manifest.json                   description of the samples, for people; nothing rests on it
    images.npy                      uint8 (N, 3, H, W), to be mapped into memory
    shards/0000000-0000064.json     seeds, prompts, shape and checksum of images 0 to 63, written after their pixels
    features-*.safetensors          features of the images, one file for each extractor

A record is sealed: its own checksum covers all of it, and the store to which it belongs. A shard is used only when its
record is whole and the checksum of its pixels matches. A process may therefore be killed at any moment, and disk errors are
detected. A larger number of samples extends the same folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.cache import SAMPLES, StoreWarning, checksum, checksum_of, mark_used, read_json, write_text
from pytest_diffusion.samples.array_file import HEADER, header, shape_of, write_at
from pytest_diffusion.verdicts.errors import SetupError

FORMAT = 3
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
    def lock_path(self) -> Path:
        """Path of the lock that a process holds while it writes."""
        return self.folder / "store.lock"

    @property
    def holder(self) -> str:
        """Who holds the lock, as it wrote itself: process, machine and time."""
        try:
            return (self.folder / "store.holder").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return "another process"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Say who holds the lock, while it does."""
        path = self.folder / "store.holder"
        with self._writing():
            _remove_unless(path, Path.is_file)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} (since {since})", encoding="utf-8")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def held_samples(self) -> int:
        """Number of samples with a sealed record."""
        return sum(len(_indices(record)) for record in self._records())

    def missing(self, count: int, shard_size: int) -> list[range]:
        """Index ranges below `count` that are not stored, cut at multiples of `shard_size`. Damaged shards are dropped."""
        records = self._records()
        if records and self.is_writable():
            with self._writing():
                self._reserve(count, records)  # repairs a damaged header, length or manifest
        present = sorted((_indices(record) for record in records if self._holds(record)), key=lambda indices: indices.start)
        ranges, start = [], 0
        for stop, resume in [*((indices.start, indices.stop) for indices in present), (count, count)]:
            while start < min(stop, count):
                end = min(start - start % shard_size + shard_size, stop, count)
                ranges.append(range(start, end))
                start = end
            start = max(start, resume)
        return ranges

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
            self._reserve(count, [kept, *self._records()])
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
        """Remove incomplete files of a killed process. The caller must hold the lock."""
        for part in [*self.folder.glob("*.part"), *self.folder.glob("shards/*.part")]:
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)

    def _reserve(self, count: int, records: Sequence[dict[str, Any]]) -> None:
        """Set the size of images.npy to `count` images; disk space is used only when pixels are written.

        The shape is that of the sealed records, and the file is never shorter than the last index in any of them.
        """
        shape = tuple(records[0]["shape"])
        count = max(count, *(record["stop"] for record in records), 0)
        file = os.open(self.folder / "images.npy", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            head, held = header((count, *shape)), os.fstat(file).st_size
            found = os.pread(file, HEADER, 0)
            if found != head:
                if held and shape_of(found) is None:
                    _warn(f"The header of {self.folder / 'images.npy'} was damaged and is written again.")
                os.pwrite(file, head, 0)
            if held != (size := HEADER + count * int(np.prod(shape))):
                os.ftruncate(file, size)
        finally:
            os.close(file)
        text = json.dumps({"count": count, "shape": list(shape), "format": FORMAT, **self.identity}, indent=2) + "\n"
        manifest = self.folder / "manifest.json"
        if not manifest.is_file() or manifest.read_bytes() != text.encode():
            write_text(manifest, text)

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
