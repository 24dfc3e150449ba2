"""Threads wait passively where we load torch first and nobody else has decided."""

import os
import subprocess
import sys

import pytest

from pytest_diffusion.config.threads import threads_text, wait_passively

SAY = (
    "import os, sys; from pytest_diffusion.config.threads import wait_passively; print(wait_passively(), os.environ.get('OMP_WAIT_POLICY'))"
)


def said(code, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**own, **environment}
    ).stdout.strip()


def test_before_torch_is_loaded_threads_are_told_to_wait_passively():
    assert said(SAY) == "True PASSIVE"
    assert said(f"import torch; {SAY}") == "False None"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"])
def test_what_the_user_has_decided_stays(name):
    value = "ACTIVE" if name == "OMP_WAIT_POLICY" else "1"
    assert said(SAY, **{name: value}) == f"False {'ACTIVE' if name == 'OMP_WAIT_POLICY' else None}"


def test_the_header_says_so(monkeypatch):
    assert not wait_passively()  # torch is loaded here
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert threads_text() == "threads wait passively (OMP_WAIT_POLICY)"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert threads_text() == ""
