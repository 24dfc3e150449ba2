"""The forgetting map: which slices there are, that a worse one is named and no other, and how often a sound model is blamed."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from benchmarks.variants import purple_half_blue
from pytest_diffusion.checks.promises import SLICES, kept_in_mind, promises_of
from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.denoising import run_losses
from pytest_diffusion.gate.looks import Rules
from pytest_diffusion.gate.loss_stages import compare_losses
from pytest_diffusion.gate.pairs import run_pairs
from pytest_diffusion.gate.parts import compare_parts
from pytest_diffusion.gate.plots import change_by_slice
from pytest_diffusion.gate.side import Rows, SavedSide
from pytest_diffusion.gate.slice_checks import paired_denoising_by_slice, paired_retention_by_slice, paired_scores_by_slice, slice_checks
from pytest_diffusion.gate.slices import FEWEST_PAIRS, MOST_SLICES, slices_by_values, slices_by_words, slicing
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.verdicts.errors import NotApplicable, SetupError
from tests.nightly import nightly

COUNT = 256
COLOURS, SHAPES = ("red", "green", "blue", "purple"), ("circle", "square", "triangle")
PROMPTS = [f"a {COLOURS[index % 4]} {SHAPES[index % 3]} number {index % 48}" for index in range(COUNT)]
RULES = Rules(Margins({"clip_score": Margin(margin=0.2, source="a test")}), {"clip_score": 1}, Plan(COUNT), family=1)


def differences(shift, *, seed=0, purple=0.0):
    """A baseline's score, and the candidate's, which is lower by `shift`, and more so where the prompt says purple."""
    generator = torch.Generator().manual_seed(seed)
    baseline = torch.randn(COUNT, dtype=torch.float64, generator=generator)
    lost = shift + purple * torch.tensor(["purple" in prompt for prompt in PROMPTS], dtype=torch.float64)
    return baseline - lost + 0.5 * torch.randn(COUNT, dtype=torch.float64, generator=generator), baseline


def found_in(values, *, alpha=0.05, looks=(16, 32, 64, 128, 256), rules=RULES):
    own = slicing(["words"], PROMPTS, {}, rules, alpha)
    return own.decide({"clip_score": values}, looks)


def named(found):
    return [one.name for one in found if one.is_named]


def test_slices_are_words_that_some_prompts_share():
    found = slices_by_words(PROMPTS)
    assert set(found) == {*COLOURS, *SHAPES}
    assert found["purple"] == [index for index in range(COUNT) if index % 4 == 3]
    prompts = ["A photo of the sea", "sea view, sea", *["the l'été sky"] * FEWEST_PAIRS, *["the Sky"] * FEWEST_PAIRS]
    assert slices_by_words(prompts) == {"sky": list(range(2, 18)), "l'été": list(range(2, 10))}
    assert slices_by_words(["the same"] * 20) == {}
    together = slices_by_words([*["blue hat"] * 9, *["red car"] * 9])
    assert set(together) == {"blue and hat", "car and red"}
    assert len(slices_by_words([f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(100) for _ in range(8)])) == MOST_SLICES


def test_or_values_of_a_column():
    values = [*["animals"] * 8, *["food "] * 9, None, "", "rare"]
    assert slices_by_values(values) == {"animals": list(range(8)), "food": list(range(8, 17))}
    own = slicing(["topic"], [f"prompt {index}" for index in range(40)], {"topic": [*values[:10], None]}, RULES, 0.05)
    # Pairs go through the file again and again.
    assert own.places == {"topic=animals": [index for index in range(40) if index % 11 < 8]}


def test_a_forgotten_word_is_named_and_no_other():
    found = found_in(differences(0.0, purple=1.5))
    assert named(found) == ["purple"]
    assert found[0].name == "purple"
    assert found[0].pairs == COUNT // 4
    assert all(index % 4 == 3 for index in found[0].worst)
    assert float(found[0].decided.look.difference.value) == pytest.approx(-1.5, abs=0.3)
    by_name = {one.name: one for one in found}
    assert by_name["red"].decided.word == "same"
    # Circles are worse too, but for the purple ones alone.
    assert by_name["circle"].decided.word == "worse"
    assert by_name["circle"].through == "purple"


def test_two_forgotten_words_are_both_named():
    candidate, baseline = differences(0.0, purple=1.5)
    candidate = candidate - 2.0 * torch.tensor(["square" in prompt for prompt in PROMPTS], dtype=torch.float64)
    assert sorted(named(found_in((candidate, baseline)))) == ["purple", "square"]


def test_a_sound_model_is_rarely_blamed_also_at_the_margin():
    blamed = sum(bool(named(found_in(differences(0.2, seed=seed)))) for seed in range(100))
    assert blamed <= 10  # 5 % of 100, and two standard errors
    assert not any(named(found_in(differences(0.0, seed=seed))) for seed in range(50))


def test_early_looks_are_those_of_all_pairs_and_small_slices_wait():
    found = found_in(differences(0.0, purple=5.0), looks=(16,))
    assert {one.name for one in found} <= {*COLOURS, *SHAPES}
    assert all(one.pairs >= FEWEST_PAIRS for one in found)
    assert named(found_in(differences(0.0, purple=5.0), looks=(16, 32, 64))) == ["purple"]


def test_a_slice_of_just_enough_pairs_is_looked_at_and_one_of_fewer_is_not():
    for few, wanted in ((FEWEST_PAIRS, {"rare"}), (FEWEST_PAIRS - 1, set())):
        own = replace(slicing(["words"], PROMPTS, {}, RULES, 0.05), places={"rare": list(range(0, few * 32, 32))[:few]})
        assert {one.name for one in own.decide({"clip_score": differences(0.0)}, (256,))} == wanted


def test_where_sound_builds_differ_by_more_than_the_margin_no_slice_is_judged():
    found = found_in(differences(0.0, purple=1.5), rules=replace(RULES, floors={"clip_score": 0.3}))
    assert {one.decided.word for one in found} == {"cannot tell"}


def test_what_all_figures_say_is_not_said_of_reported_ones():
    rules = replace(RULES, margins=Margins({"clip_score": Margin(kind="reported", source="a test")}))
    assert found_in(differences(0.0, purple=5.0), rules=rules) == []


def rows(values):
    whole = torch.ones(COUNT, dtype=torch.bool)
    return Rows({"clip_score": values, "brightness": values}, None, whole, ~whole, [str(index) for index in range(COUNT)])


def pairs_of(values, **rest):
    candidate, baseline = values
    return run_pairs(
        SavedSide("candidate", rows(candidate)),
        SavedSide("baseline", rows(baseline)),
        RULES,
        prompts=PROMPTS,
        seeds=list(range(COUNT)),
        clusters=None,
        most=COUNT,
        say=lambda text: None,
        **rest,
    )


def test_a_run_goes_on_until_its_slices_are_decided():
    values = differences(0.0, purple=1.5)
    assert pairs_of(values).pairs < COUNT
    run = pairs_of(values, slicing=slicing(["words"], PROMPTS, {}, RULES, 0.01))
    assert {one.figure for one in run.slices} == {"clip_score"}
    assert named(run.slices) == ["purple"]
    found = paired_scores_by_slice(run)
    assert found.value == 1
    assert found.relation == "worse"
    assert found.hint.startswith("Worse: purple (clip_score -1.")
    assert found.series["slices"][0]["slice"] == "purple"
    assert json.loads(json.dumps(found.series["slices"]))
    assert change_by_slice(found.series) is not None
    assert change_by_slice({"slices": []}) is None


def test_losses_are_sliced_by_their_captions():
    candidate, baseline = differences(0.0, purple=1.5)
    losses = [(10 + one).clamp(min=1).unsqueeze(1) for one in (2 * baseline - candidate, baseline)]
    rules = Rules(Margins({"denoising_loss": Margin(margin=5.0, source="a test")}), {"denoising_loss": -1}, Plan(COUNT), family=1)
    own = slicing(["words"], PROMPTS, {}, rules, 0.01)
    run = run_losses(
        "denoising_loss", *(lambda count, one=one: one[:count] for one in losses), rules, count=COUNT, slicing=own, say=lambda text: None
    )
    assert named(run.slices) == ["purple"]
    assert "Worse: purple (denoising_loss 1" in paired_denoising_by_slice(run).hint
    assert paired_retention_by_slice(run).name == "number of slices of the captions of the retention set that are worse"


@pytest.mark.filterwarnings("ignore")
def test_on_the_demo_a_forgotten_colour_is_named_before_an_image_is_drawn(demo_pipeline, shared_cache):
    options = {"model": "demo", "baseline": "demo", "cache_dir": str(shared_cache), "slices": ["words"]}
    settings = replace(resolve(options=options, ini={})[0], num_samples=256)
    reference = load_reference("demo", height=32, width=32, limit=256)
    candidate = copy.deepcopy(demo_pipeline)
    purple_half_blue(candidate, 0)
    margins = load_thresholds(["demo", "finetune"]).margins
    comparison = Comparison("demo", margins, compare_parts(candidate, demo_pipeline), family=12, slice_alpha=0.05 / 15)
    run = compare_losses("denoising_loss", candidate, demo_pipeline, None, reference, settings, comparison, say=lambda text: None)
    assert named(run.slices) == ["purple"]
    assert {"red", "circle"} <= {one.name for one in run.slices}


@nightly("half a minute; a forgotten colour is named always")
@pytest.mark.filterwarnings("ignore")
def test_losses_are_sliced_by_a_column_of_the_images(demo_pipeline, shared_cache, tmp_path):
    options = {"model": "demo", "baseline": "demo", "cache_dir": str(shared_cache), "slices": ["hue", "topic"]}
    (tmp_path / "prompts.csv").write_text("prompt,topic\na cat,of the prompts alone\n")
    options["prompts"] = str(tmp_path / "prompts.csv")
    settings = replace(resolve(options=options, ini={})[0], num_samples=256)
    plain = load_reference("demo", height=32, width=32, limit=256)
    reference = replace(plain, columns={"hue": ["purple" if "purple" in text else "other" for text in plain.prompts]})
    candidate = copy.deepcopy(demo_pipeline)
    purple_half_blue(candidate, 0)
    margins = load_thresholds(["demo", "finetune"]).margins
    comparison = Comparison("demo", margins, compare_parts(candidate, demo_pipeline), family=12, slice_alpha=0.05 / 15)
    run = compare_losses("denoising_loss", candidate, demo_pipeline, None, reference, settings, comparison, say=lambda text: None)
    assert {one.name for one in run.slices} == {"hue=purple", "hue=other"}
    assert named(run.slices) == ["hue=purple"]


def test_an_unknown_column_is_refused_before_a_model_is_loaded(pytester):
    pytester.makefile(".csv", prompts="prompt,topic\na cat,animals\n")
    arguments = ("--diffusion-model=demo", "--diffusion-baseline=demo", "--diffusion-prompts=prompts.csv", "--diffusion-slices=topics")
    result = pytester.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--diffusion-slices: the column of prompts.csv is 'topics'; expected one of: prompt, topic*"])


def test_slices_belong_to_a_comparison(pytester):
    result = pytester.runpytest("--diffusion-model=demo", "--diffusion-slices=words")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--diffusion-slices is used with --diffusion-baseline alone*"])


def test_without_slices_there_is_no_verdict():
    with pytest.raises(NotApplicable, match="nothing was compared by slice of the prompts"):
        paired_scores_by_slice(pairs_of(differences(0.0)))
    # Nor where there are slices, and nothing that is judged.
    with pytest.raises(NotApplicable, match="or no score is judged there"):
        paired_scores_by_slice(replace(pairs_of(differences(0.0)), slices=[]))
    assert [one.name for one in slice_checks()] == ["paired_denoising_by_slice", "paired_retention_by_slice", "paired_scores_by_slice"]
    assert slicing(["words"], None, {}, RULES, 0.05) is None
    assert slicing(["words"], ["a cat", "a dog", "a cow"], {}, RULES, 0.05) is None


def test_slices_that_were_asked_for_must_be_judged():
    settings = Settings(model="demo", baseline="demo", slices=("words",))
    thresholds = load_thresholds(["demo", "finetune"])
    assert [one.by for one in promises_of(settings, thresholds) if one.name in SLICES.values()] == ["--diffusion-slices"]
    assert not [one for one in promises_of(replace(settings, slices=()), thresholds) if one.name in SLICES.values()]
    # A column that the images alone have slices the losses alone.
    of_images = replace(settings, slices=("topic",))
    named = [one.name for one in promises_of(of_images, thresholds) if one.by == "--diffusion-slices"]
    assert named == ["paired_denoising_by_slice"] == [slice_checks()[0].name]
    assert list(SLICES.values()) == [slice_checks()[place].name for place in (2, 0, 1)]
    assert not [one for one in kept_in_mind(promises_of(settings, thresholds), [], is_identical=True) if one.name in SLICES.values()]


def test_each_column_is_promised_where_its_table_is(tmp_path):
    tables = {}
    for name, column in (("prompts", "topic"), ("reference", "style"), ("retention", "year")):
        tables[name] = tmp_path / f"{name}.csv"
        tables[name].write_text(f"prompt,image,{column}\na cat,cat.png,x\n")
    given = {name: str(path) for name, path in tables.items()}
    settings = Settings(model="demo", baseline="demo", **given, slices=("words", "topic"))
    thresholds = load_thresholds(["demo", "finetune"])

    def promised(*slices):
        found = promises_of(replace(settings, slices=slices), thresholds)
        return {one.name for one in found if one.by == "--diffusion-slices"}

    assert promised("words") == promised("topic") == {"paired_scores_by_slice"}
    assert promised("words", "style") == {"paired_scores_by_slice", "paired_denoising_by_slice"}
    assert promised("year") == {"paired_retention_by_slice"}


def test_a_column_that_was_asked_for_and_slices_nothing_is_an_error():
    rare = {"topic": [str(index) for index in range(COUNT)]}
    assert slicing(["topic"], PROMPTS, rare, RULES, 0.05) is None
    with pytest.raises(SetupError, match="--diffusion-slices: no value of the column topic has 8 of the 256 pairs or images"):
        slicing(["words", "topic"], PROMPTS, rare, RULES, 0.05, required=["topic"])


def test_slices_that_cannot_be_told_are_not_called_the_same():
    values = differences(0.15)
    found = found_in(values, looks=(16, 32, 64))
    run = replace(pairs_of(values), slices=found)
    assert {one.decided.word for one in found} & {"cannot tell"}
    assert paired_scores_by_slice(run).relation == ""
    assert paired_scores_by_slice(run).value == 0
