"""Documented configurations and those of released checkpoints, each with all that is known to fail in it, and why."""

import json
from pathlib import Path

import diffusers

from tests.conformance import known_defects as known

_LINSPACE = "steps go to t - T // N, not to the next timestep (#11347, #12633)"
_OFFSET = "leading spacing with an offset reaches T at N = T (#10003)"
_TWICE = "the last sigma is appended twice: the final step does nothing (findings, 17)"
_LEADING = "leading spacing divides by N + 1, and starts late (findings, 19)"
_STATIC_SHIFT = "the static shift is applied twice to sigma_min (#13243)"
_COLLIDING = "rounded timesteps collide (#12771)"
_ZERO_SNR_ETA = "eta=1 at zero terminal SNR takes the root of a negative number (#5969)"

_DYNAMIC = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}

CONFIGURATIONS = [
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, "use_karras_sigmas": True}, {"velocity": known.VELOCITY}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, {"velocity": known.VELOCITY}),
    (
        "EulerDiscreteScheduler",
        {"interpolation_type": "log_linear"},
        {"timesteps_match_sigmas": known.LOG_LINEAR, "terminal_step": known.LOG_LINEAR},
    ),
    ("EulerAncestralDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {"runs": known.CANCELLED}),
    ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("DPMSolverSDEScheduler", {"use_karras_sigmas": True}, {"copies_behave": known.PICKLE}),
    ("DPMSolverSDEScheduler", {"use_beta_sigmas": True, "noise_sampler_seed": 1}, {"copies_behave": known.PICKLE}),
    ("DDIMScheduler", {"num_train_timesteps": 100}, {}),
    ("DDIMScheduler", {"trained_betas": [0.0001 + 0.00002 * index for index in range(1000)]}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}, {"point_mass_preserved": _LINSPACE}),
    ("DDIMScheduler", {"thresholding": True, "prediction_type": "v_prediction"}, {"ranks": known.RANK_2}),
    (
        "DDPMScheduler",
        {"variance_type": "fixed_large"},
        {"unknown_values_refused": known.VARIANCE, "given_timesteps": known.LARGE_LAST},
    ),
    (
        "DDPMScheduler",
        {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
        {"unknown_values_refused": known.VARIANCE, "terminal_step": known.LARGE_LAST, "timesteps_well_formed": known.BAD_COUNTS},
    ),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, {"runs": "the square root of a log-variance (#14569)"}),
    ("DDPMScheduler", {"timestep_spacing": "linspace", "beta_schedule": "sigmoid"}, {"unknown_values_refused": known.VARIANCE}),
    (
        "PNDMScheduler",
        {"skip_prk_steps": True, "steps_offset": 1},
        {"runs": _OFFSET, "prediction_types_agree": known.PNDM},
    ),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {"forward_is_pure": known.UNPLANNED}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, {"forward_is_pure": known.UNPLANNED}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, {"forward_is_pure": known.UNPLANNED}),
    (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "trailing", "euler_at_final": True},
        {"forward_is_pure": known.UNPLANNED, "timesteps_well_formed": known.BAD_COUNTS},
    ),
    (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"runs": known.COLLIDES},
    ),
    (
        "DPMSolverSinglestepScheduler",
        {"solver_order": 3, "use_exponential_sigmas": True},
        {"forward_is_pure": known.UNPLANNED, "config_untouched": known.WRITES, "timesteps_are_nearest": known.CUT_OFF},
    ),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "use_karras_sigmas": True}, {"runs": known.ONE_STEP}),
    (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"argument_types": known.LIST, "runs": known.COLLIDES},
    ),
    # In float32 its second step is off by 3e-4 of the noise, from the rounding of the first one at σ/α = 20,000.
    # In float16 the square of that σ is infinite, and noising returns zeros.
    (
        "UniPCMultistepScheduler",
        {"beta_schedule": "squaredcos_cap_v2"},
        {"runs": known.LAST, "forward_is_pure": known.UNPLANNED, "dtype_kept": "noising in float16 returns zeros where σ/α is above 256"},
    ),
    ("DEISMultistepScheduler", {"use_karras_sigmas": True}, {"sigmas_fall": _TWICE}),
    ("SASolverScheduler", {"use_karras_sigmas": True}, {"sigmas_fall": _TWICE, "copies_behave": known.PICKLE}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"timesteps_cover": _STATIC_SHIFT}),
    ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, {"runs": known.SHIFT_TERMINAL}),
    ("FlowMatchLCMScheduler", {"shift": 3.0}, {"timesteps_cover": _STATIC_SHIFT}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {"unknown_values_refused": known.SIGMA_SCHEDULE}),
    ("LCMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {"unknown_values_refused": known.SPACING}),
    (
        "EulerDiscreteScheduler",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"sigmas_fall": known.ZERO_SNR_SIGMAS, "velocity": known.VELOCITY, "timesteps_well_formed": known.BAD_COUNTS},
    ),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, {"sigmas_fall": _TWICE}),
    (
        "EulerAncestralDiscreteScheduler",
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"timesteps_well_formed": known.BAD_COUNTS},
    ),
    (
        "KDPM2AncestralDiscreteScheduler",
        {"beta_schedule": "squaredcos_cap_v2"},
        {"runs": known.CANCELLED, "timesteps_well_formed": known.CANCELLED},
    ),
    ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}, {}),
    (
        "DDIMScheduler",
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        {"runs": _OFFSET},
    ),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, {"point_mass_preserved": _LINSPACE, "timesteps_well_formed": known.BAD_COUNTS}),
    (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {
            "point_mass_preserved": _LINSPACE,
            "noise_amount": _ZERO_SNR_ETA,
            "dtype_kept": _ZERO_SNR_ETA,
            "timesteps_well_formed": known.BAD_COUNTS,
        },
    ),
    ("DDPMScheduler", {"variance_type": "fixed_small_log"}, {"unknown_values_refused": known.VARIANCE}),
    ("DDPMScheduler", {"variance_type": "learned_range"}, {"unknown_values_refused": known.VARIANCE}),
    (
        "DDPMScheduler",
        {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
        {"unknown_values_refused": known.VARIANCE, "timesteps_well_formed": known.BAD_COUNTS},
    ),
    ("PNDMScheduler", {"prediction_type": "v_prediction"}, {"point_mass_preserved": known.PNDM, "prediction_types_agree": known.PNDM}),
    (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "solver_order": 3, "prediction_type": "v_prediction"},
        {"forward_is_pure": known.UNPLANNED},
    ),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        {"runs": known.LAST, "forward_is_pure": known.UNPLANNED, "weak_convergence": known.SDE_3},
    ),
    (
        "DPMSolverMultistepScheduler",
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"runs": known.LAST, "timesteps_well_formed": _OFFSET, "timesteps_cover": _LEADING, "forward_is_pure": known.UNPLANNED},
    ),
    (
        "DPMSolverMultistepScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
        {"runs": _COLLIDING},
    ),
    ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}, {"forward_is_pure": known.UNPLANNED, "config_untouched": known.WRITES}),
    (
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        {"forward_is_pure": known.UNPLANNED, "config_untouched": known.WRITES, "weak_convergence": known.SINGLE_SDE},
    ),
    ("UniPCMultistepScheduler", {"solver_order": 3, "predict_x0": False}, {"runs": known.ONE_STEP}),
    (
        "UniPCMultistepScheduler",
        {"timestep_spacing": "leading"},
        {"runs": known.LAST, "timesteps_cover": _LEADING, "forward_is_pure": known.UNPLANNED},
    ),
    (
        "DEISMultistepScheduler",
        {"solver_order": 3},
        {"runs": known.LAST, "forward_is_pure": known.UNPLANNED, "convergence_order": known.DEIS_3},
    ),
    (
        "SASolverScheduler",
        {"algorithm_type": "noise_prediction"},
        {"runs": known.LAST, "thresholding": known.THRESHOLDING, "copies_behave": known.PICKLE},
    ),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {}),
    ("FlowMatchLCMScheduler", {"use_dynamic_shifting": True}, {}),
    (
        "UniPCMultistepScheduler",
        _DYNAMIC,
        {"argument_types": known.LIST, "unknown_values_refused": known.TIME_SHIFT, "runs": known.COLLIDES},
    ),
    (
        "DPMSolverMultistepScheduler",
        _DYNAMIC,
        {"unknown_values_refused": known.TIME_SHIFT, "config_untouched": known.MU, "runs": known.COLLIDES},
    ),
    (
        "DPMSolverSinglestepScheduler",
        _DYNAMIC,
        {"unknown_values_refused": known.TIME_SHIFT, "config_untouched": known.WRITES, "runs": known.COLLIDES},
    ),
    (
        "DEISMultistepScheduler",
        _DYNAMIC,
        {"unknown_values_refused": known.TIME_SHIFT, "sigmas_fall": _TWICE, "config_untouched": known.MU, "runs": known.COLLIDES},
    ),
    ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, {"timesteps_cover": _STATIC_SHIFT, "forward_is_pure": known.FLOW_HEUN}),
    ("EDMEulerScheduler", {"sigma_schedule": "exponential", "prediction_type": "v_prediction"}, {"argument_types": known.LIST}),
    ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, {"unknown_values_refused": known.SIGMA_SCHEDULE}),
    (
        "CogVideoXDDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {
            "point_mass_preserved": _LINSPACE,
            "noise_amount": known.COGVIDEO,
            "thresholding": known.COGVIDEO,
            "timesteps_well_formed": known.BAD_COUNTS,
        },
    ),
]
"""Class, what differs from its defaults, and the checks that fail with their reasons."""

ZOO = {
    "ddpm-butterflies-128": {"unknown_values_refused": known.VARIANCE},
    "flux1-schnell": {},
    "stable-diffusion-3.5-large": {"timesteps_cover": _STATIC_SHIFT},
    "stable-diffusion-v1-5": {"runs": _OFFSET, "prediction_types_agree": known.PNDM},
    "stable-diffusion-xl-base-1.0": {"timesteps_well_formed": _OFFSET, "velocity": known.VELOCITY},
    "stable-video-diffusion-xt": {"velocity": known.VELOCITY},
}
"""Released checkpoint to what fails in its scheduler's configuration."""


def of_checkpoint(name):
    """The scheduler that a checkpoint was released with."""
    config = json.loads((Path(__file__).parents[1] / "data" / "zoo" / f"{name}.json").read_text())
    return getattr(diffusers, config["_class_name"]).from_config(config)
