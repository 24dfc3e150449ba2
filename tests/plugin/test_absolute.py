"""The absolute checks on a pipeline in memory, in a session of their own."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_diffusion.gate.damage import Target
from pytest_diffusion.gate.kinds import all_damages
from pytest_diffusion.plugin.absolute import absolute_verdicts
from pytest_diffusion.verdicts.errors import SetupError
from tests.nightly import nightly


def judged(pipeline, settings, folder):
    return {one["check"]: one for one in absolute_verdicts(pipeline, str(folder))(settings)}


def test_a_session_that_ran_nothing_says_nothing(demo_copy, demo_settings, tmp_path):
    with pytest.raises(SetupError, match=r"no absolute check was run; the last line of their session: .*nope\.toml"):
        judged(demo_copy, replace(demo_settings, thresholds=("nope.toml",)), tmp_path)


@nightly("two minutes for two sessions")
def test_the_given_pipeline_is_judged_and_nothing_else_changes(demo_copy, demo_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-n 2")
    environment = dict(os.environ)
    # A damaged copy is no run of the history.
    history = str(tmp_path.parent / f"{tmp_path.name}.sqlite")
    settings = replace(demo_settings, lenses=("schedule", "latent"), num_samples=8, history=history, fail_on_drop=("log_snr_first:5%",))
    sound = judged(demo_copy, settings, tmp_path)
    assert sound["log_snr_first"]["outcome"] == "pass"
    assert sound["log_snr_first"]["at_least"] == pytest.approx(6.8)
    damage = next(one for one in all_damages() if one.name == "decoder_noise")
    with damage.apply(Target(demo_copy, settings), 0.4, 0) as own:
        broken = judged(demo_copy, own, tmp_path)
    changed = {name for name in broken if broken[name]["outcome"] == "fail" and sound[name]["outcome"] != "fail"}
    assert any(name.startswith("vae_") or "latent" in name for name in changed), changed
    assert dict(os.environ) == environment
    assert not list(tmp_path.iterdir())
    assert not Path(history).exists()
