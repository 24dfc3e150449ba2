import math

import pytest
import torch

from pytest_diffusion.maths.schedule import (
    log_snr_of_alphas_cumprod,
    log_snr_of_flow_sigmas,
    log_snr_of_sigmas,
    midway_fall,
    textbook_log_snr,
)


def test_definitions_agree_where_they_meet():
    alphas = torch.tensor([0.9, 0.5, 0.1]).double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    assert torch.allclose(log_snr_of_alphas_cumprod(alphas), log_snr_of_sigmas(sigmas))
    # A rectified flow at σ has the SNR of the variance-exploding sigma σ/(1−σ).
    flow = torch.tensor([0.1, 0.5, 0.9]).double()
    assert torch.allclose(log_snr_of_flow_sigmas(flow), log_snr_of_sigmas(flow / (1 - flow)))


def test_ends_at_infinity():
    assert float(log_snr_of_alphas_cumprod(torch.tensor([0.0]))) == -math.inf
    assert float(log_snr_of_flow_sigmas(torch.tensor([1.0]))) == -math.inf


def test_textbook_ends():
    curves = textbook_log_snr()
    assert {len(curve) for curve in curves.values()} == {1000}
    assert float(curves["linear"][0]) == pytest.approx(9.21, abs=0.01)
    assert float(curves["linear"][-1]) == pytest.approx(-10.12, abs=0.01)
    assert float(curves["scaled linear"][0]) == pytest.approx(7.07, abs=0.01)
    assert float(curves["scaled linear"][-1]) == pytest.approx(-5.36, abs=0.01)
    assert float(curves["cosine"][0]) == pytest.approx(10.10, abs=0.01)
    assert float(curves["cosine"][-1]) == pytest.approx(-19.84, abs=0.01)


def test_midway_fall():
    assert midway_fall(torch.linspace(10, -10, 1001).double()) == pytest.approx(20, rel=0.01)
    falls = {name: midway_fall(curve) for name, curve in textbook_log_snr().items()}
    assert falls["cosine"] < falls["linear"]


def test_the_midway_fall_is_the_steepest_tenth_between_the_quarters():
    line = -20 * torch.arange(1000, dtype=torch.float64) / 1000
    assert midway_fall(line) == pytest.approx(20)
    cliff = line.clone()
    cliff[500:] -= 3
    assert midway_fall(cliff) == pytest.approx(20 + 3 * 10)
    for place in (200, 790):  # before and after the middle half
        outside = line.clone()
        outside[place:] -= 3
        assert midway_fall(outside) == pytest.approx(20)
    for place in (260, 740):
        inside = line.clone()
        inside[place:] -= 3
        assert midway_fall(inside) == pytest.approx(50)


@pytest.mark.parametrize(("log_snr", "fall"), [([5.0, 1.0], 8), ([9.0, 8.0, 3.0], 3), ([9.0, 8.0, 6.0, -9.0], 8)])
def test_the_midway_fall_of_a_few_steps(log_snr, fall):
    """One step is the least that can fall; of four it is the one in the middle, and not the last."""
    assert midway_fall(torch.tensor(log_snr)) == pytest.approx(fall)
