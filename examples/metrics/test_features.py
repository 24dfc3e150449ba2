"""The metrics without a model: features in, figures and verdicts out.

    pytest examples/metrics

Features are tensors (N, D) of any extractor; here they are drawn, so that the right answers are known.
"""

import pytest
import torch

from pytest_diffusion import (
    FeatureStatistics,
    InconclusiveFailure,
    QualityFailure,
    assert_fid_below,
    assert_fid_infinity_below,
    density_coverage,
    frechet_distance,
    frechet_distance_infinity,
    kernel_distance,
    precision_recall,
    vendi_score,
)


def features(count, *, seed, shift=0.0):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) + shift


def test_statistics_of_a_set_that_does_not_fit_into_memory(tmp_path):
    statistics = FeatureStatistics(protocol={"extractor": "mine-1"})
    for part in range(10):
        statistics.update(features(500, seed=part))
    statistics.save(tmp_path / "reference.npz")
    reference = FeatureStatistics.load(tmp_path / "reference.npz")
    assert reference.count == 5000
    assert frechet_distance(features(5000, seed=99), reference) < 1.0


def test_equal_laws_have_a_distance_above_zero_until_it_is_extrapolated():
    sound, reference = features(400, seed=0), features(400, seed=1)
    assert frechet_distance(sound, reference) > 0.9  # the bias of 400 samples, not a fault
    estimate = frechet_distance_infinity(sound, reference)
    assert abs(estimate.value) < 2 * estimate.standard_error


def test_a_shift_is_seen_by_all():
    shifted, reference = features(400, seed=0, shift=0.8), features(400, seed=1)
    assert frechet_distance(shifted, reference) > 20
    assert kernel_distance(shifted, reference) > 1
    assert precision_recall(shifted, reference).precision < precision_recall(features(400, seed=2), reference).precision
    assert density_coverage(shifted, reference).coverage < 0.7


def test_a_collapse_is_seen_without_a_reference():
    collapsed = features(1, seed=0) + 0.1 * features(400, seed=1)
    assert vendi_score(collapsed) < 2 < 25 < vendi_score(features(400, seed=0))


def test_verdicts_go_by_interval():
    sound, reference = features(400, seed=0), features(400, seed=1)
    assert assert_fid_infinity_below(sound, reference, at_most=1.0).outcome == "pass"
    with pytest.raises(QualityFailure, match="allowed at most 1"):
        assert_fid_below(features(400, seed=0, shift=0.8), reference, at_most=1.0)
    with pytest.raises(InconclusiveFailure, match=r"straddles the limit.*samples and \d+ reference images would decide"):
        assert_fid_below(sound, reference, at_most=frechet_distance(sound, reference) + 0.05)
