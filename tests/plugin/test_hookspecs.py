"""A conftest.py acts on verdicts and adds to the report, with and without xdist; verdicts are plain only between processes."""

import json

import pytest

from pytest_diffusion.verdicts.run import Carried
from pytest_diffusion.verdicts.verdict import Limits, Measurement, Verdict, judge, skipped
from tests.nightly import nightly

RUN = ("--diffusion-model=demo", "--diffusion-lenses=schedule", "-p", "no:cacheprovider")
CONFTEST = """
from pytest_diffusion import Verdict

seen = []


def pytest_diffusion_verdict(config, nodeid, verdict):
    assert isinstance(verdict, Verdict)
    assert not hasattr(config, "workerinput")
    seen.append(f"{nodeid} {verdict.outcome}")


def pytest_diffusion_report_context(config, context):
    context["extra"]["Approved by"] = f"the release team, after {len(seen)} of {len(context['verdicts'])} verdicts"
    config.stash_of_this_test = context["facts"].get("thresholds")


def pytest_terminal_summary(terminalreporter):
    for line in sorted(seen):
        terminalreporter.write_line(f"seen: {line}")
"""


@pytest.mark.parametrize(
    "extra",
    [("-p", "no:xdist"), pytest.param(("-n", "1"), marks=nightly("half a minute; test_hooks.py has xdist"))],
    ids=["alone", "xdist"],
)
def test_a_conftest_sees_each_verdict_once_and_adds_to_the_report(pytester, extra):
    pytester.makeconftest(CONFTEST)
    run = pytester.runpytest_subprocess if "-n" in extra else pytester.runpytest
    result = run(*RUN, *extra)
    result.stdout.fnmatch_lines(["seen: diffusion::alphas_cumprod_monotonic pass", "seen: diffusion::sigmas_monotonic skipped"])
    assert len([line for line in result.stdout.lines if line.startswith("seen: ")]) == 8
    report = json.loads((pytester.path / "diffusion-report.json").read_text())
    assert report["extra"] == {"Approved by": "the release team, after 8 of 8 verdicts"}
    assert "the release team, after 8 of 8 verdicts" in (pytester.path / "diffusion-report.html").read_text()


def test_a_hook_that_fails_does_not_cost_the_report(pytester):
    pytester.makeconftest("def pytest_diffusion_report_context(config, context):\n    raise RuntimeError('a mistake')\n")
    pytester.runpytest(*RUN, "-k", "betas").assert_outcomes(passed=1, deselected=7)
    report = json.loads((pytester.path / "diffusion-report.json").read_text())
    assert report["extra"] == {"pytest_diffusion_report_context failed": "RuntimeError: a mistake"}


def test_what_a_test_leaves_is_the_same_after_it_travelled():
    limits = Limits(at_most=1e300, source="s", where="here")
    measured = Measurement(float("nan"), "a", "dB", (1.0, 2.0), 3, 4, {"k": 3}, {"values": [1.0, float("-inf")]}, "hint", "reason")
    verdicts = [judge("one", measured, limits, lens="latent", title="t"), skipped("two", "why", suite="scheduler checks")]
    sent = Carried(verdicts, [{"name": "n", "value": 1.0, "unit": ""}], [{"name": "f", "image": "data:"}], {"device": "cpu"})
    got = Carried.from_json(json.loads(json.dumps(sent.to_json(), allow_nan=False)))
    assert str(got) == str(sent)  # as text, since nan differs from itself
    assert all(isinstance(verdict, Verdict) for verdict in got.verdicts)


def test_a_verdict_of_another_version_is_read_with_what_is_known():
    data = {**skipped("fid", "why", lens="metrics").to_json(), "a later field": 1}
    del data["lens"]
    assert Verdict.from_json(data) == skipped("fid", "why", lens="metrics")
