"""`pytest-diffusion generate`: engines that start workers, of which one is killed, and the bytes of one process."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from pytest_diffusion.cli import main
from tests.nightly import nightly

OPTIONS = ["--diffusion-model=demo", "--diffusion-num-samples=300", "--diffusion-steps=6"]


def start(folder, *engine):
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "pytest_diffusion.cli", "generate", *engine, "--", *OPTIONS, "--diffusion-cache-dir=cache"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def store(folder):
    """Images and records of the one store, by name."""
    (found,) = (folder / "cache" / "samples").iterdir()
    files = [found / "images.npy", *found.glob("shards/*.json"), *found.glob("features-*.safetensors")]
    return {path.name: path.read_bytes() for path in files}


def workers(process, mark):
    """The processes below one whose command has a mark."""
    found = psutil.Process(process.pid).children(recursive=True) if mark != "ray::_Worker" else psutil.process_iter()
    return [one for one in found if mark in " ".join(one.cmdline())]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    process = start(folder)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return store(folder)


@pytest.mark.parametrize(
    ("engine", "mark"),
    [
        pytest.param("torchrun", "pytest_diffusion.generate", marks=nightly("a minute; test_generation.py kills a rank always")),
        pytest.param("ray", "ray::_Worker", marks=nightly("Ray takes a minute to start")),
    ],
)
def test_a_worker_that_is_killed_changes_no_byte(tmp_path, alone, engine, mark):
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray (extra: ray) is not installed")
    process = start(tmp_path / "run", f"--engine={engine}", "--num-workers=2")
    until = time.monotonic() + 300
    while not list((tmp_path / "run").glob("cache/samples/*/shards/*.json")):
        assert time.monotonic() < until, process.communicate()[0]
        time.sleep(0.05)
    victims = [one for one in workers(process, mark) if "torch.distributed.run" not in " ".join(one.cmdline())]
    assert victims
    victims[0].kill()
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "of 300 samples of demo; all are in" in said
    assert store(tmp_path / "run") == alone


def test_what_the_command_cannot_do_is_told(capsys):
    assert main(["generate", "--num-workers=0", "--", "--diffusion-model=demo"]) == 2
    assert "--num-workers is 0; expected at least 1" in capsys.readouterr().err


def test_without_ray_the_engine_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["generate", "--engine=ray", "--", "--diffusion-model=demo"]) == 2
    assert "pip install 'pytest-diffusion[ray]'" in capsys.readouterr().err
