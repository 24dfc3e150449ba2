"""Generation of samples: batches are written to the store by one process at a time, and halved when memory runs out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_diffusion.config.cache import cache_root, checksum
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.versions import package_versions
from pytest_diffusion.data.batches import BatchSize, batch_size_of
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import device_of, dtype_of, image_size, is_text_conditioned
from pytest_diffusion.models.fingerprint import config_text, fingerprint
from pytest_diffusion.samples.room import require_disk
from pytest_diffusion.samples.seeds import seeds_of
from pytest_diffusion.samples.store import Samples, SampleStore
from pytest_diffusion.verdicts.errors import SetupError

SHARD_SIZE = 64
"""Samples in a shard, or a whole batch where that is more. A killed run loses at most one shard."""
_LOG = logging.getLogger(__name__)
_PATIENCE = 10.0
"""Seconds between two words about a lock that another process holds."""
_LONG = 600.0
"""Seconds of generation that are announced."""
_ATTEMPTS = 3
"""Once to write, once to verify, and once more where something was lost in between."""
Progress = Callable[[Iterable[range], int], AbstractContextManager[Iterable[range]]]


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
        "versions": package_versions(),
    }


def generate_samples(
    pipeline: Any,
    prompts: Sequence[str] | None,
    settings: Settings,
    *,
    weights: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], object] | None = None,
) -> Samples:
    """`settings.num_samples` images from the store, generated first where they are missing.

    Sample i has prompt i modulo the number of prompts, and its own seed (`samples.seeds`). A larger number of samples
    therefore extends a smaller one. Another process that needs the same samples waits, tells `say` for whom (by default the
    log), and then reads them. `weights` is the pipeline's fingerprint, where it is known.
    Raises SetupError where the store cannot be written; existing samples are kept.
    """
    count = settings.num_samples
    chosen = prompts if prompts and is_text_conditioned(pipeline) else None
    texts = [chosen[index % len(chosen)] for index in range(count)] if chosen else None
    seeds = seeds_of(settings, count)
    store = SampleStore(cache_root(settings.cache_dir), sample_identity(pipeline, chosen, settings, weights=weights))
    batch = shared_batch_size(settings, pipeline)
    shard_size = max(SHARD_SIZE, batch.size)
    if not store.is_writable():
        # A complete store may be on a read-only disk, where no lock can be taken.
        if missing := store.missing(count, shard_size):
            raise SetupError(f"{store.folder} lacks {sum(map(len, missing))} of {count} samples and cannot be written.")
        return store.read(count, texts, seeds, 0)
    with _locked(store, say or _LOG.warning), _says_what_is_kept(store, count):
        return _complete(store, pipeline, texts, seeds, settings, batch, progress, say or _LOG.warning)


def _complete(
    store: SampleStore,
    pipeline: Any,
    texts: list[str] | None,
    seeds: list[int],
    settings: Settings,
    batch: BatchSize,
    progress: Progress | None,
    say: Callable[[str], object],
) -> Samples:
    """All samples, those that are missing generated and verified. The caller must hold the lock."""
    count, shard_size, generated = len(seeds), max(SHARD_SIZE, batch.size), 0
    store.discard_leftovers()
    for _ in range(_ATTEMPTS):
        if not (missing := store.missing(count, shard_size)):
            return store.read(count, texts, seeds, generated)
        require_disk(sum(map(len, missing)), image_size(pipeline, settings), store.root)
        show = progress or (lambda ranges, total: nullcontext(ranges))
        begun, left = time.monotonic(), sum(map(len, missing))
        with show(missing, count) as ranges:
            for done, indices in enumerate(ranges):
                if done == 1:
                    _say_how_long(time.monotonic() - begun, len(missing[0]), left, say)
                chunk = texts[indices.start : indices.stop] if texts else None
                own_seeds = seeds[indices.start : indices.stop]
                images, finite = to_uint8(generate_images(pipeline, chunk, own_seeds, settings, batch=batch))
                record = {"batch_size": batch.size, "seeds": own_seeds, "prompts": chunk, "finite": finite.tolist()}
                store.write(indices, images, record, count=count)
        generated += sum(len(indices) for indices in missing)
    raise SetupError(f"What is written to {store.folder} is not what is read from it: choose another folder with --diffusion-cache-dir.")


def _say_how_long(seconds: float, drawn: int, wanted: int, say: Callable[[str], object]) -> None:
    """After the first shard, the time that the others will take, where that is more than ten minutes."""
    rest = seconds * (wanted - drawn) / drawn
    if rest > _LONG:
        shown = f"{rest / 3600:.1f} hours" if rest >= 5400 else f"{rest / 60:.0f} minutes"
        say(f"the first {drawn} samples took {seconds:.0f} s; the other {wanted - drawn} will take about {shown}")


@contextmanager
def _locked(store: SampleStore, say: Callable[[str], object]) -> Iterator[None]:
    """The lock of a store. Whoever waits for it says for whom, and how long it has waited."""
    from filelock import FileLock, Timeout

    lock, begun = FileLock(store.lock_path), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_PATIENCE)
            break
        except Timeout:
            waited = round(time.monotonic() - begun)
            say(f"waiting for {store.holder}, which generates the same samples in {store.folder} ({waited} s so far)")
    try:
        with store.held():
            yield
    finally:
        lock.release()


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
