"""The history through the real command: written, compared, shown; and a gate that closes where it cannot be written."""

import json
import sqlite3

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def gate(pytester):
    def run(*extra):
        result = pytester.runpytest("--diffusion-model=demo", "--diffusion-lenses=schedule", "--diffusion-history=h.sqlite", *extra)
        return result, json.loads((pytester.path / "diffusion-report.json").read_text())

    return run


def test_the_second_run_is_held_against_the_first(gate, pytester):
    drop = "--diffusion-fail-on-drop=log_snr_first:5%"
    result, report = gate(drop)
    assert (result.ret, report["gate"]) == (0, "amber")
    result, report = gate(drop)
    assert (result.ret, report["gate"]) == (0, "open")
    assert report["run"]["history"]["runs"] == 1
    assert 0 < report["run"]["seconds"] < 600
    assert "Since the last release" in (pytester.path / "diffusion-report.html").read_text()
    with sqlite3.connect(pytester.path / "h.sqlite") as file:
        file.execute("UPDATE figures SET measurement = json_set(measurement, '$.value', 9.0) WHERE check_name = 'log_snr_first'")
    result, report = gate(drop)
    assert (result.ret, report["gate"]) == (1, "closed")
    result.stdout.fnmatch_lines(["fail *drop_log_snr_first *since the release of *"])


def test_a_history_that_cannot_be_written_closes_the_gate(gate, pytester):
    pytester.makeconftest(
        """
        import pytest
        from pathlib import Path
        @pytest.hookimpl(tryfirst=True)
        def pytest_sessionfinish():
            Path("h.sqlite").write_text("someone else's file, and longer than a header")
        """
    )
    result, report = gate()
    assert (result.ret, report["gate"]) == (1, "closed")
    assert any("--diffusion-history" in reason and "is no SQLite file" in reason for reason in report["reasons"])
