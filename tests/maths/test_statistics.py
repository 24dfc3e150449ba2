import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from pytest_diffusion.maths.statistics import auroc, auroc_error, mean_error, wilson_interval


def test_auroc_is_scikit_learns_with_ties():
    inliers = torch.randint(0, 10, (50,), generator=torch.Generator().manual_seed(0)).double()
    outliers = torch.randint(3, 14, (70,), generator=torch.Generator().manual_seed(1)).double()
    expected = roc_auc_score([0] * 50 + [1] * 70, torch.cat([inliers, outliers]).numpy())
    assert auroc(inliers, outliers) == pytest.approx(expected)
    assert auroc(inliers, inliers + 100) == 1
    assert auroc(inliers + 100, inliers) == 0


def test_auroc_interval_covers():
    truth = 0.5 * math.erfc(-1 / 2)  # N(1, 1) against N(0, 1): Φ(1/√2)
    covered = 0
    for seed in range(300):
        draws = torch.randn(2, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        value = auroc(draws[0], draws[1] + 1)
        covered += abs(value - truth) <= 1.96 * auroc_error(value, 100, 100)
    assert 0.92 <= covered / 300 <= 0.98


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_wilson_interval_covers(share):
    generator = torch.Generator().manual_seed(0)
    counts = (torch.rand(2000, 100, generator=generator) < share).sum(1).tolist()
    covered = sum(low <= share <= high for low, high in (wilson_interval(count, 100) for count in counts)) / 2000
    assert 0.92 <= covered <= 0.98


def test_wilson_interval_at_the_ends():
    assert wilson_interval(0, 50)[0] == 0
    assert wilson_interval(50, 50)[1] == 1
    assert wilson_interval(0, 0) == (0, 1)


def test_mean_error():
    assert mean_error(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(1 / math.sqrt(3))
    assert math.isnan(mean_error(torch.tensor([1.0])))
