"""The harness against the bare pipeline and against the script that people write; attention capture; plugin load.

    python -m benchmarks.generation [--rounds 5] [--samples 128]

The two sides are interleaved; CPU-seconds, medians. A ratio above 1 means that the harness is faster.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.timing import cpu_seconds, interleaved, row
from pytest_diffusion import record_attention
from pytest_diffusion.checks import quality
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.demo import load_judge, reference_images
from pytest_diffusion.demo.judge import FEATURE_SIZE
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import Extractor, load_extractor
from pytest_diffusion.features.store import stored_features, stored_reference_features
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples import generate
from pytest_diffusion.samples.generate import generate_samples


def straightforward(pipeline: Any, prompts: list[str], reference: torch.Tensor) -> tuple[float, float, float]:
    """The script that people write: PIL images one by one, torchmetrics for FID and IS, CLIP image by image."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore

    judge, clip = load_judge(), load_clip("demo")

    class Judged(torch.nn.Module):
        num_features = FEATURE_SIZE

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return judge.features(images.float() / 255)

    class Logits(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return judge(images.float() / 255).first

    distance, score, matches = FrechetInceptionDistance(feature=Judged()), InceptionScore(feature=Logits()), []
    with torch.no_grad():
        for image in reference:
            distance.update(image[None], real=True)
        for seed, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed)
            picture = pipeline(prompt, num_inference_steps=10, guidance_scale=4.0, generator=generator).images[0]
            image = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
            distance.update(image, real=False)
            score.update(image)
            matches.append(float((clip.image_embeds(image) * clip.text_embeds([prompt])).sum()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(distance.compute()), float(score.compute()[0]), 100 * sum(matches) / len(matches)


def ours(pipeline: Any, prompts: list[str], settings: Settings) -> tuple[float, float, float]:
    """The same three figures, and their uncertainty, through the harness."""
    extractor, clip = load_extractor("demo"), load_clip("demo")
    reference = load_reference("demo", height=32, width=32, limit=settings.num_samples)
    assert reference.images is not None
    assert settings.cache_dir is not None
    samples = generate_samples(pipeline, prompts, settings)
    features = stored_features(samples, extractor)
    known = stored_reference_features(reference.images, extractor, Path(settings.cache_dir))
    measured = quality.fid(features, known), quality.inception_score(features), quality.clip_score(samples, clip)
    return measured[0].value, measured[1].value, measured[2].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128)
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

    harnessed, batched, single = interleaved(options.rounds, harness, lambda: bare(32), lambda: bare(1))
    row("generation, throughput over the bare loop, same batch", batched / harnessed, ">= 0.97", batched / harnessed >= 0.97)
    row("generation, throughput over image by image", single / harnessed, ">= 1.1", single / harnessed >= 1.1)

    reference = reference_images(options.samples)

    def whole_job() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ours(pipeline, prompts, replace(settings, cache_dir=folder))

    job, script = interleaved(options.rounds, whole_job, lambda: straightforward(pipeline, prompts, reference))
    row("whole job on the demo over the straightforward script", script / job, ">= 2", script / job >= 2, f"{job:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        kept = replace(settings, cache_dir=folder)
        first = cpu_seconds(lambda: ours(pipeline, prompts, kept))
        with (
            mock.patch.object(generate, "call_pipeline", side_effect=AssertionError("generated again")),
            mock.patch.object(Extractor, "__call__", side_effect=AssertionError("extracted again")),
        ):
            second = cpu_seconds(lambda: ours(pipeline, prompts, kept))
    row(
        "second run of the same gate: nothing generated or extracted",
        first / second,
        "no work",
        True,
        f"{second:.2f} s after {first:.1f} s",
    )

    def plain() -> None:
        bare(32)

    def captured() -> None:
        for start in range(0, options.samples, 32):
            generators = [torch.Generator().manual_seed(seed) for seed in range(start, start + 32)]
            with record_attention(pipeline):
                pipeline(prompts[start : start + 32], num_inference_steps=10, guidance_scale=4.0, output_type="np", generator=generators)

    with_capture, without = interleaved(options.rounds, captured, plain)
    row("attention capture, CPU over a plain run", with_capture / without, "<= 1.05", with_capture / without <= 1.05)

    code = "import time; s = time.process_time(); import pytest_diffusion.plugin.hooks; print(time.process_time() - s)"
    command = [sys.executable, "-c", "import pytest;" + code]
    runs = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(9)]
    load = 1000 * statistics.median(runs)
    row("plugin load beyond pytest, in ms of CPU", load, "<= 50", load <= 50)


if __name__ == "__main__":
    main()
