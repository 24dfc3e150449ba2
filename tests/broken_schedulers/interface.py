"""Mistakes of the interface: noising, state, tensors, generators, configuration and partial runs."""

import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from tests.broken_schedulers import breaks
from tests.broken_schedulers.grids import Cosine
from tests.conformance.from_scratch import DDIM, Ancestral, Euler, FlowEuler, Multistep


@breaks("forward_is_pure", because="the first timestep that was asked is remembered (FlowMatchEuler, #8678)")
class RemembersTheFirst(FlowEuler):
    def scale_noise(self, sample, timestep, noise):
        if self.step_index is None:
            self.step_index = self.index(timestep[0] if timestep.ndim else timestep)
        share = float(self.sigmas[self.step_index])
        return (1 - share) * sample + share * noise


@breaks("forward_is_pure", because="the first timestep of a batch is used for all of its images")
class OneTimestepForAll(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, timesteps[:1].expand(len(original_samples)))


@breaks("forward_process", because="add_noise draws its own noise (ScoreSdeVe, #3839)")
class OwnNoise(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, torch.randn_like(noise), timesteps)


@breaks("forward_process", because="ᾱ in place of its root")
class NoRoots(DDIM):
    def add_noise(self, original_samples, noise, timesteps):
        product = self.alphas_cumprod[timesteps.long()].view(-1, *[1] * (noise.ndim - 1))
        return product * original_samples + (1 - product) * noise


@breaks(
    "forward_process",
    "partial_start",  # Of two equal timesteps, a start in the middle cannot know which is meant.
    because="a lookup by nonzero().item() dies when rounding repeats a timestep (#6085)",
)
class ItemInNoising(Cosine):
    def add_noise(self, original_samples, noise, timesteps):
        if self.sigmas is not None:
            for one in self.timesteps:
                (self.timesteps == one).nonzero().item()
        return super().add_noise(original_samples, noise, timesteps)


@breaks("velocity", because="the velocity has the opposite sign")
class VelocityOfTheOtherSign(DDIM):
    def get_velocity(self, sample, noise, timesteps):
        return -super().get_velocity(sample, noise, timesteps)


@breaks("aborted_run", because="an accumulator survives set_timesteps: a run stopped inside a block poisons the next (PNDM, #2376)")
class AccumulatorSurvives(PNDMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        kept = getattr(self, "cur_model_output", 0)
        super().set_timesteps(num_inference_steps, device)
        self.cur_model_output = kept


@breaks("second_run", because="the history of the last run is not emptied by set_timesteps")
class HistorySurvives(Multistep):
    previous = None

    def set_timesteps(self, num_inference_steps, device=None):
        kept = self.previous
        super().set_timesteps(num_inference_steps)
        self.previous = kept

    def weights(self, before, now, after):
        return super().weights(before, now, after) if before > now else (0.9, 0.1)


@breaks("second_run", because="the step index is not reset by set_timesteps")
class IndexSurvives(EulerDiscreteScheduler):
    def set_timesteps(self, *args, **kwargs):
        kept = self._step_index if hasattr(self, "_step_index") else None
        super().set_timesteps(*args, **kwargs)
        self._step_index = 0 if kept else None
        if kept:
            self.sigmas = self.sigmas * 1.01


@breaks("instances_share_nothing", because="the history is a class attribute")
class SharedHistory(Multistep):
    shared = {"previous": None}  # noqa: RUF012

    def set_timesteps(self, num_inference_steps, device=None):
        Euler.set_timesteps(self, num_inference_steps)
        self.shared["previous"] = None

    @property
    def previous(self):
        return self.shared["previous"]

    @previous.setter
    def previous(self, value):
        self.shared["previous"] = value


@breaks("config_untouched", "second_run", because="set_timesteps writes to the configuration")
class WritesConfig(DDIMScheduler):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.register_to_config(steps_offset=1)


@breaks("copies_behave", because="a lambda in the object cannot be pickled")
class HoldsALambda(DDIM):
    def __init__(self):
        super().__init__()
        self.weight = lambda timestep: 1.0


@breaks("ranks", because="einsum spells out (b, c, h, w) (UniPC, #5199)")
class FourDimensionsOnly(UniPCMultistepScheduler):
    def step(self, model_output, timestep, sample, return_dict=True):
        gave = super().step(model_output, timestep, sample)
        gave.prev_sample = torch.einsum("bchw->bchw", gave.prev_sample)
        return gave


@breaks("batch_invariance", because="the sample is normalised over the batch")
class NormalisedOverTheBatch(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        gave = super().step(model_output, timestep, sample, eta, generator)
        if len(sample) > 1 and float(sample.abs().max()) > 8:
            gave.prev_sample = gave.prev_sample * 0.99
        return gave


@breaks("dtype_kept", because="noise is drawn in float32, and a half sample comes back as float32 (DDIM, #742)")
class NoiseInFloat32(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        gave = super().step(model_output, timestep, sample, eta, generator)
        return self.gave(gave.prev_sample + torch.zeros(sample.shape)) if eta else gave


@breaks("dtype_kept", because="the result is left in the dtype of the computation")
class ResultInFloat64(Euler):
    def step(self, model_output, timestep, sample):
        return super().step(model_output, timestep, sample.double())


@breaks("layout", because="a view of the sample's memory is taken for its shape")
class ReadsTheMemory(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        flat = torch.as_strided(sample, (sample.numel(),), (1,)).view(sample.shape)
        return super().step(model_output, timestep, flat, eta, generator)


@breaks("inputs_untouched", because="the sample is updated in place")
class InPlace(Euler):
    def step(self, model_output, timestep, sample):
        gave = super().step(model_output, timestep, sample)
        sample.copy_(gave.prev_sample)
        return self.gave(gave.prev_sample)


@breaks("generator_list", because="a list of generators is not taken (Euler ancestral, #1906)")
class NoLists(EulerAncestralDiscreteScheduler):
    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        torch.randn(1, generator=generator)
        return super().step(model_output, timestep, sample, generator)


@breaks("generator_honoured", because="the generator is not handed on")
class GeneratorForgotten(Ancestral):
    def draw(self, sample, generator):
        return torch.randn_like(sample)


@breaks("deterministic_draws_nothing", because="noise is drawn, and multiplied by zero")
class DrawsForNothing(DDIM):
    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        noise = self.draw(sample, generator)
        gave = super().step(model_output, timestep, sample, eta, generator)
        return self.gave(gave.prev_sample + 0 * noise)


@breaks("config_round_trip", because="what is saved is not what was given: a default takes its place")
class SavesTheDefault(DDIMScheduler):
    def save_config(self, folder, **rest):
        kept, self._internal_dict = self._internal_dict, type(self._internal_dict)({**self._internal_dict, "beta_end": 0.012})
        try:
            super().save_config(folder, **rest)
        finally:
            self._internal_dict = kept


@breaks("config_interchange", because="another solver's name is mapped on a local variable only (#2595)")
class MapsALocalName(DPMSolverMultistepScheduler):
    def step(self, model_output, timestep, sample, **rest):
        # What __init__ of the parent translates is asked for again in the class that it came from.
        if self.config.get("corrector_order") or self.config.get("solver_order") == 3:
            raise UnboundLocalError("cannot access local variable 'x_t' where it is not associated with a value")
        return super().step(model_output, timestep, sample, **rest)


@breaks("unknown_values_refused", because="an unknown prediction type is taken for noise")
class TakesAnything(DDIMScheduler):
    def step(self, model_output, timestep, sample, **rest):
        kept = self._internal_dict
        if self.config.prediction_type not in ("epsilon", "sample", "v_prediction"):
            self._internal_dict = type(kept)({**kept, "prediction_type": "epsilon"})
        try:
            return super().step(model_output, timestep, sample, **rest)
        finally:
            self._internal_dict = kept


@breaks("argument_types", because="a list of sigmas is multiplied by a float (FlowMatchEuler, #10088)")
class ListTimesFloat(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        if sigmas is not None:
            sigmas = sigmas * 1.0
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)


@breaks("partial_start", because="a start in the middle takes a second-order step without a history (#3413)")
class HistoryOfTheIndex(Multistep):
    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        if index > 0 and self.previous is None:
            self.previous = 0 * model_output.double()
        return super().step(model_output, timestep, sample)


@breaks("begin_index", because="set_begin_index is off by one")
class BeginsOneLater(EulerDiscreteScheduler):
    def set_begin_index(self, begin_index=0):
        super().set_begin_index(begin_index + 1)


@breaks("inversion_round_trip", because="the guidance of the forward run is applied to the inversion as well", clip_sample=False)
class InvertsWithGuidance(DDIMInverseScheduler):
    def step(self, model_output, timestep, sample, return_dict=True):
        return super().step(1.2 * model_output, timestep, sample)


@breaks("return_types", because="the tuple is returned before the step index moves on")
class TupleTooEarly(Euler):
    def step(self, model_output, timestep, sample, return_dict=True):
        index = self.now(timestep)
        gave = super().step(model_output, timestep, sample)
        if not return_dict:
            self.step_index = index
            return (gave.prev_sample,)
        return gave


@breaks("scaling_is_pure", because="scale_model_input moves the run on where it is called again")
class ScalingMovesOn(Euler):
    def scale_model_input(self, sample, timestep):
        sigma = self.sigmas[self.now(timestep)]
        self.asked = getattr(self, "asked", 0) + 1
        return sample / float((sigma**2 + 1).sqrt()) * (1.0 if self.asked == 1 else 1.01)

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.asked = 0

    def step(self, model_output, timestep, sample):
        self.asked = 0
        return super().step(model_output, timestep, sample)
