"""What damage does to the demo's figures: the measurements behind `thresholds/demo.toml`.

python -m benchmarks.damage                 # 1,000 samples a variant, about 15 minutes on two cores
python -m benchmarks.damage --samples 256   # as in tests/data/demo-256.toml, about 4 minutes
"""

from __future__ import annotations

import argparse
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

from pytest_diffusion.checks import colours, distances, manifolds, scores
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples.generate import generate_samples
from pytest_diffusion.samples.store import Samples
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement


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


def swapped_channels(samples: Samples, reference: Reference) -> Samples:
    return replace(samples, images=samples.images[:, [2, 1, 0]])


def shuffled_prompts(samples: Samples, reference: Reference) -> Samples:
    assert samples.prompts is not None
    return replace(samples, prompts=samples.prompts[7:] + samples.prompts[:7])


def copies(samples: Samples, reference: Reference) -> Samples:
    """One sample in five is an image of the reference with a level of noise."""
    assert reference.images is not None
    images = samples.images.clone()
    noise = torch.randint(-2, 3, images[::5].shape, generator=torch.Generator().manual_seed(0))
    images[::5] = (reference.images[: len(images[::5])].int() + noise).clamp(0, 255).to(torch.uint8)
    return replace(samples, images=images)


def repeated(samples: Samples, reference: Reference) -> Samples:
    """Only one sample in ten is new; the others repeat it with a level of noise."""
    kept = samples.images[::10].repeat_interleave(10, 0)[: len(samples.images)].int()
    noise = torch.randint(-2, 3, kept.shape, generator=torch.Generator().manual_seed(0))
    return replace(samples, images=(kept + noise).clamp(0, 255).to(torch.uint8))


AFTERWARDS: dict[str, Callable[[Samples, Reference], Samples]] = {
    "channels swapped": swapped_channels,
    "prompts shuffled": shuffled_prompts,
    "one in five copied": copies,
    "each ten times": repeated,
}
CHECKS: dict[str, Callable[..., Measurement]] = {
    "FD": distances.fid,
    "FD inf": distances.fid_infinity,
    "KID": distances.kid,
    "CMMD": distances.cmmd,
    "prec.": manifolds.precision,
    "recall": manifolds.recall,
    "dens.": manifolds.density,
    "cover.": manifolds.coverage,
    "Vendi": scores.vendi_score,
    "copies": manifolds.memorisation,
    "IS": scores.inception_score,
    "CLIP": scores.clip_score,
    "range": colours.value_range,
    "BGR": colours.channel_order,
}


def rows(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """Name and figures of fresh renderings and of each variant."""
    pipeline, extractor, clip = load_pipeline(settings), load_extractor("demo"), load_clip("demo")
    prompts, reference = load_prompts("demo"), load_reference("demo", height=32, width=32, limit=1000)
    assert reference.images is not None
    reference_features = extractor(reference.images)

    def figures(samples: Samples) -> list[str]:
        known = {"features": extractor(samples.images), "reference_features": reference_features, "samples": samples}
        known |= {"reference": reference, "clip": clip}
        found = []
        for check in CHECKS.values():
            try:
                measured = check(**{name: known[name] for name in inspect.signature(check).parameters if name in known})
                found.append(f"{measured.value:.2f}")
            except NotApplicable:
                found.append("-")
        return found

    for seed in range(901, 904):
        scenes = sample_scenes(settings.num_samples, seed=seed)
        images = to_uint8(render(scenes, seed=seed)[0])
        finite = torch.ones(len(images), dtype=torch.bool)
        yield f"real, seed {seed}", figures(Samples(images, [scene.caption for scene in scenes], [], finite))
    for name, (damage, changes) in VARIANTS.items():
        subject = copy.deepcopy(pipeline)
        damage(subject)
        samples = generate_samples(subject, prompts, replace(settings, **changes))
        yield name, figures(samples)
        if name == "sound":
            for what, change in AFTERWARDS.items():
                yield what, figures(change(samples, reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    settings = replace(resolve(options={"model": "demo"}, ini={})[0], num_samples=parser.parse_args().samples)
    print(f"{'variant':<24}" + "".join(f"{name:>9}" for name in CHECKS))
    for name, values in rows(settings):
        print(f"{name:<24}" + "".join(f"{value:>9}" for value in values), flush=True)


if __name__ == "__main__":
    main()
