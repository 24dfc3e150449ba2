"""The sample store: a folder named by a hash of everything that changes a sample, written in shards, verified when read.

    manifest.json                   description of the samples, for people
    images.npy                      uint8 (N, 3, H, W), to be mapped into memory
    shards/0000000-0000064.json     seeds, prompts and the checksum of images 0 to 63, written after their pixels
    features-*.safetensors          features of the images, one file for each extractor

A shard is used only when its record exists and its checksum matches. A process may therefore be killed at any moment,
and disk errors are detected. A larger number of samples extends the same folder.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.config.cache import SAMPLES, StoreWarning, checksum, checksum_of, mark_used, read_json, write_text
from pytest_diffusion.verdicts.errors import SetupError

FORMAT = 2
"""Layout version, part of every address: stores of another layout are not read."""


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
            (self.folder / "shards").mkdir(parents=True, exist_ok=True)

    @property
    def lock_path(self) -> Path:
        """Path of the lock that a process holds while it writes."""
        return self.folder / "store.lock"

    def missing(self, count: int, shard_size: int) -> list[range]:
        """Index ranges below `count` that are not stored, cut at multiples of `shard_size`. Damaged shards are dropped."""
        shape = self._shape()
        if shape is not None and self.is_writable():
            with self._writing():
                self._reserve(count, shape)  # repairs a damaged header, length or manifest
        present = sorted((indices for indices in self._records() if self._holds(indices)), key=lambda indices: indices.start)
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
        with self._writing():
            self._reserve(count, pixels.shape[1:])
            file = os.open(self.folder / "images.npy", os.O_WRONLY)
            try:
                _write_at(file, pixels, _HEADER + indices.start * pixels[0].nbytes)
                os.fsync(file)
            finally:
                os.close(file)
            kept = {"first": indices.start, "stop": indices.stop, "checksum": checksum(pixels.data), **record}
            write_text(self._record(indices), json.dumps(kept, indent=1))

    def read(self, count: int, prompts: list[str] | None, seeds: list[int], generated: int) -> Samples:
        """The first `count` samples; the images are memory-mapped copy-on-write."""
        images = torch.from_numpy(np.load(self.folder / "images.npy", mmap_mode="c"))[:count]
        finite = torch.ones(count, dtype=torch.bool)
        for indices in self._records():
            flags = torch.tensor(self._load(indices)["finite"], dtype=torch.bool)
            held = range(indices.start, min(indices.stop, count))
            finite[held.start : held.stop] = flags[: len(held)]
        mark_used(self.folder / "manifest.json")
        return Samples(images, prompts, seeds, finite, self.folder, generated)

    def is_writable(self) -> bool:
        return os.access(self.folder, os.W_OK)

    def discard_leftovers(self) -> None:
        """Remove incomplete files of a killed process. The caller must hold the lock."""
        for part in [*self.folder.glob("*.part"), *self.folder.glob("shards/*.part")]:
            part.unlink(missing_ok=True)

    def _reserve(self, count: int, shape: tuple[int, ...]) -> None:
        """Set the size of images.npy to `count` images; disk space is used only when pixels are written."""
        manifest = self.folder / "manifest.json"
        known = read_json(manifest)
        # Never shorter than the last index in any record.
        count = max(count, int(known.get("count", 0)), *(indices.stop for indices in self._records()), 0)
        file = os.open(self.folder / "images.npy", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            header = _header((count, *shape))
            if os.pread(file, _HEADER, 0) != header:
                os.pwrite(file, header, 0)
            if os.fstat(file).st_size != (size := _HEADER + count * int(np.prod(shape))):
                os.ftruncate(file, size)
        finally:
            os.close(file)
        if known.get("count") != count or known.get("shape") != list(shape):
            write_text(manifest, json.dumps({"count": count, "shape": list(shape), "format": FORMAT, **self.identity}, indent=2) + "\n")

    def _holds(self, indices: range) -> bool:
        """Whether a shard's pixels match its record; if not, its record is deleted with a warning."""
        try:
            record = self._load(indices)
            size = int(np.prod(self._shape() or ()))
            whole = record["stop"] == indices.stop and len(record["finite"]) == len(indices)
            if whole and checksum_of(self._bytes_at(_HEADER + indices.start * size, len(indices) * size)) == record["checksum"]:
                return True
        except (OSError, ValueError, KeyError, TypeError):
            pass
        if self.is_writable():
            self._record(indices).unlink(missing_ok=True)
        warnings.warn(
            f"Samples {indices.start} to {indices.stop - 1} in {self.folder} are damaged and are generated again.",
            StoreWarning,
            stacklevel=2,
        )
        return False

    def _shape(self) -> tuple[int, ...] | None:
        """Shape of one image: the manifest's, else that of the header of images.npy; None where neither can be read."""
        known = read_json(self.folder / "manifest.json").get("shape")
        if isinstance(known, list) and len(known) == 3:
            return tuple(int(side) for side in known)
        try:
            with (self.folder / "images.npy").open("rb") as file:
                np.lib.format.read_magic(file)
                shape: tuple[int, ...] = np.lib.format.read_array_header_1_0(file)[0]
                return shape[1:] if len(shape) == 4 else None
        except (OSError, ValueError, EOFError):
            return None

    def _bytes_at(self, offset: int, size: int) -> Iterator[bytes]:
        """The bytes of images.npy from `offset`, piece by piece."""
        with (self.folder / "images.npy").open("rb") as file:
            file.seek(offset)
            while size > 0 and (piece := file.read(min(size, 1 << 24))):
                yield piece
                size -= len(piece)

    def _records(self) -> list[range]:
        found = [path.stem.split("-") for path in self.folder.glob("shards/*-*.json")]
        return [range(int(first), int(stop)) for first, stop in found]

    def _load(self, indices: range) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self._record(indices).read_text(encoding="utf-8"))
        return loaded

    def _record(self, indices: range) -> Path:
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


_HEADER = 128
"""Bytes before the first pixel: numpy pads the header of a four-axis array to this size."""


def _header(shape: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
    if len(buffer.getvalue()) != _HEADER:
        raise ValueError(f"numpy wrote a header of {len(buffer.getvalue())} bytes; expected {_HEADER}.")
    return buffer.getvalue()


def _write_at(file: int, pixels: NDArray[np.uint8], offset: int) -> None:
    view = pixels.data.cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
