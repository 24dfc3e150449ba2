"""The history: what a run leaves there, what is compared with it, and what is refused."""

import json
import math
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest

from pytest_diffusion.cli import main
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.gate.drops import drop_verdicts
from pytest_diffusion.plugin.history import check_history
from pytest_diffusion.report.contents import Report
from pytest_diffusion.report.history import History, Run, commit_of, protocol_key
from pytest_diffusion.report.markdown import summary
from pytest_diffusion.report.trend import plot, spark, trend_facts, trend_rows, trend_text
from pytest_diffusion.verdicts.errors import SettingsError
from pytest_diffusion.verdicts.gate import Decision
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Limits, Measurement, judge

LOWER, HIGHER = Limits(at_most=50.0), Limits(at_least=0.1)


def verdict(check="fid", value=30.0, half=1.0, limits=LOWER, **rest):
    interval = (value - half, value + half) if half is not None else None
    counts = {name: rest.pop(name, 500) for name in ("num_samples", "num_reference")}
    measured = Measurement(value, name=check, interval=interval, protocol={"features": "demo", **rest}, **counts)
    return judge(check, measured, limits)


def report(*verdicts, gate="open", created="2026-11-01T00:00:00+00:00"):
    entries = [Entry(one, f"diffusion::{one.check}") for one in verdicts]
    decision = Decision(gate, 0 if gate == "open" else 1, entries=entries)
    facts = {"weights": "abc", "device": "cpu"}
    return Report.of(
        decision, Settings(model="demo"), command="pytest", facts=facts, versions={"pytest-diffusion": "0.1.0"}, created=created
    )


@pytest.fixture
def history(tmp_path):
    def made(*reports):
        found = History(str(tmp_path / "history.sqlite"))
        for one in reports:
            found.add(Run.of(one, "0123456789abcdef"))
        return found

    return made


def test_a_run_is_read_as_it_was_written(history, tmp_path):
    own = verdict("kid", float("nan"), None, HIGHER)
    history(report(verdict(), own, verdict("drop_fid"), verdict("paired_fid")))
    (run,) = History(str(tmp_path / "history.sqlite")).runs
    assert (run.gate, run.exit_code, run.subject, run.weights, run.commit_id, run.device) == (
        "open",
        0,
        "demo",
        "abc",
        "0123456789abcdef",
        "cpu",
    )
    # A change against another model is no figure of this one.
    assert set(run.verdicts) == {"fid", "kid"}
    assert run.measurements["fid"] == verdict().measurement
    assert run.measurements["kid"].value != run.measurements["kid"].value
    assert run.verdicts["fid"].limits == LOWER
    # It is a plain file for other tools.
    query = "SELECT created, gate, value, low, high FROM runs JOIN figures ON run = id WHERE check_name = 'fid'"
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as file:
        assert file.execute(query).fetchall() == [("2026-11-01T00:00:00+00:00", "open", 30.0, 29.0, 31.0)]


def test_what_was_measured_otherwise_is_no_part_of_a_trend(history):
    others = [verdict(num_samples=400), verdict(num_reference=400), verdict(features="clip"), verdict(seed=1)]
    found = history(report(verdict(value=28.0)), *(report(one, created=f"2026-11-0{day}") for day, one in enumerate(others, 2)))
    assert [one.value for _, one in found.earlier("fid", verdict().measurement)] == [28.0]
    assert len({protocol_key(one.measurement) for one in (verdict(), *others)}) == 5


def test_the_last_release_is_the_last_run_with_an_open_gate(history):
    assert history().last_release is None
    found = history(report(verdict(value=28.0)), report(verdict(value=99.0), gate="closed", created="2026-11-02"))
    assert found.last_release.measurements["fid"].value == 28.0


def test_the_report_says_what_changed_since_the_last_release(history):
    exact = verdict("log_snr_first", 7.0, None, HIGHER)
    found = history(report(verdict(value=28.0), exact), report(verdict(value=29.0), exact, gate="closed", created="2026-11-02"))
    own = [verdict(), exact, verdict("kid")]
    facts = {"history": json.loads(json.dumps(trend_facts(found, own)))}
    (row,) = trend_rows(facts, own)
    assert (row.check, row.before, row.now) == ("fid", "28 [27, 29]", "30 [29, 31]")
    assert row.change == "+2 [+0.586, +3.41]"
    assert row.picture.count("<svg") == 1
    assert "Trend over 3 runs, from 28 to 30" in row.picture
    first, second = trend_text(facts)
    assert "2026-11-01" in first
    assert "commit 0123456789ab" in first
    assert "2 earlier runs" in first
    assert second == "1 figure of this run has no release there that measured it in the same way, and nothing to be compared with."
    assert trend_text({}) == []
    assert "none of them with an open gate" in trend_text({"history": trend_facts(History(found.place + "2"), own)})[0]


def test_the_markdown_has_the_counts_and_the_change_since_the_last_release(history):
    found = history(report(verdict(value=28.0)))
    own = report(verdict())
    text = summary(replace(own, facts={**own.facts, "history": trend_facts(found, [verdict()])}))
    assert "\n1 pass\n" in text
    assert "\n| fid | 28 [27, 29] | 30 [29, 31] | +2 [+0.586, +3.41] |\n" in text
    assert "last release" not in summary(own)


def test_the_picture_rises_with_the_figure_and_shows_the_last_runs_alone(history):
    low, high = (
        float(part.split(" ")[1]) for part in re.search(r'<path d="M(.*?)L(.*?)"', str(spark([(1.0, None), (2.0, None)]))).groups()
    )
    assert low > high  # pixels count downwards
    found = history(*(report(verdict(), created=f"2026-10-{day:02}") for day in range(1, 26)))
    points = trend_facts(found, [verdict()])["trends"]["fid"]["points"]
    assert [point[0] for point in points] == [f"2026-10-{day:02}" for day in range(6, 26)]


def test_a_picture_of_one_run_or_of_nothing_finite_is_left_out():
    assert "nan" not in spark([(1.0, (math.nan, math.nan)), (2.0, (1.0, 3.0))])
    assert spark([(1.0, None)]) == spark([(float("nan"), None), (float("inf"), None)]) == ""


def test_a_line_joins_what_was_measured_in_the_same_way_alone(history):
    found = history(
        report(verdict(value=28.0)), report(verdict(num_samples=400), created="2026-11-02"), report(verdict(), created="2026-11-03")
    )
    (axes,) = plot(found, ["fid"]).axes
    lines = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) and line.get_linestyle() == "-"]
    assert lines == [[0, 2], [1]]


def drop(asked, now, before, *, strict=True):
    release = (before, "the release of 2026-11-01") if before is not None else None
    (found,) = drop_verdicts([asked], {"fid": now} if now is not None else {}, lambda check: release, strict=strict)
    return found


@pytest.mark.parametrize("asked", ["fid:5", "fid:5%"])
def test_an_infinite_figure_that_stays_so_is_no_drop(asked):
    own = verdict(value=-math.inf, half=None)
    assert drop(asked, own, own.measurement).outcome == "pass"
    finite, undefined = verdict(half=None), verdict(value=math.nan, half=None)
    for before in (own, undefined):
        found = drop(asked, finite, before.measurement)
        assert (found.outcome, found.gates) == ("inconclusive", True)
    assert drop(asked, verdict(value=math.inf, half=None), finite.measurement).outcome == "fail"


def test_a_release_of_another_lens_does_not_hide_the_one_that_measured_the_check(history):
    first = report(verdict(value=26.0), created="2026-10-31")
    found = history(first, report(verdict(value=28.0)), report(verdict("kid"), created="2026-11-02"))
    assert found.last_release.verdicts.keys() == {"kid"}
    assert found.last_release_with("fid").measurements["fid"].value == 28.0
    assert found.last_release_with("cmmd") is None
    assert [row.check for row in trend_rows({"history": trend_facts(found, [verdict()])}, [verdict()])] == ["fid"]


@pytest.mark.parametrize(
    ("now", "limits", "asked", "outcome"),
    [
        (30.0, LOWER, "fid:5", "pass"),
        (40.0, LOWER, "fid:5", "fail"),
        (34.0, LOWER, "fid:5", "inconclusive"),
        (10.0, LOWER, "fid:5", "pass"),
        (10.0, HIGHER, "fid:5", "fail"),
        (40.0, HIGHER, "fid:5", "pass"),
        (10.0, None, "fid:5", "fail"),
        (40.0, None, "fid:5", "fail"),
        (40.0, LOWER, "fid:50%", "pass"),
        (40.0, LOWER, "fid:10%", "fail"),
    ],
)
def test_a_drop_is_judged_with_the_intervals_of_both_runs(now, limits, asked, outcome):
    found = drop(asked, verdict(value=now, limits=limits), verdict().measurement)
    assert found.outcome == outcome
    assert found.check == "drop_fid"
    assert "since the release of 2026-11-01" in found.message


def test_what_cannot_be_compared_is_never_called_the_same():
    first = drop("fid:5", verdict(), None)
    assert (first.outcome, first.gates) == ("inconclusive", False)
    assert "the history holds no run with an open gate that measured it" in first.message
    otherwise = drop("fid:5", verdict(), verdict(num_samples=400).measurement)
    assert (otherwise.outcome, otherwise.gates) == ("inconclusive", True)
    assert "num_samples" in otherwise.message
    assert not drop("fid:5", verdict(), verdict(num_samples=400).measurement, strict=False).gates
    left_out = drop("fid:5", None, verdict().measurement)
    assert (left_out.outcome, left_out.gates) == ("missing", True)


def test_a_file_that_is_no_history_is_refused_before_the_run(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be read as one")
    with pytest.raises(SettingsError, match=r"--diffusion-history: .*notes.txt cannot be used: it is no SQLite file"):
        check_history(Settings(model="m", history=str(text)))
    assert text.read_text().startswith("not a database")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as file:
        file.execute("CREATE TABLE mine (a)")
    with pytest.raises(SettingsError, match=r"it is no history of this version \(1\): its version is 0"):
        check_history(Settings(model="m", history=str(other)))
    with pytest.raises(SettingsError, match=r"the folder .*nowhere does not exist"):
        check_history(Settings(model="m", history=str(tmp_path / "nowhere" / "h.sqlite")))


def test_a_file_of_limits_may_not_say_where_a_history_is_written(tmp_path):
    (tmp_path / "limits.toml").write_text('[settings]\nhistory = "somewhere.sqlite"\n')
    with pytest.raises(SettingsError, match="may not set history"):
        resolve(options={"model": "demo", "thresholds": [str(tmp_path / "limits.toml")]}, ini={})


def test_a_drop_needs_a_history_and_a_figure(tmp_path):
    place = str(tmp_path / "h.sqlite")
    with pytest.raises(SettingsError, match="needs --diffusion-model or --diffusion-scheduler"):
        check_history(Settings(history=place))
    with pytest.raises(SettingsError, match="the check is 'fid'"):
        check_history(Settings(model="m", lenses=("schedule",), fail_on_drop=("fid:5%",), history=place))
    with pytest.raises(SettingsError, match="needs --diffusion-history"):
        check_history(Settings(fail_on_drop=("fid:5%",)))
    with pytest.raises(SettingsError, match="Did you mean 'fid'"):
        check_history(Settings(model="m", fail_on_drop=("fidd:5%",), history=place))
    with pytest.raises(SettingsError, match="is a change against the baseline"):
        check_history(Settings(model="m", fail_on_drop=("paired_fid:5%",), history=place))
    check_history(Settings(model="m", fail_on_drop=("fid:5%",), history=place))


def test_many_jobs_write_at_once_and_none_is_lost(tmp_path):
    place = str(tmp_path / "h.sqlite")

    def add(day):
        History(place).add(Run.of(report(verdict(), created=f"2026-10-{(day + 1) // 2:02}"), ""))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(1, 17)))
    assert [run.created for run in History(place).runs] == sorted([f"2026-10-{day:02}" for day in range(1, 9)] * 2)


def test_the_job_names_the_commit(monkeypatch, tmp_path):
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT"):
        monkeypatch.delenv(name, raising=False)
    assert commit_of(tmp_path) == ""
    monkeypatch.setenv("CI_COMMIT_SHA", "feed")
    assert commit_of(tmp_path) == "feed"


@pytest.fixture
def place(history):
    found = history(report(verdict(value=28.0)), report(verdict(), verdict("kid", 2.0), gate="closed", created="2026-11-02T00:00:00+00:00"))
    return found.place


def test_the_command_shows_and_compares_runs(place, capsys, tmp_path):
    assert main(["history", "show", place]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["open" in lines[0], "closed" in lines[1], "2 figures" in lines[1]] == [True] * 3
    assert main(["history", "show", place, "--check", "fid"]) == 0
    assert [line.split()[-3:] for line in capsys.readouterr().out.splitlines()] == [["28", "[27,", "29]"], ["30", "[29,", "31]"]]
    assert main(["history", "compare", place]) == 0
    assert "2 [0.586, 3.41]" in capsys.readouterr().out
    assert main(["history", "compare", place, "2", "1"]) == 0
    assert "-2 [-3.41, -0.586]" in capsys.readouterr().out
    assert main(["history", "plot", place, "--to", str(tmp_path / "fid.svg")]) == 0
    assert "<svg" in (tmp_path / "fid.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere.sqlite"], "nowhere.sqlite does not exist"),
        (["show", "{}", "--check", "fidd"], "Did you mean 'fid'"),
        (["compare", "{}", "1"], "give two runs"),
        (["compare", "{}", "1", "zz"], "holds no runs whose id begins with zz"),
        (["plot", "{}", "--to", "a.docx"], "does not end in .png, .svg or .pdf"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(place, capsys, arguments, message):
    assert main(["history", *(text.format(place) for text in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_with_nothing_before_it_cannot_be_compared(history, capsys):
    found = history(report(verdict()))
    assert main(["history", "compare", found.place]) == 2
    assert "holds no run with an open gate before its last run" in capsys.readouterr().err
    assert replace(found.runs[0], gate="closed").is_release is False
