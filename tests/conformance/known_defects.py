"""Defects of the installed diffusers, by class: the checks that fail and why. `docs/findings.md` has a reproduction of each."""

LAST = "N = T rounds two timesteps together: equal sigmas, and samples that are not numbers (findings, 1)"
UNPLANNED = "add_noise before set_timesteps reads the sigmas in reverse (findings, 2)"
VELOCITY = "get_velocity looks up the schedule by the position in the plan (findings, 3)"
FLOW_HEUN = "scale_noise remembers the first timestep that it was asked (findings, 4)"
LMS = "a start in the middle drops terms of the multistep sum (findings, 5)"
WRITES = "set_timesteps writes lower_order_final into the configuration (findings, 6)"
COGVIDEO = "eta and clip_sample are documented and never read (findings, 7)"
TCD = "the last step ends at timestep 0, not at final_alpha_cumprod (findings, 8)"
VARIANCE = "an unknown variance_type is taken without a word (findings, 9)"
SPACING = "timestep_spacing is documented and never read (findings, 10)"
SIGMA_SCHEDULE = "an unknown sigma_schedule dies with UnboundLocalError (findings, 11)"
PICKLE = "a lambda in the object cannot be pickled (findings, 12)"
LIST = "a list of sigmas is documented and not taken (findings, 13)"
HELIOS = "set_timesteps without stage_index dies with KeyError (findings, 14)"
UNCLIP = "one inference step divides by zero (findings, 15)"
SDE_3 = "the third-order SDE update is of first order (findings, 16)"
LOG_LINEAR = "log_linear plans one sigma too many, and timesteps of another grid (findings, 18)"
RANK_2 = "thresholding does not take samples of rank 2 (findings, 20)"
ONE_STEP = "one inference step is not a number (findings, 21)"
SHIFT_TERMINAL = "one inference step divides by zero (findings, 22)"
ZERO_SNR_SIGMAS = "at N = T the noisiest sigma is below the next one (findings, 23)"
THRESHOLDING = "thresholding with noise predictions mixes up all timesteps (findings, 24)"
LARGE_LAST = "the last step adds noise unless its timestep is 0 (findings, 25)"
TIME_SHIFT = "an unknown time_shift_type dies without a word about it (findings, 26)"
BAD_COUNTS = "trailing spacing plans n + 1 timesteps at 62 numbers of steps, the first of them 61 (findings, 27)"
MU = "set_timesteps writes mu into the configuration (findings, 28)"
COLLIDES = "at N = T rounded timesteps collide, and the loop starts at the second (findings, 29)"
SINGLE_SDE = "the single-step SDE solver is of weak order 1 (findings, 30)"
LAPLACE = "laplace betas are those of the square root of ᾱ (findings, 32)"
CHURN = "churn raises the noise of a sample whose model was asked before (findings, 33)"
UNDO = "undo_step noises by the betas of the step before it (findings, 34)"
CUT_OFF = "whole timesteps of exponential and beta sigmas are cut off, not rounded (findings, 35)"
DEIS_3 = "the coefficients of the third order lose their digits: the error grows with more steps (findings, 43)"
H3 = "set_timesteps(n) plans n - 1 steps, as it documents"
SCM = "step casts its samples to float32 (findings, 31)"
OTHER_LOOP = "its pipelines leave the last timestep out, where step dies (names_end=True)"
TOKENS = "it draws token ids, for which the suite has no law"
OTHER_STEP = "its step takes other arguments than a sampling loop has"
OTHER_MODEL = "its model has outputs of another form"
CANCELLED = "float32 cancellation in sigma_up (#14213)"
PNDM = "raw velocities of different times are combined (#14816)"

KNOWN = {
    "BlockRefinementScheduler": {"runs": TOKENS},
    "CogVideoXDDIMScheduler": {"noise_amount": COGVIDEO, "thresholding": COGVIDEO},
    "CosineDPMSolverMultistepScheduler": {"copies_behave": PICKLE, "unknown_values_refused": SIGMA_SCHEDULE},
    "DDPMParallelScheduler": {"unknown_values_refused": VARIANCE, "named_betas": LAPLACE},
    "DDPMScheduler": {"unknown_values_refused": VARIANCE, "named_betas": LAPLACE},
    "DDPMWuerstchenScheduler": {"runs": OTHER_LOOP},
    "DEISMultistepScheduler": {"runs": LAST, "forward_is_pure": UNPLANNED},
    "DPMSolverMultistepInverseScheduler": {"runs": LAST},
    "DPMSolverMultistepScheduler": {"runs": LAST, "forward_is_pure": UNPLANNED},
    "DPMSolverSDEScheduler": {"copies_behave": PICKLE},
    "DPMSolverSinglestepScheduler": {"timesteps_well_formed": LAST, "forward_is_pure": UNPLANNED, "config_untouched": WRITES},
    "DiscreteDDIMScheduler": {"runs": TOKENS},
    "EDMDPMSolverMultistepScheduler": {"unknown_values_refused": SIGMA_SCHEDULE},
    "EDMEulerScheduler": {"argument_types": LIST, "churn": CHURN},
    "EntropyBoundScheduler": {"runs": TOKENS},
    "EulerAncestralDiscreteScheduler": {"runs": CANCELLED},
    "EulerDiscreteScheduler": {"velocity": VELOCITY, "churn": CHURN},
    "FlowMatchHeunDiscreteScheduler": {"forward_is_pure": FLOW_HEUN, "churn": CHURN},
    "HeliosDMDScheduler": {"runs": HELIOS},
    "HeliosScheduler": {"runs": HELIOS},
    "KarrasVeScheduler": {"runs": OTHER_STEP},
    "LCMScheduler": {"unknown_values_refused": SPACING},
    "LMSDiscreteScheduler": {"partial_start": LMS},
    "MiniMaxH3Scheduler": {"timesteps_well_formed": H3},
    "PiflowScheduler": {"runs": OTHER_MODEL},
    "PNDMScheduler": {"prediction_types_agree": PNDM},
    "RePaintScheduler": {"undo_step": UNDO},
    "SASolverScheduler": {"runs": LAST, "copies_behave": PICKLE},
    "SCMScheduler": {"runs": OTHER_LOOP},
    "TCDScheduler": {"terminal_step": TCD, "unknown_values_refused": SPACING},
    "UnCLIPScheduler": {"runs": UNCLIP},
    "UniPCMultistepScheduler": {"runs": LAST, "forward_is_pure": UNPLANNED},
}
"""Class name to check to reason, for the class's defaults: the table of expected failures, held strictly."""

NO_DEFECTS = {TOKENS, OTHER_LOOP, OTHER_STEP, OTHER_MODEL, H3}
"""Reasons that are no defects: what the suite cannot drive, and what is documented."""

ALWAYS = {
    "DDPMScheduler": {"named_betas": LAPLACE},
    "EDMEulerScheduler": {"churn": CHURN},
    "EulerDiscreteScheduler": {"churn": CHURN},
    "FlowMatchHeunDiscreteScheduler": {"churn": CHURN},
}
"""What fails in every configuration of a class in which a loop runs; `KNOWN` has it for the defaults."""


def with_always(name, expected):
    """What is expected of a class in a configuration, with what is expected of it in all."""
    return expected if "runs" in expected else {**ALWAYS.get(name, {}), **expected}


NOT_MADE_BARE = {"AmusedScheduler", "RFD4ProteinaScheduler", "VQDiffusionScheduler"}
"""Classes whose constructor needs arguments; they draw tokens and protein frames, for which the suite has no law."""


def known_in(scheduler_class):
    """What a class inherits."""
    return {check for one in scheduler_class.__mro__ for check in KNOWN.get(one.__name__, {})}
