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


def test_degenerate_cases_are_defined():
    start, end = vectors(0)
    assert torch.allclose(slerp(start, 2 * start, 0.5), 1.5 * start)
    zero = torch.zeros_like(start)
    assert torch.allclose(slerp(start, zero, 0.25), 0.75 * start)
    assert torch.allclose(slerp(zero, end, 0.25), 0.25 * end)
    assert torch.equal(slerp(zero, zero, 0.5), zero)
    with pytest.raises(ValueError, match="expected the same"):
        slerp(start, start[:2], 0.5)
    with pytest.raises(ValueError, match="antiparallel vectors with one coordinate"):
        slerp(torch.tensor([1.0]), torch.tensor([-1.0]), 0.5)


@pytest.mark.parametrize("size", [2, 5, 36])
def test_antiparallel_vectors_are_joined_by_a_half_circle(size):
    start = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    path = slerp(start, -2 * start, torch.linspace(0, 1, 9))
    assert torch.allclose(path[0], start)
    assert torch.allclose(path[-1], -2 * start)
    assert torch.allclose(path.norm(dim=1), start.norm() * torch.linspace(1, 2, 9, dtype=torch.float64))
    assert abs(float(path[4] @ start)) < 1e-9, "half way it is perpendicular"
    turns = torch.nn.functional.cosine_similarity(path[1:], path[:-1], dim=1)
    assert torch.allclose(turns, torch.full_like(turns, math.cos(math.pi / 8)))


@pytest.mark.parametrize(
    ("start", "middle"),
    [
        ([3.0, 4.0], [-4.0, 3.0]),
        ([1.0, 2.0, 2.0, 4.0], [-2.0, 1.0, -4.0, 2.0]),
        ([3.0, 4.0, 12.0], [-4 * 13 / 5, 3 * 13 / 5, 0.0]),
    ],
)
def test_the_half_circle_turns_each_pair_of_coordinates_by_a_quarter(start, middle):
    """An odd last coordinate has no partner: half way the others have all of the length."""
    start = torch.tensor(start, dtype=torch.float64)
    assert slerp(start, -start, 0.5).tolist() == pytest.approx(middle, abs=1e-12)


def test_an_odd_last_coordinate_has_a_perpendicular_too():
    start = torch.tensor([0.0, 0.0, 3.0])
    assert slerp(start, -start, 0.5).tolist() == pytest.approx([3, 0, 0], abs=1e-6)
    nearly = torch.tensor([1e-6, 0.0, 3.0], dtype=torch.float64)
    middle = slerp(nearly, -nearly, 0.5)
    assert abs(float(middle @ nearly)) < 1e-12
    assert float(middle.norm()) == pytest.approx(3, rel=1e-12)


def test_a_batch_is_turned_vector_by_vector():
    first, second = vectors(0), vectors(1)
    start, end = torch.stack([first[0], second[0], first[0]]), torch.stack([first[1], second[1], -first[0]])
    path = slerp(start, end, torch.linspace(0, 1, 4), batch_dims=1)
    assert path.shape == (4, 3, 4, 3, 3)
    assert torch.allclose(path[:, 0], slerp(*first, torch.linspace(0, 1, 4)))
    assert torch.allclose(path[:, 1], slerp(*second, torch.linspace(0, 1, 4)))
    assert torch.allclose(path[:, 2], slerp(first[0], -first[0], torch.linspace(0, 1, 4)))
    whole = slerp(start, end, 0.3)
    assert not torch.allclose(whole, slerp(start, end, 0.3, batch_dims=1)), "without batch_dims all is one vector"


@given(st.floats(1e-12, 3.0), st.floats(0, 1))
def test_small_angles_keep_their_digits(angle, weight):
    """Against the closed form in the plane, from nearly parallel to nearly antiparallel."""
    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    end = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    point = slerp(start, end, weight)
    assert point.tolist() == pytest.approx([math.cos(weight * angle), math.sin(weight * angle)], abs=1e-13, rel=1e-9)


def test_figures_of_known_paths():
    line = path_figures(torch.linspace(0, 1, 9)[:, None].repeat(1, 3))
    assert line.over_chord == pytest.approx(1)
    assert line.curvature == pytest.approx(0, abs=1e-3)
    angle = torch.linspace(0, math.pi, 181, dtype=torch.float64)
    half_circle = path_figures(torch.stack([angle.cos(), angle.sin()], 1))
    assert half_circle.over_chord == pytest.approx(math.pi / 2, rel=1e-3)
    assert half_circle.curvature == pytest.approx(1, rel=1e-6)
    zigzag = torch.stack([torch.arange(9.0), torch.arange(9) % 2], 1)
    assert path_figures(zigzag).curvature == pytest.approx(90)
    closed = path_figures(torch.tensor([[0.0, 0], [1, 0], [0, 1], [0, 0]]))
    assert math.isinf(closed.over_chord)
    assert math.isnan(path_figures(torch.zeros(4, 2)).jump)


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


def test_a_path_that_goes_back_the_same_way_turns_by_half_a_circle():
    """Whatever rounding makes of a cosine of -1."""
    for seed in range(50):
        away = vectors(seed)[0]
        figures = path_figures(torch.stack([torch.zeros_like(away), away, away / 3]))
        assert figures.curvature == pytest.approx(180, abs=1e-5)
        assert figures.jump == pytest.approx(1 / (5 / 6))
        assert figures.over_chord == pytest.approx(5)


@pytest.mark.parametrize("unit", [2.0**-31, 2.0**31])
def test_the_unit_of_a_path_is_no_part_of_its_lengths(unit):
    there_and_back = torch.cat([torch.linspace(0, 1, 9), torch.linspace(0.9, 0, 8)])[:, None].double()
    wave = torch.stack([there_and_back[:, 0], (9 * there_and_back[:, 0]).sin()], 1)
    for path in (there_and_back[:-1], wave[:-1]):
        assert path_figures(unit * path)[:4] == pytest.approx(path_figures(path)[:4], rel=1e-12)


def test_a_path_that_stands_still_has_no_figures_but_never_came_back():
    figures = path_figures(torch.ones(5, 3, 4, 4))
    assert math.isnan(figures.jump)
    assert math.isnan(figures.over_chord)
    assert math.isnan(figures.curvature)
    assert (figures.jump_at, figures.drift) == (0, 1.0)


def test_a_frame_that_stands_still_does_not_turn():
    path = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 1.0]])
    assert path_figures(path).curvature == pytest.approx(45)
    assert path_figures(path[:4]).jump == pytest.approx(1.5)
