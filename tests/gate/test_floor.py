"""The noise floor of a figure, from looks at twins."""

import pytest

from pytest_diffusion.gate.floor import floors_of
from pytest_diffusion.gate.looks import Look
from pytest_diffusion.maths.statistics import Estimate


def twin(value, error):
    return Look(16, Estimate(value, error, 15), 1.0, 1.0, 1.0)


def test_the_floor_is_the_largest_difference_with_its_error():
    found = floors_of(
        [{"clip_score": twin(-0.3, 0.1), "brightness": twin(0.0, 0.02)}, {"clip_score": twin(0.1, 0.1), "brightness": twin(0.05, 0.0)}]
    )
    assert found == pytest.approx({"clip_score": 0.3 + 1.645 * 0.1, "brightness": 0.05})


def test_shares_of_a_few_samples_have_no_floor():
    assert floors_of([{"precision": twin(0.0625, 0.0625), "coverage": twin(0.1, 0.1), "fid": twin(1.0, 0.0)}]) == {"fid": 1.0}
