"""The list of real defects: each names its public reports, changes its model while it lasts, and some are held against the gate."""

import copy
import re

import pytest
import torch

from benchmarks.faults import DEMO, FAULTS
from benchmarks.history import History
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.damage import Target
from pytest_diffusion.models.fingerprint import fingerprint
from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")
ON_THE_DEMO = [one for one in FAULTS if one.family == DEMO]
TRAINS = {"average_not_used"}
ADAPTERS_AT_NIGHT = {"adapter_keys_skipped", "adapter_without_effect", "alpha_lost"}


def named(names):
    return [one for one in FAULTS if one.damage.name in names]


def images(target, settings):
    generators = [torch.Generator().manual_seed(number) for number in range(8)]
    prompts = ["a small red circle", "a large blue square", "a green triangle", "a purple cross"] * 2
    # Two batches, as a run has them.
    parts = []
    for start in (0, 4):
        found = target.pipeline(
            prompts[start : start + 4],
            num_inference_steps=settings.steps,
            guidance_scale=4.0,
            generator=generators[start : start + 4],
            output_type="pt",
        )
        parts.append(found.images)
    return torch.cat(parts)


def test_there_are_many_and_each_names_its_reports():
    assert len(FAULTS) >= 25
    assert len({one.damage.name for one in FAULTS}) == len(FAULTS)
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", thread) for one in FAULTS for thread in one.threads)
    assert all(one.threads for one in FAULTS)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(one, marks=[nightly("trains an adapter for a minute")] if one.damage.name in ADAPTERS_AT_NIGHT else [])
        for one in ON_THE_DEMO
        if one.damage.name not in TRAINS
    ],
    ids=lambda one: one.damage.name,
)
def test_a_defect_shows_while_it_lasts_and_is_taken_back(demo_pipeline, fault):
    if fault.before is not None and "adapter" in (fault.before.__doc__ or ""):
        pytest.importorskip("peft")
    pipeline = copy.deepcopy(demo_pipeline)
    pipeline.set_progress_bar_config(disable=True)
    if fault.before is not None:
        fault.before(pipeline)
    target = Target(pipeline, Settings(steps=4))
    plain, before = images(target, target.settings), fingerprint(pipeline)
    with fault.damage.apply(target, 0.0, 0) as settings:
        changed = images(target, settings)
    assert not torch.equal(changed.nan_to_num(), plain)
    assert fingerprint(pipeline) == before
    assert torch.equal(images(target, target.settings), plain)


@nightly("a minute; benchmarks/history.py counts them all")
def test_the_gate_of_a_copy_catches_defects_before_an_image_is_drawn(shared_cache, tmp_path):
    history = History(str(shared_cache), str(tmp_path), pairs=16)
    for fault in named(("final_norm_missing", "timesteps_in_shares", "layer_scale_lost", "stale_cache")):
        found = history.judge(fault)
        assert found["caught_by"] == ["denoising_loss"], found
    (colours,) = named(("colours_reversed",))
    assert history.judge(colours)["caught_by"] == ["reconstruction_loss"]
