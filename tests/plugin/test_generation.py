"""`python -m pytest_diffusion.generate`: processes that make what the gate then finds, and judge nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pytest_diffusion import generate
from tests.nightly import nightly

OPTIONS = ["--diffusion-model=demo", "--diffusion-num-samples=200", "--diffusion-steps=4"]


def start(folder, *options, rank=0, world=1):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    command = [sys.executable, "-m", "pytest_diffusion.generate", *OPTIONS, f"--diffusion-cache-dir={folder / 'cache'}", *options]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def store(folder):
    """Every file of the one store, by name, but for locks."""
    (found,) = (folder / "cache" / "samples").iterdir()
    return {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file() and path.suffix != ".lock"}


def gate(folder, *options):
    command = [sys.executable, "-m", "pytest", *OPTIONS, f"--diffusion-cache-dir={folder / 'cache'}", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@nightly("two minutes; .ci/run shares a job between two processes, and tests/samples/test_store.py kills some")
def test_two_ranks_of_which_one_is_killed_make_the_bytes_of_one_and_the_gate_finds_all(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    alone = start(tmp_path / "one")
    _, said = alone.communicate()
    assert alone.returncode == 0, said
    assert "process 1 of 1 drew 200 of 200 samples of demo" in said
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"cache", "pytest.ini"}, "it writes no report"
    victim, other = (start(tmp_path / "two", rank=rank, world=2) for rank in (0, 1))
    while not list((tmp_path / "two").glob("cache/samples/*/shards/*.json")):
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    _, said = other.communicate()
    assert other.returncode == 0, said
    assert store(tmp_path / "two") == store(tmp_path / "one")
    assert {name.partition("-")[0] for name in store(tmp_path / "two") if "-" in name and "/" not in name} == {"features", "statistics"}
    gate(tmp_path / "two", "-k", "fid or clip_score")
    report = json.loads((tmp_path / "two" / "diffusion-report.json").read_text())
    assert report["run"]["generated"] == 0


def test_both_models_of_a_comparison_are_drawn_with_their_scores(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--diffusion-model=demo", "--diffusion-baseline=demo", "--diffusion-max-samples=64", "--diffusion-steps=2"]
    assert generate.main([*options, "--diffusion-seed=3", f"--diffusion-cache-dir={tmp_path}"]) == 0
    said = capfd.readouterr().err
    assert "drew 64 of 64 samples of demo" in said
    assert "drew 0 of 64 samples of demo" in said
    assert len(list(tmp_path.glob("samples/*/scores-*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        ([], 4, "nothing to generate: give --diffusion-model"),
        (["--diffusion-model=demo", "--diffusion-lenses=schedule"], 4, "the lenses schedule look at no samples"),
        (["--diffusion-model=demo", "--diffusion-scheduler=my_module:Own"], 4, "my_module"),
        (["--diffusion-model=nowhere/at/all"], 4, "nowhere/at/all"),
        (["--diffusion-model=analytic:two_moons"], 4, ""),
        (["--diffusion-model=demo", "--diffusion-features=no_such_extractor"], 4, "no_such_extractor"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(tmp_path, capfd, monkeypatch, options, code, reason):
    monkeypatch.chdir(tmp_path)
    assert generate.main([*options, f"--diffusion-cache-dir={tmp_path}"]) == code
    said = capfd.readouterr().err
    assert reason in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.html"))
