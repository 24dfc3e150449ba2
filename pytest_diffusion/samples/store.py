"""The sample store: a folder named by everything that changes a sample, filled shard by shard."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from pytest_diffusion.errors import ModelError


@dataclass(frozen=True)
class Samples:
    """Generated images, uint8 (N, 3, H, W), memory-mapped, with the prompt and the seed of each.

    `finite` (N,) is False where the model gave nan or infinity, which no uint8 image can show.
    """

    images: torch.Tensor
    prompts: list[str] | None
    seeds: list[int]
    finite: torch.Tensor
    folder: Path | None = None
    generated: int = 0
    """How many were generated in this run; 0 when all were found in the store."""


class SampleStore:
    """One content-addressed folder of samples: `manifest.json`, shards while it fills, `images.npy` when complete."""

    def __init__(self, root: Path, identity: dict[str, Any]) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.folder = root / "samples" / hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
        self.identity = identity
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(f"The cache folder {root} cannot be written: {error}. Choose another with --diffusion-cache-dir.") from error

    @property
    def lock_path(self) -> Path:
        return self.folder / "store.lock"

    def is_complete(self) -> bool:
        return (self.folder / "images.npy").is_file() and (self.folder / "finite.npy").is_file()

    def missing(self, count: int, shard_size: int) -> list[range]:
        """Index ranges of shards that are not there yet."""
        ranges = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
        return [indices for indices in ranges if not self._shard(indices).is_file()]

    def write_shard(self, indices: range, images: NDArray[np.uint8], finite: NDArray[np.bool_]) -> None:
        """Write one shard; a reader sees all of it or none."""
        path = self._shard(indices)
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({"images": torch.from_numpy(images), "finite": torch.from_numpy(finite)}, part)
        part.replace(path)

    def finish(self, count: int, shard_size: int) -> None:
        """Join the shards to one memory-mappable array and write the manifest."""
        shards = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
        first = load_file(self._shard(shards[0]))["images"]
        part = self.folder / f"images.{os.getpid()}.part"
        joined = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(count, *first.shape[1:]))
        finite = np.ones(count, dtype=bool)
        for indices in shards:
            shard = load_file(self._shard(indices))
            joined[indices.start : indices.stop] = shard["images"].numpy()
            finite[indices.start : indices.stop] = shard["finite"].numpy()
        joined.flush()
        del joined
        np.save(self.folder / "finite.npy", finite)
        (self.folder / "manifest.json").write_text(json.dumps({"count": count, **self.identity}, indent=2) + "\n", encoding="utf-8")
        part.replace(self.folder / "images.npy")
        for indices in shards:
            self._shard(indices).unlink(missing_ok=True)

    def read(self, prompts: list[str] | None, seeds: list[int], generated: int) -> Samples:
        """The complete samples, images mapped copy-on-write."""
        images = torch.from_numpy(np.load(self.folder / "images.npy", mmap_mode="c"))
        finite = torch.from_numpy(np.load(self.folder / "finite.npy"))
        return Samples(images, prompts, seeds, finite, self.folder, generated)

    def _shard(self, indices: range) -> Path:
        return self.folder / f"shard-{indices.start:07d}-{indices.stop:07d}.safetensors"


def cache_root(cache_dir: str | None) -> Path:
    """The folder of `--diffusion-cache-dir`, else the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("pytest-diffusion"))
