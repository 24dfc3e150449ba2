"""Shared subjects: the demo pipeline, a tiny pixel model, and a cache of their own."""

from __future__ import annotations

import copy
import os

# Hub look-ups would only wait for time-outs; huggingface_hub reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import accelerate.utils  # noqa: F401
import contourpy  # noqa: F401
import matplotlib.figure  # noqa: F401
import pytest
import torch
from diffusers import StableDiffusionPipeline  # noqa: F401
from hypothesis import settings

from tests.spread import pytest_collection_modifyitems, pytest_xdist_make_scheduler  # noqa: F401 - hooks

pytest_plugins = ["pytester"]
# The heavy packages are imported above once for all: pytester drops what a test was the first to import,
# and torch cannot be imported twice.


# In CI the same examples every time; HYPOTHESIS_PROFILE=thorough for a night.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    # Tests here make verdicts fail on purpose; a summary of them would only confuse.
    config.pluginmanager.unregister(name="diffusion-reporter")


@pytest.fixture(scope="session")
def demo_pipeline():
    """The demo; tests that change it take `demo_copy`."""
    from pytest_diffusion.config.settings import Settings
    from pytest_diffusion.models.load import load_pipeline

    return load_pipeline(Settings(model="demo", device="cpu"))


@pytest.fixture
def demo_copy(demo_pipeline):
    return copy.deepcopy(demo_pipeline)


@pytest.fixture(scope="session")
def demo_settings():
    from pytest_diffusion.config.settings import resolve

    return resolve(options={"model": "demo"}, ini={})[0]


@pytest.fixture
def pixel_pipeline():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return DDPMPipeline(unet, DDPMScheduler()).to("cpu")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """One sample cache for the whole session: each sample set is generated once."""
    return tmp_path_factory.mktemp("cache")
