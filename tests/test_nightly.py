"""What a landing leaves out, and that it is not left out at night."""

import pytest

from tests import nightly


@pytest.mark.parametrize("is_night", [False, True])
def test_a_test_of_the_night_is_skipped_by_day_alone(monkeypatch, is_night):
    monkeypatch.setattr(nightly, "IS_NIGHT", is_night)
    mark = nightly.nightly("a minute").mark
    assert mark.args == (not is_night,)
    assert mark.kwargs == {"reason": "a minute; NIGHTLY=1 runs it"}


def test_one_of_every_few_cases_runs_always():
    cases = nightly.mostly_nightly([(number,) for number in range(8)], "long", every=3)
    assert [case.values[0] for case in cases if not case.marks] == [0, 3, 6]
