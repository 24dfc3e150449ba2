import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf

from pytest_diffusion.maths.ood import MahalanobisScorer, ledoit_wolf
from pytest_diffusion.maths.statistics import auroc


def draws(count, size=30, *, seed, scale=1.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


@pytest.mark.parametrize("count", [20, 60, 500])
def test_ledoit_wolf_is_scikit_learns(count):
    matrix = draws(count, seed=0) * torch.linspace(0.5, 3, 30)
    expected, _ = sklearn_ledoit_wolf(matrix.numpy())
    assert np.allclose(ledoit_wolf(matrix).numpy(), expected, rtol=1e-10)


def test_scores_are_two_sided():
    scorer = MahalanobisScorer.fit(draws(400, seed=0))
    inside = scorer.scores(draws(300, seed=1))
    assert auroc(inside, scorer.scores(draws(300, seed=2, scale=2.0))) > 0.99
    assert auroc(inside, scorer.scores(draws(300, seed=3, scale=0.3))) > 0.99  # too typical is atypical
    assert abs(auroc(inside, scorer.scores(draws(300, seed=4))) - 0.5) < 0.1


def test_distances_follow_the_covariance():
    matrix = draws(5000, 4, seed=0) * torch.tensor([1.0, 10.0, 1.0, 1.0])
    scorer = MahalanobisScorer.fit(matrix)
    along, across = scorer.distances(torch.tensor([[0.0, 10, 0, 0], [10.0, 0, 0, 0]])).tolist()
    assert across > 5 * along
    with pytest.raises(ValueError, match="columns"):
        scorer.distances(torch.zeros(1, 5))
