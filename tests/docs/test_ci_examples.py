"""The recipes for CI: files that parse, options that exist, and the action's own step, run here as GitHub would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_diffusion.config.options import OPTIONS

ROOT = Path(__file__).parents[2]
FILES = [*sorted((ROOT / "examples" / "ci").iterdir()), ROOT / "action.yml"]
FLAGS = {flag for option in OPTIONS for flag in option.flags}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_options_that_are_named_exist(path):
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r"--diffusion-[a-z-]+", text))
    assert found
    assert found <= FLAGS
    if path.suffix == ".yml":
        assert yaml.safe_load(text)


def test_the_github_recipe_keeps_samples_and_the_report():
    steps = yaml.safe_load((ROOT / "examples" / "ci" / "github-actions.yml").read_text(encoding="utf-8"))["jobs"]["gate"]["steps"]
    used = [step.get("uses", "").partition("@")[0] for step in steps]
    # What a closed gate has drawn is kept too.
    assert all(step.get("if") == "always()" for step in steps if step.get("uses", "").startswith(("actions/cache/save", "actions/upload")))
    assert {"actions/checkout", "actions/cache/restore", "actions/cache/save", "actions/upload-artifact"} <= set(used)


@pytest.mark.parametrize(("arguments", "code"), [("-k 'betas or log_snr'", 0), ("--diffusion-lenses=nothing", 4)])
def test_the_actions_step_hands_on_arguments_and_the_exit_code(tmp_path, arguments, code):
    steps = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))["runs"]["steps"]
    (script,) = (step["run"] for step in steps if "ARGUMENTS" in step.get("env", {}))
    given = f"-p no:cacheprovider --diffusion-model=demo --diffusion-lenses=schedule {arguments}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"ARGUMENTS": given, "CACHE": "--diffusion-cache-dir=.diffusion-cache", "PATH": path}
    run = subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert run.returncode == code, run.stdout + run.stderr
    assert (tmp_path / "diffusion.xml").exists() is (code == 0)
