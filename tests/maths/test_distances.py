"""Kernel distance, precision and recall: closed forms, references, and which side is which."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffusion.maths.kernel import kernel_distance, kernel_estimate
from pytest_diffusion.maths.manifold import precision_recall


def features(count, size, *, seed, scale=1.0, shift=0.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def brute_force_mmd(left, right):
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    n, m = len(left), len(right)
    own_left = sum(kernel(left[i], left[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    own_right = sum(kernel(right[i], right[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    cross = sum(kernel(x, y) for x in left for y in right) / (n * m)
    return float(own_left + own_right - 2 * cross)


def test_kernel_distance_by_definition():
    left, right = features(12, 3, seed=0), features(9, 3, seed=1, shift=0.5)
    assert kernel_distance(left, right) == pytest.approx(brute_force_mmd(left, right), rel=1e-10)


def test_kernel_distance_agrees_with_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    left, right = features(50, 8, seed=0), features(50, 8, seed=1, shift=0.4)
    assert kernel_distance(left, right) == pytest.approx(float(poly_mmd(left, right)), rel=1e-9)


def test_kernel_distance_is_unbiased_under_the_null():
    values = torch.tensor([kernel_distance(features(40, 4, seed=2 * i), features(40, 4, seed=2 * i + 1)) for i in range(300)])
    assert abs(values.mean()) < 3 * values.std() / 300**0.5
    assert (values < 0).any()


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_kernel_interval_covers(shift):
    """92 to 98 % for a real difference; under the null the interval may only be wider."""
    estimates = [kernel_estimate(features(150, 4, seed=2 * i, shift=shift), features(150, 4, seed=2 * i + 1)) for i in range(300)]
    truth = sum(estimate.value for estimate in estimates) / 300
    covered = sum(abs(estimate.value - truth) <= 1.96 * estimate.standard_error for estimate in estimates) / 300
    assert covered >= 0.92
    assert shift == 0.0 or covered <= 0.98


def test_a_collapsed_generator_is_precise_and_forgets():
    """Pins the argument order: generated first, real second."""
    real = features(400, 4, seed=0)
    collapsed = real[0] + 0.01 * features(400, 4, seed=1)
    figures = precision_recall(collapsed, real)
    assert figures.precision > 0.9
    assert figures.recall < 0.1
    swapped = precision_recall(real, collapsed)
    assert swapped.precision < 0.1
    assert swapped.recall > 0.9


def brute_force_precision(left, right, k):
    distances = torch.cdist(right, right)
    radii = distances.kthvalue(k + 1, dim=1).values
    return float((torch.cdist(left, right) <= radii).any(1).double().mean())


@given(st.integers(0, 1000), st.sampled_from([1, 3, 5]))
def test_precision_by_definition(seed, k):
    left, right = features(40, 3, seed=seed, scale=1.4), features(50, 3, seed=seed + 1)
    figures = precision_recall(left, right, k=k)
    assert figures.precision == pytest.approx(brute_force_precision(left, right, k))
    assert figures.recall == pytest.approx(brute_force_precision(right, left, k))


def test_far_from_the_origin_nothing_changes():
    left, right = features(60, 6, seed=0, scale=1.3), features(60, 6, seed=1)
    assert precision_recall(left + 1e6, right + 1e6) == precision_recall(left, right)


def test_blocks_do_not_change_the_answer():
    left, right = features(1500, 4, seed=0, scale=1.2), features(1100, 4, seed=1)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(2))
    assert precision_recall(left, right) == precision_recall(left[order], right)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="features has 3 rows; at least 4 are needed"):
        precision_recall(torch.rand(3, 2), torch.rand(10, 2))
