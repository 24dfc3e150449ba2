"""Whatever happens to the files of a cache, what is read from it is what was written: samples, features and statistics.

Random damage here is a sample of 1,000; `make corruptions` tries 10,000.
"""

import json
import os
import random
import re
import shutil
import warnings

import numpy as np
import pytest
import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.features.sealed import seal_of
from pytest_diffusion.features.store import stored_features
from pytest_diffusion.samples import generate

COUNT, SHARD = 20, 8
RANDOM = int(os.environ.get("CORRUPTIONS", "1000"))
EXTRACTOR = Extractor("toy", lambda images: (images.flatten(1)[:, ::40].float() / 255, None))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A function that measures on a cache, two whole caches, and the truth of the first."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks)
    pipeline = DDPMPipeline(unet, DDPMScheduler())
    patch = pytest.MonkeyPatch()
    patch.setattr(generate, "SHARD_SIZE", SHARD)
    patch.setattr(generate, "generate_images", drawn)
    # The weights do not change here, and hashing them would take as long as all the rest.
    patch.setattr(generate, "sample_identity", lambda pipeline, prompts, settings, weights=None: {"seed": settings.seed})

    def measure(cache, seed=0):
        settings = Settings(num_samples=COUNT, steps=1, batch_size=4, seed=seed, cache_dir=str(cache))
        samples = generate.generate_samples(pipeline, None, settings)
        features = stored_features(samples, EXTRACTOR)
        found = [samples.images.clone(), samples.finite, features.values.clone(), features.statistics.mean, features.statistics.covariance]
        return [one.numpy().copy() for one in found], samples.seeds

    root = tmp_path_factory.mktemp("corruption")
    truth = measure(root / "whole")
    measure(root / "other", seed=1000)
    yield measure, root, truth
    patch.undo()


def drawn(pipeline, prompts, seeds, settings, *, batch):
    """Images that only their seeds determine; every seventh is not finite."""
    images = np.stack([np.random.default_rng(seed).random((8, 8, 3)) for seed in seeds])
    images[[seed % 7 == 3 for seed in seeds], 0, 0, 0] = np.nan
    return images


def check(workshop, spoil):
    """Damage a copy of the cache, and measure twice: neither what is mended nor what is found again may differ from the truth."""
    measure, root, (truth, seeds) = workshop
    cache = root / "damaged"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.copytree(root / "whole", cache)
    spoil(cache)
    # What is mended at first is whole the second time, and so without a word.
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            found, found_seeds = measure(cache)
        assert found_seeds == seeds
        for one, other in zip(found, truth, strict=True):
            np.testing.assert_array_equal(one, other)


def files(cache):
    """Every file of a cache but the times that this machine needed."""
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.name != "timings.json")


def flip(path, draw):
    data = bytearray(path.read_bytes())
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def zero(path, draw):
    data = bytearray(path.read_bytes())
    start = draw.randrange(len(data) + 1)
    stop = min(len(data), start + draw.randrange(1, 200))
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)


def cut(path, draw):
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size + 1)])


def grow(path, draw):
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 500)))


def lose(path, draw):
    path.unlink()


def fold(path, draw):
    path.unlink()
    (path / "inside").mkdir(parents=True)


def link(path, draw):
    path.unlink()
    path.symlink_to("nowhere")


def digit(path, draw):
    text = path.read_bytes()
    places = [match.start() for match in re.finditer(rb"\d", text)]
    if places:
        place = draw.choice(places)
        path.write_bytes(text[:place] + str(draw.randrange(10)).encode() + text[place + 1 :])


def overwrite(path, draw):
    path.write_bytes(draw.choice(files(_cache_of(path))).read_bytes())


def exchange(path, draw):
    other = draw.choice(files(_cache_of(path)))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def foreign(path, draw):
    """The same file, or one like it, of a sound store of other samples."""
    others = [one for one in files(_cache_of(path).parent / "other") if one.suffix == path.suffix and one.name[:6] == path.name[:6]]
    if others:
        path.write_bytes(draw.choice(others).read_bytes())


def stray(path, draw):
    name = draw.choice([f"{path.stem} (1){path.suffix}", f"._{path.name}", f"{path.name}.tmp", f"0000099-0000012{path.suffix}"])
    path.with_name(name).write_bytes(path.read_bytes())


def part(path, draw):
    path.with_name(f".{path.name}.99999999.{draw.getrandbits(64):x}.part").write_bytes(b"half")


def leave_out(path, draw):
    shutil.rmtree(path.parent)


WAYS = [flip, zero, cut, grow, lose, fold, link, digit, overwrite, exchange, foreign, stray, part, leave_out]


def _cache_of(path):
    return next(parent for parent in path.parents if parent.name in ("damaged", "other"))


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_is_never_silently_wrong(workshop, seed):
    draw = random.Random(seed)
    for _ in range(RANDOM // 10):
        state = draw.getstate()

        def spoil(cache):
            for _ in range(draw.choice([1, 1, 1, 2, 3])):
                left = files(cache)
                if left:
                    draw.choice(WAYS)(draw.choice(left), draw)

        try:
            check(workshop, spoil)
        except Exception as error:
            raise AssertionError(f"random.Random().setstate({state})") from error


def each_file_in_each_way():
    kinds = [
        "manifest.json",
        "images.npy",
        "0000000-0000008.json",
        "0000008-0000016.json",
        "0000016-0000020.json",
        "features-",
        "statistics-",
    ]
    for kind in kinds:
        for way in WAYS:
            for seed in range(2):
                yield pytest.param(
                    kind, lambda path, way=way, seed=seed: way(path, random.Random(seed)), id=f"{kind} {way.__name__} {seed}"
                )


def each_entry_of_each_json():
    entries = ["first", "stop", "store", "shape", "dtype", "checksum", "batch_size", "seeds", "prompts", "finite", "seal"]
    values = [None, 0, 1, -1, "", "a", [], [1, 2], {}, True]
    for key in entries:
        for value in values:
            yield pytest.param("0000008-0000016.json", lambda path, key=key, value=value: edit(path, key, value), id=f"{key} is {value!r}")
        yield pytest.param("0000008-0000016.json", lambda path, key=key: edit(path, key), id=f"no {key}")
    for key in ("count", "shape", "format"):
        for value in (None, 5, [3, 8, 9], [3, 4, 8], "x"):
            yield pytest.param(
                "manifest.json", lambda path, key=key, value=value: edit(path, key, value), id=f"manifest {key} is {value!r}"
            )


def edit(path, key, *value):
    data = json.loads(path.read_text())
    data.pop(key)
    if value:
        data[key] = value[0]
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(("kind", "spoil"), [*each_file_in_each_way(), *each_entry_of_each_json()])
def test_directed_damage_is_never_silently_wrong(workshop, kind, spoil):
    check(workshop, lambda cache: spoil(next(path for path in files(cache) if path.name.startswith(kind))))


@pytest.mark.parametrize("name", ["shards", "store.lock"])
def test_a_file_in_a_folders_place_and_a_folder_in_a_files(workshop, name):
    def spoil(cache):
        path = next(cache.glob("samples/*")) / name
        if path.is_dir():
            shutil.rmtree(path)
            path.write_text("")
        else:
            path.unlink(missing_ok=True)
            path.mkdir()

    check(workshop, spoil)


def test_a_cache_that_is_removed_under_a_run_is_made_again(workshop, monkeypatch, tmp_path):
    """It once gave 128 "constant samples" and a Fréchet distance of 306."""
    measure, _, (truth, _) = workshop
    calls = []

    def removed_meanwhile(*args, **rest):
        calls.append(args)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / "cache" / "samples")
        return drawn(*args, **rest)

    monkeypatch.setattr(generate, "generate_images", removed_meanwhile)
    try:
        found, _ = measure(tmp_path / "cache")
    except Exception as error:
        assert "cannot be written" in str(error)  # noqa: PT017 - an error is as good as the truth
    else:
        for one, other in zip(found, truth, strict=True):
            np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(generate, "generate_images", drawn)
    found, _ = measure(tmp_path / "cache")
    np.testing.assert_array_equal(found[0], truth[0])


def test_two_runs_write_the_same_bytes(workshop, tmp_path):
    measure, root, _ = workshop
    measure(tmp_path)
    whole = {path.relative_to(root / "whole"): path.read_bytes() for path in files(root / "whole")}
    assert {path.relative_to(tmp_path): path.read_bytes() for path in files(tmp_path)} == whole


def test_parts_of_dead_processes_go(tmp_path):
    from pytest_diffusion.config import cache

    dead = tmp_path / f".a.json.{cache._HOST}.99999999.abc.part"
    alive = tmp_path / f".a.json.{cache._HOST}.{os.getpid()}.abc.part"
    for path in (dead, alive):
        path.write_text("half")
    cache.write_text(tmp_path / "a.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, "a.json"])


def test_a_seal_covers_names_dtypes_shapes_and_what_is_said():
    values = torch.arange(6, dtype=torch.int32)
    others = [
        ({"b": values}, {"n": 1}),
        ({"a": values.view(torch.float32)}, {"n": 1}),
        ({"a": values.reshape(2, 3)}, {"n": 1}),
        ({"a": values + 1}, {"n": 1}),
        ({"a": values}, {"n": 2}),
    ]
    seals = [seal_of(tensors, about) for tensors, about in [({"a": values}, {"n": 1}), *others]]
    assert len(set(seals)) == len(seals)


def test_another_sound_store_in_its_place_is_not_believed(workshop):
    """All of its records and pixels agree with one another, and are of other samples."""

    def spoil(cache):
        mine = next(path for path in (cache / "samples").iterdir() if path.is_dir())
        theirs = next(path for path in (cache.parent / "other" / "samples").iterdir() if path.is_dir())
        shutil.rmtree(mine)
        shutil.copytree(theirs, mine)

    check(workshop, spoil)
