"""Which part did it, on the demo: damage in a copy in which every part differs a little."""

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks.attribution import CASES, slightly
from benchmarks.variants import noise
from pytest_diffusion.checks import all_checks
from pytest_diffusion.config.settings import resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.gate.checks import of_pairs, paired_guards
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.loss_stages import compare_losses
from pytest_diffusion.gate.parts import compare_parts
from pytest_diffusion.gate.stages import Material, draw_pairs
from pytest_diffusion.models.fingerprint import fingerprint
from tests.nightly import nightly

pytestmark = pytest.mark.filterwarnings("ignore")
AT_NIGHT = nightly("half a minute each; a part of each kind runs always")
MARGINS = load_thresholds(["demo", "finetune"]).margins


@pytest.fixture(scope="module")
def reference():
    return load_reference("demo", height=32, width=32, limit=64)


@pytest.fixture(scope="module")
def settings(shared_cache):
    options = {"model": "demo", "baseline": "demo", "cache_dir": str(shared_cache), "max_samples": "16", "steps": "4"}
    return replace(resolve(options=options, ini={})[0], num_samples=64)


def comparison(candidate, baseline, **rest):
    return Comparison("demo", MARGINS, compare_parts(candidate, baseline), family=12, **rest)


def loss(figure, candidate, baseline, reference, settings, **rest):
    own = comparison(candidate, baseline, **rest)
    return compare_losses(figure, candidate, baseline, None, reference, settings, own, say=lambda text: None)


@pytest.mark.parametrize(
    ("damaged", "figure"),
    [
        pytest.param(("unet",), "denoising_loss", marks=AT_NIGHT),
        pytest.param(("tokenizer",), "denoising_loss", marks=AT_NIGHT),
        pytest.param(("scheduler",), "denoising_loss", marks=AT_NIGHT),
        (("text_encoder",), "text_encoder_loss"),
        (("vae",), "reconstruction_loss"),
        pytest.param(("text_encoder", "unet"), "denoising_loss", marks=AT_NIGHT),
        pytest.param(("unet", "vae"), "denoising_loss", marks=AT_NIGHT),
    ],
)
def test_the_damaged_parts_are_named_and_no_others(demo_pipeline, reference, settings, damaged, figure):
    candidate = CASES[damaged].of(demo_pipeline, 1)
    before = [fingerprint(one) for one in (candidate, demo_pipeline)]
    found = loss(figure, candidate, demo_pipeline, reference, settings)
    assert found.decided.word == "worse"
    assert sorted(found.blame.named) == list(damaged)
    assert [fingerprint(one) for one in (candidate, demo_pipeline)] == before


def test_the_message_names_the_part_and_the_block(demo_pipeline, reference, settings):
    candidate = copy.deepcopy(demo_pipeline)
    slightly(noise("unet.up_blocks.1", 0.3))(candidate, 0)
    found = loss("denoising_loss", candidate, demo_pipeline, reference, settings)
    check = next(one for one in all_checks() if one.name == "paired_denoising_loss")
    measurement = check.function(found, comparison(candidate, demo_pipeline))
    assert measurement.hint.startswith("100 % of it (")
    assert "comes with unet" in measurement.hint
    assert [one.part for one in found.blame.blocks if one.is_named] == ["up_blocks.1"]
    assert "Within the denoiser, " in measurement.hint
    assert measurement.series["blame"]["parts"][0]["part"] == "unet"


def test_what_is_not_worse_or_may_be_ones_own_code_blames_nobody(demo_pipeline, reference, settings):
    rounded = copy.deepcopy(demo_pipeline)
    slightly()(rounded, 0)
    assert loss("denoising_loss", rounded, demo_pipeline, reference, settings).blame is None
    candidate = CASES[("unet",)].of(demo_pipeline, 0)
    found = loss("denoising_loss", candidate, demo_pipeline, reference, settings, is_own_code=True)
    assert found.decided.word == "worse"
    assert found.blame is None


def drawn(candidate, baseline, reference, settings, tmp_path):
    own = comparison(candidate, baseline)
    material = Material(load_clip("demo"), load_extractor("demo"), None)
    elsewhere = replace(settings, cache_dir=str(tmp_path))
    prompts = load_prompts("demo")
    run = draw_pairs(candidate, baseline, None, prompts, elsewhere, settings, own, material, say=lambda text: None)
    return run, own


@nightly("pairs for a minute; broken samples are told below")
def test_the_worst_figure_of_the_pairs_names_the_part(demo_pipeline, reference, settings, tmp_path):
    candidate = copy.deepcopy(demo_pipeline)
    slightly()(candidate, 0)
    with torch.no_grad():
        candidate.vae.decoder.conv_out.bias += 0.6
    run, own = drawn(candidate, demo_pipeline, reference, replace(settings, max_samples=64), tmp_path)
    assert run.is_closed
    (figure,) = run.blame
    assert run.decided[figure].word == "worse"
    assert run.blame[figure].named == ["vae"]
    assert "comes with vae" in of_pairs(run, figure, own).hint


def test_broken_samples_name_the_part(demo_pipeline, reference, settings, tmp_path):
    candidate = copy.deepcopy(demo_pipeline)
    slightly()(candidate, 0)
    with torch.no_grad():
        candidate.vae.decoder.conv_out.weight.zero_()
        candidate.vae.decoder.conv_out.bias.zero_()
    run, _ = drawn(candidate, demo_pipeline, reference, settings, tmp_path)
    assert run.blame["guards"].named == ["vae"]
    told = paired_guards(run).hint
    assert "of one colour (baseline 0), 15 repeated (baseline 0). 100 % of it (100 to 100) comes with vae" in told
