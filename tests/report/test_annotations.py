"""Annotations for GitHub: one for each reason, escaped, and none where there is nothing to say."""

from dataclasses import replace

import pytest

from pytest_diffusion.report.annotations import MOST, workflow_commands
from pytest_diffusion.verdicts.gate import Decision
from pytest_diffusion.verdicts.limits import Limits
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Measurement, judge


def entry(check, value, *, interval=None, strict=True, name="a figure"):
    measurement = Measurement(value, name, interval=interval, num_samples=100)
    return Entry(judge(check, measurement, Limits(at_most=1.0, source="a test"), strict=strict), f"diffusion::{check}")


def said(*entries, gate="closed", code=1, reasons=()):
    return workflow_commands(Decision(gate, code, list(reasons), [], entries=list(entries)))


def test_an_error_for_what_closes_the_gate_and_a_warning_for_what_is_not_decided():
    close = entry("kid", 1.0, interval=(0.5, 1.5), strict=False)
    lines = said(close, entry("fid", 3.0, interval=(2.0, 4.0)), entry("cmmd", 0.5, interval=(0.4, 0.6)))
    assert [line.partition("::")[2].partition("::")[0] for line in lines] == [
        "error title=fail%3A fid",
        "warning title=inconclusive%3A kid",
    ]
    assert "a figure is 3" in lines[0]


def test_lines_and_signs_that_would_end_a_command_are_escaped():
    (line,) = said(entry("fid", 3.0, name="50 % of\na figure"))
    assert "\n" not in line
    assert "50 %25 of%0Aa figure" in line


def test_a_closed_gate_without_a_verdict_says_why_and_an_open_one_nothing():
    assert said(gate="empty", reasons=["Nothing was judged."]) == ["::error title=gate%3A empty::Nothing was judged."]
    assert said(entry("fid", 0.5), gate="open", code=0) == []


def test_a_warning_does_not_hide_why_the_gate_is_closed_and_what_is_excused_is_not_told():
    close = entry("kid", 1.0, interval=(0.5, 1.5), strict=False)
    lines = said(close, reasons=["1 test failed."])
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning"]
    assert said(replace(close, excused="xfail"), gate="open", code=0) == []


def test_no_more_than_github_shows():
    lines = said(*(entry(f"check_{index}", 3.0, name=f"figure {index}") for index in range(14)))
    assert len(lines) == MOST
    assert "and 5 more; see the report" in lines[-1]


@pytest.mark.parametrize("value", ["true", None])
def test_they_are_printed_on_github_alone(pytester, monkeypatch, value):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    if value:
        monkeypatch.setenv("GITHUB_ACTIONS", value)
    result = pytester.runpytest("--diffusion-model=demo", "--diffusion-lenses=schedule", "-k", "no_such_check")
    assert ("::error title=missing" in result.stdout.str()) is bool(value)
