"""What damage does to the demo's figures: the measurements behind `thresholds/demo.toml`.

python -m benchmarks.damage                 # 1,000 samples a variant, about 15 minutes on two cores
python -m benchmarks.damage --samples 256   # as in tests/data/demo-256.toml, about 4 minutes
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from pytest_diffusion.adapters.clip import load_clip
from pytest_diffusion.adapters.features import Features, load_extractor
from pytest_diffusion.adapters.pipelines import load_pipeline
from pytest_diffusion.checks import quality
from pytest_diffusion.demo import reference_images
from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8
from pytest_diffusion.samples.generate import generate_samples
from pytest_diffusion.samples.prompts import load_prompts
from pytest_diffusion.settings import Settings, resolve


def noisy(amount: float, scale: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], None]:
    """Damage that adds noise to every weight of the UNet, in units of a scale of its tensor."""

    def damage(pipeline: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in pipeline.unet.parameters():
                weight += amount * scale(weight) * torch.randn(weight.shape, generator=generator)

    return damage


def rms(weight: torch.Tensor) -> torch.Tensor:
    return weight.square().mean().sqrt()


def deviation(weight: torch.Tensor) -> torch.Tensor:
    return weight.std() if weight.numel() > 1 else weight.abs()


def with_scheduler(scheduler_class: Any) -> Callable[[Any], None]:
    def change(pipeline: Any) -> None:
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config)

    return change


def nothing(pipeline: Any) -> None:
    """Leave the pipeline as it is."""


VARIANTS: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "sound": (nothing, {}),
    "another seed": (nothing, {"seed": 100_000}),
    "DPM-Solver++, 15 steps": (with_scheduler(DPMSolverMultistepScheduler), {"steps": 15}),
    "Euler": (with_scheduler(EulerDiscreteScheduler), {}),
    "8 steps": (nothing, {"steps": 8}),
    "4 steps": (nothing, {"steps": 4}),
    "2 steps": (nothing, {"steps": 2}),
    "guidance 1": (nothing, {"guidance_scale": 1.0}),
    "v_prediction": (lambda pipeline: pipeline.scheduler.register_to_config(prediction_type="v_prediction"), {}),
    "scaling factor 1": (lambda pipeline: pipeline.vae.register_to_config(scaling_factor=1.0), {}),
    "noise 0.4 deviations": (noisy(0.4, deviation), {}),
    "noise 0.1 RMS": (noisy(0.1, rms), {}),
    "noise 0.2 RMS": (noisy(0.2, rms), {}),
    "noise 0.4 RMS": (noisy(0.4, rms), {}),
}


def rows(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Name and figures of fresh renderings and of each variant."""
    pipeline, extractor, clip = load_pipeline(settings), load_extractor("demo"), load_clip("demo")
    prompts, reference = load_prompts("demo"), extractor(reference_images(1000))

    def figures(features: Features) -> list[str]:
        pairs = [check(features, reference) for check in (quality.fid, quality.kid, quality.precision, quality.recall)]
        return [f"{measured.value:.2f}" for measured in [*pairs, quality.inception_score(features)]]

    for seed in range(901, 905):
        images = to_uint8(render(sample_scenes(settings.num_samples, seed=seed), seed=seed)[0])
        yield f"real, seed {seed}", [*figures(extractor(images)), "-"]
    for name, (damage, changes) in VARIANTS.items():
        subject = copy.deepcopy(pipeline)
        damage(subject)
        samples = generate_samples(subject, prompts, replace(settings, **changes))
        yield name, [*figures(extractor(samples.images)), f"{quality.clip_score(samples, clip).value:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    settings = replace(resolve(options={"model": "demo"}, ini={})[0], num_samples=parser.parse_args().samples)
    print(f"{'variant':<24}" + "".join(f"{name:>10}" for name in ("FD", "KID", "precision", "recall", "IS", "CLIP")))
    for name, values in rows(settings):
        print(f"{name:<24}" + "".join(f"{value:>10}" for value in values), flush=True)


if __name__ == "__main__":
    main()
