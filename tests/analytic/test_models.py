"""Closed-form denoisers against brute force, against each other, and against the laws that they were made from."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffusion import AnalyticModel, FeatureStatistics, create_model, frechet_distance, register_model
from pytest_diffusion.analytic.registry import model_names
from pytest_diffusion.analytic.softmax import StreamingSoftmax
from pytest_diffusion.models.levels import NoiseLevel
from pytest_diffusion.verdicts.errors import ModelError, SettingsError

LEVELS = [NoiseLevel.of_ratio(ratio) for ratio in (0.05, 0.5, 2.0, 30.0)]


def images(count=60, shape=(1, 3, 3), seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noisy(count=5, shape=(1, 3, 3), seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).double()


def grid_posterior_mean(density, sample, level):
    """E[x₀|x] of a density over the plane, by the trapezoidal rule."""
    axis = torch.linspace(-4, 4, 801).double()
    points = torch.cartesian_prod(axis, axis)
    likelihood = -(sample.flatten() - level.alpha * points).square().sum(1) / (2 * level.sigma.square())
    weights = density(points) * (likelihood - likelihood.max()).exp()
    return (weights[:, None] * points).sum(0) / weights.sum()


def normal(mean, covariance):
    law = torch.distributions.MultivariateNormal(mean, covariance)
    return lambda points: law.log_prob(points).exp()


@pytest.mark.parametrize("level", [NoiseLevel.of_ratio(ratio) for ratio in (0.5, 1.0, 3.0)])
def test_wiener_agrees_with_integration(level):
    mean, covariance = torch.tensor([0.3, -0.4]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double()
    model = create_model("wiener").set_law(mean, covariance, (1, 1, 2))
    sample = torch.tensor([[[[0.7, 0.1]]]]).double()
    expected = grid_posterior_mean(normal(mean, covariance), sample, level)
    assert torch.allclose(model.posterior_mean(sample, level).flatten(), expected, atol=1e-6)


@pytest.mark.parametrize("level", [NoiseLevel.of_ratio(ratio) for ratio in (0.5, 1.0, 3.0)])
def test_a_mixture_agrees_with_integration(level):
    weights = torch.tensor([0.3, 0.7]).double()
    means = torch.tensor([[1.0, 0.5], [-0.8, -0.2]]).double()
    covariances = torch.stack([torch.tensor([[0.2, 0.1], [0.1, 0.3]]), torch.tensor([[0.4, -0.1], [-0.1, 0.15]])]).double()
    model = create_model("gaussian_mixture").set_law(weights, means, covariances, (1, 1, 2))
    sample = torch.tensor([[[[0.4, 0.3]]]]).double()
    parts = [normal(mean, covariance) for mean, covariance in zip(means, covariances, strict=True)]
    expected = grid_posterior_mean(lambda points: sum(w * part(points) for w, part in zip(weights, parts, strict=True)), sample, level)
    assert torch.allclose(model.posterior_mean(sample, level).flatten(), expected, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_optimal_by_definition(level):
    data, sample = images(), noisy()
    model = create_model("optimal", data)
    distances = (sample[:, None] - level.alpha * data.double()[None]).square().flatten(2).sum(2)
    expected = torch.einsum("nm,mchw->nchw", (-distances / (2 * level.sigma**2)).softmax(1), data.double())
    assert torch.allclose(model.posterior_mean(sample, level), expected, atol=1e-9)


def test_a_mixture_of_one_is_the_wiener_filter_and_of_points_is_optimal():
    data, sample = images(), noisy()
    wiener = create_model("wiener", data)
    one = create_model("gaussian_mixture").set_law(torch.ones(1), wiener.mean[None], wiener.covariance[None], (1, 3, 3))
    points = create_model("gaussian_mixture").set_law(torch.full((60,), 1 / 60), data.flatten(1), torch.zeros(60, 9, 9).double(), (1, 3, 3))
    for level in LEVELS:
        assert torch.allclose(one.posterior_mean(sample, level), wiener.posterior_mean(sample, level), atol=1e-8)
        assert torch.allclose(points.posterior_mean(sample, level), create_model("optimal", data).posterior_mean(sample, level), atol=1e-7)


def test_a_low_rank_mixture_keeps_the_trace_and_the_leading_directions():
    factor = noisy(8, (3,)).flatten(1)
    covariance = factor.T @ factor + 0.1 * torch.eye(3).double()
    full = create_model("gaussian_mixture").set_law(torch.ones(1), torch.zeros(1, 3), covariance[None], (1, 1, 3))
    low = create_model("gaussian_mixture", rank=1).set_law(torch.ones(1), torch.zeros(1, 3), covariance[None], (1, 1, 3))
    assert low.eigenvalues.shape == (1, 1)
    assert float(low.eigenvalues.sum() + 2 * low.floor) == pytest.approx(float(covariance.trace()))
    along = full.eigenvectors[0][:, -1].view(1, 1, 1, 3)
    for level in LEVELS:
        assert torch.allclose(low.posterior_mean(along, level), full.posterior_mean(along, level), atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_full_masks_and_no_smoothing_are_optimal(level):
    data, sample = images(), noisy()
    optimal = create_model("optimal", data).posterior_mean(sample, level)
    assert torch.allclose(create_model("pca_locality", data, mask_threshold=0.0).posterior_mean(sample, level), optimal, atol=2e-4)
    assert torch.allclose(create_model("scfdm", data, smoothing=0.0).posterior_mean(sample, level), optimal, atol=1e-9)


@given(st.integers(1, 70), st.integers(0, 50), st.sampled_from(["optimal", "pca_locality", "scfdm"]))
def test_neither_blocks_nor_batches_change_the_answer(block, seed, name):
    data, sample = images(seed=seed), noisy(seed=seed + 1)
    whole, blocked = (create_model(name, data, block_size=size) for size in (1000, block))
    for level in LEVELS:
        expected = whole.posterior_mean(sample, level)
        assert torch.allclose(blocked.posterior_mean(sample, level), expected, atol=1e-5)
        alone = torch.cat([blocked.posterior_mean(one[None], level) for one in sample])
        assert torch.allclose(alone, expected, atol=1e-5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_a_streamed_softmax_is_the_softmax(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, values = (
        300 * torch.randn(3, sum(sizes), generator=generator).double(),
        torch.randn(sum(sizes), 4, generator=generator).double(),
    )
    running = StreamingSoftmax()
    for part, rows in zip(logits.split(sizes, 1), values.split(sizes), strict=True):
        running.add(part, rows)
    assert torch.allclose(running.mean(), logits.softmax(1) @ values, atol=1e-12)


@pytest.mark.parametrize("name", ["optimal", "nearest_dataset"])
def test_a_fine_schedule_returns_training_images(name):
    data = images(40)
    drawn = create_model(name, data).sample(20, generator=torch.Generator().manual_seed(0), num_inference_steps=200).images
    nearest = torch.cdist(drawn.flatten(1), data.flatten(1)).min(1).values
    assert float(nearest.max()) < 0.02


def test_truncation_stays_within_its_bound_and_vanishes():
    data, sample = images(300), noisy(8)
    whole = create_model("optimal", data)
    for neighbours in (5, 50, 300):
        few = create_model("optimal", data, neighbours=neighbours)
        for level in LEVELS:
            gap = (few.posterior_mean(sample, level) - whole.posterior_mean(sample, level)).flatten(1).norm(dim=1)
            assert bool((gap <= few.truncation_bound(sample, level) + 1e-9).all())
    assert float(create_model("optimal", data, neighbours=50).truncation_bound(sample, LEVELS[0]).max()) < 1e-6


def test_an_index_finds_what_blocks_find():
    pytest.importorskip("faiss")
    data, sample = images(300), noisy(8)
    model = create_model("optimal", data, neighbours=7)
    assert model._index is not None
    by_index = model.nearest(sample.flatten(1), LEVELS[1], 7)
    model._index = None
    assert torch.equal(by_index[1], model.nearest(sample.flatten(1), LEVELS[1], 7)[1])


def test_samples_of_the_wiener_model_have_its_law():
    """The Fréchet distance of samples to the law is what as many draws from the law itself have, by simulation."""
    data = images(400)
    scheduler = DPMSolverMultistepScheduler(final_sigmas_type="zero")
    model = create_model("wiener", data, scheduler=scheduler, num_inference_steps=200)
    law = FeatureStatistics(model.mean, model.covariance)
    drawn = model.sample(1000, batch_size=1000, generator=torch.Generator().manual_seed(0)).images
    draws = torch.distributions.MultivariateNormal(model.mean, model.covariance)
    torch.manual_seed(0)
    by_chance = torch.tensor([frechet_distance(draws.sample((1000,)), law) for _ in range(40)])
    assert frechet_distance(drawn.flatten(1), law) <= float(by_chance.max())


def test_a_mixture_gives_back_weights_and_modes():
    means = torch.tensor([[-0.6, -0.6], [0.6, 0.5]])
    model = create_model("gaussian_mixture").set_law(torch.tensor([0.25, 0.75]), means, 0.005 * torch.eye(2).repeat(2, 1, 1), (1, 1, 2))
    drawn = model.sample(2000, batch_size=2000, generator=torch.Generator().manual_seed(0), num_inference_steps=200).images.flatten(1)
    mode = torch.cdist(drawn, means).argmin(1)
    assert float((mode == 1).double().mean()) == pytest.approx(0.75, abs=0.04)
    for index in (0, 1):
        assert torch.allclose(drawn[mode == index].mean(0), means[index], atol=0.02)


def test_a_mixture_is_fitted_by_expectation_maximisation():
    generator = torch.Generator().manual_seed(0)
    data = torch.cat([torch.full((150, 1, 1, 2), -0.5), torch.full((50, 1, 1, 2), 0.5)])
    data = data + 0.05 * torch.randn(data.shape, generator=generator)
    model = create_model("gaussian_mixture", data, components=2)
    assert sorted(model.weights.tolist()) == pytest.approx([0.25, 0.75], abs=0.01)
    with pytest.raises(ValueError, match="3 images cannot be fitted by 10 components"):
        create_model("gaussian_mixture", data[:3])


def test_smoothing_makes_barycentres():
    data = torch.tensor([[-0.5], [0.5]]).view(2, 1, 1, 1)
    model = create_model("scfdm", data, smoothing=2.0, num_noises=400)
    assert abs(float(model.posterior_mean(torch.tensor([[[[0.4]]]]), NoiseLevel.of_ratio(0.05)))) < 0.3
    sharp = create_model("scfdm", data, smoothing=0.01, num_noises=400)
    assert float(sharp.posterior_mean(torch.tensor([[[[0.4]]]]), NoiseLevel.of_ratio(0.05))) > 0.49


def test_local_masks_draw_what_is_in_no_image():
    """Two independent halves: with local masks they recombine, the optimal denoiser only repeats."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(0, 2, (64, 1, 1, 1), generator=generator) * 1.6 - 0.8 for _ in range(2))
    data = torch.cat([left.expand(-1, 1, 2, 1), right.expand(-1, 1, 2, 1)], dim=3) + 0.02 * torch.randn(64, 1, 2, 2, generator=generator)
    local = create_model("pca_locality", data.clamp(-1, 1), mask_threshold=0.3)
    mask = local.masks(NoiseLevel.of_ratio(1.0))
    assert mask.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_the_law_is_saved_and_loaded(tmp_path):
    model = create_model("wiener", images())
    model.save(tmp_path / "w.safetensors")
    again = create_model("wiener").load(tmp_path / "w.safetensors")
    assert all(torch.equal(kept, model.state_dict()[name]) for name, kept in again.state_dict().items())
    # The loaded law lies in memory in another order, and a matrix product's last bits hang on that.
    assert torch.allclose(again.denoise(noisy(), 300), model.denoise(noisy(), 300), rtol=0, atol=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    with pytest.raises(ModelError, match=r"lost\.safetensors cannot be read"):
        create_model("wiener").load(tmp_path / "lost.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        create_model("wiener").load(tmp_path / "broken.safetensors")
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match=r"is not a Wiener model file: it contains \['weight'\]"):
        create_model("wiener").load(tmp_path / "foreign.safetensors")


def test_batches_may_come_one_by_one():
    data = images(100)
    once = create_model("wiener", (batch for batch in data.split(7)))
    assert torch.allclose(once.covariance, create_model("wiener", data).covariance, atol=1e-12)
    assert torch.equal(create_model("optimal", list(data.split(7))).images, data.flatten(1))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (torch.zeros(4, 3, 3), r"the dataset gave \(4, 3, 3\)"),
        (torch.zeros(4, 1, 3, 3, dtype=torch.uint8), "torch.uint8; expected float images"),
        (torch.full((4, 1, 3, 3), 2.0), r"images between 2 and 2; expected \[-1, 1\]"),
        (torch.full((4, 1, 3, 3), float("nan")), "images between nan and nan"),
        ([np.zeros(3)], "the dataset gave ndarray"),
        ([torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 4, 4)], r"images of shape \(1, 4, 4\) after images of shape \(1, 3, 3\)"),
        ([], "holds no images"),
    ],
)
def test_bad_datasets_are_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        create_model("optimal", dataset)


def test_names_and_parameters():
    assert model_names() == ["baseline_unet", "gaussian_mixture", "nearest_dataset", "optimal", "pca_locality", "scfdm", "wiener"]
    with pytest.raises(SettingsError, match=r"the analytic model is 'wienr'; expected one of: baseline_unet.*Did you mean 'wiener'"):
        create_model("wienr")
    with pytest.raises(SettingsError, match="unexpected keyword argument 'blocks'"):
        create_model("optimal", blocks=3)
    with pytest.raises(ValueError, match="is not fitted: call"):
        create_model("optimal").sample(2)
    with pytest.raises(ValueError, match="2 generators were given for 3 samples"):
        create_model("wiener", images()).sample(3, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match="a covariance is formed for at most 16384"):
        create_model("wiener", torch.zeros(2, 3, 128, 128))


def test_a_model_of_the_users_own():
    @register_model("mean_of_data")
    class MeanOfData(AnalyticModel):
        def fit(self, dataset):
            self.middle, self.image_shape = dataset.mean(0), tuple(dataset.shape[1:])
            return self

        def posterior_mean(self, sample, level):
            return self.middle.expand_as(sample).to(sample.dtype)

    try:
        drawn = create_model("mean_of_data", images()).sample(3, generator=torch.Generator().manual_seed(0)).images
        assert torch.allclose(drawn, images().mean(0).expand_as(drawn), atol=0.05)
        with pytest.raises(ValueError, match="There is already a closed-form model named 'wiener'"):
            register_model("wiener")(MeanOfData)
    finally:
        from pytest_diffusion.analytic.registry import MODELS

        MODELS.remove("mean_of_data")


def test_intermediates_and_seeds():
    model = create_model("wiener", images())
    output = model.sample(6, batch_size=4, generator=torch.Generator().manual_seed(0), num_inference_steps=10, return_intermediates=True)
    assert output.trajectory_xt.shape == (11, 6, 1, 3, 3)
    assert output.trajectory_x0.shape == (10, 6, 1, 3, 3)
    assert torch.equal(output.trajectory_xt[-1], output.images)
    assert len(output.timesteps) == 10
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    one_by_one = model.sample(3, generator=generators, num_inference_steps=10).images
    again = model.sample(1, generator=[torch.Generator().manual_seed(2)], num_inference_steps=10).images
    assert torch.allclose(one_by_one[2:], again, atol=1e-6)


def test_the_score_is_the_gradient_of_the_log_density():
    model = create_model("wiener", images())
    sample = noisy().requires_grad_()
    from pytest_diffusion.analytic.flows import GaussianLaw, marginal
    from pytest_diffusion.models.levels import level_of_timestep

    law = GaussianLaw.of(model.mean, model.covariance)
    mean, covariance = marginal(law, level_of_timestep(model.scheduler, 400))
    density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(sample.flatten(1)).sum()
    (expected,) = torch.autograd.grad(density, sample)
    assert torch.allclose(model.score(sample.detach(), 400), expected, atol=1e-8)
