import pytest
import torch

from pytest_diffusion.maths.ood import Mahalanobis, NearestNeighbours, OutlierDetector
from pytest_diffusion.maths.statistics import auroc


def draws(count, size=30, *, seed, scale=1.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def test_scores_are_two_sided():
    detector = OutlierDetector.fit(draws(400, seed=0))
    inside = detector.scores(draws(300, seed=1))
    assert auroc(inside, detector.scores(draws(300, seed=2, scale=2.0))) > 0.99
    assert auroc(inside, detector.scores(draws(300, seed=3, scale=0.3))) > 0.99  # too typical is atypical
    assert abs(auroc(inside, detector.scores(draws(300, seed=4))) - 0.5) < 0.1


def test_distances_follow_the_covariance():
    matrix = draws(5000, 4, seed=0) * torch.tensor([1.0, 10.0, 1.0, 1.0])
    scorer = Mahalanobis.fit(matrix)
    along, across = scorer.distances(torch.tensor([[0.0, 10, 0, 0], [10.0, 0, 0, 0]])).tolist()
    assert across > 5 * along
    assert across == pytest.approx(10, rel=0.1)
    with pytest.raises(ValueError, match="columns"):
        scorer.distances(torch.zeros(1, 5))


def test_fewer_references_than_dimensions_still_have_a_covariance():
    assert torch.isfinite(Mahalanobis.fit(draws(20, 200, seed=0)).distances(draws(5, 200, seed=1))).all()


def test_neighbours_see_a_hole_that_a_covariance_cannot():
    """References on a ring: its centre is the most typical point for a Gaussian, and far from every neighbour."""
    angle = torch.linspace(0, 6.28, 300, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    centre = torch.zeros(1, 2, dtype=torch.float64)
    assert float(Mahalanobis.fit(ring).distances(centre)) < 0.1
    distance = NearestNeighbours.fit(ring).distances(centre)
    assert float(distance) == pytest.approx(1)
    assert float(distance) > 10 * float(NearestNeighbours.fit(ring).distances(ring).max())
    shuffled = ring[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert float(OutlierDetector.fit(shuffled).p_values(centre)) < 0.05


@pytest.mark.parametrize("count", [100, 300])
def test_p_values_are_calibrated(count):
    """Over many references the rate of false alarms is at most the nominal one, and near it; heavy tails included."""
    alarms, total = 0, 0
    for seed in range(60):
        latents = draws(count + 100, 12, seed=seed)
        if seed % 2:
            latents = latents / latents[:, :1].abs().clamp(min=0.05)
        values = OutlierDetector.fit(latents[:count]).p_values(latents[count:])
        alarms += int((values <= 0.05).sum())
        total += 100
    assert 0.02 < alarms / total < 0.06


def test_the_unit_of_the_latents_is_no_part_of_a_score():
    reference, latents, unit = draws(60, 5, seed=0), draws(9, 5, seed=1, scale=1.5), 2.0**-10
    expected = OutlierDetector.fit(reference).scores(latents)
    assert OutlierDetector.fit(unit * reference).scores(unit * latents).tolist() == pytest.approx(expected.tolist())


def test_three_fifths_fit_one_gives_what_is_typical_and_one_calibrates():
    reference, latents = draws(52, 4, seed=0), draws(7, 4, seed=1, scale=2.0)
    detector = OutlierDetector.fit(reference)
    own, typical, last = reference[:32], reference[32:42], reference[42:]
    deviations = []
    for scorer in (Mahalanobis.fit(own), NearestNeighbours.fit(own)):
        logs, seen = scorer.distances(typical).log(), scorer.distances(latents).log()
        deviations.append((seen - logs.mean()).abs() / logs.std())
    assert detector.scores(latents).tolist() == pytest.approx(torch.maximum(*deviations).tolist())
    assert detector.calibration.tolist() == pytest.approx(sorted(detector.scores(last).tolist()))
    above = [sum(score >= own for score in detector.calibration.tolist()) for own in detector.scores(latents).tolist()]
    assert detector.p_values(latents).tolist() == pytest.approx([(1 + count) / 11 for count in above])


def test_an_outlier_has_the_smallest_p_value_there_is():
    detector = OutlierDetector.fit(draws(100, seed=0))
    assert detector.p_values(draws(3, seed=1, scale=50.0)).tolist() == pytest.approx([1 / 21] * 3)
    with pytest.raises(ValueError, match="reference has 9 rows; at least 10 are needed"):
        OutlierDetector.fit(draws(9, seed=0))


def test_the_fewest_references_that_have_a_distance():
    with pytest.raises(ValueError, match="reference has 1 rows; at least 2 are needed"):
        Mahalanobis.fit(draws(1, seed=0))
    with pytest.raises(ValueError, match="reference has 4 rows; at least 5 are needed"):
        NearestNeighbours.fit(draws(4, seed=0))
    line = torch.arange(5.0)[:, None]
    assert NearestNeighbours.fit(line).distances(torch.tensor([[-1.0], [2.0]])).tolist() == [5, 2]
    assert NearestNeighbours(line.double()).distances(torch.tensor([[-1.0]])).tolist() == [5]
    assert NearestNeighbours.fit(line, k=2).distances(torch.tensor([[-1.0], [2.0]])).tolist() == [2, 1]
    assert OutlierDetector.fit(draws(10, 2, seed=0)).p_values(draws(1, 2, seed=1, scale=99.0)).tolist() == pytest.approx([1 / 3])
