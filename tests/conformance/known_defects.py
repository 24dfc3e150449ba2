"""Defects of the installed diffusers, by class: the checks that fail and why. `docs/findings.md` has a reproduction of each."""

_LAST = "N = T rounds two timesteps together: equal sigmas, and not-a-number samples (findings, 1)"
_UNPLANNED = "add_noise before set_timesteps reads the sigmas in reverse (findings, 2)"
_VARIANCE = "an unknown variance_type is taken without a word (findings, 9)"
_SPACING = "timestep_spacing is documented and never read (findings, 10)"
_PICKLE = "a lambda in the object cannot be pickled (findings, 12)"
_SIGMA_SCHEDULE = "an unknown sigma_schedule dies with UnboundLocalError (findings, 11)"

KNOWN = {
    "CogVideoXDDIMScheduler": {
        "noise_amount": "eta is documented and never read (findings, 7)",
        "thresholding": "clip_sample is documented and never read (findings, 7)",
    },
    "CosineDPMSolverMultistepScheduler": {"copies_behave": _PICKLE, "unknown_values_refused": _SIGMA_SCHEDULE},
    "DDPMParallelScheduler": {"unknown_values_refused": _VARIANCE},
    "DDPMScheduler": {"unknown_values_refused": _VARIANCE},
    "DEISMultistepScheduler": {"timesteps_well_formed": _LAST, "forward_is_pure": _UNPLANNED},
    "DPMSolverMultistepInverseScheduler": {"timesteps_well_formed": _LAST},
    "DPMSolverMultistepScheduler": {"timesteps_well_formed": _LAST, "forward_is_pure": _UNPLANNED},
    "DPMSolverSDEScheduler": {"copies_behave": _PICKLE},
    "DPMSolverSinglestepScheduler": {
        "timesteps_well_formed": _LAST,
        "forward_is_pure": _UNPLANNED,
        "config_untouched": "set_timesteps writes lower_order_final (findings, 6)",
    },
    "EDMDPMSolverMultistepScheduler": {"unknown_values_refused": _SIGMA_SCHEDULE},
    "EDMEulerScheduler": {"argument_types": "a list of sigmas is documented and not taken (findings, 13)"},
    "EulerDiscreteScheduler": {"velocity": "get_velocity looks up ᾱ by the position in the plan (findings, 3)"},
    "FlowMatchHeunDiscreteScheduler": {"forward_is_pure": "scale_noise remembers the first timestep that it was asked (findings, 4)"},
    "HeliosDMDScheduler": {"runs": "set_timesteps without stage_index dies with KeyError (findings, 14)"},
    "HeliosScheduler": {"runs": "set_timesteps without stage_index dies with KeyError (findings, 14)"},
    "LCMScheduler": {"unknown_values_refused": _SPACING},
    "LMSDiscreteScheduler": {"partial_start": "a start in the middle drops terms of the multistep sum (findings, 5)"},
    "PNDMScheduler": {"prediction_types_agree": "raw velocities of different times are combined (#14816)"},
    "SASolverScheduler": {"timesteps_well_formed": _LAST, "copies_behave": _PICKLE},
    "TCDScheduler": {
        "terminal_step": "the last step ends at timestep 0, not at final_alpha_cumprod (findings, 8)",
        "unknown_values_refused": _SPACING,
    },
    "UnCLIPScheduler": {"runs": "one inference step divides by zero (findings, 15)"},
    "UniPCMultistepScheduler": {"timesteps_well_formed": _LAST, "forward_is_pure": _UNPLANNED},
}
"""Class name to check to reason; the class's defaults."""


def known_in(scheduler_class):
    """What a class inherits."""
    return {check for one in scheduler_class.__mro__ for check in KNOWN.get(one.__name__, {})}
