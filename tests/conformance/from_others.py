"""Sound schedulers as other projects write them, from descriptions of what theirs do: other timesteps, shifts, ends, signatures."""

from types import SimpleNamespace

import numpy as np
import torch

from tests.conformance.from_scratch import DDIM, Euler, FlowEuler, Plain


def shifted(share, shift):
    return shift * share / (1 + (shift - 1) * share)


class ShiftedInBoth(FlowEuler):
    """Wan's grid: the ends of the plan are those of the shifted training schedule, and the plan between them is shifted.

    The noisy end hardly moves and the clean end is 0, so the shift is applied once.
    """

    def __init__(self, shift=5.0):
        super().__init__()
        self.shift = shift
        self.sigmas = shifted(1 - torch.linspace(1 / 1000, 1, 1000, dtype=torch.float64), shift)
        self.timesteps = self.sigmas * self.num_train_timesteps
        self.ends = float(self.sigmas[0]), float(self.sigmas[-1])

    def shares(self, count):
        first, last = self.ends
        return shifted(torch.linspace(first, last, count + 1, dtype=torch.float64)[:-1], self.shift)


class ShiftedInThePlan(FlowEuler):
    """HunyuanVideo's: trained without a shift, planned with one of 7."""

    shift = 7.0

    def __init__(self):
        super().__init__()
        self.sigmas = torch.linspace(1, 0, 1001, dtype=torch.float64)
        self.timesteps = self.sigmas[:-1] * self.num_train_timesteps

    def shares(self, count):
        return shifted(torch.linspace(1, 0, count + 1, dtype=torch.float64), self.shift)[:-1]


class Shares(Plain):
    """LTX's: the timesteps are the shares of noise themselves, and a large shift moves them towards the noise."""

    init_noise_sigma = 1.0

    def __init__(self, shift=1.0):
        super().__init__()
        self.shift = shift

    def set_timesteps(self, num_inference_steps, device=None):
        even = torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64)
        self.timesteps = shifted(even, self.shift)

    def after(self, timestep):
        place = int((self.timesteps - float(timestep)).abs().argmin())
        return float(self.timesteps[place + 1]) if place + 1 < len(self.timesteps) else 0.0

    def velocity(self, model_output):
        return model_output

    def step(self, model_output, timestep, sample, return_dict=True):
        arrived = sample.double() + (self.after(timestep) - float(timestep)) * self.velocity(model_output).double()
        return self.gave(arrived.to(sample.dtype)) if return_dict else (arrived.to(sample.dtype),)

    def add_noise(self, original_samples, noise, timesteps):
        share = torch.as_tensor(timesteps).view(-1, *[1] * (noise.ndim - 1)).to(noise)
        return (1 - share) * original_samples + share * noise


class NamesItsEnd(Shares):
    """One timestep more than steps, as a mistake would make it too."""

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)

    def after(self, timestep):
        return float(self.timesteps[int((self.timesteps - float(timestep)).abs().argmin()) + 1])


class TowardsTheData(Shares):
    """Lumina's: time rises from noise to data, and the velocity points to the data."""

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps

    def after(self, timestep):
        place = int((self.timesteps - float(timestep)).abs().argmin())
        return float(self.timesteps[place + 1]) if place + 1 < len(self.timesteps) else 1.0

    def add_noise(self, original_samples, noise, timesteps):
        return super().add_noise(original_samples, noise, 1 - torch.as_tensor(timesteps))


class WithoutNoising(TowardsTheData):
    """Step-Video's and Hunyuan3D's: nothing adds noise, so only its author can say what its samples are."""

    add_noise = None


class RisingSigmas(WithoutNoising):
    """Hunyuan3D's: sigmas rise from 0 at the noise to 1 at the data, the plan has its own under another name, `step` gives a dict."""

    def __init__(self):
        super().__init__()
        self.sigmas = torch.linspace(0, 1, 50, dtype=torch.float64)

    def set_timesteps(self, num_inference_steps, device=None):
        shares = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        self.planned = torch.cat([shares, torch.ones(1)])
        self.timesteps = shares * self.num_train_timesteps
        self.step_index = None

    def step(self, model_output, timestep, sample):
        if self.step_index is None:
            self.step_index = int((self.timesteps - float(timestep)).abs().argmin())
        span = self.planned[self.step_index + 1] - self.planned[self.step_index]
        self.step_index += 1
        return {"prev_sample": (sample.double() + span * model_output.double()).to(sample.dtype)}


class RisesInTraining(FlowEuler):
    """Hunyuan3D's Euler: sigmas of training and plan rise from 0 at the noise, and noising takes the share of the data."""

    def __init__(self):
        super().__init__()
        self.sigmas = torch.arange(1000, dtype=torch.float64) / 1000
        self.timesteps = self.sigmas * self.num_train_timesteps

    def set_timesteps(self, num_inference_steps, device=None):
        sigmas = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
        self.sigmas = torch.cat([sigmas, torch.ones(1)])
        self.timesteps = sigmas * self.num_train_timesteps
        self.step_index = None

    def scale_noise(self, sample, timestep, noise):
        return super().scale_noise(noise, timestep, sample)


class StartsBelowPureNoise(FlowEuler):
    """rCM's: the first level holds a little of the image."""

    init_noise_sigma = 80 / 81

    def shares(self, count):
        return torch.linspace(80 / 81, 1 / count if count > 1 else 80 / 81, count, dtype=torch.float64)


class WholeTimesteps(TowardsTheData):
    """MONAI's rectified flow: whole timesteps from 1000 down, and a velocity towards the data that it calls "v_prediction"."""

    prediction_type = "v_prediction"

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.linspace(1000, 0, num_inference_steps + 1).round()[:-1].long()

    def after(self, timestep):
        later = int((self.timesteps == int(timestep)).nonzero()[0][0]) + 1
        return int(self.timesteps[later]) if later < len(self.timesteps) else 0

    def step(self, model_output, timestep, sample, generator: torch.Generator | None = None):
        if sample.ndim not in (4, 5):
            raise ValueError(f"the sample has to be 4D or 5D, not {sample.ndim}D")
        span = (float(timestep) - self.after(timestep)) / 1000
        return self.gave((sample.double() + span * model_output.double()).to(sample.dtype))

    def add_noise(self, original_samples, noise, timesteps):
        share = (torch.as_tensor(timesteps).double() / 1000).view(-1, *[1] * (noise.ndim - 1)).to(noise)
        return (1 - share) * original_samples + share * noise


class EndsAtTheFirstTimestep(DDIM):
    """The first DPM-Solvers: the last step ends at the level of timestep 0, which no attribute declares."""

    def product(self, timestep):
        return self.alphas_cumprod[max(int(timestep), 0)].double()

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.linspace(0, 999, num_inference_steps + 1).floor().flip(0)[:-1].long()


class ForwardsTheRest(DDIM):
    """A subclass that hands on what it does not know, `generator` among it."""

    def step(self, model_output, timestep, sample, eta=0.0, **kwargs):
        return super().step(model_output, timestep, sample, eta, **kwargs)


class DrawsForNothing(Euler):
    """Euler with churn, whose draw has the weight zero by default."""

    def step(self, model_output, timestep, sample, generator=None):
        return super().step(model_output, timestep, sample + 0.0 * DDIM.draw(self, sample, generator))


class Reversed(DDIM):
    """Timesteps are a NumPy array that was reversed."""

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.timesteps = self.timesteps.numpy()[::-1].copy()[::-1]

    def after(self, timestep):
        later = int((self.timesteps == int(timestep)).nonzero()[0][0]) + 1
        return torch.tensor(int(self.timesteps[later])) if later < len(self.timesteps) else torch.tensor(-1)


class ArraysOfSigmas(Euler):
    """Its plan may be given, as an array."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None):
        if sigmas is None:
            super().set_timesteps(num_inference_steps)
            return
        ends = torch.from_numpy(np.multiply(sigmas, 1.0)) if isinstance(sigmas, np.ndarray) else sigmas.ravel()
        self.sigmas = torch.cat([ends.double(), torch.zeros(1, dtype=torch.float64)])
        self.timesteps = self.timestep_of(self.sigmas[:-1])
        self.step_index = None


class OneForEachImage(DDIM):
    """`step` takes a timestep for each image."""

    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        return super().step(model_output, timestep[0], sample, eta, generator)


class EightSteps(DDIM):
    """Distilled for eight steps, and for no other number."""

    def set_timesteps(self, num_inference_steps, device=None):
        if num_inference_steps != 8:
            raise ValueError(f"this model was distilled for 8 steps, not for {num_inference_steps}")
        super().set_timesteps(num_inference_steps)


class PredictsTheImage(DDIM):
    """The model predicts the image, which no attribute says."""

    def clean_and_noise(self, model_output, sample, product):
        return model_output, (sample - product.sqrt() * model_output) / (1 - product).sqrt()


FOREIGN = [
    ShiftedInBoth,
    ShiftedInThePlan,
    Shares,
    TowardsTheData,
    RisesInTraining,
    StartsBelowPureNoise,
    WholeTimesteps,
    EndsAtTheFirstTimestep,
    ForwardsTheRest,
    DrawsForNothing,
    Reversed,
    ArraysOfSigmas,
    OneForEachImage,
    EightSteps,
    PredictsTheImage,
]


class BareTensor(DDIM):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs).prev_sample


class Tables(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps)
        self.timesteps = self.timesteps[:, None]


class NoTimesteps(DDIM):
    def set_timesteps(self, num_inference_steps, device=None):
        self.plan = SimpleNamespace(steps=num_inference_steps)
        del self.timesteps


class OtherPrediction(DDIM):
    prediction_type = "score"


class Guided(ShiftedInThePlan):
    """Its plan and its steps need an argument more than a loop has."""

    def set_timesteps(self, num_inference_steps, device=None, *, stretch):
        self.shift = stretch
        super().set_timesteps(num_inference_steps)

    def step(self, model_output, timestep, sample, *, omega):
        assert omega == 10
        return super().step(model_output, timestep, sample)


class NeedsMore(DDIM):
    def step(self, model_output, timestep, sample, unconditional_output, eta=0.0, generator=None):
        return super().step(model_output, timestep, sample, eta, generator)
