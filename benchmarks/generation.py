"""Generation through the harness against the bare pipeline, attention capture against a plain run, and plugin load.

    python -m benchmarks.generation [--rounds 5] [--samples 64]

The two sides are interleaved; CPU-seconds, medians. A ratio above 1 means that the harness is faster.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pytest_diffusion import record_attention
from pytest_diffusion.adapters.pipelines import load_pipeline
from pytest_diffusion.samples.generate import generate_samples
from pytest_diffusion.samples.prompts import load_prompts
from pytest_diffusion.settings import resolve


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(rounds: int, *sides: Callable[[], object]) -> list[float]:
    """Median CPU-seconds of each side after one round that does not count."""
    for side in sides:
        side()
    times = [[cpu_seconds(side) for side in sides] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = replace(resolve(options={"model": "demo"}, ini={})[0], num_samples=options.samples, batch_size=32, steps=10)
    pipeline = load_pipeline(settings)
    pipeline.set_progress_bar_config(disable=True)
    prompts = load_prompts("demo")[: options.samples]

    def bare(batch_size: int) -> None:
        for start in range(0, options.samples, batch_size):
            seeds = range(start, min(start + batch_size, options.samples))
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            chunk = [prompts[seed] for seed in seeds]
            pipeline(chunk, num_inference_steps=10, guidance_scale=4.0, output_type="np", generator=generators)

    def harness() -> None:
        with tempfile.TemporaryDirectory() as folder:
            generate_samples(pipeline, prompts, replace(settings, cache_dir=folder))

    ours, batched, single = interleaved(options.rounds, harness, lambda: bare(32), lambda: bare(1))
    print(f"generation, throughput of the harness over the bare loop, same batch: {batched / ours:.3f} (goal >= 0.97)")
    print(f"generation, throughput of the harness over image by image: {single / ours:.2f} (goal >= 1.1)")

    def plain() -> None:
        bare(32)

    def captured() -> None:
        for start in range(0, options.samples, 32):
            generators = [torch.Generator().manual_seed(seed) for seed in range(start, start + 32)]
            with record_attention(pipeline):
                pipeline(prompts[start : start + 32], num_inference_steps=10, guidance_scale=4.0, output_type="np", generator=generators)

    with_capture, without = interleaved(options.rounds, captured, plain)
    print(f"attention capture, CPU over a plain run: {with_capture / without:.3f} (goal <= 1.05)")

    code = "import time; s = time.process_time(); import pytest_diffusion.plugin, pytest_diffusion.fixtures; print(time.process_time() - s)"
    command = [sys.executable, "-c", "import pytest;" + code]
    runs = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(9)]
    print(f"plugin load beyond pytest: {1000 * statistics.median(runs):.1f} ms of CPU (goal <= 50 ms)")


if __name__ == "__main__":
    main()
