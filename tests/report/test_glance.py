"""The strip of all figures: where a mark stands, what shape it has, and that nothing from outside is markup."""

import math
import re

import pytest

from pytest_diffusion.report.glance import glance
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Measurement, judge, skipped

TITLE = "Metrics"


def entry(check, value, half, *, nodeid="diffusion::x"):
    interval = (value - half, value + half) if half is not None else None
    return Entry(judge(check, Measurement(value, "a figure", interval=interval), Limits(at_most=10.0, source="a test")), nodeid)


def marks(*entries):
    """Class, place and title of each mark."""
    found = re.findall(r'<g class="(\w+)" transform="translate\(([-\d.]+),([-\d.]+)\)"><title>([^<]*)</title>', glance([(TITLE, entries)]))
    return [(outcome, float(x), float(y), title) for outcome, x, y, title in found]


def test_a_mark_stands_where_its_distance_says():
    near, far, outside = marks(entry("near", 9.0, 0.5), entry("far", 5.0, 1.0), entry("outside", 12.0, 1.0))[::1]
    by_name = {title.partition(":")[0]: (outcome, x) for outcome, x, _, title in (near, far, outside)}
    assert [by_name[name][0] for name in ("near", "far", "outside")] == ["pass", "pass", "fail"]
    step = (by_name["far"][1] - by_name["near"][1]) / 3  # 2 and 5 half intervals inside
    assert by_name["near"][1] - by_name["outside"][1] == pytest.approx(4 * step, abs=0.5)
    assert "2 half intervals inside its limit" in next(title for *_, title in (near, far, outside) if title.startswith("near"))


def test_what_lies_beyond_stands_at_the_edge_and_nothing_lies_on_another():
    found = marks(entry("a", 0.0, 0.01), entry("b", 0.0, 0.02), entry("c", 0.0, 0.0))
    assert len({x for _, x, _, _ in found}) == 1
    assert len({y for _, _, y, _ in found}) == 3
    assert all(math.isfinite(x + y) for _, x, y, _ in found)


def test_marks_that_would_touch_are_stacked_and_those_apart_are_not():
    found = marks(entry("a", 5.0, 1.0), entry("b", 5.03, 1.0), entry("c", 7.0, 1.0))
    places = {title.partition(":")[0]: (x, y) for _, x, y, title in found}
    (left, low), (right, high), (far, beside) = (places[name] for name in "abc")
    assert abs(left - right) < 4
    assert low != high
    assert abs(far - left) > 50
    assert beside in (low, high)


def test_outcomes_differ_in_shape_and_figures_without_an_interval_stand_apart():
    text = glance([(TITLE, [entry("inside", 5.0, 1.0), entry("close", 10.0, 1.0), entry("beyond", 15.0, 1.0), entry("exact", 0.0, None)])])
    assert "<circle" in text
    assert 'class="fail"' in text
    assert 'class="inconclusive"' in text
    assert 'aria-label="Distance of each figure to its limit: 2 pass, 1 inconclusive, 1 fail"' in text
    assert "exact: pass, no interval" in text


def test_marks_of_the_checklist_lead_to_their_rows_and_texts_are_escaped():
    text = glance([("<b>", [entry("fid", 5.0, 1.0), entry("<i>", 5.0, 1.0, nodeid="test_own.py::test")])])
    assert '<a href="#fid">' in text
    assert text.count("<a ") == 1
    assert "<b>" not in text
    assert "<i>" not in text


def test_without_judged_figures_there_is_no_picture():
    assert glance([]) == ""
    assert glance([(TITLE, [Entry(skipped("fid", "no reference"), "diffusion::fid")])]) == ""
