"""Assertion helpers, one for each check: the same measure, judge, record and raise as the checklist."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pytest_diffusion.checks import (
    attention,
    colours,
    denoising,
    determinism,
    directions,
    distances,
    guards,
    latents,
    manifolds,
    outliers,
    paths,
    schedule,
    scores,
    vae,
    words,
)
from pytest_diffusion.checks.registry import CHECKS
from pytest_diffusion.checks.run import enforce, run_check
from pytest_diffusion.config.thresholds import Thresholds, load_thresholds
from pytest_diffusion.verdicts.verdict import Limits, Measurement, Verdict


def _helper(function: Callable[..., Measurement]) -> Callable[..., Verdict]:
    """The `assert_*` form of a check: its parameters, then the limits as keywords."""
    one = CHECKS[function.__name__]

    def helper(
        *args: Any,
        at_least: float | None = None,
        at_most: float | None = None,
        min_samples: int | None = None,
        thresholds: str | Thresholds = "default",
        **kwargs: Any,
    ) -> Verdict:
        __tracebackhide__ = True
        table = load_thresholds([thresholds]) if isinstance(thresholds, str) else thresholds
        limits = table.for_check(one.name) or Limits()
        if at_least is not None or at_most is not None:
            # The caller's limit stands alone, and so do the sample counts it is meant for.
            limits = Limits(at_least, at_most, source="the caller", origin="call")
        if min_samples is not None:
            limits = replace(limits, min_samples=min_samples, min_reference=min(limits.min_reference, min_samples))
        own = replace(table, limits={**table.limits, one.name: limits})
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
        # An assertion that saw nothing, or has no limit, must not look like one that held.
        return enforce(run_check(one, dict(arguments), own, must_judge=True))

    keywords = ("at_least", "at_most", "min_samples", "thresholds")
    own = [parameter for name, parameter in inspect.signature(helper).parameters.items() if name in keywords]
    helper.__signature__ = inspect.Signature([*inspect.signature(function).parameters.values(), *own], return_annotation=Verdict)  # type: ignore[attr-defined]
    helper.__doc__ = (
        f"Assert: {one.title}.\n\n{inspect.getdoc(function)}\n\n"
        f"Judged as the check `{one.name}`: by `at_least` and `at_most` where given, else by the thresholds file.\n"
        "Raises QualityFailure, or InconclusiveFailure when the samples cannot decide. Returns the verdict."
    )
    return helper


assert_finite_images = _helper(guards.finite_images)
assert_no_constant_images = _helper(guards.constant_images)
assert_no_duplicate_images = _helper(guards.duplicate_images)
assert_same_resolution = _helper(guards.same_resolution)
assert_reference_images = _helper(colours.reference_images)
assert_value_range = _helper(colours.value_range)
assert_channel_order = _helper(colours.channel_order)
assert_not_grey = _helper(colours.grey_images)
assert_fid_below = _helper(distances.fid)
assert_fid_infinity_below = _helper(distances.fid_infinity)
assert_kid_below = _helper(distances.kid)
assert_cmmd_below = _helper(distances.cmmd)
assert_density_above = _helper(manifolds.density)
assert_coverage_above = _helper(manifolds.coverage)
assert_vendi_score_above = _helper(scores.vendi_score)
assert_no_memorisation = _helper(manifolds.memorisation)
assert_precision_above = _helper(manifolds.precision)
assert_recall_above = _helper(manifolds.recall)
assert_inception_score_above = _helper(scores.inception_score)
assert_clip_score_above = _helper(scores.clip_score)
assert_alphas_cumprod_monotonic = _helper(schedule.alphas_cumprod_monotonic)
assert_betas_in_range = _helper(schedule.betas_in_range)
assert_sigmas_monotonic = _helper(schedule.sigmas_monotonic)
assert_log_snr_first = _helper(schedule.log_snr_first)
assert_log_snr_last = _helper(schedule.log_snr_last)
assert_log_snr_midway = _helper(schedule.log_snr_midway)
assert_timesteps_well_formed = _helper(schedule.timesteps_well_formed)
assert_forward_marginals = _helper(denoising.forward_marginals)
assert_denoising_loss_below = _helper(denoising.denoising_loss)
assert_trajectory_agrees = _helper(denoising.trajectory_agreement)
assert_attention_is_cross = _helper(attention.attention_is_cross)
assert_attention_is_conditional = _helper(attention.attention_is_conditional)
assert_attention_rows_sum = _helper(attention.attention_rows_sum)
assert_attention_not_uniform = _helper(attention.attention_not_uniform)
assert_attention_compact = _helper(words.attention_compact)
assert_attention_noun_specific = _helper(words.attention_noun_specific)
assert_attention_localises = _helper(words.attention_localises)
assert_modifier_noun_overlap = _helper(words.modifier_noun_overlap)
assert_attention_tokens_differ = _helper(words.attention_tokens_differ)
assert_attention_sharpens = _helper(attention.attention_sharpens)
assert_vae_psnr_above = _helper(vae.vae_psnr)
assert_vae_ssim_above = _helper(vae.vae_ssim)
assert_latent_std = _helper(vae.latent_std)
assert_pipeline_decodes = _helper(vae.pipeline_decodes)
assert_latent_scale = _helper(latents.latent_scale)
assert_latent_shift = _helper(latents.latent_shift)
assert_latent_channels = _helper(latents.latent_channels)
assert_slerp_smooth = _helper(paths.slerp_smooth)
assert_slerp_drift = _helper(paths.slerp_drift)
assert_slerp_no_detour = _helper(paths.slerp_detour)
assert_slerp_no_zigzag = _helper(paths.slerp_curvature)
assert_semantic_direction = _helper(directions.semantic_direction)
assert_semantic_direction_chance = _helper(directions.semantic_direction_chance)
assert_semantic_strength = _helper(directions.semantic_strength)
assert_ood_auroc_above = _helper(outliers.ood_auroc)
assert_ood_false_alarms_below = _helper(outliers.ood_false_alarms)
assert_no_unused_tensors = _helper(determinism.unused_tensors)
assert_same_seed = _helper(determinism.same_seed)
assert_batch_invariance = _helper(determinism.batch_invariance)
assert_seeds_differ = _helper(determinism.seeds_differ)
assert_prompt_sensitivity = _helper(determinism.prompt_sensitivity)
assert_guidance_effect = _helper(determinism.guidance_effect)
assert_guidance_linearity = _helper(determinism.guidance_linearity)


def assert_log_snr_range(scheduler: Any, *, thresholds: str | Thresholds = "default") -> tuple[Verdict, Verdict]:
    """Assert that log-SNR starts and ends within the limits of a thresholds preset; returns both verdicts."""
    __tracebackhide__ = True
    return assert_log_snr_first(scheduler, thresholds=thresholds), assert_log_snr_last(scheduler, thresholds=thresholds)
