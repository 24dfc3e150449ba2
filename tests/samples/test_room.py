"""What would stop a run after hours is refused before it begins."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import psutil
import pytest
import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.samples import room
from pytest_diffusion.samples.generate import generate_samples
from pytest_diffusion.verdicts.errors import SetupError


@pytest.fixture
def settings(tmp_path):
    return Settings(cache_dir=str(tmp_path / "not" / "there"), height=64, width=32, num_samples=1000)


def free(monkeypatch, *, disk=10**12, total=10**12, memory=10**12):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=disk, total=total))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))


def test_all_samples_must_fit_on_the_disk(monkeypatch, settings, pixel_pipeline):
    """Whatever is free: samples that are there already need no room."""
    needed = 3 * 64 * 32 * 1000
    free(monkeypatch, disk=0, total=needed)
    room.require_room(pixel_pipeline, settings)
    free(monkeypatch, disk=0, total=needed - 1)
    with pytest.raises(
        SetupError, match=r"1000 samples of 32x64 need 6\.14 MB in the cache folder .*there, where 6\.14 MB is all that its disk holds"
    ):
        room.require_room(pixel_pipeline, settings)


def test_missing_samples_must_fit_into_what_is_free(monkeypatch, tmp_path):
    free(monkeypatch, disk=3 * 64 * 32 * 5)
    room.require_disk(5, (64, 32), tmp_path)
    with pytest.raises(SetupError, match=r"6 samples of 32x64 need 36\.9 kB .* where 30\.7 kB are free\. Lower --diffusion-num-samples"):
        room.require_disk(6, (64, 32), tmp_path)


def test_generation_asks_for_room_for_what_is_missing(monkeypatch, tmp_path, pixel_pipeline):
    settings = Settings(cache_dir=str(tmp_path), num_samples=4, steps=1)
    generate_samples(pixel_pipeline, None, settings)
    free(monkeypatch, disk=0)
    assert generate_samples(pixel_pipeline, None, settings).generated == 0, "all are there"
    with pytest.raises(SetupError, match=r"2 samples of .* need"):
        generate_samples(pixel_pipeline, None, replace(settings, num_samples=6))


def test_one_image_must_fit_into_memory(monkeypatch, settings, pixel_pipeline):
    free(monkeypatch, memory=2 * 12 * 64 * 32)
    room.require_room(pixel_pipeline, settings)
    free(monkeypatch, memory=2 * 12 * 64 * 32 - 1)
    with pytest.raises(SetupError, match=r"One image of 32x64 needs 49\.2 kB of memory, where 49\.2 kB are free"):
        room.require_room(pixel_pipeline, settings)


@pytest.mark.parametrize(("steps", "refused"), [(1000, False), (1001, True)])
def test_steps_that_the_scheduler_refuses(steps, refused):
    pipeline = SimpleNamespace(scheduler=diffusers.DDPMScheduler())
    if not refused:
        room.require_steps(pipeline, Settings(steps=steps))
        return
    with pytest.raises(SetupError, match=r"--diffusion-steps is 1001: DDPMScheduler, trained on 1000 steps, refuses it.*Give at most 1000"):
        room.require_steps(pipeline, Settings(steps=steps))


def test_a_scheduler_that_takes_any_number_of_steps():
    room.require_steps(SimpleNamespace(scheduler=diffusers.FlowMatchEulerDiscreteScheduler()), Settings(steps=1500))
    room.require_steps(SimpleNamespace(), Settings(steps=1500))
    room.require_steps(SimpleNamespace(scheduler=SimpleNamespace(config=SimpleNamespace(num_train_timesteps=10))), Settings(steps=1500))


def test_a_scheduler_that_wants_more_than_a_number_is_left_to_its_pipeline():
    flux = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    room.require_steps(SimpleNamespace(scheduler=flux), Settings(steps=1200))
    room.require_steps(SimpleNamespace(scheduler=SimpleNamespace(config={"num_train_timesteps": 0})), Settings(steps=5))
    room.require_steps(SimpleNamespace(scheduler=SimpleNamespace(config={"num_train_timesteps": 3})), Settings(steps=5))


def test_statistics_of_another_width_are_refused(settings, pixel_pipeline):
    assert room.require_features(lambda images: images.flatten(1)[:, :7].float(), pixel_pipeline, settings) == 7
    statistics = FeatureStatistics(torch.zeros(5), torch.eye(5), 100)
    room.require_same_width(Reference("r", statistics=statistics), 5, settings)
    with pytest.raises(SetupError, match="r holds statistics of 5 features; --diffusion-features=inception has 7"):
        room.require_same_width(Reference("r", statistics=statistics), 7, settings)


@pytest.mark.parametrize(("count", "text"), [(999, "999 bytes"), (1000, "1 kB"), (1.5e9, "1.5 GB"), (2e15, "2 PB"), (3e19, "3e+04 PB")])
def test_sizes_are_readable(count, text):
    assert room._size(count) == text
