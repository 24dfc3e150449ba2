"""A saved baseline in an object store: written whole, read back, and refused with a reason."""

import pytest
import torch

from pytest_diffusion.cli import main
from pytest_diffusion.config import remote
from pytest_diffusion.config.remote_files import read_url, require_place, write_url
from pytest_diffusion.config.settings import Settings, resolve, validate
from pytest_diffusion.gate.saved import load_baseline, save_baseline
from pytest_diffusion.report import history
from pytest_diffusion.verdicts.errors import SettingsError
from tests.config.loopback_s3 import loopback_s3

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
URL = "s3://bucket/team/main.diffusion"


@pytest.fixture
def s3(monkeypatch):
    with loopback_s3(monkeypatch) as proxy:
        monkeypatch.setattr(remote, "_PAUSE", 0.01)
        yield proxy


def test_a_baseline_that_was_saved_to_a_store_is_read_from_it(s3):
    tensors = {"scores.clip_score": torch.arange(4.0)}
    save_baseline(URL, tensors, {"model": "demo"})
    found = load_baseline(URL)
    assert found.path == URL
    assert found.about["model"] == "demo"
    assert torch.equal(found.tensors["scores.clip_score"], tensors["scores.clip_score"])
    validate(Settings(model="demo", baseline=URL))


def test_a_damaged_file_is_no_baseline(s3):
    write_url(URL, b"half of it", "--to")
    with pytest.raises(SettingsError, match=rf"--diffusion-baseline: {URL} is damaged"):
        load_baseline(URL)


def test_what_is_not_there_or_not_given_is_said(s3):
    with pytest.raises(SettingsError, match=r"--diffusion-baseline: the file s3://bucket/team/none\.diffusion does not exist"):
        read_url("s3://bucket/team/none.diffusion", "--diffusion-baseline")
    with pytest.raises(SettingsError, match=r"--to: s3://nobody/x\.diffusion cannot be written: "):
        write_url("s3://nobody/x.diffusion", b"", "--to")
    with pytest.raises(SettingsError, match="fsspec knows no s9"):
        read_url("s9://bucket/x.diffusion", "--diffusion-baseline")
    with pytest.raises(SettingsError, match=r"memory://x\.diffusion names no folder or bucket before the file"):
        read_url("memory://x.diffusion", "--diffusion-baseline")
    with pytest.raises(SettingsError, match="it carries credentials"):
        read_url("s3://key:word@bucket/x.diffusion", "--diffusion-baseline")


def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(s3, monkeypatch, capsys):
    monkeypatch.setattr("pytest_diffusion.gate.save.save_model", lambda *_, **__: pytest.fail("drawn"))
    assert main(["baseline", "save", "demo", "--to", "s3://nobody/x.diffusion"]) == 2
    assert "--to=s3://nobody/x.diffusion cannot be used: " in capsys.readouterr().err
    require_place(URL, "--to")


def test_a_report_is_not_read_from_a_store():
    with pytest.raises(SettingsError, match="is a report; download it"):
        resolve(options={"model": "demo", "baseline": "s3://bucket/report.json"}, ini={})


def test_a_history_in_a_store_keeps_the_runs_of_all_jobs(s3):
    place = "s3://bucket/team/history.sqlite"
    history.History.require(place)
    assert history.History(place).runs == []
    for day in ("1", "2"):
        run = history.Run(day, f"2026-11-0{day}", "open", 0, "demo", "", "", "", "", "")
        history.History(place).add(run)
    assert [run.id for run in history.History(place).runs] == ["1", "2"]


def test_a_run_that_another_job_overwrote_is_written_again(s3, monkeypatch):
    place, stolen = "s3://bucket/team/history.sqlite", [True]

    def overwritten(url, data, flag):
        # Another job, which had read the file before, writes its own over it once.
        write_url(url, b"" if stolen.pop() else data, flag)
        stolen.append(False)

    monkeypatch.setattr(history, "write_url", overwritten)
    history.History(place).add(history.Run("1", "2026-11-01", "open", 0, "demo", "", "", "", "", ""))
    assert [run.id for run in history.History(place).runs] == ["1"]
    monkeypatch.setattr(history, "write_url", lambda url, data, flag: None)
    with pytest.raises(SettingsError, match="was written by other jobs 5 times"):
        history.History(place).add(history.Run("2", "2026-11-02", "open", 0, "demo", "", "", "", "", ""))
