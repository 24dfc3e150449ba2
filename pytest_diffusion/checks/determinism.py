"""Checks for every model: seeds decide the image, batches do not, and guidance works as documented."""

from __future__ import annotations

from typing import Any

import torch

from pytest_diffusion.checks.registry import check
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import NotApplicable
from pytest_diffusion.verdicts.verdict import Measurement

ROUNDING_UNITS = 2
"""Units in the last place of the latents that rounding explains."""


@check(
    "always",
    "every stored tensor is used",
    figure="stored tensors that no part of the pipeline uses",
    sees="LoRA weights that were saved beside a model and never loaded, weights of another architecture",
    blind_to="pipelines that your own code builds, and single files; missing tensors are refused before anything is judged",
)
def unused_tensors(pipeline: Any) -> Measurement:
    """Number of tensors in a checkpoint's files that no part of the loaded pipeline uses."""
    report = getattr(pipeline, "load_report", None)
    if report is None:
        raise NotApplicable("the pipeline was not loaded from a folder or a repository, so its files are not known.")
    return Measurement(report.count, "number of unused tensors", hint=f"{report.text}." if report.count else "")


@check(
    "always",
    "the same seed gives the same image",
    figure="largest difference between two equal runs",
    sees="randomness that does not come from the generator",
    blind_to="other machines and other batch sizes",
)
def same_seed(trials: Trials) -> Measurement:
    """Largest difference in 8-bit levels between two runs with the same seeds and batch."""
    difference = (trials.plain.int() - trials.again.int()).abs()
    changed = int((difference.flatten(1).amax(1) > 0).sum())
    hint = f"{changed} of {len(difference)} images changed: something draws from another source than the generator." if changed else ""
    return Measurement(int(difference.max()), "largest difference", "levels", num_samples=len(difference), hint=hint)


@check(
    "always",
    "an image does not depend on its batch",
    figure="mean difference between batches of four and of one",
    sees="samples of a batch that influence one another",
    blind_to="more than half a level in reduced precision (bfloat16, float16, TF32) is reported only: rounding may explain it",
)
def batch_invariance(trials: Trials) -> Measurement:
    """Mean difference in 8-bit levels between samples made four at a time and one by one."""
    difference = (trials.plain.int() - trials.one_by_one.int()).abs()
    worst, value = int(difference.flatten(1).float().mean(1).argmax()), float(difference.float().mean())
    rounds = trials.coarse_rounding
    return Measurement(
        value,
        "mean difference between batch sizes",
        "levels",
        num_samples=len(difference),
        hint=f"Sample {worst} changes most: a layer or the scheduler mixes the samples of a batch.",
        series={"largest": int(difference.max())},
        unjudged=f"rounding in {rounds} may explain it, since it grows over the steps; run the check in float32 to decide."
        if rounds and value > 0.5
        else "",
    )


@check(
    "always",
    "different seeds give different images",
    figure="smallest mean difference between seeds",
    sees="a generator without effect",
    blind_to="how different images are in content",
)
def seeds_differ(trials: Trials) -> Measurement:
    """Smallest mean difference in 8-bit levels between images of one prompt at different seeds."""
    seeds, made = trials.of_one_prompt
    images = made.float()
    pairs = torch.combinations(torch.arange(len(images)))
    differences = (images[pairs[:, 0]] - images[pairs[:, 1]]).abs().flatten(1).mean(1)
    closest = pairs[int(differences.argmin())].tolist()
    return Measurement(
        float(differences.min()),
        "smallest mean difference between seeds",
        "levels",
        num_samples=len(images),
        hint=f"Seeds {seeds[closest[0]]} and {seeds[closest[1]]} give almost the same image: is the generator used?",
    )


@check(
    "always",
    "different prompts give different images",
    figure="smallest mean difference between two prompts at the same seed",
    sees="a prompt without effect, also in models without guidance",
    blind_to="whether the images show what the prompts say",
)
def prompt_sensitivity(trials: Trials) -> Measurement:
    """Mean difference in 8-bit levels between images of two prompts at the same seed; the smallest over four seeds."""
    (one, other), sides = trials.of_two_prompts, list(trials.of_two_prompts.values())
    differences = (sides[0].float() - sides[1].float()).abs().flatten(1).mean(1)
    return Measurement(
        float(differences.min()),
        "smallest mean difference between prompts",
        "levels",
        num_samples=len(differences),
        hint=f"{one!r} and {other!r} give almost the same image: the prompt has no effect.",
    )


@check(
    "always",
    "guidance has an effect",
    figure="change of the latents when guidance goes from 1 to 5",
    sees="a prompt without effect",
    blind_to="skipped for distilled models and for pipelines without callback_on_step_end",
)
def guidance_effect(trials: Trials) -> Measurement:
    """Relative change of the latents after one step when guidance_scale goes from 1 to 5."""
    low, high = trials.first_step(1.0), trials.first_step(5.0)
    return Measurement(
        float((high - low).norm() / low.norm()),
        "relative change by guidance",
        num_samples=len(low),
        hint="The conditional and the unconditional prediction are the same: the prompt has no effect.",
    )


@check(
    "always",
    "guidance is linear in its scale",
    figure="deviation from a line at guidance 2, 4 and 6, after one step, beyond rounding",
    sees="guidance that is rescaled or clipped",
    blind_to="later steps; skipped for distilled models and for pipelines without callback_on_step_end",
)
def guidance_linearity(trials: Trials) -> Measurement:
    """Deviation from a straight line of the latents after one step at guidance_scale 2, 4 and 6.

    The part that rounding in the model's dtype explains (two units in the last place of the latents) is subtracted.
    """
    two, four, six = (trials.first_step(scale) for scale in (2.0, 4.0, 6.0))
    span = (six - two).norm()
    if float(span) == 0:
        raise NotApplicable("guidance has no effect, so there is no line to follow (see guidance_effect).")
    dtype = trials.denoiser_dtype
    rounding = ROUNDING_UNITS * torch.finfo(dtype).eps * four.norm()
    if rounding > span / 4:
        raise NotApplicable(f"rounding in {dtype} hides the effect of guidance in one of {trials.settings.steps} steps; try float32.")
    return Measurement(
        float(((six - 2 * four + two).norm() - rounding).clamp(min=0) / span),
        "relative deviation from a line",
        num_samples=len(two),
        hint="The prediction is rescaled or clipped after guidance (guidance_rescale, thresholding).",
    )
