"""Attention checks: the demo's own attention passes, broken captures and broken attention are named."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.attention import probe as attention_probe
from pytest_diffusion.attention.localisation import run_localisation
from pytest_diffusion.attention.record import LayerRecord
from pytest_diffusion.attention.run import _shrink, run_attention
from pytest_diffusion.checks.attention import attention_sharpens
from pytest_diffusion.checks.registry import CHECKS as checks
from pytest_diffusion.checks.run import run_check
from pytest_diffusion.checks.words import attention_noun_specific
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.prompts import phrases
from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.demo import NAMED_LAYER
from pytest_diffusion.maths.statistics import wilson_interval
from pytest_diffusion.verdicts.errors import NotApplicable


@pytest.fixture(scope="module")
def judged(demo_settings):
    return replace(demo_settings, steps=10, guidance_scale=4.0, attention_layers=(NAMED_LAYER,))


@pytest.fixture(scope="module")
def attention(demo_pipeline, judged):
    return run_attention(demo_pipeline, phrases("demo", 64), judged)


@pytest.fixture(scope="module")
def localisation(demo_pipeline, judged):
    return run_localisation(demo_pipeline, load_reference("demo", height=32, width=32, limit=64), judged)


def test_the_demos_attention_passes(attention):
    for assertion in (
        pd.assert_attention_is_cross,
        pd.assert_attention_is_conditional,
        pd.assert_attention_rows_sum,
        pd.assert_attention_not_uniform,
        pd.assert_attention_compact,
        pd.assert_attention_noun_specific,
        pd.assert_modifier_noun_overlap,
        pd.assert_attention_tokens_differ,
        pd.assert_attention_sharpens,
    ):
        verdict = assertion(attention, thresholds="demo", min_samples=16)
        assert verdict.outcome == "pass", verdict.message


def test_the_protocol_says_that_it_is_cross_attention(attention):
    count = len(attention.records[0].layers)
    assert pd.assert_attention_is_cross(attention).measurement.protocol == {"layer": f"{count} layers, cross-attention"}


def test_the_report_shows_a_map_for_each_word_of_the_first_prompt(attention):
    series = pd.assert_attention_compact(attention, thresholds="demo", min_samples=16).measurement.series
    assert " ".join(series["tokens"]) == series["prompt"] == attention.phrases[0].prompt
    assert {len(maps) for maps in series["maps"]} == {len(series["tokens"])}
    assert len(series["maps"]) == len(series["map_timesteps"])
    assert series["map_timesteps"] == sorted(series["map_timesteps"], reverse=True)


def test_self_attention_is_refused(demo_pipeline, demo_settings):
    layers = [name for name, _ in demo_pipeline.unet.named_modules() if name.endswith(".attn1")]
    recorded = run_attention(demo_pipeline, phrases("demo", 2), replace(demo_settings, steps=2), layers=layers)
    with pytest.raises(pd.QualityFailure, match=r"attn1\): record attn2 instead"):
        pd.assert_attention_is_cross(recorded)
    with pytest.raises(pd.QualityFailure, match="recorded self-attention"):
        pd.assert_attention_sharpens(recorded)


def altered(attention, change):
    """The same run with the record of every judged layer changed."""
    run = copy.deepcopy(attention)
    for record in run.records:
        for name in run.named:
            change(record.layers[name])
    return run


def test_uniform_maps_are_refused(attention):
    def flatten(layer):
        layer.entropy = [torch.ones_like(entropy) for entropy in layer.entropy]
        layer.late = torch.full_like(layer.late, 1 / 16)

    run = altered(attention, flatten)
    with pytest.raises(pd.QualityFailure, match="hardly depend on the token"):
        pd.assert_attention_not_uniform(run)
    with pytest.raises(pd.QualityFailure, match=r"share of the picture with half of a noun's attention is 0\.5"):
        pd.assert_attention_compact(run)


def test_attention_that_blurs_is_refused(attention):
    def reverse(layer):
        layer.entropy = layer.entropy[::-1]

    with pytest.raises(pd.QualityFailure, match="share of prompts whose token entropy falls"):
        pd.assert_attention_sharpens(altered(attention, reverse), thresholds="demo", min_samples=16)


@pytest.mark.parametrize("check", ["attention_sharpens", "attention_noun_specific"])
def test_layers_that_nobody_named_are_reported_and_not_judged(attention, check):
    """In sound models some layers sharpen and some do not; a limit of the caller's own is held all the same."""
    limits = load_thresholds(["demo"])
    unnamed = replace(attention, are_named=False)
    verdict = run_check(checks[check], {"attention": unnamed}, limits)
    assert verdict.outcome == "reported"
    assert "name the layers that show it in your model by --diffusion-attention-layers" in verdict.message
    assert run_check(checks[check], {"attention": attention}, limits).outcome == "pass"
    own = {"at_least": 0.9} if check == "attention_sharpens" else {"at_most": 0.01}
    assert getattr(pd, f"assert_{check}")(unnamed, **own).outcome == "pass"


def test_the_first_and_the_last_fifth_of_the_steps_are_compared():
    """Of ten steps these are two each: what lies between them counts for nothing. At equal entropy nothing falls."""
    curves = torch.tensor(
        [
            [0.6, 0.6, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5],
            [0.6, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.7, 0.7],
            [0.6, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.6, 0.6],
            [0.5, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7, 0.42],
        ]
    ).T
    record = SimpleNamespace(layers={"up.attn2": SimpleNamespace(is_cross=True)})
    run = SimpleNamespace(records=[record], named=["up.attn2"], are_named=True, entropies=lambda name: curves)
    measured = attention_sharpens(run)
    assert measured.value == 0.5
    assert measured.interval == wilson_interval(2, 4)
    assert measured.series["share_by_layer"] == {"up.attn2": [0.5, *wilson_interval(2, 4)]}
    assert measured.hint == "Mean entropy goes from 0.600 to 0.590."
    curves = curves[:3]
    assert attention_sharpens(run).value == 0.5, "of three steps the first and the last"
    curves = curves[:1]
    with pytest.raises(NotApplicable, match="1 step gives no early and late"):
        attention_sharpens(run)


def test_one_map_for_all_tokens_is_refused(attention):
    def share(layer):
        layer.late = layer.late[:, :1].expand_as(layer.late)

    with pytest.raises(pd.QualityFailure, match="correlation between tokens' maps is 1"):
        pd.assert_attention_tokens_differ(altered(attention, share))


def test_unrelated_modifiers_are_seen(attention):
    def scramble(layer):
        generator = torch.Generator().manual_seed(0)
        layer.late = torch.rand(layer.late.shape, generator=generator)

    with pytest.raises(pd.QualityFailure, match="correlation of modifier and noun"):
        pd.assert_modifier_noun_overlap(altered(attention, scramble), thresholds="demo", min_samples=16)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_rows_that_do_not_sum_to_one(attention, error):
    def spoil(layer):
        layer.row_error = error

    with pytest.raises(pd.QualityFailure, match="row sum"):
        pd.assert_attention_rows_sum(altered(attention, spoil))


def test_guidance_halves_that_are_averaged_are_named(attention, demo_pipeline, judged, monkeypatch):
    """The maps of the negative prompt's half, recorded by the same code, mixed into those of the prompt's."""
    own = attention_probe.guidance_groups
    monkeypatch.setattr(attention_probe, "guidance_groups", lambda *args: (own(*args)[0], 0))
    other = run_attention(demo_pipeline, phrases("demo", 64), judged)
    with pytest.raises(pd.QualityFailure, match="the guidance halves of the batch are mixed up or averaged"):
        pd.assert_attention_is_conditional(other)
    mixed = copy.deepcopy(attention)
    for name, layer in mixed.records[0].layers.items():
        layer.steps[0] = (layer.steps[0] + other.records[0].layers[name].steps[0]) / 2
    with pytest.raises(pd.QualityFailure, match="largest total variation between the first step's maps"):
        pd.assert_attention_is_conditional(mixed)


def test_rows_of_other_prompts_are_seen(attention):
    swapped = copy.deepcopy(attention)
    for layer in swapped.records[0].layers.values():
        layer.steps[0] = layer.steps[0].roll(1, 0)
    with pytest.raises(pd.QualityFailure, match="is not the prompt's attention"):
        pd.assert_attention_is_conditional(swapped)


def test_without_guidance_there_are_no_halves(attention):
    with pytest.raises(pd.QualityFailure, match="without classifier-free guidance"):
        pd.assert_attention_is_conditional(replace(attention, unguided=None))


def test_nouns_like_any_token_have_no_small_p_value(attention):
    def scramble(layer):
        layer.late = torch.rand(layer.late.shape, generator=torch.Generator().manual_seed(0))

    with pytest.raises(pd.QualityFailure, match="p-value of nouns under shuffled tokens is"):
        pd.assert_attention_noun_specific(altered(attention, scramble))


def test_the_demos_words_look_at_what_they_name(localisation):
    verdict = pd.assert_attention_localises(localisation, thresholds="demo")
    assert verdict.measurement.value > 0.75
    assert localisation.layers == [NAMED_LAYER]


@pytest.mark.parametrize(("shift", "where"), [(1, "further along"), (-1, "earlier in")])
def test_tokens_shifted_by_one_are_named(localisation, shift, where):
    shifted = replace(localisation, maps=localisation.maps.roll(shift, 1))
    with pytest.raises(pd.QualityFailure, match=f"The map one place {where} the prompt fits better .* tokens look shifted by one"):
        pd.assert_attention_localises(shifted, thresholds="demo")


def test_transposed_maps_are_named(localisation):
    with pytest.raises(pd.QualityFailure, match=r"The map transposed fits better \(0\.8\d\): maps look transposed"):
        pd.assert_attention_localises(replace(localisation, maps=localisation.maps.transpose(2, 3)), thresholds="demo")


def test_words_that_look_elsewhere_have_no_cause_to_name(localisation):
    with pytest.raises(pd.QualityFailure, match=r"Pixels drawn at random would have 0\.0\d\.$"):
        pd.assert_attention_localises(replace(localisation, masks=localisation.masks.roll(16, 2).roll(16, 1)))


def test_a_reference_without_masks_is_skipped(demo_pipeline, judged):
    reference = replace(load_reference("demo", height=32, width=32, limit=8), masks=None)
    assert isinstance(reference, Reference)
    with pytest.raises(NotApplicable, match="the columns mask and words"):
        run_localisation(demo_pipeline, reference, judged)


def test_references_whose_words_are_cut_or_whose_masks_are_empty_are_left_out(demo_pipeline, judged):
    """A prompt may be longer than the tokenizer's context, and of some things nothing is left when the picture is cropped."""
    reference = load_reference("demo", height=32, width=32, limit=8)
    masks, prompts = reference.masks.clone(), list(reference.prompts)
    masks[2] = False
    prompts[5] = " ".join(["and"] * 100) + " " + prompts[5]
    more = run_localisation(demo_pipeline, load_reference("demo", height=32, width=32, limit=100), replace(judged, effort=1.1))
    assert len(more.maps) == 71, "64 images, times the effort"
    kept = run_localisation(demo_pipeline, replace(reference, masks=masks, prompts=prompts), judged)
    assert torch.equal(kept.images, reference.images[[0, 1, 3, 4, 6, 7]])
    assert torch.equal(kept.masks, reference.masks[[0, 1, 3, 4, 6, 7]])
    assert len(kept.words) == len(kept.places) == len(kept.maps) == 6
    assert torch.allclose(kept.maps[0], run_localisation(demo_pipeline, reference, judged).maps[0], atol=1e-5)
    with pytest.raises(NotApplicable, match="0 of 8 references with masks show the object"):
        run_localisation(demo_pipeline, replace(reference, masks=torch.zeros_like(masks)), judged)


def test_maps_of_large_models_are_kept_small():
    """1,024 pixels are 64 by 64 positions: 32 a side are kept, of the layers that are judged, and rows still sum to one."""
    maps = torch.rand(1, 5, 64, 48).softmax(1)
    judged, other = (LayerRecord(True, early=maps, late=maps.clone(), early_steps=1, late_steps=1) for _ in range(2))
    _shrink(judged, is_judged=True)
    _shrink(other, is_judged=False)
    assert judged.late.shape == (1, 5, 32, 32)
    assert torch.allclose(judged.late.sum(1), torch.ones(1, 32, 32))
    assert judged.early is other.early is other.late is None


def test_a_noun_must_be_more_compact_by_a_margin():
    """Three per cent more compact than every other token is nothing: in untrained models words differ by as much."""

    def chosen(share):
        run = SimpleNamespace(
            records=[],
            phrases=[SimpleNamespace(noun="circle")] * 40,
            named=["layer"],
            are_named=True,
            token_maps=lambda name, words: with_share(share).repeat(40, 1, 1),
            all_maps=lambda name: [with_share(0.4).repeat(5, 1, 1)] * 40,
        )
        measured = attention_noun_specific(run)
        told = f"Half of a noun's attention lies on {share:.3f} of the picture, that of a random token on 0.400."
        assert measured.hint == told
        return measured.value

    def with_share(share):
        """A map whose first pixels hold half of the sum on that share of the picture."""
        count = round(share * 10_000)
        values = torch.full((10_000,), 0.5 / (10_000 - count))
        values[:count] = 0.5 / count
        return values.view(1, 100, 100)

    assert chosen(0.4 * 0.97) > 0.5
    assert chosen(0.4 * 0.9) < 0.01
