"""Kernel distance, precision and recall: closed forms, references, and which side is which."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffusion.maths import kernel, manifold
from pytest_diffusion.maths.diversity import vendi_score
from pytest_diffusion.maths.kernel import cmmd, cmmd_estimate, kernel_distance, kernel_distance_subsets, kernel_estimate
from pytest_diffusion.maths.manifold import density_coverage, manifold_estimates, manifold_scores, precision_recall
from pytest_diffusion.maths.memorisation import memorisation
from pytest_diffusion.maths.statistics import wilson_interval


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
    for counts, name in (((3, 10), "features"), ((10, 3), "reference")):
        with pytest.raises(ValueError, match=f"{name} has 3 rows; at least 4 are needed"):
            precision_recall(*(torch.rand(count, 2) for count in counts))


@pytest.mark.parametrize("figure", [kernel_distance, cmmd])
def test_one_point_is_too_few_for_a_kernel_distance(figure):
    for counts, name in (((1, 9), "features"), ((9, 1), "reference")):
        with pytest.raises(ValueError, match=f"{name} has 1 rows; at least 2 are needed"):
            figure(*(torch.rand(count, 4) for count in counts))
    assert math.isfinite(figure(torch.rand(2, 4), torch.rand(2, 4)))


def brute_force_density_coverage(left, right, k):
    radii = torch.cdist(right, right).kthvalue(k + 1, dim=1).values
    inside = torch.cdist(left, right) <= radii
    return float(inside.sum(1).double().mean()) / k, float(inside.any(0).double().mean())


@given(st.integers(0, 1000), st.sampled_from([1, 3, 5]), st.floats(-1000, 1000))
def test_density_and_coverage_by_definition_wherever_the_origin_is(seed, k, origin):
    left, right = features(40, 3, seed=seed, scale=1.4), features(50, 3, seed=seed + 1)
    figures = density_coverage(left + origin, right + origin, k=k)
    assert figures == pytest.approx(brute_force_density_coverage(left, right, k))


def test_coverage_and_density_know_which_side_is_which():
    real = features(400, 4, seed=0)
    collapsed = real[0] + 0.01 * features(400, 4, seed=1)
    assert density_coverage(collapsed, real).coverage < 0.1
    assert density_coverage(real, collapsed).density < 0.1
    assert density_coverage(real, features(400, 4, seed=2)).coverage > 0.9


@given(st.integers(0, 100), st.integers(3, 60))
def test_blocks_change_nothing(seed, block):
    """The order of rows and the size of blocks are no part of any figure."""
    left, right = features(70, 3, seed=seed, scale=1.2), features(60, 3, seed=seed + 1)
    whole = [*precision_recall(left, right), *density_coverage(left, right), kernel_distance(left, right), cmmd(left, right, sigma=1.0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_BLOCK", block)
        patch.setattr(manifold, "_BLOCK", block)
        left, right = left.flip(0), right[torch.randperm(60, generator=torch.Generator().manual_seed(seed))]
        again = [*precision_recall(left, right), *density_coverage(left, right), kernel_distance(left, right), cmmd(left, right, sigma=1.0)]
    assert again == pytest.approx(whole, rel=1e-9)


def test_blocks_do_not_change_an_error(monkeypatch):
    left, right = features(70, 3, seed=0, scale=1.2), features(60, 3, seed=1)
    whole = manifold_estimates(left, right, k=3)
    monkeypatch.setattr(manifold, "_BLOCK", 17)
    blocks = manifold_estimates(left, right, k=3)
    for name, estimate in whole.items():
        assert blocks[name] == pytest.approx(estimate), name


def test_single_precision_products_stay_close(monkeypatch):
    left, right = features(300, 16, seed=0, shift=0.4), features(280, 16, seed=1)
    exact = [kernel_distance(left, right), *precision_recall(left, right), *density_coverage(left, right)]
    monkeypatch.setattr(kernel, "_LARGE", 0)
    monkeypatch.setattr(manifold, "_LARGE", 0)
    fast = [kernel_distance(left, right), *precision_recall(left, right), *density_coverage(left, right)]
    assert fast[0] == pytest.approx(exact[0], rel=1e-5)
    assert fast[1:] == pytest.approx(exact[1:], abs=2e-3)


def test_estimates_agree_with_the_figures():
    left, right = features(200, 5, seed=0, scale=1.2), features(180, 5, seed=1)
    assert manifold_scores(left, right) == manifold_scores(left, right, k=5)
    assert manifold_scores(left, right, k=3) == (*precision_recall(left, right), *density_coverage(left, right, k=3))
    assert manifold_scores(left, right)[2:] == density_coverage(left, right)
    estimates = manifold_estimates(left, right, k=3)
    assert (estimates["precision"].value, estimates["recall"].value) == pytest.approx(precision_recall(left, right, k=3))
    assert estimates == manifold_estimates(left, right, k=3, seed=0) != manifold_estimates(left, right, k=3, seed=1)
    assert (estimates["density"].value, estimates["coverage"].value) == pytest.approx(density_coverage(left, right, k=3))


@pytest.mark.parametrize("counts", [(4, 5), (5, 4)])
def test_the_fewest_points_that_have_neighbours(counts):
    left, right = (features(count, 2, seed=count) for count in counts)
    estimates = manifold_estimates(left, right, k=3)
    assert [one.value for one in estimates.values()] == pytest.approx(manifold_scores(left, right, k=3))
    assert all(math.isfinite(one.standard_error) for one in estimates.values())


def test_points_just_outside_of_every_ball_are_outside():
    """References ten apart on a line, and samples a millionth farther from the line than that."""
    line = torch.stack([10 * torch.arange(900.0), torch.zeros(900)], 1).double()
    beside = line + torch.tensor([0.0, 10 + 1e-5])
    assert density_coverage(beside, line, k=1) == (0, 0)
    assert precision_recall(beside, line, k=1) == (0, 0)
    assert precision_recall(line + torch.tensor([0.0, 10 - 1e-5]), line, k=1) == (1, 1)


def test_kernel_distance_of_subsets():
    left, right = features(300, 8, seed=0), features(300, 8, seed=1, shift=0.4)
    subsets = kernel_distance_subsets(left, right, subsets=200, subset_size=60, seed=4)
    assert subsets.value == pytest.approx(kernel_distance(left, right), abs=4 * subsets.standard_error / 200**0.5)
    assert subsets == kernel_distance_subsets(left, right, subsets=200, subset_size=60, seed=4)
    whole = kernel_distance_subsets(left, right, subsets=1, subset_size=300)
    assert whole.value == pytest.approx(kernel_distance(left, right))
    with pytest.raises(ValueError, match="subset_size is 1000; the sides have 300 and 300 rows"):
        kernel_distance_subsets(left, right)
    hundred = kernel_distance_subsets(left, right, subsets=100, subset_size=60, seed=0)
    assert kernel_distance_subsets(left, right, subset_size=60) == hundred


@given(st.floats(-1000, 1000))
def test_cmmd_by_definition(origin):
    left, right = features(30, 4, seed=0), features(40, 4, seed=1, shift=0.5)

    def mean(one, other):
        return torch.exp(-torch.cdist(one, other).square() / (2 * 1.5**2)).mean()

    expected = 1000 * float(mean(left, left) + mean(right, right) - 2 * mean(left, right))
    assert cmmd(left + origin, right + origin, sigma=1.5) == pytest.approx(expected, rel=1e-7)


def test_cmmd_of_two_points_in_closed_form():
    left, right = torch.zeros(5, 2), torch.zeros(5, 2) + torch.tensor([3.0, 4.0])
    assert cmmd(left, right) == pytest.approx(1000 * 2 * (1 - math.exp(-25 / 200)))


def test_the_error_of_cmmd_is_that_of_kid_with_the_biased_means():
    left, right = features(7, 3, seed=0), features(11, 3, seed=1, shift=0.5)

    def kernel(one, other):
        return torch.exp(-torch.cdist(one, other).square() / (2 * 1.5**2))

    def unexplained(values):
        return float(values.square().mean() - values.mean() ** 2 - values.mean(1).var() - values.mean(0).var())

    first, second = [], []
    for own, other in ((left, right), (right, left)):
        first.append(4 * float((kernel(own, own).mean(1) - kernel(own, other).mean(1)).var()) / len(own))
        second.append(2 * unexplained(kernel(own, own)) / len(own) ** 2)
    both = sum(second) + 4 * unexplained(kernel(left, right)) / (len(left) * len(right))
    estimate = cmmd_estimate(left, right, sigma=1.5)
    assert estimate.value == cmmd(left, right, sigma=1.5)
    assert estimate.standard_error == pytest.approx(1000 * max(sum(first) - both, both) ** 0.5)
    given = cmmd_estimate(left, right, sigma=1.5, given_reference=True)
    assert given.standard_error == pytest.approx(1000 * max(first[0] - second[0], second[0]) ** 0.5)
    assert cmmd_estimate(left, right) == cmmd_estimate(left, right, sigma=10.0)


def test_kernel_distance_of_ordinary_sets_has_all_digits():
    left, right = features(900, 16, seed=0), features(700, 16, seed=1, shift=0.1)

    def kernel(one, other):
        return (one @ other.T / 16 + 1) ** 3

    own = [(kernel(side, side).sum() - kernel(side, side).trace()) / (len(side) * (len(side) - 1)) for side in (left, right)]
    assert kernel_distance(left, right) == pytest.approx(float(own[0] + own[1] - 2 * kernel(left, right).mean()), rel=1e-10)


def test_samples_that_are_all_equal_lie_in_one_point():
    """Their manifold is that point: real images beside it are not recalled."""
    real = features(50, 3, seed=0)
    collapsed = real[:1].repeat(6, 1)
    assert precision_recall(collapsed, real) == (1, 1 / 50)
    assert manifold_scores(collapsed, real, k=3)[:2] == (1, 1 / 50)
    assert precision_recall(real, collapsed) == (1 / 50, 1)


def test_vendi_score_in_closed_form():
    assert vendi_score(torch.eye(6)) == pytest.approx(6)
    assert vendi_score(torch.ones(9, 4)) == pytest.approx(1)
    assert vendi_score(torch.eye(3).repeat(50, 1)) == pytest.approx(3)
    rows = features(30, 50, seed=0)
    units = rows / rows.norm(dim=1, keepdim=True)
    law = torch.linalg.eigvalsh(units @ units.T / 30).clamp(min=1e-300)
    assert vendi_score(rows) == pytest.approx(math.exp(-float((law * law.log()).sum())))
    with pytest.raises(ValueError, match="row of length 0, the first at index 2"):
        vendi_score(torch.eye(4)[:, :2])
    assert vendi_score(torch.eye(2)) == pytest.approx(2)
    with pytest.raises(ValueError, match="features has 1 rows; at least 2 are needed"):
        vendi_score(torch.ones(1, 4))


@given(st.integers(0, 100))
def test_no_figure_depends_on_the_axes(seed):
    left, right = features(60, 5, seed=seed, scale=1.3), features(70, 5, seed=seed + 1)
    turn = torch.linalg.qr(features(5, 5, seed=seed + 2)).Q

    def figures(one, other):
        return [
            *precision_recall(one, other),
            *density_coverage(one, other),
            kernel_distance(one, other),
            cmmd(one, other),
            vendi_score(one),
        ]

    assert figures(left @ turn, right @ turn) == pytest.approx(figures(left, right), rel=1e-8)


def test_the_error_of_kid_has_both_terms():
    """By loops over a few numbers: the first order of each side, and the second order, which rules under equal laws."""
    left, right = (torch.randn(count, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64) for count in (7, 11))

    def kernel(one, other):
        return (one @ other / 3 + 1) ** 3

    def own(side):
        means = [sum(kernel(one, other) for other in side) - kernel(one, one) for one in side]
        return torch.stack(means) / (len(side) - 1)

    def cross(side, others):
        return torch.stack([sum(kernel(one, other) for other in others) / len(others) for one in side])

    def unexplained(rows, columns, pairs):
        values = torch.tensor([float(kernel(one, other)) for one, other in pairs], dtype=torch.float64)
        return float(values.square().mean() - rows.mean() ** 2 - rows.var() - columns.var())

    first = [4 * float((own(a) - cross(a, b)).var()) / len(a) for a, b in ((left, right), (right, left))]
    second = [2 * unexplained(own(side), own(side), itertools.permutations(side, 2)) / len(side) ** 2 for side in (left, right)]
    across = unexplained(cross(left, right), cross(right, left), itertools.product(left, right))
    both = sum(second) + 4 * across / (len(left) * len(right))
    estimate = kernel_estimate(left, right)
    given = kernel_estimate(left, right, given_reference=True)
    assert given.standard_error == pytest.approx(max(first[0] - second[0], second[0]) ** 0.5)
    far = kernel_estimate(left + 3, right)
    assert far.standard_error > 10 * estimate.standard_error, "where the laws differ, the first order rules"
    assert estimate.value == pytest.approx(float(own(left).mean() + own(right).mean() - 2 * cross(left, right).mean()))
    assert estimate.standard_error == pytest.approx(max(sum(first) - both, both) ** 0.5)


@pytest.mark.parametrize(("count", "copies"), [(300, 60), (12, 2)])
def test_the_interval_of_memorisation_adds_the_errors_of_share_and_threshold(count, copies):
    generator = torch.Generator().manual_seed(0)
    samples, training, held_out = (torch.randn(size, 4, generator=generator) for size in (count, 200, 120))
    samples[:copies] = training[:copies]
    found = memorisation(samples, training, held_out)
    portion = 0.05 + 0.95 * found.share
    low, high = wilson_interval(round(portion * count), count)
    rare, common = wilson_interval(6, 120)
    down, up = math.hypot(portion - low, common - 0.05), math.hypot(high - portion, 0.05 - rare)
    assert found.low == pytest.approx((portion - down - 0.05) / 0.95)
    assert found.high == pytest.approx((portion + up - 0.05) / 0.95)
    assert found.share > 0.1


def test_memorisation_of_one_sample_against_two_training_images():
    training, held_out = features(2, 3, seed=0), features(20, 3, seed=1)
    assert memorisation(training[:1], training, held_out).nearest_ratio == 0
    with pytest.raises(ValueError, match="at least 2 are needed"):
        memorisation(training, training[:1], held_out)


def test_the_unit_of_the_features_is_no_part_of_memorisation():
    samples, training, held_out = features(40, 3, seed=0), features(60, 3, seed=1), features(30, 3, seed=2)
    samples[:9] = training[:9] + 0.01
    expected = memorisation(samples, training, held_out)
    for unit in (2.0**-10, 2.0**10):
        assert memorisation(unit * samples, unit * training, unit * held_out) == pytest.approx(expected)
    assert expected == memorisation(samples, training, held_out, neighbours=50), "fifty neighbours unless another number is given"


def test_held_out_images_that_were_trained_on_are_no_control():
    training, held_out = features(80, 3, seed=0), features(25, 3, seed=1)
    held_out[::4] = training[:7]
    with pytest.raises(ValueError, match="only 18 held-out rows are not in the training set; at least 20 are needed"):
        memorisation(training, training, held_out)
