"""The stages on the demo: floors, what need not be run, saved baselines, and what cannot be compared."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.variants import bfloat16, noise, prompts_shuffled
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import Reference, load_reference, num_reference_images
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.gate import stages
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.floor import TWINS, rounded_weights
from pytest_diffusion.gate.loss_stages import compare_losses, is_same_for
from pytest_diffusion.gate.parts import compare_parts
from pytest_diffusion.gate.save import save_model
from pytest_diffusion.gate.saved import load_baseline
from pytest_diffusion.gate.stages import Material, draw_pairs
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.verdicts.errors import NotApplicable, SettingsError, SetupError
from tests.families.models import build
from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")
MARGINS = load_thresholds(["demo", "finetune"]).margins


@pytest.fixture(scope="module")
def reference():
    return load_reference("demo", height=32, width=32, limit=num_reference_images("demo", 128))


@pytest.fixture(scope="module")
def settings(shared_cache):
    found = resolve(
        options={"model": "demo", "baseline": "demo", "cache_dir": str(shared_cache), "max_samples": "16", "steps": "4"}, ini={}
    )[0]
    return replace(found, num_samples=128)


def comparison(candidate, baseline, **rest):
    return Comparison("demo", MARGINS, compare_parts(candidate, baseline), family=12, **rest)


def losses(figure, candidate, baseline, reference, settings, **rest):
    return compare_losses(
        figure, candidate, baseline, None, reference, settings, comparison(candidate, baseline), say=lambda text: None, **rest
    )


def damaged(pipeline, part, amount):
    found = copy.deepcopy(pipeline)
    noise(part, amount)(found, 0)
    return found


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_restores_every_bit(demo_copy, twin):
    before = fingerprint(demo_copy)
    with pytest.raises(ZeroDivisionError), TWINS[twin](demo_copy):
        1 / 0  # noqa: B018
    assert fingerprint(demo_copy) == before


def test_rounding_rounds_while_it_lasts(demo_copy):
    weight = demo_copy.unet.conv_in.weight
    with rounded_weights(demo_copy):
        assert torch.equal(weight, weight.bfloat16().float())
    assert not torch.equal(weight, weight.bfloat16().float())


def test_damage_to_the_denoiser_is_worse_and_rounding_the_same(demo_pipeline, reference, settings):
    found = losses("denoising_loss", damaged(demo_pipeline, "unet", 0.2), demo_pipeline, reference, settings)
    assert found.decided.word == "worse"
    assert found.evaluations <= 1000
    assert 0 < found.decided.floor < 2
    assert len(found.bands) == 5
    assert all(change > 20 for _, change, _ in found.bands)
    rounded = copy.deepcopy(demo_pipeline)
    bfloat16(rounded, 0)
    assert losses("denoising_loss", rounded, demo_pipeline, reference, settings).decided.word == "same"


def test_a_damaged_text_encoder_is_told_from_a_trained_one(demo_pipeline, reference, settings):
    found = losses("text_encoder_loss", damaged(demo_pipeline, "text_encoder", 0.6), demo_pipeline, reference, settings)
    assert found.decided.word == "worse"
    # The candidate is put together again.
    candidate = damaged(demo_pipeline, "text_encoder", 0.6)
    before = fingerprint(candidate)
    losses("text_encoder_loss", candidate, demo_pipeline, reference, settings)
    assert fingerprint(candidate) == before
    # With a denoiser that was damaged instead, the baseline's text encoder helps nobody.
    both = damaged(demo_pipeline, "unet", 0.1)
    assert is_same_for("text_encoder_loss", comparison(both, demo_pipeline))


def test_a_parent_stored_in_float16_lends_its_text_encoder_to_a_candidate_in_float32(demo_pipeline, reference, settings):
    parent = copy.deepcopy(demo_pipeline)
    for part in (parent.unet, parent.text_encoder, parent.vae):
        part.half()
    found = losses("text_encoder_loss", damaged(demo_pipeline, "text_encoder", 0.6), parent, reference, settings)
    assert found.decided.word == "worse"


def test_a_damaged_decoder_is_worse_before_anything_is_drawn(demo_pipeline, reference, settings):
    found = losses("reconstruction_loss", damaged(demo_pipeline, "vae.decoder", 0.1), demo_pipeline, reference, settings)
    assert found.decided.word == "worse"
    assert found.evaluations == 0
    assert found.bands == []


def test_nothing_is_run_that_cannot_differ(demo_pipeline):
    changed = {
        "unet": ("denoising_loss",),
        "vae": ("denoising_loss", "reconstruction_loss"),
        "text_encoder": ("denoising_loss", "text_encoder_loss"),
    }
    for part, figures in changed.items():
        frame = comparison(damaged(demo_pipeline, part, 0.01), demo_pipeline)
        for figure in ("denoising_loss", "text_encoder_loss", "reconstruction_loss"):
            assert is_same_for(figure, frame) == (figure not in figures), (part, figure)
    other = copy.deepcopy(demo_pipeline)
    other.scheduler.register_to_config(timestep_spacing="trailing")
    assert is_same_for("denoising_loss", comparison(other, demo_pipeline))
    other.scheduler.register_to_config(prediction_type="v_prediction")
    assert not is_same_for("denoising_loss", comparison(other, demo_pipeline))
    # What a user's code does with equal parts cannot be seen.
    own = comparison(copy.deepcopy(demo_pipeline), demo_pipeline, is_own_code=True)
    assert not own.is_identical
    assert not is_same_for("denoising_loss", own)


def test_what_a_loss_needs(demo_pipeline, settings):
    few = Reference("few", torch.zeros(8, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(NotApplicable, match="8 images are too few to compare losses; at least 16"):
        losses("denoising_loss", demo_pipeline, demo_pipeline, few, settings)
    enough = Reference("enough", torch.zeros(16, 3, 64, 64, dtype=torch.uint8))
    first, second = build("sd15"), build("sd3")
    with pytest.raises(NotApplicable, match="the candidate's latents have 16 channels, the baseline's 4"):
        losses("denoising_loss", second, first, enough, Settings())
    with pytest.raises(NotApplicable, match=r"the baseline's text_encoder\w* does not fit the candidate"):
        losses("text_encoder_loss", build("sdxl"), first, enough, Settings())


def pairs(candidate, baseline, settings, *, saved=None, **rest):
    material = Material(load_clip("demo"), load_extractor("demo"), None)
    frame = comparison(candidate, baseline, **rest) if saved is None else Comparison("saved", MARGINS, saved.parts(candidate), family=12)
    return draw_pairs(
        candidate, None if saved else baseline, saved, load_prompts("demo"), settings, settings, frame, material, say=lambda text: None
    )


def test_a_column_that_slices_no_prompts_is_told_before_a_pair_is_drawn(demo_pipeline, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "run_pairs", lambda *_, **__: pytest.fail("drawn"))
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,topic\n" + "".join(f"a cat,topic {index}\n" for index in range(300)))
    with pytest.raises(SetupError, match="no value of the column topic has 8 of the"):
        pairs(damaged(demo_pipeline, "unet", 0.05), demo_pipeline, replace(settings, prompts=str(path), slices=("words", "topic")))


def test_pairs_share_prompts_and_seeds_and_have_a_floor(demo_pipeline, settings):
    found = pairs(damaged(demo_pipeline, "unet", 0.05), demo_pipeline, settings)
    assert found.pairs == found.planned == 16
    assert found.prompts == load_prompts("demo")[:16]
    assert all(0 < found.decided[name].floor < 0.5 for name in ("clip_score", "alignment"))
    assert 0 < found.decided["brightness"].floor < 0.01
    assert not torch.equal(found.candidate.images, found.baseline.images)
    distance = (found.candidate.images.float() - found.baseline.images.float()).square().mean().sqrt()
    other = (found.baseline.images.float() - found.baseline.images.roll(1, 0).float()).square().mean().sqrt()
    assert distance < 0.6 * other  # the same noise gives similar images


def test_fewer_pairs_than_the_first_look_are_refused(demo_pipeline, settings):
    with pytest.raises(SettingsError, match="--diffusion-max-samples is 15; the first look comes after 16 pairs"):
        pairs(demo_pipeline, demo_pipeline, replace(settings, max_samples=15))


@pytest.fixture(scope="module")
def kept(settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "demo.diffusion"
    said = []
    save_model(replace(settings, retention="demo"), str(path), say=said.append)
    assert said[:1] == ["denoising_loss: 256 images"] or said[0].startswith("denoising_loss")
    return path


@nightly("a minute for two comparisons")
def test_a_saved_baseline_gives_what_the_model_gave(kept, demo_pipeline, reference, settings):
    saved = load_baseline(str(kept))
    candidate = damaged(demo_pipeline, "unet", 0.05)
    live, later = pairs(candidate, demo_pipeline, settings), pairs(candidate, None, settings, saved=saved)
    for name, one in live.decided.items():
        assert later.decided[name].look.difference == pytest.approx(one.look.difference, rel=1e-6), name
    assert later.decided["clip_score"].floor == saved.floors["clip_score"] > 0
    assert later.baseline.images is None
    assert saved.facts["samples"] == 16
    frame = Comparison("saved", MARGINS, saved.parts(candidate), family=12)
    assert frame.parts.differing == ["unet"]
    retention = load_reference("demo", height=32, width=32, limit=MARGINS.references)
    for figure, images in (("denoising_loss", reference), ("reconstruction_loss", reference), ("retention_loss", retention)):
        own = losses(figure, candidate, demo_pipeline, images, settings)
        again = compare_losses(figure, candidate, None, saved, images, settings, frame, say=lambda text: None)
        assert again.decided.look.difference == pytest.approx(own.decided.look.difference, abs=1e-9), figure
    with pytest.raises(NotApplicable, match="saved without its weights"):
        compare_losses("text_encoder_loss", candidate, None, saved, reference, settings, frame, say=lambda text: None)
    assert Comparison("saved", MARGINS, saved.parts(demo_pipeline)).is_identical


def test_a_saved_baseline_that_does_not_fit_is_refused_in_one_sentence(kept, demo_pipeline, reference, settings, tmp_path):
    saved = load_baseline(str(kept))
    with pytest.raises(SettingsError, match="was saved with steps=4, and this run has 5; give --diffusion-steps=4, or save it again"):
        saved.require_fit(demo_pipeline, replace(settings, steps=5))
    with pytest.raises(
        SettingsError, match="was saved with compile=None, and this run has default; leave --diffusion-compile out, or save"
    ):
        saved.require_fit(demo_pipeline, replace(settings, compile="default"))
    with pytest.raises(SettingsError, match="was saved with images of 32x32, and this run has 64x64"):
        saved.require_fit(demo_pipeline, replace(settings, height=64, width=64))
    with pytest.raises(SettingsError, match=r"only one of .* is conditioned on text"):
        saved.require_fit(build("ddpm"), settings)
    seeds = list(range(16))
    with pytest.raises(SettingsError, match="was saved with other prompts"):
        saved.rows_for([], None, ["another prompt"] * 16, seeds)
    other = replace(saved, about={**saved.about, "scorers": {**saved.about["scorers"], "clip_score": "an older one"}})
    material = Material(load_clip("demo"), None, None)
    with pytest.raises(SettingsError, match=r"holds scores of clip_score by another version .*an older one"):
        draw_pairs(demo_pipeline, None, other, load_prompts("demo"), settings, settings, Comparison("saved", MARGINS), material, say=print)
    with pytest.raises(SettingsError, match="was saved with other images for denoising_loss"):
        saved.losses("denoising_loss", reference.images[:64].flip(0), [])
    with pytest.raises(SettingsError, match="holds denoising_loss of 256 images, and 1000 are asked for"):
        saved.losses("denoising_loss", reference.images, [])
    with pytest.raises(SettingsError, match="was saved at other noise levels"):
        saved.losses("denoising_loss", reference.images[:16], [1.0])
    with pytest.raises(SettingsError, match="holds no other_loss; save it again"):
        saved.losses("other_loss", reference.images, [])
    content = kept.read_bytes()
    for name, damage in {"cut": content[: len(content) // 2], "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]}.items():
        path = tmp_path / f"{name}.diffusion"
        path.write_bytes(damage)
        with pytest.raises(SettingsError, match="is damaged, or no file that `pytest-diffusion baseline save` wrote"):
            load_baseline(str(path))
    from pytest_diffusion.features.sealed import write_sealed

    write_sealed(tmp_path / "new.diffusion", {"a": torch.zeros(1)}, {"format": 99})
    with pytest.raises(SettingsError, match="has format 99, and this version reads 1"):
        load_baseline(str(tmp_path / "new.diffusion"))


@nightly("half a minute")
def test_the_file_holds_no_images_and_no_weights(kept):
    assert kept.stat().st_size < 200_000
    about = load_baseline(str(kept)).about
    json.dumps(about)
    assert set(about["losses"]) == {"denoising_loss", "retention_loss", "reconstruction_loss"}


def test_shuffled_prompts_show_in_the_loss(demo_pipeline, reference, settings):
    wrong = copy.deepcopy(demo_pipeline)
    prompts_shuffled(wrong, 0)
    assert losses("denoising_loss", wrong, demo_pipeline, reference, settings).decided.word == "worse"


def test_two_scorers_of_one_name_are_refused(demo_pipeline, settings, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def brightness(images, prompts):\n    return images.float().mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="more than one scorer gives the score 'brightness'; rename one of them"):
        pairs(demo_pipeline, demo_pipeline, replace(settings, scorer=("mine:brightness",)))


def test_a_saved_baseline_serves_fewer_pairs_and_refuses_more(kept):
    saved = load_baseline(str(kept))
    prompts = load_prompts("demo")
    assert len(saved.rows_for([], None, prompts[:8], list(range(8))).digests) == 16
    with pytest.raises(SettingsError, match="holds no features, and this run compares those of"):
        replace(saved, tensors={name: value for name, value in saved.tensors.items() if name != "features"}).rows_for(
            [], load_extractor("demo"), prompts[:8], list(range(8))
        )


def test_captions_are_needed_to_ask_a_text_encoder(demo_pipeline, reference, settings):
    silent = replace(reference, prompts=None)
    with pytest.raises(NotApplicable, match="no captions, so no text encoder would be asked"):
        losses("text_encoder_loss", damaged(demo_pipeline, "text_encoder", 0.6), demo_pipeline, silent, settings)
