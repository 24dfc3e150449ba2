import math

import pytest
import torch

from pytest_diffusion.maths.scores import clip_scores, inception_estimate, inception_score


def test_inception_score_of_known_laws():
    assert inception_score(torch.eye(10).repeat(5, 1)) == pytest.approx(10)
    assert inception_score(torch.full((20, 10), 0.1)) == pytest.approx(1)
    # Two classes, each sample 0.9 sure: exp(ln 2 − H(0.9)).
    sure = torch.tensor([[0.9, 0.1], [0.1, 0.9]]).repeat(50, 1)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert inception_score(sure) == pytest.approx(math.exp(math.log(2) - entropy))


def test_inception_interval_covers():
    law = torch.softmax(torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2, 1)
    truth = inception_score(law)
    estimates = []
    for seed in range(300):
        chosen = torch.randint(200, (400,), generator=torch.Generator().manual_seed(seed))
        estimates.append(inception_estimate(law[chosen]))
    covered = sum(abs(estimate.value - truth) <= 1.96 * estimate.standard_error for estimate in estimates) / 300
    assert 0.92 <= covered <= 0.98


@pytest.mark.parametrize("wrong", [torch.tensor([[0.5, 0.6], [0.5, 0.5]]), torch.tensor([[-0.1, 1.1], [0.5, 0.5]])])
def test_inception_score_refuses_what_is_no_distribution(wrong):
    with pytest.raises(ValueError, match="not distributions"):
        inception_score(wrong)


def test_clip_scores_are_cosines_and_never_negative():
    images = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    texts = torch.tensor([[2.0, 0.0], [4.0, 3.0], [-1.0, 0.0]])
    assert clip_scores(images, texts).tolist() == pytest.approx([100, 96, 0])
    with pytest.raises(ValueError, match="expected the same"):
        clip_scores(images, texts[:2])
