import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.frechet import extrapolated_distance, frechet_distance, frechet_distance_infinity, frechet_standard_error
from pytest_diffusion.maths.tensors import as_rows, mean_of_rows, shifted
from pytest_diffusion.verdicts.protocol import ProtocolMismatchError


def features(count, size, *, seed, scale=1.0, shift=0.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def test_closed_form_of_two_known_gaussians():
    # Commuting covariances: |μ−ν|² + Σ(√a−√b)².
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    left = FeatureStatistics(torch.zeros(3).double(), torch.diag(a), 10)
    right = FeatureStatistics(torch.tensor([1.0, 2.0, 2.0]).double(), torch.diag(b), 10)
    assert frechet_distance(left, right) == pytest.approx(9 + 1 + 0 + 4, rel=1e-12)


def test_agrees_with_the_textbook_square_root():
    left, right = features(300, 16, seed=0), features(400, 16, seed=1, scale=1.5, shift=0.3)
    cov_left, cov_right = np.cov(left.numpy().T), np.cov(right.numpy().T)
    root = scipy.linalg.sqrtm(cov_left @ cov_right).real
    shift = ((left.mean(0) - right.mean(0)) ** 2).sum().item()
    expected = shift + np.trace(cov_left + cov_right - 2 * root)
    assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-9)


def test_agrees_with_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    left, right = features(300, 16, seed=0), features(400, 16, seed=1, scale=1.5)
    expected = _compute_fid(left.mean(0), left.T.cov(), right.mean(0), right.T.cov())
    assert frechet_distance(left, right) == pytest.approx(float(expected), rel=1e-9)


def test_singular_covariance_is_exact():
    # Rank 1 along e₁ on both sides: a one-dimensional problem.
    left = FeatureStatistics(torch.zeros(50).double(), torch.diag(torch.tensor([4.0] + [0.0] * 49).double()), 2)
    right = FeatureStatistics(torch.zeros(50).double(), torch.diag(torch.tensor([9.0] + [0.0] * 49).double()), 2)
    assert frechet_distance(left, right) == pytest.approx(1.0, rel=1e-12)
    few = features(10, 50, seed=3)
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)


@given(st.integers(0, 1000), st.floats(-1000, 1000))
def test_invariant_to_order_rotation_and_origin(seed, origin):
    left, right = features(60, 5, seed=seed), features(70, 5, seed=seed + 1, scale=2)
    turn = torch.linalg.qr(features(5, 5, seed=seed + 2)).Q
    expected = frechet_distance(left, right)
    moved = frechet_distance(left.flip(0) @ turn + origin, right @ turn + origin)
    assert moved == pytest.approx(expected, rel=1e-7)


def test_symmetric_and_zero_on_itself():
    left, right = features(80, 6, seed=0), features(90, 6, seed=1, scale=3)
    assert frechet_distance(left, right) == pytest.approx(frechet_distance(right, left), rel=1e-10)
    assert frechet_distance(left, left) == pytest.approx(0, abs=1e-10)


def test_interval_covers_what_the_estimator_aims_at():
    """Nominal 95 % intervals hold the estimator's own mean in 92 to 98 % of 400 repetitions."""
    draws = [(features(200, 4, seed=3 * i, scale=1.3, shift=0.5), features(300, 4, seed=3 * i + 1)) for i in range(400)]
    values = torch.tensor([frechet_distance(left, right) for left, right in draws])
    errors = torch.tensor([frechet_standard_error(left, right) for left, right in draws])
    covered = ((values - values.mean()).abs() <= 1.96 * errors).double().mean().item()
    assert 0.92 <= covered <= 0.98


def test_a_parabola_through_one_to_four_parts_gives_the_distance_of_infinitely_many_samples():
    left, right = features(90, 3, seed=0, shift=0.5), features(82, 3, seed=1)
    found = extrapolated_distance(left, right)
    assert found.sizes == [90, 45, 30, 22]
    assert found.distances[0] == pytest.approx(frechet_distance(left, right))
    assert found.estimate.value == pytest.approx(np.polyfit([1, 2, 3, 4], found.distances, 2)[-1])
    assert found.estimate == frechet_distance_infinity(left, right)


def test_samples_are_shuffled_and_statistics_stay_as_they_are():
    left, right = features(90, 3, seed=0, shift=0.5), features(82, 3, seed=1)
    statistics = FeatureStatistics.from_features(right)
    for reference in (right, statistics):
        values = [frechet_distance_infinity(left, reference, seed=seed) for seed in (0, 0, 1)]
        assert values[0] == values[1] != values[2]
    assert values[0].standard_error < frechet_distance_infinity(left, right).standard_error


def test_error_against_fixed_statistics_is_smaller():
    left, right = features(200, 4, seed=0, shift=1.0), features(200, 4, seed=1)
    fixed = FeatureStatistics.from_features(right)
    assert frechet_standard_error(left, fixed) < frechet_standard_error(left, right)


def test_the_error_depends_on_no_axes_and_no_origin():
    left, right = features(80, 5, seed=0, shift=0.3), features(90, 5, seed=1, scale=1.5)
    turn = torch.linalg.qr(features(5, 5, seed=2)).Q
    expected = frechet_standard_error(left, right)
    assert frechet_standard_error(left @ turn + 100, right @ turn + 100) == pytest.approx(expected, rel=1e-8)
    # By leaving out one sample at a time instead, on both sides.
    without = [
        torch.tensor([frechet_distance(left[torch.arange(80) != row], right) for row in range(80)]),
        torch.tensor([frechet_distance(left, right[torch.arange(90) != row]) for row in range(90)]),
    ]
    jackknifed = math.sqrt(sum((len(one) - 1) ** 2 / len(one) * float(one.var()) for one in without))
    assert expected == pytest.approx(jackknifed, rel=0.1)


def test_distance_and_error_have_the_units_of_squared_features():
    widths = torch.tensor([1.0, 0.1, 0.01, 0.3])
    left, right = features(80, 4, seed=0, shift=1.0) * widths, features(90, 4, seed=1) * widths
    for unit in (2.0**-20, 2.0**-15, 2.0**-12, 2.0**9):
        for figure in (frechet_distance, frechet_standard_error):
            assert figure(unit * left, unit * right) / unit**2 == pytest.approx(figure(left, right), rel=1e-9)
    small, whole = frechet_distance_infinity(unit * left, unit * right), frechet_distance_infinity(left, right)
    assert [figure / unit**2 for figure in small] == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**-30])
def test_singular_statistics_are_as_precise_at_any_unit(unit):
    left, right = features(20, 40, seed=0), features(70, 40, seed=1)
    sides = [[FeatureStatistics.from_features(scale * side) for side in (left, right)] for scale in (unit, 1.0)]
    assert frechet_distance(*sides[0]) / unit**2 == pytest.approx(frechet_distance(*sides[1]), rel=1e-11)
    assert sides[0][0].factor.shape == (40, 19)


def test_a_repeated_row_does_not_cost_digits():
    """Few rows, two of them equal, against the statistics of the same rows: no distance, to more than half of the digits."""
    for seed in range(8):
        rows = features(5, 9, seed=seed)
        rows[1] = rows[0]
        assert frechet_distance(rows, FeatureStatistics.from_features(rows)) < 1e-11
        other = FeatureStatistics.from_features(features(40, 9, seed=seed + 100))
        expected = frechet_distance(FeatureStatistics.from_features(rows), other)
        assert frechet_distance(rows, other) == pytest.approx(expected, rel=1e-10)


def test_variances_that_rounding_made_negative_count_as_none():
    """Files of other tools hold covariances with eigenvalues a little below 0."""
    size = 400
    for negative, other, expected in (
        (1, FeatureStatistics(torch.zeros(size), torch.eye(size)), 1),
        # The covariance of a row for each axis is I - 1/N. Its overlap with three of the axes has one eigenvalue above 0, 3/N.
        (3, math.sqrt(size - 1) * (torch.eye(size, dtype=torch.float64) - 1 / size), 4 - 2 * math.sqrt(3 / size)),
    ):
        variances = torch.ones(size, dtype=torch.float64)
        variances[-negative:] = -1e-13
        foreign = FeatureStatistics(torch.zeros(size), torch.diag(variances))
        assert frechet_distance(other, foreign) == frechet_distance(foreign, other) == pytest.approx(expected, abs=1e-6)


def test_one_row_of_the_reference_has_no_error():
    with pytest.raises(ValueError, match="reference has 1 rows; at least 2 are needed"):
        frechet_standard_error(torch.rand(9, 4), torch.rand(1, 4))


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (torch.zeros(5), r"expected \(N, D\)"),
        (torch.zeros(5, 4, 2), r"features has shape \(5, 4, 2\); expected \(N, D\)"),
        (torch.zeros(1, 4), "at least 2 are needed"),
        (torch.tensor([[0.0] * 4, [float("nan")] * 4]), r"4 non-finite entries, the first at index \(1, 0\)"),
        (torch.rand(9, 3), "features have 3 columns and reference has 4"),
    ],
)
def test_bad_input_is_refused(left, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(left, torch.rand(10, 4))


def test_statistics_files(tmp_path):
    path = tmp_path / "s.npz"
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    loaded = FeatureStatistics.load(path)
    assert loaded.count is None
    assert frechet_distance(loaded, FeatureStatistics(torch.ones(3).double(), torch.eye(3).double(), 9)) == pytest.approx(3)
    np.savez(path, mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"has the keys \['mean'\]; expected 'mu' and 'sigma'"):
        FeatureStatistics.load(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"mu has shape \(3,\) and sigma \(4, 4\)"):
        FeatureStatistics.load(path)
    np.savez(path, mu=np.array([object()]), sigma=np.eye(1))
    with pytest.raises(ValueError, match=r"cannot be read as an \.npz of plain arrays"):
        FeatureStatistics.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="cannot be read"):
        FeatureStatistics.load(path)
    for mean, covariance in ((np.float64(0), np.eye(1)), (np.zeros((1, 0)), np.zeros((0, 0)))):
        np.savez(path, mu=mean, sigma=covariance)
        with pytest.raises(ValueError, match=r"s\.npz: mu has shape .* and sigma .*; expected \(D,\) and \(D, D\)\."):
            FeatureStatistics.load(path)
    with pytest.raises(FileNotFoundError):
        FeatureStatistics.load(tmp_path / "nowhere.npz")


def test_streaming_in_any_batches_gives_the_same_statistics(tmp_path):
    rows = features(3000, 7, seed=0, scale=2.0, shift=1000.0)
    whole = FeatureStatistics.from_features(rows, protocol={"extractor": "a"})
    assert torch.allclose(whole.mean, rows.mean(0), rtol=1e-13)
    assert torch.allclose(whole.covariance, rows.T.cov(), rtol=1e-9)
    for size in (1, 32, 700, 2999):
        streamed = FeatureStatistics()
        for batch in rows.split(size):
            streamed.update(batch)
        assert streamed.count == 3000
        assert torch.allclose(streamed.covariance, whole.covariance, rtol=1e-9)
    path = tmp_path / "own.npz"
    FeatureStatistics.from_features(rows[:1000], protocol={"extractor": "a"}).save(path)
    resumed = FeatureStatistics.load(path).update(rows[1000:])
    assert resumed.count == 3000
    assert resumed.protocol == {"extractor": "a"}
    assert torch.allclose(resumed.covariance, whole.covariance, rtol=1e-9)
    assert [file.name for file in tmp_path.iterdir()] == ["own.npz"]


def test_a_callers_batch_may_be_overwritten():
    rows = features(20, 3, seed=0)
    batch, streamed = rows.clone(), FeatureStatistics()
    streamed.update(batch)
    batch.zero_()
    assert torch.allclose(streamed.covariance, rows.T.cov())


def test_statistics_say_what_they_lack(tmp_path):
    with pytest.raises(ValueError, match="0 features were seen; at least 2"):
        _ = FeatureStatistics().covariance
    with pytest.raises(ValueError, match="1 features were seen; at least 2"):
        _ = FeatureStatistics().update(torch.rand(1, 3)).mean
    for half in ({"mean": torch.zeros(3)}, {"covariance": torch.eye(3)}):
        with pytest.raises(ValueError, match="needs both mean and covariance, or neither"):
            FeatureStatistics(**half)
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(3), sigma=np.eye(3))
    foreign = FeatureStatistics.load(tmp_path / "foreign.npz")
    assert foreign.protocol == {"statistics": "protocol unverified"}
    with pytest.raises(ValueError, match="have no count"):
        foreign.update(torch.rand(5, 3))
    for before in (5, 2000):
        for width in (2, 4):
            with pytest.raises(ValueError, match=f"features have {width} columns; the batches before had 3"):
                FeatureStatistics.from_features(torch.rand(before, 3)).update(torch.rand(5, width))


def test_two_rows_have_statistics():
    found = FeatureStatistics.from_features(torch.tensor([[1.0, 5.0], [3.0, 1.0]]))
    assert found.mean.tolist() == [2, 3]
    assert found.covariance.tolist() == [[2, -4], [-4, 8]]
    assert found.count == 2
    known = FeatureStatistics(torch.ones(2), torch.eye(2), count=0).update(torch.tensor([[1.0, 5.0], [3.0, 1.0]]))
    assert known.covariance.tolist() == [[2, -4], [-4, 8]], "a mean and a covariance of no rows weigh nothing"


def test_the_factor_is_triangular_at_full_rank_and_has_a_column_for_each_direction_otherwise():
    full, few = (FeatureStatistics.from_features(features(count, 6, seed=0)) for count in (50, 4))
    assert torch.equal(full.factor, full.factor.tril())
    assert few.factor.shape == (6, 3)
    for statistics in (full, few):
        assert torch.allclose(statistics.factor @ statistics.factor.T, statistics.covariance)
    within_rounding = FeatureStatistics(torch.zeros(2), torch.diag(torch.tensor([1.0, 1e-20])))
    assert within_rounding.factor.shape == (2, 1)


@pytest.mark.parametrize("count", [1, 1024, 1025, 2100])
def test_rows_are_moved_and_averaged_whatever_their_number(count):
    rows = features(count, 3, seed=0).float()
    assert torch.allclose(mean_of_rows(rows), rows.double().mean(0))
    assert torch.equal(shifted(rows, torch.tensor([1.0, 2.0, 3.0]), torch.float64), rows.double() - torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8])
def test_single_precision_is_kept_and_all_else_becomes_double(dtype):
    rows = as_rows(torch.arange(6, dtype=dtype).view(2, 3), "rows")
    assert rows.dtype == (torch.float32 if dtype == torch.float32 else torch.float64)
    assert rows.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_other_protocols_refuse_to_be_compared():
    one, other = (FeatureStatistics.from_features(torch.rand(9, 3), protocol={"extractor": name, "resize": "r"}) for name in "ab")
    with pytest.raises(ProtocolMismatchError, match="cannot be compared: extractor is 'a' on one side and 'b' on the other") as caught:
        frechet_distance(one, other)
    assert caught.value.differences == {"extractor": ("a", "b")}
    assert frechet_distance(one, FeatureStatistics.from_features(torch.rand(9, 3))) >= 0


@pytest.mark.parametrize(("many", "few"), [(200, 20), (20, 200), (20, 20), (200, 200)])
def test_every_route_agrees_with_singular_values(many, few):
    """Singular covariances on either side, against the nuclear norm of the data matrices in extended care."""
    spectrum = torch.logspace(0, -5, 40, dtype=torch.float64)
    left, right = features(many, 40, seed=0) * spectrum + 0.1, features(few, 40, seed=1) * spectrum.flip(0).sqrt()
    rows = [(side - side.mean(0)) / (len(side) - 1) ** 0.5 for side in (left, right)]
    cross = torch.linalg.svdvals(rows[0] @ rows[1].T).sum()
    expected = float((left.mean(0) - right.mean(0)).square().sum() + rows[0].square().sum() + rows[1].square().sum() - 2 * cross)
    sources = [(left, right), (FeatureStatistics.from_features(left), right), (left, FeatureStatistics.from_features(right))]
    for pair in [*sources, tuple(FeatureStatistics.from_features(side) for side in (left, right))]:
        assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-9)


def test_extrapolated_error_is_the_spread_where_the_first_order_vanishes():
    """Two samples of one population: 200 repetitions, whose spread is itself known to 5 %."""
    found = [frechet_distance_infinity(features(120, 4, seed=2 * i), features(160, 4, seed=2 * i + 1)) for i in range(200)]
    spread = torch.tensor([one.value for one in found]).std().item()
    error = torch.tensor([one.standard_error for one in found]).square().mean().sqrt().item()
    assert error == pytest.approx(spread, rel=0.15)


def test_extrapolation_needs_samples():
    with pytest.raises(ValueError, match="30 samples of 16 features cannot be extrapolated; at least 32"):
        frechet_distance_infinity(torch.rand(30, 16), torch.rand(90, 16))
    with pytest.raises(ValueError, match="31 samples of 16 features"):
        frechet_distance_infinity(torch.rand(90, 16), torch.rand(31, 16))
    for sides, name in (((7, 8), "features"), ((8, 7), "reference")):
        with pytest.raises(ValueError, match=f"{name} has 7 rows; at least 8 are needed"):
            frechet_distance_infinity(*(torch.rand(count, 2) for count in sides))
    for count, size in ((32, 16), (8, 2)):
        assert frechet_distance_infinity(features(count, size, seed=0), features(count, size, seed=1)).standard_error > 0
    left, right = features(400, 8, seed=0), features(400, 8, seed=1)
    assert frechet_distance_infinity(left, right, seed=3) == frechet_distance_infinity(left, right, seed=3)


@pytest.mark.parametrize(("count", "size"), [(100, 8), (5, 8)])
def test_a_collapsed_side_has_a_distance_and_an_error(count, size):
    one, real = torch.ones(count, size), features(100, size, seed=0)
    for pair in ((one, real), (real, one)):
        expected = float((one[0] - real.mean(0)).square().sum() + real.T.cov().trace())
        assert frechet_distance(*pair) == pytest.approx(expected, rel=1e-9)
        assert frechet_standard_error(*pair) > 0
    assert frechet_distance(one, one) == frechet_standard_error(one, one) == 0


def test_versions_alone_do_not_part_two_statistics():
    one, other = (FeatureStatistics.from_features(torch.rand(9, 3), protocol={"extractor": "a", "versions": name}) for name in "ab")
    assert frechet_distance(one, other) >= 0


def test_damaged_statistics_are_a_value_error(tmp_path):
    path = tmp_path / "s.npz"
    FeatureStatistics.from_features(torch.rand(50, 9)).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:200], whole[:600] + bytes([whole[600] ^ 1]) + whole[601:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read"):
            FeatureStatistics.load(path)
