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

import json
import math
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

from pytest_diffusion.config.cache import (
    SAMPLES,
    StoreWarning,
    checksum,
    checksum_of,
    discard_leftovers,
    mark_used,
    remove_unless,
    write_text,
)
from pytest_diffusion.config.claims import CLAIMS
from pytest_diffusion.config.progress import stage
from pytest_diffusion.config.published import fetched, mark_published, publish_bytes
from pytest_diffusion.config.remote import PIXELS, NoAnswer, remote_of
from pytest_diffusion.samples.array_file import ArrayFile
from pytest_diffusion.samples.checksums import Checksums
from pytest_diffusion.samples.ranges import gaps
from pytest_diffusion.samples.records import Record, Records, indices_of
from pytest_diffusion.verdicts.errors import SetupError

FORMAT = 4
"""Layout version, part of every address: stores of another layout are not read."""
_LARGE = 1 << 30
"""Bytes of pixels whose checksums are not waited for when a store is opened."""


@dataclass(frozen=True)
class Samples:
    """Generated images, uint8 (N, 3, H, W), memory-mapped, with the prompt and the seed of each.

    `finite` (N,) is False where the model gave nan or infinity, which uint8 cannot represent.
    """

    pixels: torch.Tensor
    """The images before their checksums are known to match; see `images`."""
    prompts: list[str] | None
    seeds: list[int]
    finite: torch.Tensor
    folder: Path | None = None
    generated: int = 0
    """How many were generated in this run; 0 when all were found in the store."""
    shard: int = 64
    """Samples in a shard."""
    checksums: Checksums | None = None
    """Checksums that are still to be looked at, for large stores."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def images(self) -> torch.Tensor:
        """The images, uint8 (N, 3, H, W). Raises SetupError where some are damaged, which are dropped."""
        return self.first(len(self))

    def first(self, count: int) -> torch.Tensor:
        """The first images; the checksums of the others are not waited for."""
        if self.checksums is not None:
            self.checksums.require(range(count))
        return self.pixels[:count]


class SampleStore:
    """One content-addressed folder of samples. Raises SetupError where the folder cannot be written or is full."""

    def __init__(self, root: Path, identity: dict[str, Any]) -> None:
        self.root = root
        self.folder = store_folder(root, identity)
        self.identity = identity
        self._records = Records(self.folder / "shards", self.folder.name)
        self._file = ArrayFile(self.folder / "images.npy")
        with self._writing():
            remove_unless(self.folder, Path.is_dir)
            remove_unless(self._records.folder, Path.is_dir)
            self._records.folder.mkdir(parents=True, exist_ok=True)
            for name in ("store.lock", "images.npy", "manifest.json"):
                remove_unless(self.folder / name, Path.is_file)

    @property
    def claims(self) -> Path:
        """The folder in which processes claim shards."""
        return self.folder / CLAIMS

    def held_samples(self) -> int:
        """Number of samples with a sealed record."""
        return sum(len(indices_of(record)) for record in self._records.all())

    def missing(self, count: int, shard_size: int) -> list[range]:
        """Index ranges below `count` that are not stored, cut at multiples of `shard_size`. Damaged shards are dropped.

        The pixels of a store of more than a gigabyte are looked at later: see `read`.
        """
        self._fetch(count)
        records = self._records.all()
        if records and self.is_writable():
            with self._writing():
                self._reserve(count, records[0]["shape"])  # repairs a damaged header, length or manifest
        looked_at = records if _is_large(records) else [record for record in records if self._holds(record)]
        return gaps(map(indices_of, looked_at), range(count), shard_size)

    def unrecorded(self, wanted: Sequence[range]) -> list[range]:
        """The parts of ranges for which there is no record, by the names of the files alone."""
        with self._writing():
            return self._records.unrecorded(wanted)

    def write(self, indices: range, images: NDArray[np.uint8], record: dict[str, Any], *, count: int) -> None:
        """Write the pixels, then the record that marks them as complete. `images` uint8 (n, 3, H, W)."""
        pixels = np.ascontiguousarray(images)
        about = {"shape": list(pixels.shape[1:]), "dtype": str(pixels.dtype), "checksum": checksum(pixels.data), **record}
        with self._writing():
            self._records.folder.mkdir(parents=True, exist_ok=True)  # the cache may have been removed meanwhile
            self._reserve(max(count, indices.stop), about["shape"])
            self._file.write(indices.start, pixels)
            # Without its pixels a record in the store behind the folder would be a lie.
            is_there = publish_bytes(self._pixels(indices), pixels.tobytes())
            self._records.write(indices, about, publishes=is_there)

    def read(self, count: int, prompts: list[str] | None, seeds: list[int], generated: int, *, shard: int) -> Samples:
        """The first `count` samples, of which `missing` has found none; the images are memory-mapped copy-on-write.

        The checksums of a large store are looked at from now on, in the background. Raises SetupError where samples are not there.
        """
        try:
            images = torch.from_numpy(np.load(self._file.path, mmap_mode="c"))[:count]
        except (OSError, ValueError) as error:
            raise SetupError(f"{self._file.path} cannot be read: {error}. Run again: what is missing is generated.") from error
        finite, known, records = torch.ones(count, dtype=torch.bool), 0, self._records.all()
        for record in records:
            held = range(record["first"], min(record["stop"], count))
            finite[held.start : held.stop] = torch.tensor(record["finite"][: len(held)], dtype=torch.bool)
            known += len(held)
        if len(images) < count or known < count:
            raise SetupError(f"{self.folder} lost samples while they were used: was the cache removed? Run again.")
        mark_used(self.folder / "manifest.json")
        mark_published(self.folder)
        later = Checksums([record for record in records if record["first"] < count], self._holds) if _is_large(records) else None
        return Samples(images, prompts, seeds, finite, self.folder, generated, shard, later)

    def is_writable(self) -> bool:
        return os.access(self.folder, os.W_OK)

    def discard_leftovers(self) -> None:
        """Remove incomplete files of killed processes, and what does not belong there."""
        for folder in (self.folder, self._records.folder):
            discard_leftovers(folder)

    def _fetch(self, count: int) -> None:
        """Copy shards from the store behind the folder, each only where its pixels match its record; one process of a machine does it.

        Where the store does not answer, what it holds is missing to this process.
        """
        if remote_of(self.folder) is None or not self.is_writable():
            return
        from filelock import FileLock

        with self._writing(), FileLock(self.folder / "fetch.lock"):
            shards = self._records.elsewhere(count)
            with stage("fetch", sum(map(len, shards))) as advance:
                for place, indices in enumerate(shards):
                    try:
                        self._fetch_shard(indices, count)
                    except NoAnswer:
                        self._records.overlook(shards[place:])
                        return
                    advance(len(indices))

    def _fetch_shard(self, indices: range, count: int) -> None:
        record = self._records.fetch(indices)
        data = fetched(self._pixels(indices)) if record is not None else None
        if record is None or data is None or checksum(data) != record["checksum"]:
            what = f"Samples {indices.start} to {indices.stop - 1} of {self.folder.name} in the remote cache are damaged"
            warnings.warn(f"{what} and are generated again.", StoreWarning, stacklevel=3)
            self._records.refuse(indices)
            return
        self._reserve(max(count, indices.stop), record["shape"])
        self._file.write(indices.start, np.frombuffer(data, dtype=np.uint8).reshape(len(indices), *record["shape"]))
        self._records.keep(indices, record)

    def _pixels(self, indices: range) -> Path:
        """What stands for the pixels of a shard in the store behind the folder."""
        return self._records.folder / f"{indices.start:07d}-{indices.stop:07d}{PIXELS}"

    def _reserve(self, count: int, shape: Sequence[int]) -> None:
        """Make room for `count` images.

        The file is never shorter than the last index of any record, and not shortened while its header and its length agree.
        """
        if (room := self._file.room(shape)) >= count and self._has_manifest(room, shape):
            return
        from filelock import FileLock

        with FileLock(self.folder / "store.lock"):  # nobody else changes the length meanwhile
            count = max(count, self._file.room(shape), *(record["stop"] for record in self._records.all()), 0)
            if self._file.make_room(count, shape):
                warnings.warn(f"The header of {self._file.path} was damaged and is written again.", StoreWarning, stacklevel=3)
            if not self._has_manifest(count, shape):
                write_text(self.folder / "manifest.json", self._manifest(count, shape))

    def _manifest(self, count: int, shape: Sequence[int]) -> str:
        return json.dumps({"count": count, "shape": list(shape), "format": FORMAT, **self.identity}, indent=2) + "\n"

    def _has_manifest(self, count: int, shape: Sequence[int]) -> bool:
        path = self.folder / "manifest.json"
        return path.is_file() and path.read_bytes() == self._manifest(count, shape).encode()

    def _holds(self, record: Record) -> bool:
        """Whether a shard's pixels match its record; if not, its record is deleted with a warning."""
        indices = indices_of(record)
        try:
            if checksum_of(self._file.bytes_of(indices, record["shape"])) == record["checksum"]:
                return True
        except OSError:
            pass
        self._records.drop(indices)
        return False

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


def store_folder(root: Path, identity: dict[str, Any]) -> Path:
    """The folder of the store of samples that an identity describes; nothing is made."""
    return root / SAMPLES / checksum(json.dumps({**identity, "format": FORMAT}, sort_keys=True), size=10)


def held_below(root: Path, identity: dict[str, Any], count: int) -> int:
    """How many of the first `count` samples have a record, here or in the store behind the folder; nothing is made."""
    folder = store_folder(root, identity)
    return count - sum(map(len, Records(folder / "shards", folder.name).unrecorded([range(count)], lists=True)))


def _is_large(records: Sequence[Record]) -> bool:
    """Whether reading all pixels takes more than seconds."""
    return bool(records) and records[-1]["stop"] * math.prod(records[0]["shape"]) > _LARGE
