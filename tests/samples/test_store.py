import errno
import json
import os
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import SoftFileLease

from pytest_diffusion.config.cache import StoreWarning
from pytest_diffusion.config.claims import LEASE
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.store import stored_features, stored_reference_features
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.samples import generate
from pytest_diffusion.samples.store import SampleStore
from pytest_diffusion.verdicts.errors import ModelError
from tests.samples.drawing import Drawing

PROMPTS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SHARD_SIZE", 4)
    return Settings(num_samples=10, steps=2, guidance_scale=4.0, batch_size=2, cache_dir=str(tmp_path))


def contents(folder):
    """Every file of a store but its lock and claims, by name."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_generated_once_and_found_again(demo_pipeline, small):
    first = generate.generate_samples(demo_pipeline, PROMPTS, small)
    again = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert (first.generated, again.generated) == (10, 0)
    assert torch.equal(first.images, again.images)
    assert first.images.shape == (10, 3, 32, 32)
    assert first.images.dtype == torch.uint8
    assert first.prompts[3] == "a red circle"
    assert first.seeds == list(range(10))
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["count"] == 10
    assert manifest["steps"] == 2
    record = json.loads((first.folder / "shards" / "0000004-0000008.json").read_text())
    assert record["seeds"] == [4, 5, 6, 7]
    assert record["prompts"] == [PROMPTS[index % 3] for index in range(4, 8)]


def test_more_samples_continue_the_store(demo_pipeline, small):
    few = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=6))
    more = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert (few.generated, more.generated) == (6, 4)
    assert more.folder == few.folder
    assert torch.equal(more.images[:6], few.images)
    fewer = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=3))
    assert (len(fewer.images), len(fewer.prompts), fewer.generated) == (3, 3, 0)


def damage_nothing(folder):
    """Leave the store as it is."""


def cut(folder):
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(128 + 5 * 3 * 32 * 32)


def flip_a_bit(folder):
    with (folder / "images.npy").open("r+b") as file:
        file.seek(128 + 5 * 3 * 32 * 32 + 7)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def spoil_the_header(folder):
    with (folder / "images.npy").open("r+b") as file:
        file.write(b"x" * 20)


def cut_a_record(folder):
    path = folder / "shards" / "0000004-0000008.json"
    path.write_text(path.read_text()[:50])


def lose_a_record(folder):
    (folder / "shards" / "0000004-0000008.json").unlink()


def spoil_the_manifest(folder):
    (folder / "manifest.json").write_text("")


def leave_a_part(folder):
    (folder / "shards" / "0000004-0000008.json.99.part").write_text("{")


@pytest.mark.parametrize(
    ("damage", "lost", "warned"),
    [
        (damage_nothing, 0, False),
        (cut, 6, True),
        (flip_a_bit, 4, True),
        (spoil_the_header, 0, False),
        (cut_a_record, 4, True),
        (lose_a_record, 4, False),
        (leave_a_part, 0, False),
        (spoil_the_manifest, 0, False),
    ],
)
def test_damage_is_found_and_mended(demo_pipeline, small, damage, lost, warned):
    sound = generate.generate_samples(demo_pipeline, PROMPTS, small)
    before = contents(sound.folder)
    damage(sound.folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mended = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert mended.generated == lost
    assert any("damaged and are generated again" in str(one.message) for one in caught) == warned
    assert contents(mended.folder) == before


def test_killed_at_any_moment_it_resumes_to_the_same_store(tmp_path):
    undisturbed = Drawing(tmp_path / "whole")
    wait, kept = 0.05, [0]
    for _ in range(3):
        victim = Drawing(tmp_path / "killed")
        victim.wait_until_loaded()
        time.sleep(wait)
        victim.kill()
        kept.append(4 * len(list(tmp_path.glob("killed/samples/*/shards/*.json"))))
        wait += 0.1
    assert kept == sorted(kept)  # what is finished is never lost
    assert undisturbed.end() == ["ready", 40]
    _, generated = Drawing(tmp_path / "killed").end()
    assert generated == 40 - kept[-1]
    assert 0 < generated
    (whole,), (killed,) = (list(tmp_path.glob(f"{name}/samples/*")) for name in ("whole", "killed"))
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_work_and_its_bytes_are_those_of_one(tmp_path, count):
    assert Drawing(tmp_path / "alone").end() == ["ready", 40]
    together = [Drawing(tmp_path / "together") for _ in range(count)]
    assert sum(process.end()[1] for process in together) == 40
    (one,), (other,) = (list(tmp_path.glob(f"{name}/samples/*")) for name in ("alone", "together"))
    assert contents(one) == contents(other)


def test_processes_that_are_killed_hold_nobody_up(tmp_path):
    Drawing(tmp_path / "alone").end()
    # Whoever waited for a lease of the dead to run out would wait an hour: no clock of a busy machine decides.
    victims = [Drawing(tmp_path / "together", lease=3600) for _ in range(3)]
    for victim, pause in zip(victims, (0.0, 0.05, 0.1), strict=True):
        victim.wait_until_loaded()
        time.sleep(pause)
        victim.kill()
    last = Drawing(tmp_path / "together", lease=3600)
    told = last.end(300)
    last.kill()
    assert [type(one) for one in told] == [str, int], "claims of the dead are taken at once"
    (one,), (other,) = (list(tmp_path.glob(f"{name}/samples/*")) for name in ("alone", "together"))
    assert contents(one) == contents(other)
    assert not list(other.glob("claims/*"))


def test_a_full_disk_says_so_and_keeps_what_is_there(demo_pipeline, small, monkeypatch):
    own, written = os.pwrite, []

    def pwrite(file, data, offset):
        written.append(len(data))
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(
            ModelError, match=r"No space left on device\. Existing samples are kept\. Free disk space.*--diffusion-cache-dir"
        ):
            generate.generate_samples(demo_pipeline, PROMPTS, small)
    resumed = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert 0 < resumed.generated < 10
    whole = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir=small.cache_dir + "/whole"))
    assert contents(resumed.folder) == contents(whole.folder)


def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path):
    """The same through the operating system: no file may grow beyond 20 kB."""
    _, told = Drawing(tmp_path, file_size=20_000).end()
    assert "File too large. Existing samples are kept" in told


def test_a_finished_store_may_be_read_only(demo_pipeline, small, monkeypatch):
    generate.generate_samples(demo_pipeline, PROMPTS, small)
    monkeypatch.setattr(SampleStore, "is_writable", lambda store: False)
    assert generate.generate_samples(demo_pipeline, PROMPTS, small).generated == 0
    with pytest.raises(ModelError, match="lacks 2 of 12 samples and cannot be written"):
        generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=12))


@pytest.mark.parametrize("change", [{"seed": 5}, {"steps": 3}, {"guidance_scale": 2.0}])
def test_whatever_changes_a_sample_changes_its_address(demo_pipeline, small, change):
    one = generate.generate_samples(demo_pipeline, PROMPTS, small)
    other = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, **change))
    assert one.folder != other.folder
    assert other.generated > 0


def test_the_schedule_itself_is_part_of_the_address(demo_copy, small):
    before = generate.sample_identity(demo_copy, PROMPTS, small)
    demo_copy.scheduler.alphas_cumprod = demo_copy.scheduler.alphas_cumprod * 0.99
    assert generate.sample_identity(demo_copy, PROMPTS, small) != before


def test_an_interrupted_run_goes_on(demo_pipeline, small, monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # a second worker would begin in the middle
    whole = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir=small.cache_dir + "/whole"))
    own, calls = generate.generate_images, []

    def interrupted(*args, **kwargs):
        calls.append(args[2])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    monkeypatch.setattr(generate, "generate_images", interrupted)
    with pytest.raises(KeyboardInterrupt, match="8 of 10 samples are kept, and the same command goes on from there"):
        generate.generate_samples(demo_pipeline, PROMPTS, small)
    resumed = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert resumed.generated == 2
    assert torch.equal(resumed.images, whole.images)
    assert contents(resumed.folder) == contents(whole.folder)


def test_whoever_waits_says_for_whom(demo_pipeline, small, monkeypatch):
    monkeypatch.setattr(generate, "_PATIENCE", 0.05)
    store = SampleStore(Path(small.cache_dir), generate.sample_identity(demo_pipeline, PROMPTS, small))
    store.claims.mkdir()
    said, held = [], SoftFileLease(store.claims / "0000004.lock", lease_duration=LEASE)
    held.acquire()

    def hear(text):
        said.append(text)
        held.release(force=True)

    samples = generate.generate_samples(demo_pipeline, PROMPTS, small, say=hear)
    assert samples.generated == 10
    pattern = rf"waiting for process {os.getpid()} on \S+, which works on the same in .* \(\d s so far\)"
    assert len(said) == 1
    assert re.fullmatch(pattern, said[0])


@pytest.fixture
def sizes(monkeypatch):
    """Sizes of the batches that were asked for, on a machine with memory for one sample."""
    asked = []
    own = generate.call_pipeline

    def greedy(pipeline, *, seeds, **rest):
        asked.append(len(seeds))
        if len(seeds) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return own(pipeline, seeds=seeds, **rest)

    monkeypatch.setattr(generate, "call_pipeline", greedy)
    return asked


def test_memory_that_runs_out_halves_the_batch(demo_copy, small, sizes):
    samples = generate.generate_samples(demo_copy, PROMPTS, replace(small, num_samples=3))
    assert len(samples.images) == 3
    assert sizes == [2, 1, 1, 1]
    record = json.loads(next(samples.folder.glob("shards/*.json")).read_text())
    assert record["batch_size"] == 1


@pytest.fixture
def room_for_two(monkeypatch):
    """A machine with memory for batches of two, on which whoever is in a batch of two is `error` levels brighter than alone."""
    own, error = generate.call_pipeline, [0]

    def limited(pipeline, *, seeds, **rest):
        if len(seeds) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return own(pipeline, seeds=seeds, **rest) + error[0] * (len(seeds) == 2) / 255

    monkeypatch.setattr(generate, "call_pipeline", limited)
    return error


def test_a_smaller_batch_is_recorded_with_the_difference_that_it_makes(demo_copy, small, room_for_two, recwarn):
    samples = generate.generate_samples(demo_copy, PROMPTS, replace(small, num_samples=4, batch_size=4))
    record = json.loads(next(samples.folder.glob("shards/*.json")).read_text())
    assert record["batch_size"] == 2
    assert 0 <= record["batch_difference"] < 0.1
    assert not [one for one in recwarn if one.category is StoreWarning]


def test_a_smaller_batch_that_changes_the_samples_is_told(demo_copy, small, room_for_two):
    room_for_two[0] = 20
    with pytest.warns(StoreWarning, match=r"Memory holds batches of 2 samples only.*--diffusion-batch-size=2, or see batch_invariance"):
        generate.generate_samples(demo_copy, PROMPTS, replace(small, num_samples=4, batch_size=4))


def test_the_bound_is_that_of_the_check():
    from pytest_diffusion.config.thresholds import load_thresholds

    assert load_thresholds([]).for_check("batch_invariance").at_most == generate._APART


def test_memory_that_has_run_out_once_is_not_asked_again(demo_copy, small, sizes):
    generate.generate_samples(demo_copy, PROMPTS, replace(small, num_samples=6))
    assert sizes == [2, 1, 1, 1, 1, 1, 1]


def test_memory_for_not_even_one_sample(demo_copy, small, monkeypatch):
    def hopeless(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(generate, "call_pipeline", hopeless)
    with pytest.raises(ModelError, match="Out of memory even with a batch size of 1"):
        generate.generate_samples(demo_copy, PROMPTS, small)


def test_nan_is_remembered(demo_copy, small):
    own = demo_copy.vae.decode

    def spoiled(latents, *args, **kwargs):
        output = own(latents, *args, **kwargs)
        output[0][0] = float("nan")
        return output

    demo_copy.vae.decode = spoiled
    samples = generate.generate_samples(demo_copy, PROMPTS, small)
    assert samples.finite.tolist() == [False, True] * 5


def test_a_folder_that_cannot_be_written(demo_pipeline, small, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ModelError, match=r"cannot be written: .*--diffusion-cache-dir"):
        generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir=str(blocked)))


def test_pixel_models_have_no_prompts(pixel_pipeline, small):
    samples = generate.generate_samples(pixel_pipeline, PROMPTS, small)
    assert samples.prompts is None
    assert samples.images.shape == (10, 3, 16, 16)


def test_features_are_kept(demo_pipeline, small, monkeypatch):
    samples = generate.generate_samples(demo_pipeline, PROMPTS, small)
    extractor = load_extractor("demo")
    first = stored_features(samples, extractor)
    fewer = stored_features(generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=7)), extractor)
    assert torch.equal(fewer.values, first.values[:7])
    more = stored_features(generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=12)), extractor)
    assert torch.equal(more.values[:10], first.values)
    assert len(more.values) == 12
    monkeypatch.setattr(type(extractor), "__call__", None)
    again = stored_features(samples, extractor)
    assert torch.equal(again.values, first.values)
    assert torch.equal(again.probabilities, first.probabilities)
    assert again.protocol["extractor"].startswith("demo-judge-")


def test_other_images_in_the_same_folder_have_their_own_features(demo_pipeline, small):
    samples = generate.generate_samples(demo_pipeline, PROMPTS, small)
    extractor = load_extractor("demo")
    stored_features(samples, extractor)
    changed = replace(samples, pixels=samples.images.flip(1))
    assert torch.allclose(stored_features(changed, extractor).values, extractor(changed.images).values, atol=1e-5)


def test_damaged_features_are_extracted_again(demo_pipeline, small):
    samples = generate.generate_samples(demo_pipeline, PROMPTS, small)
    extractor = load_extractor("demo")
    first = stored_features(samples, extractor)
    (file,) = samples.folder.glob("features-*")
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.warns(StoreWarning, match="is damaged; its features are computed again"):
            assert torch.equal(stored_features(samples, extractor).values, first.values)


def test_reference_features_and_statistics_are_kept(tmp_path, monkeypatch):
    from pytest_diffusion.demo import reference_images

    images, extractor = reference_images(150), load_extractor("demo")
    first = stored_reference_features(images, extractor, tmp_path)
    assert first.statistics.count == 150
    monkeypatch.setattr(type(extractor), "__call__", None)
    monkeypatch.setattr(FeatureStatistics, "from_features", None)
    again = stored_reference_features(images.clone(), extractor, tmp_path)
    assert torch.equal(again.values, first.values)
    assert torch.equal(again.statistics.covariance, first.statistics.covariance)


def test_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two \n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "image": "x.png"}\n')
    (tmp_path / "p.csv").write_text('prompt,image\n"one, with a comma",a.png\ntwo,b.png\n')
    assert load_prompts(str(tmp_path / "p.txt")) == ["one", "two"]
    assert load_prompts(str(tmp_path / "p.jsonl")) == ["one", "two"]
    assert load_prompts(str(tmp_path / "p.csv")) == ["one, with a comma", "two"]
    assert len(set(load_prompts(None))) == 256
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"text": "two"}\n')
    with pytest.raises(ModelError, match=r"p\.jsonl, line 2 has no 'prompt'"):
        load_prompts(str(tmp_path / "p.jsonl"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"\n')
    with pytest.raises(ModelError, match="line 1 is not valid JSON"):
        load_prompts(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("seconds", "drawn", "wanted", "rest"),
    [(60, 64, 6464, "1.7 hours"), (10, 64, 4864, "12 min"), (10, 64, 3904, None), (10, 64, 3905, "10 min")],
)
def test_a_long_generation_says_how_long_it_takes(seconds, drawn, wanted, rest):
    """After the first shard, where the others take more than ten minutes."""
    said = []
    generate._say_how_long(seconds, drawn, wanted, said.append)
    expected = f"the first 64 samples took {seconds} s; the other {wanted - 64} will take about {rest}"
    assert said == ([expected] if rest else [])


def test_it_is_said_once(demo_copy, small, monkeypatch):
    said = []
    monkeypatch.setattr(generate, "SHARD_SIZE", 2)
    monkeypatch.setattr(generate, "_LONG", -1.0)
    generate.generate_samples(demo_copy, PROMPTS, replace(small, num_samples=6), say=said.append)
    assert len(said) == 1
    assert "the first 2 samples took" in said[0]
