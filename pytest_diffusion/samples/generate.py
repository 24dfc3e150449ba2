"""Generation of samples: shards are claimed by the processes that need them, and batches halved where memory runs out.

The bytes of a sample depend on its prompt, its seed and the batch in which it was drawn. Batches begin at multiples of the batch
size that the settings give, whoever draws them, so that any number of processes, killed at any moment, gives the same store.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_diffusion.config.cache import StoreWarning, cache_root, checksum
from pytest_diffusion.config.claims import place, share
from pytest_diffusion.config.durations import duration
from pytest_diffusion.config.progress import stage
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.versions import package_versions
from pytest_diffusion.data.batches import BatchSize, batch_size_of
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import device_of, dtype_of, image_size, is_text_conditioned
from pytest_diffusion.models.fingerprint import config_text, fingerprint
from pytest_diffusion.models.kernels import protocol_of
from pytest_diffusion.samples.room import require_disk
from pytest_diffusion.samples.seeds import seeds_of
from pytest_diffusion.samples.store import Samples, SampleStore, held_below
from pytest_diffusion.samples.timings import remember_timing
from pytest_diffusion.verdicts.errors import SetupError

SHARD_SIZE = 64
"""Samples in a shard, rounded up to whole batches. A process that is killed loses at most the shard that it was making."""
_LOG = logging.getLogger(__name__)
_PATIENCE = 10.0
"""Seconds between two words about what another process makes."""
_LONG = 600.0
"""Seconds of generation that are announced."""
_ATTEMPTS = 3
"""Once to write, once to verify, and once more where something was lost in between."""
_APART = 0.5
"""Mean difference in 8-bit levels up to which two batch sizes give the same samples: the limit of the check `batch_invariance`."""
Made = Callable[[Path, range, NDArray[np.uint8], list[str] | None], object]
"""Told of all that this process drew, shard by shard: the store's folder, the indices, images uint8 (n, 3, H, W), and prompts."""


def automatic_batch_size(settings: Settings, pipeline: Any) -> int:
    """Images in a batch: the setting, else 64 of 32x32 pixels (on an accelerator 8 of 512x512), fewer for larger images."""
    if settings.batch_size is not None:
        return settings.batch_size
    height, width = image_size(pipeline, settings)
    budget = 64 * 32 * 32 if device_of(pipeline).type == "cpu" else 8 * 512 * 512
    return max(1, min(256, budget // (height * width)))


def shared_batch_size(settings: Settings, pipeline: Any) -> BatchSize:
    """The batch size with which all stages call this pipeline: halved where memory ran out in one of them."""
    return batch_size_of(pipeline, automatic_batch_size(settings, pipeline))


def sample_identity(pipeline: Any, prompts: Sequence[str] | None, settings: Settings, *, weights: str | None = None) -> dict[str, Any]:
    """Everything that changes a sample, as plain JSON; its hash is the store's address. The number of samples is not part of it.

    `weights` is the pipeline's fingerprint, where it is known.
    """
    return {
        "pipeline": type(pipeline).__name__,
        "weights": weights or fingerprint(pipeline),
        "scheduler": f"{type(pipeline.scheduler).__name__} {config_text(pipeline.scheduler.config)} {_tensors_text(pipeline.scheduler)}",
        "prompts": checksum(json.dumps(list(prompts or ())), size=8),
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "size": [settings.height, settings.width],
        "batch_size": automatic_batch_size(settings, pipeline),
        "dtype": dtype_of(pipeline),
        "device": device_of(pipeline).type,
        **protocol_of(pipeline, settings),
        "versions": package_versions(),
    }


def generate_samples(
    pipeline: Any,
    prompts: Sequence[str] | None,
    settings: Settings,
    *,
    weights: str | None = None,
    say: Callable[[str], object] | None = None,
    made: Made | None = None,
) -> Samples:
    """`settings.num_samples` images from the store, generated first where they are missing.

    Sample i has prompt i modulo the number of prompts, and its own seed (`samples.seeds`). A larger number of samples
    therefore extends a smaller one. Processes that need the same samples share the work; whoever waits for others tells `say`
    for whom (by default the log). `weights` is the pipeline's fingerprint, where it is known; `made` is told of each shard of ours.
    Raises SetupError where the store cannot be written; existing samples are kept.
    """
    count = settings.num_samples
    chosen = prompts if prompts and is_text_conditioned(pipeline) else None
    texts = [chosen[index % len(chosen)] for index in range(count)] if chosen else None
    seeds = seeds_of(settings, count)
    store = SampleStore(cache_root(settings.cache_dir), sample_identity(pipeline, chosen, settings, weights=weights))
    shard_size = shard_size_of(settings, pipeline)
    if not store.is_writable():
        # A complete store may be on a read-only disk, where nothing can be claimed.
        if missing := store.missing(count, shard_size):
            raise SetupError(f"{store.folder} lacks {sum(map(len, missing))} of {count} samples and cannot be written.")
        return store.read(count, texts, seeds, 0, shard=shard_size)
    draw = _Drawing(store, pipeline, texts, seeds, settings, say or _LOG.warning, made)
    with _says_what_is_kept(store, count):
        store.discard_leftovers()
        for _ in range(_ATTEMPTS):
            if not (missing := store.missing(count, shard_size)):
                return store.read(count, texts, seeds, draw.drawn, shard=shard_size)
            require_disk(sum(map(len, missing)), image_size(pipeline, settings), store.root)
            draw.fill(missing, shard_size)
    raise SetupError(f"What is written to {store.folder} is not what is read from it: choose another folder with --diffusion-cache-dir.")


def samples_in_store(pipeline: Any, prompts: Sequence[str] | None, settings: Settings) -> int:
    """How many of the samples of these settings are in the store, by their records; nothing is made."""
    chosen = prompts if prompts and is_text_conditioned(pipeline) else None
    return held_below(cache_root(settings.cache_dir), sample_identity(pipeline, chosen, settings), settings.num_samples)


def shard_size_of(settings: Settings, pipeline: Any) -> int:
    """Samples in a shard: whole batches of the size that the settings give, at least `SHARD_SIZE` samples."""
    batch = automatic_batch_size(settings, pipeline)
    return batch * math.ceil(SHARD_SIZE / batch)


@dataclass
class _Drawing:
    """The part of this process in the drawing of samples."""

    store: SampleStore
    pipeline: Any
    texts: list[str] | None
    seeds: list[int]
    settings: Settings
    say: Callable[[str], object]
    made: Made | None
    drawn: int = 0
    spent: float = 0.0
    """Seconds in the pipeline."""

    def fill(self, missing: Sequence[range], shard_size: int) -> None:
        """Have what is missing drawn, by this process or others. Shards are claimed whole, whatever part of them is missing."""
        count = len(self.seeds)
        shards = sorted({indices.start // shard_size for indices in missing})
        pieces = [range(first * shard_size, min((first + 1) * shard_size, count)) for first in shards]
        begun, before, left = time.monotonic(), self.drawn, sum(map(len, missing))

        def unfinished(some: Sequence[range]) -> list[range]:
            lacking = {part.start // shard_size for part in self.store.unrecorded(some)}
            return [piece for piece in some if piece.start // shard_size in lacking]

        # The share of this process; one that is faster than the others draws more.
        with stage("generate", -(-left // place().world)) as advance:

            def make(piece: range) -> None:
                for part in self.store.unrecorded([piece]):
                    self._draw(part)
                    advance(len(part))
                if before < self.drawn <= before + shard_size:
                    _say_how_long(time.monotonic() - begun, self.drawn - before, left // place().world, self.say)

            share(pieces, self.store.claims, unfinished=unfinished, make=make, say=self.say, patience=_PATIENCE)
        if self.drawn > before:
            remember_timing(self.settings, self.spent / self.drawn, image_size(self.pipeline, self.settings))

    def _draw(self, indices: range) -> None:
        """Draw samples in batches that begin at multiples of the batch size, and write them."""
        whole, batch = automatic_batch_size(self.settings, self.pipeline), shared_batch_size(self.settings, self.pipeline)
        parts = [range(max(start, indices.start), min(start + whole, indices.stop)) for start in _grid(indices, whole)]
        begun = time.monotonic()
        images = np.concatenate([self._images(part) for part in parts])
        self.spent += time.monotonic() - begun
        pixels, finite = to_uint8(images)
        texts = self.texts[indices.start : indices.stop] if self.texts else None
        record = {"batch_size": batch.size, "seeds": self.seeds[indices.start : indices.stop], "prompts": texts}
        if 1 < batch.size < whole:
            record["batch_difference"] = self._difference(indices, pixels)
        self.store.write(indices, pixels, {**record, "finite": finite.tolist()}, count=len(self.seeds))
        self.drawn += len(indices)
        if self.made is not None:
            self.made(self.store.folder, indices, pixels, texts)

    def _images(self, indices: range, *, batch: BatchSize | None = None) -> NDArray[np.floating[Any]]:
        texts = self.texts[indices.start : indices.stop] if self.texts else None
        return generate_images(self.pipeline, texts, self.seeds[indices.start : indices.stop], self.settings, batch=batch)

    def _difference(self, indices: range, pixels: NDArray[np.uint8]) -> float:
        """Mean difference in levels of the first samples from the same ones in other batches, where memory does not hold whole ones."""
        size = shared_batch_size(self.settings, self.pipeline).size
        some = indices[:size]
        again, _ = to_uint8(self._images(some, batch=BatchSize(size // 2)))
        found = float(np.abs(again.astype(int) - pixels[: len(some)]).mean())
        if found > _APART:
            warnings.warn(
                f"Memory holds batches of {size} samples only, and samples {some.start} to {some.stop - 1} of {self.store.folder} "
                f"differ by {found:.2f} levels between batch sizes, where {_APART} are allowed: choose --diffusion-batch-size={size}, "
                "or see batch_invariance.",
                StoreWarning,
                stacklevel=2,
            )
        return found


def _grid(indices: range, size: int) -> range:
    """The multiples of `size` from which all of the indices are reached."""
    return range(indices.start - indices.start % size, indices.stop, size)


def _say_how_long(seconds: float, drawn: int, wanted: int, say: Callable[[str], object]) -> None:
    """After the first shard, the time that the others will take, where that is more than ten minutes."""
    rest = seconds * (wanted - drawn) / drawn
    if rest > _LONG:
        say(f"the first {drawn} samples took {seconds:.0f} s; the other {wanted - drawn} will take about {duration(rest)}")


@contextmanager
def _says_what_is_kept(store: SampleStore, count: int) -> Iterator[None]:
    """Whoever stops the run is told what was drawn, and how to go on."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            error.args = (
                *error.args,
                f"{min(store.held_samples(), count)} of {count} samples are kept, and the same command goes on from there",
            )
        raise


def to_uint8(images: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Float images (N, H, W, C) in [0, 1] as uint8 (N, 3, H, W), rounded once, and which of them are finite."""
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    clean = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)
    pixels = (clean * 255).round().clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels if pixels.shape[1] == 3 else pixels.repeat(3, axis=1)), finite


def generate_images(
    pipeline: Any,
    prompts: Sequence[str] | None,
    seeds: Sequence[int],
    settings: Settings,
    *,
    batch: BatchSize | None = None,
    **changes: Any,
) -> NDArray[np.floating[Any]]:
    """Images in [0, 1], float (N, H, W, C), in batches that are halved when memory runs out."""

    def part(rows: slice) -> NDArray[np.floating[Any]]:
        return call_pipeline(pipeline, prompts=prompts[rows] if prompts else None, seeds=seeds[rows], settings=settings, **changes)

    return np.concatenate((batch or shared_batch_size(settings, pipeline)).parts(len(seeds), part))


def _tensors_text(scheduler: Any) -> str:
    """Hash of the schedule's values, which may differ from those that the config gives."""
    values = getattr(scheduler, "alphas_cumprod", None)
    if values is None:
        return ""
    return checksum(np.asarray(values, dtype=np.float64).tobytes(), size=8)
