"""Batches that are halved when memory runs out, once for each model, in every stage that calls one."""

from dataclasses import dataclass

import pytest
import torch

from pytest_diffusion.attention.localisation import run_localisation
from pytest_diffusion.attention.run import run_attention
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.batches import BatchSize, batch_size_of
from pytest_diffusion.data.prompts import DirectionPair, phrases
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.demo import reference_images
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import Extractor
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.samples.direction import run_direction
from pytest_diffusion.samples.generate import generate_images
from pytest_diffusion.samples.latent_fit import fit_latents
from pytest_diffusion.samples.trials import Trials
from pytest_diffusion.verdicts.errors import ModelError

SETTINGS = Settings(steps=3, guidance_scale=4.0, batch_size=8, attention_layers=("up_blocks.1",))
FITS = 3


class Memory:
    """Forgets what does not fit: more than `rows` in a batch."""

    def __init__(self, rows):
        self.rows, self.sizes, self.failures = rows, [], 0

    def __call__(self, module, args, kwargs=None):
        size = len(args[0] if args else next(iter(kwargs.values())))
        if size > self.rows:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")
        self.sizes.append(size)


def test_only_the_part_that_does_not_fit_is_repeated():
    memory = Memory(3)
    batch = BatchSize(8)
    seen = []

    def work(rows):
        memory(None, [range(8)[rows]])
        seen.append(rows.start)
        return list(range(8)[rows])

    assert batch.parts(8, work) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert (memory.failures, batch.size) == (2, 2), "8 and 4 did not fit"
    late = Memory(4)

    def small_first(rows):
        late.rows = 4 if rows.start < 4 else 2
        late(None, [range(8)[rows]])
        return list(range(8)[rows])

    assert BatchSize(4).parts(7, small_first) == [[0, 1, 2, 3], [4, 5], [6]]
    assert BatchSize(4).parts(0, small_first) == []


def test_one_sample_that_does_not_fit_is_an_error_of_the_model():
    with pytest.raises(ModelError, match="Out of memory even with a batch size of 1: CUDA out of memory"):
        BatchSize(2).parts(4, lambda rows: Memory(0)(None, [range(8)[rows]]))
    with pytest.raises(KeyError):
        BatchSize(2).parts(4, lambda rows: {}[0])


def test_a_model_has_one_batch_size_for_each_start():
    one, other = torch.nn.Identity(), torch.nn.Identity()
    batch_size_of(one, 8).size = 2
    assert batch_size_of(one, 8).size == 2
    assert [batch_size_of(one, 4).size, batch_size_of(other, 8).size] == [4, 8]

    @dataclass
    class Odd:
        name: str = ""

    assert batch_size_of(Odd(), 8).size == 8, "it has no hash"


STAGES = {
    "samples": lambda pipeline, codec, reference: torch.from_numpy(generate_images(pipeline, ["a red circle"] * 8, range(8), SETTINGS)),
    "attention": lambda pipeline, codec, reference: run_attention(pipeline, phrases("demo", 8), SETTINGS).images.float(),
    "localisation": lambda pipeline, codec, reference: run_localisation(pipeline, reference, SETTINGS).maps.sum((0, 1)),
    "latent fit": lambda pipeline, codec, reference: fit_latents(pipeline, codec, reference, SETTINGS).own_errors.mean(),
    "direction": lambda pipeline, codec, reference: (
        run_direction(pipeline, DirectionPair("a red circle", "a blue circle"), SETTINGS).sweep[0.5].float()
    ),
    "trials": lambda pipeline, codec, reference: Trials(pipeline, ["a red circle"], SETTINGS).plain.float(),
    "latents of trials": lambda pipeline, codec, reference: Trials(pipeline, ["a red circle"], SETTINGS).latents(),
    "first step": lambda pipeline, codec, reference: Trials(pipeline, ["a red circle"], SETTINGS).first_step(4.0),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_the_pipeline_survives(demo_copy, stage, monkeypatch):
    monkeypatch.setattr("pytest_diffusion.samples.direction.SEEDS", 8)
    monkeypatch.setattr("pytest_diffusion.samples.direction.SWEEP_SEEDS", 8)
    reference = load_reference("demo", height=32, width=32, limit=10)
    codec = LatentCodec.of(demo_copy)
    expected = STAGES[stage](demo_copy, codec, reference)
    memory = Memory(2 * FITS)  # guidance doubles the rows
    demo_copy.unet.register_forward_pre_hook(memory, with_kwargs=True)
    found = STAGES[stage](demo_copy, codec, reference)
    assert memory.failures in (1, 2)
    assert max(memory.sizes) == 4
    # The latent fit and localisation draw noise for each batch, so their figures are those of other noise.
    loose = stage in ("latent fit", "localisation")
    assert torch.allclose(found, expected, rtol=0.5 if loose else 1e-3, atol=2.0 if stage in ("attention", "direction", "trials") else 1e-3)
    failures = memory.failures
    STAGES[stage](demo_copy, codec, reference)
    assert memory.failures == failures, "it stays halved"


def test_what_one_stage_learns_the_next_one_knows(demo_copy):
    memory = Memory(2 * FITS)
    demo_copy.unet.register_forward_pre_hook(memory, with_kwargs=True)
    for name in ("attention", "samples", "latent fit"):
        STAGES[name](demo_copy, LatentCodec.of(demo_copy), load_reference("demo", height=32, width=32, limit=10))
        assert memory.failures == 2, f"8 and 4 did not fit, once, before {name}"


def test_an_extractor_survives():
    memory = Memory(20)

    def run(images):
        memory(None, [images])
        return images.flatten(1)[:, :5].float(), images.flatten(1)[:, :3].float()

    images = reference_images(70)
    found = Extractor("own", run)(images)
    assert torch.equal(found.values, images.flatten(1)[:, :5].float())
    assert found.probabilities.shape == (70, 3)
    assert (memory.failures, memory.sizes[:2]) == (2, [16, 16])


def test_clip_survives():
    clip, images = load_clip("demo"), reference_images(40)
    texts = [f"a red circle {index}" for index in range(40)]
    expected = clip.image_embeds(images), clip.text_embeds(texts)
    memory = Memory(10)
    clip.model.vision_model.register_forward_pre_hook(memory, with_kwargs=True)
    clip.model.text_model.register_forward_pre_hook(memory, with_kwargs=True)
    assert torch.allclose(clip.image_embeds(images), expected[0], atol=1e-5)
    assert torch.allclose(clip.text_embeds(texts), expected[1], atol=1e-5)
    assert max(memory.sizes) <= 10
