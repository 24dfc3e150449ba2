"""The gate and the exit code, from what a run judged, promised and left out, and how it ended."""

from dataclasses import replace

import pytest

from pytest_diffusion.verdicts.gate import BROKEN_SETUP, Course, Promise, decide
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Limits, Measurement, broken, judge, skipped

LIMITS = Limits(at_most=30.0, source="s", where="own.toml [fid]")
PASS = judge("fid", Measurement(10.0), LIMITS, lens="metrics")
FAIL = judge("kid", Measurement(40.0), LIMITS, lens="metrics")
CLOSE = judge("recall", Measurement(29.0, interval=(27.0, 31.0)), LIMITS, lens="metrics", strict=False)
REPORTED = judge("density", Measurement(1.0), None, lens="metrics")
SKIPPED = skipped("attention_sharpens", "a pixel model has no attention to text.", lens="attention")
OFFLINE = broken("clip_score", "the hub cannot be reached.", lens="metrics", is_setups_fault=True)
CRASHED = broken("vae_psnr", "ZeroDivisionError: division by zero", lens="latent")


def entries(*verdicts):
    return [Entry(verdict, f"diffusion::{verdict.check}") for verdict in verdicts]


def outcome(*verdicts, promises=(), **course):
    expected = course.pop("expected", tuple(verdict.check for verdict in verdicts))
    decision = decide(entries(*verdicts), Course(expected=expected, **course), promises)
    return decision.gate, decision.exit_code


@pytest.mark.parametrize(
    ("verdicts", "course", "expected"),
    [
        ([PASS], {}, ("open", 0)),
        ([PASS, REPORTED, SKIPPED], {}, ("open", 0)),
        ([PASS, CLOSE], {}, ("amber", 0)),
        ([PASS, FAIL], {"exit_status": 1}, ("closed", 1)),
        ([PASS, FAIL], {}, ("closed", 1)),  # another plugin turned the exit status
        ([], {}, ("empty", 1)),
        ([], {"exit_status": 5}, ("empty", 1)),
        ([SKIPPED, REPORTED], {}, ("empty", 1)),
        ([PASS], {"exit_status": 1, "failures": 1}, ("closed", 1)),
        ([PASS], {"exit_status": 3}, ("unfinished", 3)),
        ([PASS, FAIL], {"exit_status": 3}, ("closed", 3)),
        ([PASS], {"exit_status": 2, "stopped": "KeyboardInterrupt"}, ("unfinished", 2)),
        ([PASS], {"exit_status": 0, "stopped": "enough"}, ("unfinished", 1)),
        ([PASS, FAIL], {"exit_status": 2, "stopped": "KeyboardInterrupt"}, ("closed", 2)),
        ([PASS, OFFLINE], {"exit_status": 1}, ("closed", BROKEN_SETUP)),
        ([PASS, OFFLINE, FAIL], {"exit_status": 1}, ("closed", 1)),
        ([PASS, OFFLINE, CRASHED], {"exit_status": 1}, ("closed", 1)),
        ([PASS, OFFLINE], {"exit_status": 1, "failures": 1}, ("closed", 1)),
        ([PASS], {"broken_report": "r.html could not be written"}, ("closed", 1)),
        ([PASS], {"expected": ("fid", "kid")}, ("partial", 1)),
        ([PASS], {"expected": ("fid", "kid"), "selection": "-k fid", "is_users_choice": True}, ("partial", 0)),
        ([PASS], {"expected": ("fid", "kid"), "selection": "-m unit"}, ("partial", 1)),
        ([REPORTED], {"expected": ("density", "kid"), "selection": "-k den", "is_users_choice": True}, ("empty", 1)),
        ([FAIL], {"expected": ("fid", "kid"), "selection": "-k kid", "is_users_choice": True, "exit_status": 1}, ("closed", 1)),
    ],
)
def test_gate_and_exit_code(verdicts, course, expected):
    assert outcome(*verdicts, **course) == expected


def test_what_pytest_did_not_count_leaves_the_gate_partial():
    excused = replace(Entry(replace(FAIL, gates=False), "diffusion::kid"), excused="xfail")
    decision = decide([*entries(PASS), excused], Course(expected=("fid", "kid"), selection="-k fid", is_users_choice=True))
    assert (decision.gate, decision.exit_code) == ("partial", 1)
    assert decision.reasons == ["kid did not pass and was not counted (xfail)."]
    assert decide([excused], Course(expected=("kid",))).gate == "empty"


def test_a_partial_run_says_what_was_left_out():
    decision = decide(entries(PASS, SKIPPED), Course(expected=("fid", "kid", "attention_sharpens", "recall"), selection="-k fid"))
    assert decision.left_out == ["kid", "recall"]
    assert decision.reasons == ["Partial: 2 of 4 checks were run (-k fid)."]


FID, LENS = Promise("check", "fid", "own.toml [fid]"), Promise("lens", "attention", "--diffusion-lenses")
REFERENCE = Promise("reference", "reference", "--diffusion-reference")


@pytest.mark.parametrize(
    ("verdicts", "promise", "message"),
    [
        ([FAIL], FID, "fid is required by own.toml [fid], but it was not judged, since its test was not run."),
        (
            [PASS, SKIPPED],
            LENS,
            "attention is required by --diffusion-lenses, but none of the checks of the lens attention was judged: a pixel",
        ),
        ([PASS], LENS, "none of the checks of the lens attention was judged, since none of them was run."),
        ([PASS], REFERENCE, "reference is required by --diffusion-reference, but no figure was held against the reference"),
        ([PASS, REPORTED], Promise("check", "density", "own.toml [gate]"), "but it was not judged: density is 1; no limit is set"),
    ],
)
def test_a_promise_that_was_not_kept_closes_the_gate(verdicts, promise, message):
    decision = decide(entries(*verdicts), Course(), [promise])
    assert (decision.gate, decision.exit_code) == ("closed", 1)
    (gap,) = [entry.verdict for entry in decision.entries if entry.verdict.outcome == "missing"]
    assert message in gap.message
    assert gap.gates
    names = [entry.verdict.check for entry in decision.entries]
    assert len(names) == len(set(names)), "the gap takes the place of the check's own verdict"


def test_promises_that_were_kept():
    judged = Entry(PASS, "diffusion::fid", uses_reference=True)
    attention = replace(PASS, check="attention_sharpens", lens="attention")
    assert decide([judged, *entries(attention)], Course(), [FID, LENS, REFERENCE]).gate == "open"
    # A test of the user's own that judges the same check keeps the promise of its limit, but not that of a lens.
    assert decide([Entry(PASS, "test_mine.py::test_fid")], Course(), [FID]).gate == "open"
    assert decide([*entries(PASS), Entry(attention, "test_mine.py::test_it")], Course(), [LENS]).gate == "closed"


def test_a_broken_set_up_is_not_missing_too():
    decision = decide(entries(PASS, OFFLINE), Course(), [Promise("check", "clip_score", "own.toml [clip_score]")])
    assert [entry.verdict.outcome for entry in decision.entries] == ["pass", "broken"]


def test_a_preset_requires_only_what_was_not_left_out():
    promise = replace(LENS, by="thresholds/demo.toml [gate]", is_presets=True)
    assert decide(entries(PASS), Course(), [promise]).gate == "open"
    assert decide(entries(PASS, SKIPPED), Course(), [promise]).gate == "closed"


def test_skipped_checks_can_be_made_to_close_the_gate():
    decision = decide(entries(PASS, SKIPPED, REPORTED), Course(), skipped_fail_by="own.toml [gate]")
    assert decision.gate == "closed"
    assert [entry.verdict.outcome for entry in decision.entries] == ["pass", "reported", "missing"]


def test_a_test_of_the_users_does_not_stand_for_the_checklist():
    """Its figure is judged, and the checklist that was asked for judged nothing."""
    decision = decide([Entry(PASS, "test_mine.py::test_fid"), *entries(SKIPPED)], Course(expected=("attention_sharpens",)))
    assert (decision.gate, decision.exit_code) == ("empty", 1)
