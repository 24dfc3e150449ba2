"""A store that is too large to be read when it is opened: its shards are looked at later, each before its first use."""

import json
import time
import warnings

import numpy as np
import pytest
import torch

from pytest_diffusion.config.cache import StoreWarning
from pytest_diffusion.samples import store as module
from pytest_diffusion.samples.checksums import Checksums
from pytest_diffusion.samples.store import SampleStore
from pytest_diffusion.verdicts.errors import SetupError

IDENTITY = {"pipeline": "P", "weights": "w", "scheduler": "s"}
COUNT, SHARD = 40, 8


def filled(folder):
    """A store of 40 images, and the images."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 4, 4), dtype=np.uint8)
    store = SampleStore(folder, IDENTITY)
    for start in range(0, COUNT, SHARD):
        record = {"batch_size": SHARD, "seeds": list(range(start, start + SHARD)), "prompts": None, "finite": [True] * SHARD}
        store.write(range(start, start + SHARD), images[start : start + SHARD], record, count=COUNT)
    return images


def opened(folder):
    store = SampleStore(folder, IDENTITY)
    assert store.missing(COUNT, SHARD) == []
    return store.read(COUNT, None, list(range(COUNT)), 0, shard=SHARD)


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 100)


def flip(folder, index):
    path = next(folder.glob("samples/*/images.npy"))
    with path.open("r+b") as file:
        file.seek(128 + index * 48 + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_a_small_store_is_looked_at_when_it_is_opened(tmp_path):
    filled(tmp_path)
    flip(tmp_path, 20)
    with pytest.warns(StoreWarning, match="Samples 16 to 23"):
        assert SampleStore(tmp_path, IDENTITY).missing(COUNT, SHARD) == [range(16, 24)]


def test_a_large_store_gives_its_images(tmp_path, large):
    images = filled(tmp_path)
    samples = opened(tmp_path)
    assert samples.checksums is not None
    assert torch.equal(samples.images, torch.from_numpy(images))
    assert len(samples) == COUNT


def test_damage_is_found_before_the_first_use_and_only_there(tmp_path, large, monkeypatch):
    images = filled(tmp_path)
    flip(tmp_path, 20)
    # Nothing is looked at in the background, so that it is the use that looks.
    monkeypatch.setattr(Checksums, "_look", lambda self: None)
    samples = opened(tmp_path)
    assert torch.equal(samples.first(16), torch.from_numpy(images[:16]))
    with pytest.warns(StoreWarning, match="Samples 16 to 23"), pytest.raises(SetupError, match=r"samples 16 to 23 .* Run again"):
        _ = samples.images
    with pytest.raises(SetupError, match="16 to 23"):
        samples.first(17)
    assert torch.equal(samples.first(16), torch.from_numpy(images[:16]))
    assert SampleStore(tmp_path, IDENTITY).missing(COUNT, SHARD) == [range(16, 24)]


def test_the_background_looks_at_all(tmp_path, large):
    filled(tmp_path)
    flip(tmp_path, 39)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = opened(tmp_path)
        until = time.monotonic() + 20
        while samples.checksums._left and time.monotonic() < until:
            time.sleep(0.01)
    assert not samples.checksums._left
    with pytest.raises(SetupError, match="32 to 39"):
        _ = samples.images


def test_records_are_read_once_for_as_long_as_they_stay(tmp_path):
    filled(tmp_path)
    store = SampleStore(tmp_path, IDENTITY)
    first = store._records.all()
    assert all(one is other for one, other in zip(first, store._records.all(), strict=True))
    path = next(tmp_path.glob("samples/*/shards/0000008-*.json"))
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "batch_size": 3}))
    with pytest.warns(StoreWarning, match="Samples 8 to 15"):
        assert len(store._records.all()) == 4
