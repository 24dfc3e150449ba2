"""Power, and the weakest damage that is caught, against gates whose limit is known."""

import pytest

from pytest_diffusion.gate.strength import Limit, Power, detection_limit, power_of
from pytest_diffusion.gate.trial import Trial


@pytest.mark.parametrize("limit", [0.004, 0.019, 0.05, 0.3])
def test_the_limit_is_found_to_within_a_tenth(limit):
    asked = []

    def is_caught(strength):
        asked.append(strength)
        return strength >= limit

    found = detection_limit(is_caught, 0.05, strongest=1.0)
    assert found.missed < limit <= found.caught
    assert found.caught / found.missed < 1.1
    assert len(asked) <= 10


def test_a_gate_that_misses_all_or_catches_all_has_no_limit():
    assert detection_limit(lambda strength: False, 0.05, strongest=0.2) == Limit(None, 0.2)
    assert detection_limit(lambda strength: True, 0.32, strongest=1.0) == Limit(0.01, None)


def test_the_strongest_is_tried_though_doubling_would_pass_it():
    found = detection_limit(lambda strength: strength >= 0.19, 0.05, strongest=0.19)
    assert found.caught == 0.19
    assert 0.17 < found.missed < 0.19


def test_power_has_wilsons_interval():
    trials = [Trial("noise", 0.1, seed, caught_by=["fid"] if seed else []) for seed in range(5)]
    found = power_of(trials)
    assert found == Power(4, 5)
    # Wilson 1927: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n) for p = 0.8 and n = 5.
    assert found.interval == pytest.approx((0.3755, 0.9638), abs=1e-3)
