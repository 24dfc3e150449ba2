"""Tests that say whether a diffusion model is good enough to ship.

Importing this package imports nothing heavy: public names are looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "pytest_diffusion.conformance": ("check_scheduler", "parametrize_with_scheduler_checks", "scheduler_checks"),
    "pytest_diffusion.verdicts.errors": (
        "ConformanceFailure",
        "InconclusiveFailure",
        "ModelError",
        "NotApplicable",
        "QualityFailure",
        "SettingsError",
        "SetupError",
    ),
    "pytest_diffusion.verdicts.verdict": ("Limits", "Measurement", "Verdict", "judge"),
    "pytest_diffusion.config.thresholds": ("Thresholds", "load_thresholds"),
    "pytest_diffusion.maths.diversity": ("vendi_score",),
    "pytest_diffusion.maths.feature_statistics": ("FeatureStatistics",),
    "pytest_diffusion.maths.frechet": ("frechet_distance", "frechet_distance_infinity"),
    "pytest_diffusion.maths.kernel": ("cmmd", "kernel_distance", "kernel_distance_subsets"),
    "pytest_diffusion.maths.manifold": (
        "DensityCoverage",
        "ManifoldScores",
        "PrecisionRecall",
        "density_coverage",
        "manifold_scores",
        "precision_recall",
    ),
    "pytest_diffusion.maths.memorisation": ("Memorisation", "memorisation"),
    "pytest_diffusion.verdicts.protocol": ("ProtocolMismatchError", "difference"),
    "pytest_diffusion.maths.scores": ("clip_score", "clip_scores", "inception_score"),
    "pytest_diffusion.maths.statistics": ("Estimate",),
    "pytest_diffusion.maths.interpolation": ("slerp",),
    "pytest_diffusion.models.schedulers": ("log_snr",),
    "pytest_diffusion.attention.recorder": ("record_attention",),
    "pytest_diffusion.analytic.registry": ("create_model", "register_model"),
    "pytest_diffusion.analytic.base": ("AnalyticModel", "SamplingOutput"),
    "pytest_diffusion.analytic.compare": ("Denoisers", "TrajectoryComparison", "compare_trajectories", "epsilon_loss"),
    "pytest_diffusion.checks.assertions": (
        "assert_alphas_cumprod_monotonic",
        "assert_attention_compact",
        "assert_attention_is_conditional",
        "assert_attention_is_cross",
        "assert_attention_localises",
        "assert_attention_not_uniform",
        "assert_attention_noun_specific",
        "assert_attention_rows_sum",
        "assert_attention_sharpens",
        "assert_attention_tokens_differ",
        "assert_batch_invariance",
        "assert_betas_in_range",
        "assert_channel_order",
        "assert_clip_score_above",
        "assert_cmmd_below",
        "assert_coverage_above",
        "assert_denoising_loss_below",
        "assert_density_above",
        "assert_fid_below",
        "assert_fid_infinity_below",
        "assert_finite_images",
        "assert_forward_marginals",
        "assert_guidance_effect",
        "assert_guidance_linearity",
        "assert_inception_score_above",
        "assert_kid_below",
        "assert_latent_channels",
        "assert_latent_scale",
        "assert_latent_shift",
        "assert_latent_std",
        "assert_log_snr_first",
        "assert_log_snr_last",
        "assert_log_snr_midway",
        "assert_log_snr_range",
        "assert_modifier_noun_overlap",
        "assert_no_constant_images",
        "assert_no_duplicate_images",
        "assert_no_memorisation",
        "assert_not_grey",
        "assert_ood_auroc_above",
        "assert_ood_false_alarms_below",
        "assert_pipeline_decodes",
        "assert_precision_above",
        "assert_prompt_sensitivity",
        "assert_recall_above",
        "assert_reference_images",
        "assert_same_resolution",
        "assert_same_seed",
        "assert_seeds_differ",
        "assert_semantic_direction",
        "assert_semantic_direction_chance",
        "assert_semantic_strength",
        "assert_sigmas_monotonic",
        "assert_slerp_drift",
        "assert_slerp_no_detour",
        "assert_slerp_no_zigzag",
        "assert_slerp_smooth",
        "assert_timesteps_well_formed",
        "assert_trajectory_agrees",
        "assert_vae_psnr_above",
        "assert_vae_ssim_above",
        "assert_value_range",
        "assert_vendi_score_above",
    ),
}
_HOME = {name: module for module, names in _PLACES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pytest_diffusion' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
