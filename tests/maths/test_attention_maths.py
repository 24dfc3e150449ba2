import pytest
import torch

from pytest_diffusion.maths.attention import area_matched_iou, half_mass_share, map_correlation, token_entropy


def test_entropy_of_known_laws():
    assert float(token_entropy(torch.zeros(7))) == pytest.approx(1)
    assert float(token_entropy(torch.tensor([100.0, 0, 0]))) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        token_entropy(torch.zeros(1))


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
