"""Checks that hold for every model: seeds decide, batches do not, and guidance does what it says."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.checks.registry import check
from pytest_diffusion.models.load import denoiser, device_of, dtype_of, is_text_conditioned
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement


@check("always", "the same seed gives the same image")
def same_seed(trials: Any) -> Measurement:
    """Largest difference in 8-bit levels between two runs with the same seeds and batch."""
    difference = (trials.plain.int() - trials.run().int()).abs()
    changed = int((difference.flatten(1).amax(1) > 0).sum())
    hint = f"{changed} of {len(difference)} images changed: something draws from another source than the generator." if changed else ""
    return Measurement(int(difference.max()), "largest difference", "levels", num_samples=len(difference), hint=hint)


@check("always", "an image does not depend on its batch")
def batch_invariance(trials: Any) -> Measurement:
    """Mean difference in 8-bit levels between samples made four at a time and one by one."""
    alone = torch.cat([_alone(trials, index) for index in range(len(trials.plain))])
    difference = (trials.plain.int() - alone.int()).abs()
    worst, value = int(difference.flatten(1).float().mean(1).argmax()), float(difference.float().mean())
    rounds = _coarse_rounding(trials.pipeline)
    return Measurement(
        value,
        "mean difference between batch sizes",
        "levels",
        num_samples=len(difference),
        hint=f"Sample {worst} changes most: a layer or the scheduler mixes the samples of a batch.",
        series={"largest": int(difference.max())},
        unjudged=f"rounding in {rounds} may explain it, as it grows over the steps; float32 tells." if rounds and value > 0.5 else "",
    )


@check("always", "different seeds give different images")
def seeds_differ(trials: Any) -> Measurement:
    """Smallest mean difference in 8-bit levels between images of one prompt at different seeds."""
    seeds = [trials.seeds[0] + 1000 + index for index in range(4)]
    prompts = None if trials.prompts is None else [trials.prompts[0]]
    images = type(trials)(trials.pipeline, prompts, trials.settings).run(seeds=seeds).float()
    pairs = torch.combinations(torch.arange(len(images)))
    differences = (images[pairs[:, 0]] - images[pairs[:, 1]]).abs().flatten(1).mean(1)
    closest = pairs[int(differences.argmin())].tolist()
    return Measurement(
        float(differences.min()),
        "smallest mean difference between seeds",
        "levels",
        num_samples=len(images),
        hint=f"Seeds {seeds[closest[0]]} and {seeds[closest[1]]} give almost the same image: is the generator heard?",
    )


@check("always", "different prompts give different images")
def prompt_sensitivity(trials: Any) -> Measurement:
    """Mean difference in 8-bit levels between images of two prompts at the same seed; the smallest over four seeds."""
    if trials.prompts is None or not is_text_conditioned(trials.pipeline):
        raise NotApplicable(f"{type(trials.pipeline).__name__} is not conditioned on text.")
    distinct = list(dict.fromkeys(trials.prompts))
    if len(distinct) < 2:
        raise NotApplicable("all prompts are the same.")
    sides = [type(trials)(trials.pipeline, [prompt], trials.settings).run() for prompt in (distinct[0], distinct[len(distinct) // 2])]
    differences = (sides[0].float() - sides[1].float()).abs().flatten(1).mean(1)
    return Measurement(
        float(differences.min()),
        "smallest mean difference between prompts",
        "levels",
        num_samples=len(differences),
        hint=f"{distinct[0]!r} and {distinct[len(distinct) // 2]!r} give almost the same image: the prompt is not heard.",
    )


@check("always", "guidance has an effect")
def guidance_effect(trials: Any) -> Measurement:
    """Relative change of the latents after one step when guidance_scale goes from 1 to 5."""
    low, high = trials.first_step(1.0), trials.first_step(5.0)
    return Measurement(
        float((high - low).norm() / low.norm()),
        "relative change by guidance",
        num_samples=len(low),
        hint="The conditional and the unconditional prediction are the same: the prompt is not heard.",
    )


@check("always", "guidance is linear in its scale")
def guidance_linearity(trials: Any) -> Measurement:
    """Deviation from a straight line of the latents after one step at guidance_scale 2, 4 and 6.

    What rounding in the model's dtype explains (two units in the last place of the latents) is taken off.
    """
    two, four, six = (trials.first_step(scale) for scale in (2.0, 4.0, 6.0))
    span = (six - two).norm()
    if float(span) == 0:
        raise NotApplicable("guidance has no effect, so there is no line to follow (see guidance_effect).")
    part = denoiser(trials.pipeline)
    dtype = next(part.parameters()).dtype if part is not None else torch.float32
    rounding = 2 * torch.finfo(dtype).eps * four.norm()
    if rounding > span / 4:
        raise NotApplicable(f"rounding in {dtype} hides what guidance does in one of {trials.settings.steps} steps; try float32.")
    return Measurement(
        float(((six - 2 * four + two).norm() - rounding).clamp(min=0) / span),
        "relative deviation from a line",
        num_samples=len(two),
        hint="The prediction is rescaled or clipped after guidance (guidance_rescale, thresholding).",
    )


def _coarse_rounding(pipeline: Any) -> str:
    """The denoiser's arithmetic where it keeps three or four digits, else nothing."""
    dtype = dtype_of(pipeline)
    if dtype not in ("", "float32", "float64"):
        return dtype
    reduced = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return "TF32" if reduced and device_of(pipeline).type == "cuda" else ""


def _alone(trials: Any, index: int) -> torch.Tensor:
    """Sample `index` of the plain run, made in a batch of one."""
    prompts = None if trials.prompts is None else [trials.prompts[index % len(trials.prompts)]]
    images: torch.Tensor = type(trials)(trials.pipeline, prompts, trials.settings).run(seeds=[trials.seeds[index]])
    return images
