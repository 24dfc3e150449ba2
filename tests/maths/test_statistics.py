import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from pytest_diffusion.maths.statistics import (
    auroc,
    auroc_interval,
    choice_p_value,
    jackknife,
    mean_error,
    rank_correlations,
    sign_flip_p_value,
    wilson_interval,
)


def test_auroc_is_scikit_learns_with_ties():
    inliers = torch.randint(0, 10, (50,), generator=torch.Generator().manual_seed(0)).double()
    outliers = torch.randint(3, 14, (70,), generator=torch.Generator().manual_seed(1)).double()
    expected = roc_auc_score([0] * 50 + [1] * 70, torch.cat([inliers, outliers]).numpy())
    assert auroc(inliers, outliers) == pytest.approx(expected)
    assert auroc(inliers, inliers + 100) == 1
    assert auroc(inliers + 100, inliers) == 0


@pytest.mark.parametrize(("shift", "highest"), [(1.0, 0.98), (3.0, 1.0)])
def test_auroc_interval_covers(shift, highest):
    """Near 1 it covers too often rather than too seldom."""
    truth = 0.5 * math.erfc(-shift / 2)  # N(shift, 1) against N(0, 1): Φ(shift/√2)
    covered = 0
    for seed in range(300):
        draws = torch.randn(2, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        low, high = auroc_interval(auroc(draws[0], draws[1] + shift), 100, 100)
        covered += low <= truth <= high
    assert 0.92 <= covered / 300 <= highest


def test_auroc_interval_has_a_width_at_its_ends():
    low, high = auroc_interval(1.0, 200, 200)
    assert high == 1.0
    assert 0.98 < low < 0.995
    assert auroc_interval(0.0, 200, 200) == pytest.approx((0.0, 1 - low), abs=1e-4)
    assert auroc_interval(0.5, 100, 100) == pytest.approx((0.5 - 1.96 * 0.04, 0.5 + 1.96 * 0.04), abs=0.005)


@pytest.mark.parametrize("value", [0.05, 0.3, 0.5, 0.8])
def test_auroc_interval_ends_where_the_value_is_z_errors_away(value):
    """Hanley & McNeil's variance, written out with 30 inliers and 70 outliers, at both ends."""
    for end in auroc_interval(value, 30, 70):
        of_outliers, of_inliers = 69 * (end / (2 - end) - end * end), 29 * (2 * end**2 / (1 + end) - end * end)
        assert abs(end - value) == pytest.approx(1.959964 * math.sqrt((end * (1 - end) + of_outliers + of_inliers) / 2100), rel=1e-6)


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


def test_p_values_of_random_choices_are_uniform():
    """Under the null the share of p-values below a level is the level; a real difference is always seen."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for trial in range(400):
        pools = [torch.rand(int(torch.randint(2, 9, (1,), generator=generator)), generator=generator) for _ in range(20)]
        chosen = [float(pool[torch.randint(len(pool), (1,), generator=generator)]) for pool in pools]
        values.append(choice_p_value(chosen, pools, draws=199, seed=trial))
    shares = [sum(value <= level for value in values) / len(values) for level in (0.05, 0.2, 0.5)]
    assert shares == pytest.approx([0.05, 0.2, 0.5], abs=0.075)
    pools = [torch.arange(10.0) for _ in range(20)]
    assert choice_p_value([1.0] * 20, pools) == 1e-4
    assert choice_p_value([8.0] * 20, pools) > 0.99


def test_equal_members_are_ties_whatever_their_rounding():
    pools = [torch.full((5,), 0.1) for _ in range(30)]
    assert choice_p_value([float(torch.tensor(0.1))] * 30, pools) == 1


def test_p_values_of_sign_flips_are_uniform():
    generator = torch.Generator().manual_seed(0)
    values = []
    for trial in range(400):
        differences = torch.randn(16, generator=generator, dtype=torch.float64)
        values.append(sign_flip_p_value(lambda signs, own=differences: (signs * own).mean(1), 16, draws=199, seed=trial))
    shares = [sum(value <= level for value in values) / len(values) for level in (0.05, 0.2, 0.5)]
    assert shares == pytest.approx([0.05, 0.2, 0.5], abs=0.075)
    assert sign_flip_p_value(lambda signs: signs.mean(1), 16) == 0.001


def test_the_jackknife_error_of_a_mean_is_the_classical_one():
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = jackknife(lambda rows: float(rows.mean()), values, groups=20)
    assert estimate.value == pytest.approx(float(values.mean()))
    assert estimate.standard_error == pytest.approx(mean_error(values))
    assert jackknife(lambda rows: float(rows.mean()), values) == estimate, "twenty groups unless another number is given"


def test_the_jackknife_adds_the_errors_of_two_sides():
    left, right = (torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64) for count in (40, 80))
    estimate = jackknife(lambda one, other: float(one.mean() - other.mean()), left, right, groups=20)
    grouped = [torch.stack([side[torch.arange(len(side)) % 20 == group].mean() for group in range(20)]) for side in (left, right)]
    assert estimate.standard_error == pytest.approx(mean_error(grouped[0] - grouped[1]))


def test_rank_correlations_are_spearmans():
    order = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    values = torch.tensor([[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1], [2.0, 2, 2, 2, 2], [1.0, 3, 2, 4, 5]])
    assert rank_correlations(values, order).tolist() == pytest.approx([1, -1, 0, 0.9])


def test_all_signs_are_tried_where_they_are_few():
    """Three differences have eight signs; only all plus gives the largest mean."""
    change = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert sign_flip_p_value(lambda signs: (signs * change).mean(1), 3) == pytest.approx(1 / 8)
