"""Exact answers against integration, against each other, and against the schedulers that should give them."""

import diffusers
import pytest
import torch
from scipy.integrate import solve_ivp

from pytest_diffusion.analytic.flows import GaussianLaw, ddim_step, ddpm_step, irreducible_loss, marginal, posterior_mean, probability_flow
from pytest_diffusion.models.levels import NoiseLevel, level_of_timestep

COVARIANCE = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]]).double()
LAWS = {
    "gaussian": GaussianLaw.of(torch.tensor([0.3, -0.2, 0.5]), COVARIANCE),
    "flat": GaussianLaw.of(torch.tensor([0.3, -0.2, 0.5]), torch.diag(torch.tensor([0.5, 0.1, 0.0]))),
    "point": GaussianLaw.point_mass(torch.tensor([0.3, -0.2, 0.5])),
}
# x = α(t)x₀ + σ(t)·noise for t from 0 (data) to 1 (noise), with derivatives.
PATHS = {
    "variance preserving": (lambda t: torch.cos(t * 1.5), lambda t: torch.sin(t * 1.5)),
    "sigma": (lambda t: torch.ones_like(t), lambda t: 20 * t**2),
    "flow": (lambda t: 1 - 0.99 * t, lambda t: 0.99 * t),
}


def level(path, time):
    t = torch.tensor(time, dtype=torch.float64)
    return NoiseLevel(PATHS[path][0](t), PATHS[path][1](t))


def velocity(path, law, sample, time):
    """dx/dt of the probability-flow ODE: α'·x̂₀ + σ'·ε̂ with the ideal denoiser."""
    t = torch.tensor(float(time), dtype=torch.float64)
    (alpha, slope), (sigma, rise) = (torch.autograd.functional.jvp(part, t, torch.ones_like(t)) for part in PATHS[path])
    clean = posterior_mean(law, sample, NoiseLevel(alpha, sigma))
    return slope * clean + rise * (sample - alpha * clean) / sigma


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.05), (0.1, 0.8)])
def test_the_flow_is_the_solution_of_its_equation(path, law, start, end):
    sample = torch.tensor([[0.7, -1.1, 0.4]]).double()

    def right_hand_side(time, state):
        return velocity(path, LAWS[law], torch.from_numpy(state)[None], time)[0].numpy()

    solved = solve_ivp(right_hand_side, (start, end), sample[0].numpy(), method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    exact = probability_flow(LAWS[law], sample, level(path, start), level(path, end))
    assert torch.allclose(exact, torch.from_numpy(solved)[None], atol=1e-7)


@pytest.mark.parametrize("law", LAWS)
def test_flows_compose_and_carry_the_marginal_along(law):
    one, two, three = (NoiseLevel.of_ratio(ratio) for ratio in (5.0, 1.0, 0.1))
    sample = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    direct = probability_flow(LAWS[law], sample, one, three)
    assert torch.allclose(probability_flow(LAWS[law], probability_flow(LAWS[law], sample, one, two), two, three), direct, atol=1e-12)
    assert torch.allclose(probability_flow(LAWS[law], direct, three, one), sample, atol=1e-10)
    # The flow is affine: its linear part maps one covariance to the other.
    origin = probability_flow(LAWS[law], torch.zeros(1, 3).double(), one, three)
    matrix = (probability_flow(LAWS[law], torch.eye(3).double(), one, three) - origin).T
    (mean, before), (end, after) = marginal(LAWS[law], one), marginal(LAWS[law], three)
    assert torch.allclose(matrix @ before @ matrix.T, after, atol=1e-12)
    assert torch.allclose(matrix @ mean + origin[0], end, atol=1e-12)


def test_marginals_by_simulation():
    law, noisy = LAWS["gaussian"], NoiseLevel.of_ratio(0.8)
    generator = torch.Generator().manual_seed(0)
    factor = torch.linalg.cholesky(COVARIANCE)
    data = law.mean + torch.randn(200_000, 3, generator=generator).double() @ factor.T
    drawn = noisy.alpha * data + noisy.sigma * torch.randn(200_000, 3, generator=generator).double()
    mean, covariance = marginal(law, noisy)
    assert torch.allclose(drawn.mean(0), mean, atol=0.01)
    assert torch.allclose(drawn.T.cov(), covariance, atol=0.01)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_of_ddim_is_what_diffusers_does(law, eta):
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    timestep, following = scheduler.timesteps[3], scheduler.timesteps[4]
    start, end = level_of_timestep(scheduler, timestep), level_of_timestep(scheduler, following)
    sample = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    epsilon = (sample - start.alpha * posterior_mean(LAWS[law], sample, start)) / start.sigma
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double()
    theirs = scheduler.step(epsilon, timestep, sample, eta=eta, variance_noise=noise if eta else None).prev_sample
    mean, deviation = ddim_step(LAWS[law], sample, start, end, eta=eta)
    assert torch.allclose(mean + deviation * noise, theirs, atol=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_one_step_of_ddpm_is_what_diffusers_does(law):
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    timestep, following = scheduler.timesteps[3], scheduler.timesteps[4]
    start, end = level_of_timestep(scheduler, timestep), level_of_timestep(scheduler, following)
    sample = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).double()
    epsilon = (sample - start.alpha * posterior_mean(LAWS[law], sample, start)) / start.sigma
    theirs = scheduler.step(epsilon, timestep, sample, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean, deviation = ddpm_step(LAWS[law], sample, start, end)
    assert torch.allclose(mean + deviation * noise, theirs, atol=1e-5)


def test_ancestral_sampling_keeps_a_point_mass_marginal():
    """For a point mass the posterior is exact: mean and variance of a DDPM step are those of the next marginal."""
    law, start, end = LAWS["point"], NoiseLevel.of_ratio(2.0), NoiseLevel.of_ratio(0.7)
    mean, covariance = marginal(law, start)
    matrix_mean = ddpm_step(law, mean[None], start, end)[0][0]
    slope = ddpm_step(law, mean[None] + 1, start, end)[0][0] - matrix_mean
    deviation = ddpm_step(law, mean[None], start, end)[1]
    expected_mean, expected = marginal(law, end)
    assert torch.allclose(matrix_mean, expected_mean, atol=1e-12)
    assert torch.allclose(slope.square() * covariance.diagonal() + deviation**2, expected.diagonal(), atol=1e-12)


def test_the_irreducible_loss_by_simulation():
    law, noisy = LAWS["gaussian"], NoiseLevel.of_ratio(1.3)
    generator = torch.Generator().manual_seed(0)
    data = law.mean + torch.randn(100_000, 3, generator=generator).double() @ torch.linalg.cholesky(COVARIANCE).T
    noise = torch.randn(100_000, 3, generator=generator).double()
    sample = noisy.alpha * data + noisy.sigma * noise
    predicted = (sample - noisy.alpha * posterior_mean(law, sample, noisy)) / noisy.sigma
    assert float((predicted - noise).square().mean()) == pytest.approx(float(irreducible_loss(law, noisy)), rel=0.01)
