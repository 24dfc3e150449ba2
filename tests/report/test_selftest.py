"""The self-test as a report shows it: damage first, what was missed with what would see it, and what follows."""

from pytest_diffusion.gate.selftest import SelfTest
from pytest_diffusion.gate.strength import Limit
from pytest_diffusion.gate.suggestions import Suggested, SuggestedLimit
from pytest_diffusion.gate.trial import Figure, Trial
from pytest_diffusion.report.selftest import COLUMNS, limit_rows, selftest_rows, selftest_table, selftest_text, suggested_rows
from pytest_diffusion.verdicts.plain_json import plain

SEEN = Figure("brightness", "same", 0.0, 0.1, 512, 1.0, 0)


def facts(**rest):
    trials = [
        Trial("bfloat16_weights", 0.0, 0, True, figures=[SEEN]),
        Trial("denoiser_noise", 0.05, 0, caught_by=["denoising_loss"], at="64 images", absolute=[{"check": "fid", "outcome": "pass"}]),
        Trial("denoiser_noise", 0.05, 1),
        Trial("too_few_steps", 8, 0, undecided=["clip_score"], at="1000 pairs"),
        Trial("guidance_lost", 0.0, 0, figures=[SEEN]),
    ]
    test = SelfTest(
        "full", "demo", trials, seconds=12.3, not_applicable={"lora_twice": "it has no adapter"}, left_out=["seeds 2 to 4"], **rest
    )
    return {"selftest": plain(test.to_json())}


def test_rows_say_what_caught_each_damage():
    rows = selftest_rows(facts(limits={"denoiser_noise": Limit(0.021, 0.02)}))
    assert rows == [
        ["noise of 5 % in the denoiser's weights", "worse: denoising_loss", "64 images", "1 of 2 (9 to 91 %)", "0.021", "none fails"],
        ["one step in 8", "not decided: clip_score", "1000 pairs", "0 of 1", "–", "not asked"],
        ["guidance is lost", "same", "", "0 of 1", "–", "not asked"],
        ["sound: weights rounded to bfloat16", "same", "", "0 of 1", "–", "not asked"],
    ]
    lines = selftest_table(facts())
    assert lines[0].startswith(COLUMNS[0])
    assert len({line.index("not asked") for line in lines if "not asked" in line}) == 1


def test_sentences_name_what_would_see_what_was_missed():
    assert selftest_text(facts()) == [
        "Self-test (full) of demo, 12 s: 1 of 3 kinds of damage are caught; 0 of 1 sound trials are called worse.",
        "Missed: one step in 8. What would see it: a CLIP that knows the prompts (--diffusion-clip-model).",
        "Missed: guidance is lost. What would see it: a CLIP that knows the prompts (--diffusion-clip-model).",
        "Does not fit this model: lora_twice.",
        "Not tried: seeds 2 to 4.",
    ]


def test_margins_and_limits_say_what_they_rest_on():
    own = facts(
        suggested=[
            Suggested("clip_score", 0.09, 0.1, 0.01, 0.06, "int8_weights", ["a", "b", "c", "d"], 700),
            Suggested("kid", 2.0, None, 0.0, 1.3, "int8_weights", [], None),
            Suggested("denoising_loss", 10.0, 10.0, 0.0, 0.3, "int8_weights", [], 64, kept=True),
        ],
        suggested_limits=[SuggestedLimit("fid", "at_most", 25.0, 33.0, 20.0, 24.0, "int8_weights", [], 1000, None, "")],
    )
    assert suggested_rows(own) == [
        ["clip_score", "0.1", "0.09", "0.06 by int8_weights, floor 0.01", "a, b, c and 1 more", "700"],
        ["kid", "reported", "2", "1.3 by int8_weights, floor 0", "none of those tried", "no number suffices"],
        ["denoising_loss", "10", "10 (kept)", "0.3 by int8_weights, floor 0", "none of those tried", "64"],
    ]
    assert limit_rows(own) == [["fid", "≤ 33", "≤ 25", "20; worst end 24 by int8_weights", "none of those tried"]]


def test_without_a_self_test_nothing_is_said():
    assert (selftest_rows({}), selftest_text({}), selftest_table({}), suggested_rows({}), limit_rows({})) == ([], [], [], [], [])
