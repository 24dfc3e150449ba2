"""Correct schedulers written from the papers, duck-typed, with as little as an author may get away with; broken ones derive from them."""

import math
from itertools import pairwise
from types import SimpleNamespace

import torch


def cosine_or_linear(count=1000, first=1e-4, last=0.02):
    return torch.cumprod(1 - torch.linspace(first, last, count, dtype=torch.float64), 0)


class Plain:
    """What all of them share: nothing but a schedule and the previous sample."""

    num_train_timesteps = 1000
    order = 1

    def __init__(self):
        self.timesteps = None

    def scale_model_input(self, sample, timestep=None):
        return sample

    @staticmethod
    def gave(sample):
        return SimpleNamespace(prev_sample=sample)


class DDIM(Plain):
    """DDIM with η (arXiv:2010.02502), trailing timesteps, variance preserving."""

    init_noise_sigma = 1.0

    def __init__(self):
        super().__init__()
        self.alphas_cumprod = cosine_or_linear().float()

    def set_timesteps(self, num_inference_steps, device=None):
        step = self.num_train_timesteps / num_inference_steps
        self.timesteps = torch.tensor([round(self.num_train_timesteps - index * step) - 1 for index in range(num_inference_steps)])

    def product(self, timestep):
        return self.alphas_cumprod[int(timestep)].double() if timestep >= 0 else torch.ones((), dtype=torch.float64)

    def after(self, timestep):
        later = (self.timesteps == timestep).nonzero()[0] + 1
        return self.timesteps[later] if later < len(self.timesteps) else torch.tensor(-1)

    def clean_and_noise(self, model_output, sample, product):
        return (sample - (1 - product).sqrt() * model_output) / product.sqrt(), model_output

    def deviation(self, here, there, eta):
        return eta * ((1 - there) / (1 - here)).sqrt() * (1 - here / there).clamp(min=0).sqrt()

    def draw(self, sample, generator):
        if isinstance(generator, list):
            return torch.cat([torch.randn(1, *sample.shape[1:], generator=one) for one in generator]).to(sample)
        return torch.randn(sample.shape, generator=generator).to(sample)

    def step(self, model_output, timestep, sample, eta=0.0, generator=None):
        here, there = self.product(timestep), self.product(self.after(timestep))
        clean, noise = self.clean_and_noise(model_output.double(), sample.double(), here)
        deviation = self.deviation(here, there, eta)
        arrived = there.sqrt() * clean + (1 - there - deviation**2).clamp(min=0).sqrt() * noise
        if deviation > 0:
            arrived = arrived + deviation * self.draw(sample, generator)
        return self.gave(arrived.to(sample.dtype))

    def add_noise(self, original_samples, noise, timesteps):
        product = self.alphas_cumprod[timesteps.long()].view(-1, *[1] * (original_samples.ndim - 1))
        return product.sqrt() * original_samples + (1 - product).sqrt() * noise

    def get_velocity(self, sample, noise, timesteps):
        product = self.alphas_cumprod[timesteps.long()].view(-1, *[1] * (sample.ndim - 1))
        return product.sqrt() * noise - (1 - product).sqrt() * sample


class LargeVariance(DDIM):
    """DDPM with the larger variance, β of the step (arXiv:2006.11239, section 3.2), and no word about it."""

    def step(self, model_output, timestep, sample, generator=None):
        here, there = self.product(timestep), self.product(self.after(timestep))
        clean, noise = self.clean_and_noise(model_output.double(), sample.double(), here)
        small = self.deviation(here, there, 1.0)
        arrived = there.sqrt() * clean + (1 - there - small**2).clamp(min=0).sqrt() * noise
        if there < 1:
            arrived = arrived + (1 - here / there).sqrt() * self.draw(sample, generator)
        return self.gave(arrived.to(sample.dtype))


class Euler(Plain):
    """Euler in σ (arXiv:2206.00364, algorithm 1 without churn) with Karras's sigmas."""

    least, most, rho = 0.03, 14.0, 7.0

    def __init__(self):
        super().__init__()
        products = cosine_or_linear(first=0.00085, last=0.012)
        self.alphas_cumprod = products.float()
        self.training = ((1 - products) / products).sqrt()
        self.sigmas = None
        self.step_index = None

    @property
    def init_noise_sigma(self):
        return float(self.sigmas[0]) if self.sigmas is not None else self.most

    def ramp(self, count):
        share = torch.linspace(0, 1, count, dtype=torch.float64)
        ends = self.most ** (1 / self.rho), self.least ** (1 / self.rho)
        return (ends[0] + share * (ends[1] - ends[0])) ** self.rho

    def timestep_of(self, sigma):
        # Interpolated in log σ over the training schedule.
        place = torch.searchsorted(self.training, sigma).clamp(1, len(self.training) - 1)
        low, high = self.training[place - 1].log(), self.training[place].log()
        return (place - 1 + (sigma.log() - low) / (high - low)).clamp(0, len(self.training) - 1)

    def set_timesteps(self, num_inference_steps, device=None):
        sigmas = self.ramp(num_inference_steps)
        self.sigmas = torch.cat([sigmas, torch.zeros(1)])
        self.timesteps = self.timestep_of(sigmas)
        self.step_index = None

    def index(self, timestep):
        return int((self.timesteps - float(timestep)).abs().argmin())

    def now(self, timestep):
        if self.step_index is None:
            self.step_index = self.index(timestep)
        return self.step_index

    def scale_model_input(self, sample, timestep):
        sigma = self.sigmas[self.now(timestep)]
        return sample / float((sigma**2 + 1).sqrt())

    def derivative(self, model_output, sample, sigma):
        return model_output.double()

    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        arrived = sample.double() + (after - sigma) * self.derivative(model_output, sample, sigma)
        self.step_index = index + 1
        return self.gave(arrived.to(sample.dtype))

    def add_noise(self, original_samples, noise, timesteps):
        planned = self.timesteps is not None
        sigmas = [self.sigmas[self.index(one)] if planned else self.training[int(one)] for one in timesteps]
        return original_samples + torch.stack(sigmas).view(-1, *[1] * (noise.ndim - 1)).to(noise) * noise


class Unscaled(Euler):
    """The same for a model that is given the sample as it is, and told σ (k-diffusion's own form)."""

    def __init__(self):
        super().__init__()
        del self.alphas_cumprod

    def timestep_of(self, sigma):
        return sigma.clone()

    def __getattribute__(self, name):
        if name == "scale_model_input":
            raise AttributeError(name)
        return super().__getattribute__(name)


class Ancestral(Euler):
    """Ancestral sampling in σ: Euler to σ_down, then noise of σ_up (the posterior of arXiv:2006.11239 in σ)."""

    def amounts(self, sigma, after):
        up = (after**2 * (sigma**2 - after**2) / sigma**2).clamp(min=0).sqrt()
        return (after**2 - up**2).clamp(min=0).sqrt(), up

    def draw(self, sample, generator):
        return DDIM.draw(self, sample, generator)

    def step(self, model_output, timestep, sample, generator=None):
        index = self.now(timestep)
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        down, up = self.amounts(sigma, after)
        arrived = sample.double() + (down - sigma) * self.derivative(model_output, sample, sigma)
        if up > 0:
            arrived = arrived + up * self.draw(sample, generator)
        self.step_index = index + 1
        return self.gave(arrived.to(sample.dtype))


class Churned(Euler):
    """Euler with churn (arXiv:2206.00364, algorithm 2), whose model was asked before the noise was raised."""

    def step(self, model_output, timestep, sample, s_churn=0.0, generator=None):
        index = self.now(timestep)
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        slope = self.derivative(model_output, sample, sigma)
        raised = sigma * (1 + min(s_churn / len(self.timesteps), 2**0.5 - 1))
        clean = sample.double() - sigma * slope
        added = (raised**2 - sigma**2).sqrt() * DDIM.draw(self, sample, generator).double() if raised > sigma else 0.0
        self.step_index = index + 1
        return self.gave((clean + after / raised * (sigma * slope + added)).to(sample.dtype))


class Rounded(Euler):
    """The model is told whole timesteps, the nearest ones."""

    def timestep_of(self, sigma):
        return super().timestep_of(sigma).round()


class RungeKutta(Euler):
    """Explicit Runge-Kutta in σ with stages at `nodes`, each an evaluation of the model: third order here (Kutta 1901)."""

    order = 3
    nodes = (0.0, 0.5, 1.0)
    stages = ((), (0.5,), (-1.0, 2.0))
    weights = (1 / 6, 4 / 6, 1 / 6)

    def set_timesteps(self, num_inference_steps, device=None):
        ends = self.ramp(num_inference_steps)
        grid = []
        for first, last in pairwise(ends):
            grid += [self.between(first, last, node) for node in self.nodes]
        # The last step, to σ = 0, is Euler's.
        self.sigmas = torch.stack([*grid, ends[-1], torch.zeros((), dtype=torch.float64)])
        self.timesteps = self.timestep_of(self.sigmas[:-1])
        self.step_index = None
        self.slopes, self.start = [], None

    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        self.step_index = index + 1
        slope = self.derivative(model_output, sample, self.sigmas[index])
        if index == len(self.timesteps) - 1:
            return self.gave((sample.double() - self.sigmas[index] * slope).to(sample.dtype))
        stage = index % self.order
        if stage == 0:
            self.slopes, self.start = [], sample.double()
        self.slopes.append(self.scaled(slope, self.sigmas[index]))
        first = self.sigmas[index - stage]
        last = self.sigmas[index - stage + self.order]
        span = self.span(first, last)
        row = self.stages[stage + 1] if stage + 1 < self.order else self.weights
        moved = sum(weight * one for weight, one in zip(row, self.slopes, strict=True))
        if stage + 1 == self.order:
            self.slopes = []
        return self.gave((self.start + span * moved).to(sample.dtype))

    def index(self, timestep):
        # A stage at the end of a step has the σ of the next one's first: the latter is where a run may start.
        places = ((self.timesteps - float(timestep)).abs() < 1e-9).nonzero().flatten()
        places = places[places % self.order == 0] if len(places) > 1 else places
        return int(places[0]) if len(places) else int((self.timesteps - float(timestep)).abs().argmin())

    def between(self, first, last, node):
        return first + node * (last - first)

    def span(self, first, last):
        return last - first

    def scaled(self, slope, sigma):
        return slope


class RungeKuttaInLogSigma(RungeKutta):
    """The same in log σ, where d x / d log σ = σ·ε: exact for one image in the limit only."""

    def between(self, first, last, node):
        return first * (last / first) ** node

    def span(self, first, last):
        return (last / first).log()

    def scaled(self, slope, sigma):
        return sigma * slope


class Heun(Euler):
    """Heun in σ (arXiv:2206.00364, algorithm 1): second order, the last step by Euler."""

    order = 2

    def set_timesteps(self, num_inference_steps, device=None):
        ends = self.ramp(num_inference_steps)
        self.sigmas = torch.cat([ends[:1], ends[1:].repeat_interleave(2), torch.zeros(1)])
        self.timesteps = self.timestep_of(self.sigmas[:-1])
        self.step_index, self.first = None, None

    def index(self, timestep):
        places = ((self.timesteps - float(timestep)).abs() < 1e-9).nonzero().flatten()
        return int(places[-1])

    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        self.step_index = index + 1
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        slope = self.derivative(model_output, sample, sigma)
        if self.first is None:
            arrived = sample.double() + (after - sigma) * slope
            if after > 0:
                self.first = (slope, sample.double(), after - sigma)
        else:
            before, start, span = self.first
            arrived, self.first = self.corrected(start, span, before, slope), None
        return self.gave(arrived.to(sample.dtype))

    def corrected(self, start, span, before, slope):
        return start + span * (before + slope) / 2


class FlowEuler(Plain):
    """Euler for flow matching (arXiv:2210.02747): the velocity is noise − image, shares of noise fall evenly from 1."""

    init_noise_sigma = 1.0
    shift = 1.0

    def __init__(self):
        super().__init__()
        self.sigmas = None
        self.step_index = None

    def shares(self, count):
        even = torch.linspace(1, 1 / count, count, dtype=torch.float64)
        return self.shift * even / (1 + (self.shift - 1) * even)

    def set_timesteps(self, num_inference_steps, device=None):
        sigmas = self.shares(num_inference_steps)
        self.sigmas = torch.cat([sigmas, torch.zeros(1)])
        self.timesteps = sigmas * self.num_train_timesteps
        self.step_index = None

    def index(self, timestep):
        return int((self.timesteps - float(timestep)).abs().argmin())

    def step(self, model_output, timestep, sample):
        if self.step_index is None:
            self.step_index = self.index(timestep)
        index, self.step_index = self.step_index, self.step_index + 1
        arrived = sample.double() + (self.sigmas[index + 1] - self.sigmas[index]) * model_output.double()
        return self.gave(arrived.to(sample.dtype))

    def scale_noise(self, sample, timestep, noise):
        share = (torch.as_tensor(timestep) / self.num_train_timesteps).view(-1, *[1] * (sample.ndim - 1)).to(sample)
        return (1 - share) * sample + share * noise


class Multistep(Euler):
    """Adams-Bashforth of second order in σ for the derivative, as LMS and DEIS use it; Euler first."""

    solver_order = 2

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.previous = None

    def weights(self, before, now, after):
        ratio = (after - now) / (now - before) / 2
        return 1 + ratio, -ratio

    def step(self, model_output, timestep, sample):
        index = self.now(timestep)
        self.step_index = index + 1
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        slope = self.derivative(model_output, sample, sigma)
        mixed = slope
        if self.previous is not None and after > 0:
            own, old = self.weights(self.sigmas[index - 1], sigma, after)
            mixed = own * slope + old * self.previous
        self.previous = slope
        return self.gave((sample.double() + (after - sigma) * mixed).to(sample.dtype))


CORRECT = [DDIM, LargeVariance, Euler, Unscaled, Ancestral, Churned, Rounded, Heun, RungeKutta, RungeKuttaInLogSigma, FlowEuler, Multistep]
assert math.isclose(sum(RungeKutta.weights), 1)
