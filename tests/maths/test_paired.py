"""Paired differences: closed forms, clusters, and coverage under heavy tails."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import t

from pytest_diffusion.maths.paired import paired_mean


def test_without_clusters_it_is_the_paired_t():
    values = torch.tensor([1.0, 2.0, 4.0, 3.0])
    mean, error, degrees = paired_mean(values)
    assert mean == 2.5
    assert error == pytest.approx(float(values.double().std()) / 2)
    assert degrees == 3


def test_equal_clusters_count_as_their_means():
    values = torch.tensor([1.0, 3.0, 2.0, 6.0, 0.0, 1.0])
    clusters = ["a", "a", "b", "b", "c", "c"]
    means = paired_mean(torch.tensor([2.0, 4.0, 0.5]))
    assert paired_mean(values, clusters) == pytest.approx(means)


def test_a_repeated_pair_adds_no_information():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    once, twice = paired_mean(values), paired_mean(values.repeat(2), [*range(50), *range(50)])
    assert twice == pytest.approx(once)
    assert paired_mean(values.repeat(2)).standard_error < 0.75 * once.standard_error


def test_what_was_not_seen_yet_widens_the_error():
    equal = torch.zeros(100)
    assert paired_mean(equal).standard_error == 0
    # Four more clusters of ±3: variance 4·(3/100)².
    assert paired_mean(equal, unseen=3.0).standard_error == pytest.approx(2 * 0.03)


def test_a_single_cluster_says_nothing():
    assert paired_mean(torch.ones(5), ["a"] * 5) == (1.0, math.inf, 0)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [
        (torch.ones(2, 2), None, "shape"),
        (torch.tensor([1.0, math.nan]), None, "non-finite"),
        (torch.ones(3), ["a"], "1 clusters for 3 pairs"),
    ],
)
def test_bad_input_is_refused(values, clusters, message):
    with pytest.raises(ValueError, match=message):
        paired_mean(values, clusters)


@pytest.mark.parametrize("tails", [3.0, math.inf])
def test_intervals_of_clustered_differences_cover(tails):
    rng, hits, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        own = rng.standard_normal(40) if math.isinf(tails) else rng.standard_t(tails, 40)
        values = torch.tensor(np.repeat(own, 5) + 0.5 * rng.standard_normal(200))
        mean, error, degrees = paired_mean(values, np.repeat(np.arange(40), 5).tolist())
        hits += abs(mean) <= t.isf(0.025, degrees) * error
    assert 0.935 <= hits / runs <= 0.975  # heavy tails are a little too wide, never too narrow


def test_losses_too_rare_to_be_seen_are_not_called_absent():
    """One pair in fifty loses five points: at 64 pairs, a quarter of all runs see none, and would prove that the mean loss is below 0.1."""
    rng, wrong, naive, runs = np.random.default_rng(0), 0, 0, 1000
    for _ in range(runs):
        lost = rng.random(64) < 0.02
        values = torch.tensor(np.where(lost, -5.0, 0.01 * rng.standard_normal(64)))
        margin = 0.05  # half of the true loss
        for unseen, counts in ((5.0, "careful"), (0.0, "naive")):
            mean, error, degrees = paired_mean(values, unseen=unseen)
            passed = mean - t.isf(0.05, degrees) * error > -margin
            wrong += passed and counts == "careful"
            naive += passed and counts == "naive"
    assert naive / runs > 0.2
    assert wrong / runs < 0.01
