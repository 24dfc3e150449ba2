import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffusion.maths.interpolation import path_figures, slerp


def vectors(seed, shape=(4, 3, 3)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def test_half_way_between_axes():
    middle = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert middle.tolist() == pytest.approx([math.sqrt(0.5)] * 2)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_ends_are_exact_and_the_turn_is_steady(seed, weight):
    start, end = vectors(seed)
    assert torch.allclose(slerp(start, end, 0.0), start)
    assert torch.allclose(slerp(start, end, 1.0), end)
    point = slerp(start, end, weight)
    whole = torch.acos((start.flatten() @ end.flatten()) / (start.norm() * end.norm()))
    part = torch.acos(((start.flatten() @ point.flatten()) / (start.norm() * point.norm())).clamp(-1, 1))
    assert float(part) == pytest.approx(weight * float(whole), abs=1e-6)
    assert float(point.norm()) == pytest.approx(float((1 - weight) * start.norm() + weight * end.norm()))


def test_many_weights_add_an_axis_and_keep_the_dtype():
    start, end = vectors(0)
    path = slerp(start.half(), end.half(), torch.linspace(0, 1, 5))
    assert path.shape == (5, 4, 3, 3)
    assert path.dtype == torch.float16


def test_degenerate_cases():
    start, _ = vectors(0)
    assert torch.allclose(slerp(start, 2 * start, 0.5), 1.5 * start)
    with pytest.raises(ValueError, match="antiparallel"):
        slerp(start, -start, 0.5)
    with pytest.raises(ValueError, match="zero vector"):
        slerp(start, torch.zeros_like(start), 0.5)
    with pytest.raises(ValueError, match="expected the same"):
        slerp(start, start[:2], 0.5)


@pytest.mark.parametrize("place", [0, 7, 15])
def test_a_planted_jump_is_found_where_it_is(place):
    frames = torch.linspace(0, 1, 17)[:, None].repeat(1, 3)
    smooth = path_figures(frames)
    assert smooth.jump == pytest.approx(1)
    assert smooth.drift == 1
    frames[place + 1 :] += 5
    broken = path_figures(frames)
    assert broken.jump > 10
    assert broken.jump_at == place


def test_a_path_that_turns_back_drifts_less():
    there_and_back = torch.cat([torch.linspace(0, 1, 9), torch.linspace(0.9, 0, 8)])[:, None]
    assert path_figures(there_and_back).drift == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 3"):
        path_figures(torch.zeros(2, 3))
