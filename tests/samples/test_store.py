import json
from dataclasses import replace

import pytest
import torch

from pytest_diffusion.adapters.features import load_extractor
from pytest_diffusion.errors import ModelError
from pytest_diffusion.samples import generate
from pytest_diffusion.samples.features import stored_features
from pytest_diffusion.samples.prompts import load_prompts
from pytest_diffusion.settings import Settings

PROMPTS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SHARD_SIZE", 4)
    return Settings(num_samples=10, steps=2, guidance_scale=4.0, batch_size=2, cache_dir=str(tmp_path))


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


@pytest.mark.parametrize("change", [{"seed": 5}, {"steps": 3}, {"guidance_scale": 2.0}, {"num_samples": 9}])
def test_whatever_changes_a_sample_changes_its_address(demo_pipeline, small, change):
    one = generate.generate_samples(demo_pipeline, PROMPTS, small)
    other = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, **change))
    assert one.folder != other.folder
    assert other.generated > 0


def test_the_schedule_itself_is_part_of_the_address(demo_copy, small):
    before = generate.sample_identity(demo_copy, PROMPTS, small, 10)
    demo_copy.scheduler.alphas_cumprod = demo_copy.scheduler.alphas_cumprod * 0.99
    assert generate.sample_identity(demo_copy, PROMPTS, small, 10) != before


def test_an_interrupted_run_goes_on(demo_pipeline, small, monkeypatch):
    whole = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, cache_dir=small.cache_dir + "/whole"))
    own, calls = generate.generate_images, []

    def interrupted(*args):
        calls.append(args[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(generate, "generate_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.generate_samples(demo_pipeline, PROMPTS, small)
    resumed = generate.generate_samples(demo_pipeline, PROMPTS, small)
    assert resumed.generated == 2
    assert torch.equal(resumed.images, whole.images)
    assert not list(resumed.folder.glob("shard-*"))


def test_memory_that_runs_out_halves_the_batch(demo_pipeline, small, monkeypatch):
    sizes = []
    own = generate.call_pipeline

    def greedy(pipeline, *, seeds, **rest):
        sizes.append(len(seeds))
        if len(seeds) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return own(pipeline, seeds=seeds, **rest)

    monkeypatch.setattr(generate, "call_pipeline", greedy)
    samples = generate.generate_samples(demo_pipeline, PROMPTS, replace(small, num_samples=3))
    assert len(samples.images) == 3
    assert sizes == [2, 1, 1, 1]


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
    monkeypatch.setattr(type(extractor), "__call__", None)
    again = stored_features(samples, extractor)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.probabilities, again.probabilities)


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
