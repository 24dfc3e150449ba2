"""How good the demo is: what its judge, its attention, its VAE and its latents say, as one JSON object.

python examples/evaluate_demo.py                      # the shipped weights, 600 prompts
python examples/evaluate_demo.py --model build/demo/export --prompts 1000
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from pytest_diffusion.attention.run import run_attention
from pytest_diffusion.checks.outliers import ood_auroc
from pytest_diffusion.checks.vae import vae_psnr
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.data.prompts import phrases
from pytest_diffusion.data.references import Reference
from pytest_diffusion.demo import NAMED_LAYER, load_judge, reference_images
from pytest_diffusion.demo.judge import read
from pytest_diffusion.demo.scenes import sample_scenes
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.maths.attention import area_matched_iou
from pytest_diffusion.maths.scores import clip_scores
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.load import load_pipeline
from pytest_diffusion.samples.generate import to_uint8


def evaluate(settings: Settings, *, num_prompts: int) -> dict[str, float]:
    """Figures of a model that speaks the demo's language."""
    pipeline = load_pipeline(settings)
    figures = generation(pipeline, settings, num_prompts)
    figures |= attention(pipeline, settings)
    codec, reference = LatentCodec.of(pipeline), Reference("demo", reference_images(800))
    figures["vae_psnr"] = vae_psnr(codec, reference).value
    auroc = ood_auroc(codec, reference)
    figures["ood_auroc_lowest"] = min(auroc.series["auroc"][kind] for kind in ("noise", "shuffled patches", "inverted"))
    return {name: round(value, 4) for name, value in figures.items()}


def generation(pipeline: object, settings: Settings, count: int) -> dict[str, float]:
    """Shares of samples in which the judge finds what the prompt asked for, and the CLIP score."""
    scenes = sample_scenes(count, seed=99)
    judge, clip = load_judge(), load_clip("demo")
    objects, order, scores = [], [], []
    for start in range(0, count, 50):
        chunk = scenes[start : start + 50]
        captions = [scene.caption for scene in chunk]
        seeds = [10_000 + start + index for index in range(len(chunk))]
        images = torch.from_numpy(to_uint8(call_pipeline(pipeline, prompts=captions, seeds=seeds, settings=settings))[0])
        with torch.no_grad():
            readings = read(judge(images.float() / 255), chunk)
        objects.append(readings.objects)
        order.append(readings.order)
        scores.append(clip_scores(clip.image_embeds(images), clip.text_embeds(captions)))
    single = torch.tensor([scene.second is None for scene in scenes])
    right, ordered = torch.cat(objects).double(), torch.cat(order).double()
    return {
        "prompts": count,
        "one_object_right": float(right[single].mean()),
        "two_objects_right": float(right[~single].mean()),
        "two_objects_in_order": float(ordered[~single].mean()),
        "clip_score": float(torch.cat(scores).mean()),
    }


def attention(pipeline: object, settings: Settings) -> dict[str, float]:
    """In the named layer: IoU of noun maps with the object drawn, and the share of prompts whose token entropy falls."""
    run = run_attention(pipeline, phrases("demo", 96), settings)
    pixels = run.images.float() / 255
    masks = pixels.amax(1) - pixels.amin(1) > 0.25  # the background is grey, the objects are not
    iou = area_matched_iou(run.token_maps(NAMED_LAYER, [phrase.noun for phrase in run.phrases]), masks)
    chance = masks.double().mean()
    curves, span = run.entropies(NAMED_LAYER), max(1, settings.steps // 5)
    falls = curves[-span:].mean(0) < curves[:span].mean(0)
    return {
        "noun_iou": float(iou.mean()),
        "noun_iou_by_chance": float(chance / (2 - chance)),
        "entropy_falls": float(falls.double().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    settings = replace(resolve(options={"model": "demo"}, ini={})[0], model=options.model)
    text = json.dumps(evaluate(settings, num_prompts=options.prompts), indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
