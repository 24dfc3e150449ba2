"""What a run promises about its baseline, and which promises still hold when the comparison is known."""

from pytest_diffusion.checks.promises import PAIRS, RETENTION, kept_in_mind, promises_of
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.verdicts.gate import Promise
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import Verdict, skipped

PROMISES = [
    Promise("check", PAIRS, "--diffusion-baseline"),
    Promise("check", RETENTION, "--diffusion-retention"),
    Promise("check", "fid", "thresholds/demo.toml", is_presets=True),
    Promise("check", "kid", "mine.toml"),
    Promise("reference", "reference", "--diffusion-reference"),
]


def names(entries, *, is_identical=False):
    return [promise.name for promise in kept_in_mind(PROMISES, entries, is_identical=is_identical)]


def test_a_baseline_and_a_retention_set_are_promises():
    settings = Settings(model="demo", baseline="demo", retention="demo")
    found = {promise.name for promise in promises_of(settings, load_thresholds([]))}
    assert {PAIRS, RETENTION} <= found
    assert not {PAIRS, RETENTION} & {promise.name for promise in promises_of(Settings(model="demo"), load_thresholds([]))}
    with_report = {promise.name for promise in promises_of(Settings(model="demo", baseline="old.json"), load_thresholds([]))}
    assert "paired" in with_report
    assert PAIRS not in with_report


def test_all_hold_as_long_as_nothing_is_known():
    assert names([]) == [promise.name for promise in PROMISES]
    # A skip for another reason drops nothing: few images are no comparison.
    assert names([Entry(skipped(RETENTION, "8 images are too few", lens="paired"))]) == [promise.name for promise in PROMISES]


def test_no_pairs_are_needed_where_something_is_worse():
    worse = Entry(Verdict("paired_denoising_loss", "fail", "worse", lens="paired"))
    assert names([worse]) == ["fid", "kid", "reference"]


def test_a_loss_that_cannot_differ_is_not_missing():
    same = Entry(skipped(RETENTION, "same: no part that this loss depends on differs.", lens="paired"))
    assert names([same]) == [PAIRS, "fid", "kid", "reference"]


def test_where_nothing_differs_only_what_was_asked_for_by_name_is_left():
    assert names([], is_identical=True) == ["kid"]
