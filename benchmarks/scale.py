"""Many processes on one store: how much two are faster than one, what coordination costs, and what large stores need.

python -m benchmarks.scale            # about five minutes on two free cores
python -m benchmarks.scale --only opening memory
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_diffusion.config import claims
from pytest_diffusion.config.cache import checksum
from pytest_diffusion.samples import store as stores
from pytest_diffusion.samples.array_file import ArrayFile
from pytest_diffusion.samples.store import SampleStore

IDENTITY = {"pipeline": "P", "weights": "w", "scheduler": "s"}
RANKS = 1024


def scaling() -> str:
    """Images a second in the loop of two processes over one, one thread each, without the time to load."""
    rates = [max(_rate(count) for _ in range(2)) for count in (1, 2)]
    return f"two processes over one: {rates[1] / rates[0]:.2f} times ({rates[0]:.1f} and {rates[1]:.1f} images a second; goal 1.8)"


def _rate(count: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
        command = [sys.executable, "-m", "pytest_diffusion.generate", "--diffusion-model=demo", "--diffusion-num-samples=1024"]
        command += ["--diffusion-steps=10", f"--diffusion-cache-dir={folder}"]
        running = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.DEVNULL) for rank in range(count)]
        for one in running:
            one.wait()
        times = sorted(path.stat().st_mtime for path in Path(folder).glob("samples/*/shards/*.json"))
        # From the first record of each process to the last of all: loading does not count.
        return 64 * (len(times) - count) / (times[-1] - times[count - 1])


@dataclass
class _Rank:
    """One of many simulated ranks: its clock, what its own calls cost really, and where it is in its pass over the pieces."""

    first: int
    now: float = 0.0
    own: float = 0.0
    held: Any = None
    piece: range = range(0)
    trying: Iterator[range] = field(default_factory=lambda: iter(()))
    misses: int = 0
    pause: float = 0.05


def coordination(seconds: float = 1.0, each: int = 8) -> str:
    """Share of ranks' time that goes into claims, looks and records, with 1,024 of them on one folder, each with 8 shards to make.

    The ranks take turns, in the order of their clocks. What each of their calls costs is measured on real files and added to the clock;
    a shard costs a fixed second. So this leaves out what ranks wait for one another in the file system. Waiting at the end of the job,
    when all shards are claimed, is not counted as coordination.
    """
    import heapq

    from filelock import SoftFileLease, Timeout

    with tempfile.TemporaryDirectory() as folder:
        shards = each * RANKS
        store = SampleStore(Path(folder), IDENTITY)
        store.claims.mkdir()
        pieces = [range(64 * one, 64 * one + 64) for one in range(shards)]
        images = np.zeros((64, 3, 4, 4), dtype=np.uint8)
        record = {"batch_size": 64, "seeds": [0] * 64, "prompts": None, "finite": [True] * 64}
        ranks = [_Rank(first=number * each) for number in range(RANKS)]
        turns = [(0.0, number) for number in range(RANKS)]
        while turns:
            _, number = heapq.heappop(turns)
            rank, later = ranks[number], 0.0
            begun = time.perf_counter()
            if rank.held is not None:
                store.write(rank.piece, images, record, count=64 * shards)
                rank.held.release()
                rank.held, rank.misses = None, 0
            goes_on = True
            while rank.held is None and goes_on and not later:
                piece = next(rank.trying, None) if rank.misses < claims.MISSES else None
                if piece is None:
                    waiting = store.unrecorded([*pieces[rank.first :], *pieces[: rank.first]])
                    goes_on = bool(waiting)
                    later = rank.pause if rank.misses else 0.0
                    rank.trying, rank.misses, rank.pause = iter(claims.to_try(waiting, store.claims)), 0, min(2 * rank.pause, 5.0)
                    continue
                rank.misses += 1
                # No renewal: a process has one claim, and a thousand renewing threads in one process are no part of its cost.
                lease = SoftFileLease(store.claims / f"{piece.start:07d}.lock", lease_duration=86_400)
                try:
                    lease.acquire(timeout=0)
                except Timeout:
                    continue
                if store.unrecorded([piece]):
                    rank.held, rank.piece, rank.pause, later = lease, piece, 0.05, seconds
                else:
                    lease.release()
            spent = time.perf_counter() - begun
            rank.now, rank.own = rank.now + spent + later, rank.own + spent
            if goes_on:
                heapq.heappush(turns, (rank.now, number))
        share = sum(rank.own for rank in ranks) / sum(rank.now for rank in ranks)
        return f"coordination of {RANKS} simulated ranks, {shards} shards of {seconds:g} s: {100 * share:.2f} % of their time (goal 1 %)"


def opening(count: int = 1_000_000) -> str:
    """Seconds to open a store of a million images of 32x32 pixels, whose pixels are looked at later."""
    with tempfile.TemporaryDirectory() as folder:
        store = SampleStore(Path(folder), IDENTITY)
        shape = (3, 32, 32)
        ArrayFile(store.folder / "images.npy").make_room(count, shape)  # zeros that take no room on the disk
        about = {"shape": list(shape), "dtype": "uint8", "checksum": checksum(bytes(64 * 3 * 32 * 32)), "batch_size": 64}
        for first in range(0, count, 64):
            own = range(first, min(first + 64, count))
            rest = {"seeds": list(own), "prompts": [f"a prompt of some length, number {index}" for index in own]}
            store._records.write(own, {**about, **rest, "finite": [True] * len(own)})
        begun = time.perf_counter()
        again = SampleStore(Path(folder), IDENTITY)
        assert stores._is_large(again._records.all()[-1:])
        assert not again.missing(count, 64)
        samples = again.read(count, None, list(range(count)), 0, shard=64)
        spent = time.perf_counter() - begun
        first = time.perf_counter()
        samples.first(64)
        looked = time.perf_counter() - first
        _ = samples.images  # the background is done before the folder goes
        return f"opening {count:,} images: {spent:.2f} s (goal 5), the first shard looked at in {looked:.3f} s"


def memory(count: int = 50_000, width: int = 2048) -> str:
    """Memory beyond the features' own for statistics, kernel distance and neighbours of 50,000 x 2,048 features."""
    code = f"""
import resource, torch
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.kernel import kernel_estimate
from pytest_diffusion.maths.manifold import manifold_estimates
generator = torch.Generator().manual_seed(0)
features = torch.randn({count}, {width}, generator=generator)
reference = torch.randn(10_000, {width}, generator=generator)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
statistics = FeatureStatistics.from_features(features, protocol={{}})
kernel_estimate(features, reference, given_reference=True)
manifold_estimates(features, reference, k=5, given_reference=True)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return f"statistics, kernel distance and neighbours of {count:,} x {width:,} features: {float(found):.2f} GB beyond them (goal 1.5)"


MEASURES = {one.__name__: one for one in (scaling, coordination, opening, memory)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    torch.set_num_threads(1)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in parser.parse_args().only:
        print(MEASURES[name](), flush=True)


if __name__ == "__main__":
    main()
