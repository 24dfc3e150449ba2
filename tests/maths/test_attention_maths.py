import pytest
import torch

from pytest_diffusion.maths.attention import area_matched_iou, half_mass_share, map_correlation, token_entropy


def test_entropy_of_known_laws():
    content = torch.tensor([[True] * 3 + [False] * 4, [False] + [True] * 6])
    assert torch.allclose(token_entropy(torch.zeros(2, 5, 7), content), torch.ones(2))
    sure = torch.zeros(2, 5, 7)
    sure[..., 2] = 100
    assert torch.allclose(token_entropy(sure, content), torch.zeros(2), atol=1e-6)
    # Two of three tokens share all: ln 2 / ln 3.
    two = torch.tensor([50.0, 50, 0, 90, 90, 90, 90]).expand(1, 2, 4, 7)
    assert float(token_entropy(two, content[:1])) == pytest.approx(0.6309, abs=1e-4)


def test_padding_has_no_say_in_the_entropy():
    scores = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    content = torch.tensor([[True] * 4 + [False] * 3] * 2)
    others = torch.where(content[:, None, None], scores, scores * 40)
    assert torch.allclose(token_entropy(scores, content), token_entropy(others, content))


def test_one_token_has_no_entropy():
    entropy = token_entropy(torch.zeros(2, 3, 4), torch.tensor([[True, False, False, False], [True, True, False, False]]))
    assert entropy.isnan().tolist() == [True, False]


def test_half_mass_share():
    assert float(half_mass_share(torch.ones(8, 8))) == pytest.approx(0.5)
    spot = torch.zeros(8, 8)
    spot[2, 3] = 1
    assert float(half_mass_share(spot)) == pytest.approx(0.5 / 64)
    half = torch.zeros(8, 8)
    half[:4] = 1
    assert float(half_mass_share(half)) == pytest.approx(0.25)


def test_correlation():
    ramp = torch.arange(16.0).reshape(4, 4)
    assert float(map_correlation(ramp, 3 * ramp + 1)) == pytest.approx(1)
    assert float(map_correlation(ramp, -ramp)) == pytest.approx(-1)
    assert float(map_correlation(ramp, torch.ones(4, 4))) == 0


def test_iou_needs_no_threshold():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 2:6] = True
    assert area_matched_iou(mask.float() * 0.01, mask).item() == 1
    assert area_matched_iou(1 - mask.float(), mask).item() == 0
    shifted = mask.roll(2, 1)
    assert area_matched_iou(shifted.float(), mask).item() == pytest.approx(8 / 24)
