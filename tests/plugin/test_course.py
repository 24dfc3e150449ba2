"""What stands in the report before, during and after a run, and what a partial run leaves of a whole one."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SCHEDULE = ("--diffusion-model=demo", "--diffusion-lenses=schedule")
pytestmark = pytest.mark.filterwarnings("ignore")


def report(pytester, name="diffusion-report"):
    return json.loads((pytester.path / f"{name}.json").read_text())


def left_by_an_earlier_run(pytester):
    assert pytester.runpytest(*SCHEDULE).ret == 0
    assert report(pytester)["gate"] == "open"


def test_while_a_run_goes_on_its_report_says_so(pytester):
    left_by_an_earlier_run(pytester)
    pytester.makepyfile(
        """
        import json, pathlib
        def test_mine():
            assert "has not ended" in json.loads(pathlib.Path("diffusion-report.json").read_text())["reasons"][0]
            assert "Running, or not finished" in pathlib.Path("diffusion-report.html").read_text()
        """
    )
    assert pytester.runpytest(*SCHEDULE).ret == 0
    assert report(pytester)["gate"] == "open"


@pytest.mark.parametrize(
    "extra",
    ["--diffusion-steps=many", "--no-such-option", "no_such_folder", "--diffusion-thresholds=nowhere.toml"],
)
def test_a_run_that_does_not_begin_leaves_no_old_report(pytester, extra):
    left_by_an_earlier_run(pytester)
    assert pytester.runpytest(*SCHEDULE, extra).ret in (1, 4)
    assert report(pytester)["gate"] == "unfinished"
    assert "ot finished" in (pytester.path / "diffusion-report.html").read_text()


@pytest.mark.parametrize("flag", ["--collect-only", "--help", "--version", "--fixtures", "--markers"])
def test_a_command_that_runs_nothing_leaves_the_report_alone(pytester, flag):
    left_by_an_earlier_run(pytester)
    before = (pytester.path / "diffusion-report.html").read_bytes()
    pytester.runpytest(*SCHEDULE, flag)
    assert (pytester.path / "diffusion-report.html").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_in_order(pytester, number):
    left_by_an_earlier_run(pytester)
    pytester.makepyfile("import pathlib, time\ndef test_mine():\n    pathlib.Path('begun').touch()\n    time.sleep(60)\n")
    command = [sys.executable, "-m", "pytest", *SCHEDULE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A shell lets its background jobs ignore SIGINT, and so everything that these start.
    with subprocess.Popen(command, cwd=pytester.path, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL), **pipes) as process:
        try:
            while not (pytester.path / "begun").exists() and process.poll() is None:
                time.sleep(0.05)
            os.kill(process.pid, number)
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 2, output
    assert report(pytester)["gate"] == "unfinished"
    assert "The run was stopped: " in output


def test_a_killed_run_leaves_no_open_gate(pytester):
    left_by_an_earlier_run(pytester)
    pytester.makepyfile("import os\ndef test_mine():\n    os._exit(0)\n")
    pytester.runpytest_subprocess(*SCHEDULE)
    assert report(pytester)["gate"] == "unfinished"


def test_a_partial_run_joins_the_whole_report_of_the_same_model(pytester):
    left_by_an_earlier_run(pytester)
    assert pytester.runpytest(*SCHEDULE, "-k", "log_snr_last").ret == 0
    data = report(pytester)
    assert data["gate"] == "partial"
    assert data["reasons"][0] == "Partial: 1 of 8 checks were run (-k log_snr_last)."
    assert "7 verdicts are of the run of" in data["reasons"][1]
    assert {verdict["check"]: bool(verdict["of_run"]) for verdict in data["verdicts"]} == {
        "alphas_cumprod_monotonic": True,
        "betas_in_range": True,
        "sigmas_monotonic": True,
        "log_snr_first": True,
        "log_snr_last": False,
        "log_snr_midway": True,
        "timesteps_well_formed": True,
        "forward_marginals": True,
    }
    assert "from the run of" in (pytester.path / "diffusion-report.html").read_text()
    # Joined once more, it is still of the first run.
    first = [verdict["of_run"] for verdict in data["verdicts"] if verdict["check"] == "betas_in_range"]
    pytester.runpytest(*SCHEDULE, "-k", "log_snr_first")
    assert [verdict["of_run"] for verdict in report(pytester)["verdicts"] if verdict["check"] == "betas_in_range"] == first


def test_a_partial_run_keeps_the_failures_of_the_whole_report(pytester):
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture(scope="session")
        def diffusion_pipeline():
            import diffusers, torch, types
            return types.SimpleNamespace(scheduler=diffusers.DDIMScheduler(trained_betas=torch.linspace(0.02, 1e-4, 1000).numpy()))
        """
    )
    assert pytester.runpytest(*SCHEDULE).ret == 1
    failed = {verdict["check"] for verdict in report(pytester)["verdicts"] if verdict["gates"]}
    assert pytester.runpytest(*SCHEDULE, "-k", "timesteps_well_formed").ret == 0
    data = report(pytester)
    assert data["gate"] == "closed"
    assert {verdict["check"] for verdict in data["verdicts"] if verdict["gates"]} == failed


@pytest.mark.parametrize("other", [("--diffusion-steps=7",), ("--diffusion-scheduler=EulerDiscreteScheduler",)])
def test_a_partial_run_of_something_else_is_written_beside_the_whole_report(pytester, other):
    left_by_an_earlier_run(pytester)
    before = {name: (pytester.path / f"diffusion-report.{name}").read_bytes() for name in ("html", "json")}
    result = pytester.runpytest(*SCHEDULE, *other, "-k", "log_snr_last")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["report: *diffusion-report.partial.html", "report: *diffusion-report.partial.json"])
    assert {name: (pytester.path / f"diffusion-report.{name}").read_bytes() for name in before} == before
    assert report(pytester, "diffusion-report.partial")["gate"] == "partial"


def test_a_whole_run_takes_the_place_of_a_partial_one(pytester):
    pytester.runpytest(*SCHEDULE, "-k", "log_snr_last")
    assert report(pytester)["gate"] == "partial"
    left_by_an_earlier_run(pytester)


def test_the_command_in_the_report_has_the_selection(pytester):
    pytester.runpytest(*SCHEDULE, "-k", "log_snr_last or log_snr_first", "--deselect=diffusion::log_snr_first")
    assert report(pytester)["command"] == (
        "pytest --diffusion-model=demo --diffusion-lenses=schedule -k 'log_snr_last or log_snr_first' --deselect diffusion::log_snr_first"
    )


def test_last_failed_is_a_partial_run(pytester, monkeypatch):
    pytester.makepyfile("import os\ndef test_mine():\n    assert 'GOOD' in os.environ\n")
    assert pytester.runpytest(*SCHEDULE).ret == 1
    monkeypatch.setenv("GOOD", "1")
    result = pytester.runpytest(*SCHEDULE, "--lf")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["Partial: 0 of 8 checks were run (--lf)."])
