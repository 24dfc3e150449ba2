"""Mistakes of the inference grid."""

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, LCMScheduler
from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar

from tests.broken_schedulers import breaks
from tests.conformance.from_scratch import DDIM, Euler, FlowEuler


@breaks("timesteps_well_formed", because="arange with a rounded step gives N + 1 timesteps when N does not divide T (DDIM, #466)")
class OneTimestepTooMany(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        step = self.num_train_timesteps // num_inference_steps
        self.timesteps = torch.arange(0, self.num_train_timesteps, step).flip(0)


@breaks("timesteps_well_formed", because="an offset of one is added after the timesteps have reached T")
class OffByOne(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.timesteps = self.timesteps + 1

    def product(self, timestep):
        return super().product(min(timestep, torch.tensor(self.num_train_timesteps - 1)))


@breaks("timesteps_well_formed", because="rounding of linspace repeats a timestep for many steps (DPM-Solver, #2969)")
class RepeatedTimestep(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        grid = np.linspace(0, self.num_train_timesteps - 1, num_inference_steps + 1).round()[::-1][:-1]
        self.timesteps = torch.from_numpy(grid.copy()).long()


@breaks("timesteps_well_formed", because="timesteps are left in ascending order after a refactoring")
class Unsorted(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps > 2:
            self.timesteps[[0, 1]] = self.timesteps[[1, 0]]


@breaks("timesteps_cover", because="the skipping step is rounded down, so that timesteps bunch at the noisy end (LCM, #5836)")
class Bunched(LCMScheduler):
    def set_timesteps(self, num_inference_steps, device=None, **_):
        super().set_timesteps(num_inference_steps)
        origin = (np.arange(1, 51) * 20 - 1)[:: -(50 // num_inference_steps)][:num_inference_steps]
        self.timesteps = torch.from_numpy(origin.copy())


@breaks("timesteps_cover", "timesteps_well_formed", because="the step is computed from a hard-coded 500 training timesteps")
class HalfTheSchedule(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.tensor([round(500 * (1 - index / num_inference_steps)) - 1 for index in range(num_inference_steps)])


@breaks("sigmas_fall", because="the last sigma is appended twice: the final step does nothing (DPM-Solver, #6477)")
class LastSigmaTwice(Euler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.sigmas[-1] = self.sigmas[-2]


@breaks("timesteps_match_sigmas", because="timesteps are spaced linearly while the sigmas are Karras's")
class TimestepsOfAnotherGrid(Euler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.timesteps = torch.linspace(900, 0, num_inference_steps, dtype=torch.float64)


@breaks("timesteps_match_sigmas", because="sigmas are shifted for resolution and timesteps are not (flow matching)")
class ShiftedSigmasOnly(FlowEuler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.sigmas = 1.03 * self.sigmas / (1 + 0.03 * self.sigmas)


class Cosine(Euler):
    """Whole timesteps of a cosine schedule, whose noisiest sigmas lie so close that Karras's steps share a timestep."""

    least, most = 0.01, 2e4

    def __init__(self):
        super().__init__()
        betas = betas_for_alpha_bar(1000).double()
        products = torch.cumprod(1 - betas, 0)
        self.alphas_cumprod = products.float()
        self.training = ((1 - products) / products).sqrt()

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.timesteps = self.timesteps.round()


@breaks("runs", because="of equal rounded timesteps the second is taken for the first step, and the loop runs off the sigmas (#10740)")
class SecondOfEqualTimesteps(Cosine):
    def index(self, timestep):
        places = (self.timesteps == timestep).nonzero().flatten()
        return int(places[1] if len(places) > 1 else places[0])


@breaks("runs", because="a torch tensor is given to torch.from_numpy for one sigma schedule (EDM, #8385)")
class FromNumpyOfATensor(EDMEulerScheduler):
    def set_timesteps(self, num_inference_steps, device=None, sigmas=None):
        super().set_timesteps(num_inference_steps)
        torch.from_numpy(self.sigmas)


@breaks("runs", because="a lookup by .item() dies when rounding repeats a timestep (DPM-Solver, #2969)")
class ItemOfTwo(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps % 10 == 0:
            self.timesteps[1] = self.timesteps[0]

    def after(self, timestep):
        place = (self.timesteps == timestep).nonzero().item()
        return self.timesteps[place + 1] if place + 1 < len(self.timesteps) else torch.tensor(-1)


@breaks("runs", because="an order without an update: the branch for order 3 is missing (#9104)")
class MissingBranch(DPMSolverMultistepScheduler):
    def multistep_dpm_solver_third_order_update(self, *args, **kwargs):
        if self.config.solver_order == 2:
            x_t = args
        return x_t

    multistep_dpm_solver_second_order_update = multistep_dpm_solver_third_order_update


@breaks("runs", because="the logarithm of a last sigma of zero makes the last step not a number (single-step DPM-Solver, #9104)")
class LogOfZero(Euler):
    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        self.step_index = index + 1
        ratio = (after.log() - sigma.log()).exp() - 0 * after.log()
        return self.gave((sample + sigma * (ratio - 1) * model_output).to(sample.dtype))


@breaks("initial_noise", because="the first noise is scaled by the variance where its deviation is meant")
class NoiseByItsVariance(Euler):
    @property
    def init_noise_sigma(self):
        return super().init_noise_sigma ** 2


@breaks("terminal_step", because="interpolation keeps the ends of its range and never reaches σ = 0")
class NeverClean(Euler):
    least = 0.2

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.sigmas[-1] = self.sigmas[-2] * 0.9


@breaks("timesteps_match_sigmas", because="timesteps are those of the step before: off by one position")
class TimestepsOfTheStepBefore(DPMSolverMultistepScheduler):
    def set_timesteps(self, num_inference_steps, device=None, **rest):
        super().set_timesteps(num_inference_steps)
        if num_inference_steps > 1:
            self.sigmas = torch.cat([self.sigmas[1:-1], self.sigmas[-2:-1] / 2, self.sigmas[-1:]])


@breaks(
    "runs",
    "timesteps_well_formed",
    because="an offset larger than the gap between timesteps pushes the first one out of the schedule",
    timestep_spacing="leading",
    steps_offset=40,
)
class OffsetBeyondTheEnd(DDIMScheduler):
    pass


@breaks("named_betas", because="scaled_linear is linear in β, not in its root", beta_schedule="scaled_linear", clip_sample=False)
class ScaledInNameOnly(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if self.config.beta_schedule == "scaled_linear" and not self.config.rescale_betas_zero_snr:
            betas = torch.linspace(self.config.beta_start, self.config.beta_end, self.config.num_train_timesteps)
            self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)


@breaks("named_spacing", because="trailing spacing is leading spacing under another name", timestep_spacing="trailing", clip_sample=False)
class TrailsInNameOnly(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        if self.config.timestep_spacing == "trailing":
            step = self.config.num_train_timesteps // num_inference_steps
            self.timesteps = torch.arange(num_inference_steps - 1, -1, -1) * step


@breaks("named_spacing", because="Karras's sigmas are even in log σ", use_karras_sigmas=True)
class KarrasInNameOnly(DPMSolverMultistepScheduler):
    def _convert_to_karras(self, in_sigmas, num_inference_steps):
        return np.exp(np.linspace(np.log(in_sigmas[0]), np.log(in_sigmas[-1]), num_inference_steps))
