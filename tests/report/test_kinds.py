"""Each kind of report shows first what its reader wants to know."""

import re
from dataclasses import replace

import pytest

from pytest_diffusion import scheduler_checks
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.report.contents import Report
from pytest_diffusion.report.html import render
from pytest_diffusion.report.kinds import by_lens, by_reason, kind_of, not_run
from pytest_diffusion.verdicts.gate import Course, decide
from pytest_diffusion.verdicts.run import Entry
from pytest_diffusion.verdicts.verdict import SCHEDULER_CHECKS, Limits, Measurement, Verdict, judge, skipped

LIMITS = Limits(at_most=30.0, source="a test")


def entry(check, value=20.0, *, lens="metrics", nodeid=None, **rest):
    verdict = judge(check, Measurement(value, interval=(value - 1, value + 1)), LIMITS, lens=lens, title=check)
    return Entry(verdict, nodeid or f"diffusion::{check}", 0.1, **rest)


def unmeasured(check, reason, lens="latent"):
    return Entry(skipped(check, reason, lens=lens, title=check), f"diffusion::{check}")


def law(name, outcome="pass"):
    message = f"Bad fails `{name}`.\nExpected: 1.\nSeen: 2." if outcome == "fail" else "holds"
    verdict = Verdict(name, outcome, message, None, lens="schedule", title=name, gates=outcome == "fail", suite=SCHEDULER_CHECKS)
    return Entry(verdict, f"diffusion::{name}", 0.1)


def made(entries, *, settings=None, facts=None, **course):
    return Report.of(
        decide(entries, Course(**course)),
        settings or Settings(model="mine"),
        command="pytest --diffusion-model=mine",
        expected=list(course.get("expected", ())),
        facts=facts or {},
        versions={"diffusers": "1", "torch": "2", "pytest-diffusion": "0"},
    )


def shown(page):
    """The page's text in reading order."""
    body = page[page.index("<body>") : page.rindex("<script>")]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


WHOLE = made([entry("fid")])
COMPARISON = made([entry("paired_fid", lens="paired"), entry("fid")], settings=Settings(model="mine", baseline="parent"))
LAWS = [law("runs"), law("velocity", "fail"), unmeasured("churn", "it has no churn", "schedule")]
SCHEDULER = made(LAWS, settings=Settings(scheduler="a:Bad"))
PARTIAL = made(
    [entry("fid"), entry("kid", of_run="yesterday"), entry("recall", of_run="yesterday")],
    expected=("fid", "kid", "recall", "attention_localises"),
    selection="-k fid",
)
HALTED = {"expected": ("fid", "kid", "attention_localises"), "stopped": "KeyboardInterrupt", "exit_status": 2}
STOPPED = made([entry("fid")], facts={"samples": 640, "other_seeds": []}, **HALTED)
ALL = {"whole": WHOLE, "comparison": COMPARISON, "scheduler": SCHEDULER, "partial": PARTIAL, "unfinished": STOPPED}


@pytest.mark.parametrize("kind", ALL)
def test_every_kind_is_told_and_can_be_drawn(kind):
    assert kind_of(ALL[kind]) == kind
    page = render(ALL[kind])
    assert "</html>" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    # No link of the page leads nowhere, what stands in folds included.
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_a_comparison_shows_the_changes_before_the_candidate_alone():
    text = shown(render(COMPARISON))
    assert "mine against parent" in text
    assert text.index("paired_fid") < text.index("The candidate by itself") < text.rindex(" fid ")


def test_a_scheduler_s_page_has_the_broken_laws_first_and_nothing_of_samples():
    text = shown(render(SCHEDULER))
    assert text.index("Laws that do not hold, or could not be tried: 1") < text.index("Laws that hold: 1") < text.index("it has no churn")
    assert "Compared with exact answers" in text
    assert "they try this law alone" in text
    assert "seed" not in text.split("Run To reproduce")[0]
    assert "--diffusion-baseline says which part" not in text


def test_a_partial_report_says_which_verdicts_are_older_and_what_nobody_ran():
    page = render(PARTIAL)
    text = shown(page)
    assert "1 check is of this run, 2 of earlier ones" in text
    assert text.index("Not run") < text.index("attention_localises")
    assert "Of the run of yesterday: 2" in text
    assert "after a run of all 4" in text
    assert "kid" not in text[text.index("Not run") : text.index("All figures at a glance")]


def test_a_stopped_run_says_how_far_it_came_and_how_it_goes_on():
    page = render(STOPPED)
    text = shown(page)
    assert "1 of 3 checks were run before it was stopped" in text
    assert "640 samples are kept and are not drawn again" in text
    assert text.index("The same command goes on") < text.index("Not run") < text.index("What was seen until then")
    assert '<meter min="0" max="3" value="1"' in page


def test_what_had_nothing_to_measure_stands_once_by_its_reason_and_last():
    entries = [entry("fid"), unmeasured("vae_psnr", "no VAE"), unmeasured("vae_ssim", "no VAE"), unmeasured("churn", "no churn")]
    assert [(reason, len(found)) for reason, found in by_reason(entries)] == [("no VAE", 2), ("no churn", 1)]
    text = shown(render(made(entries)))
    assert text.count("no VAE") == 1
    assert text.index("Metrics") < text.index("3 checks, by their reason")
    assert "Latent space" not in text.split("Nothing to measure")[0]  # a lens without figures has no table


def test_tests_of_the_user_s_stand_apart():
    own = entry("fid", nodeid="tests/test_mine.py::test_fid")
    assert [(lens, [one.nodeid for one in found]) for lens, _, found in by_lens([entry("fid"), own])] == [
        ("metrics", ["diffusion::fid"]),
        ("own", ["tests/test_mine.py::test_fid"]),
    ]


def test_names_that_were_not_run_stand_by_their_lens():
    assert not_run(["fid", "attention_localises", "kid"]) == [("Metrics", ["fid", "kid"]), ("Attention", ["attention_localises"])]
    assert not_run(["of_another_package"]) == [("", ["of_another_package"])]


def test_laws_that_were_not_run_are_a_plain_list():
    left = scheduler_checks()[1:3]
    text = shown(render(made(LAWS, settings=Settings(scheduler="a:Bad"), expected=("velocity", *left))))
    assert f"Not run {' , '.join(left)} " in text


def test_a_change_for_the_worse_is_not_told_to_take_a_baseline():
    text = shown(
        render(made([entry("paired_fid", 40.0, lens="paired")], settings=Settings(model="mine", baseline="parent"), exit_status=1))
    )
    assert "the pairs that lost most" in text
    assert "where you have the model in production" not in text
    alone = shown(render(made([entry("fid", 40.0)], exit_status=1)))
    assert "where you have the model in production, --diffusion-baseline says which part did it" in alone


def test_what_a_page_must_not_lose_or_misname():
    own = entry("forward_process", nodeid="tests/test_mine.py::test_it")
    gap = Entry(Verdict("schedule", "missing", "asked for", None, lens="schedule", title="t", gates=True), "diffusion::schedule")
    page = render(made([*LAWS, own, gap], settings=Settings(scheduler="a:Bad", thresholds=("strict.toml",)), exit_status=1))
    text = shown(page)
    assert "Laws that hold: 1" in text  # the test of the user's is none
    assert text.index("Your own tests") < text.index("tests/test_mine.py::test_it")
    assert "the limits of strict.toml" in text
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    # An entry of a lens that this version does not know.
    assert "future_check" in shown(render(made([entry("fid"), entry("future_check", lens="future")])))
    # A link only where there is a row to lead to.
    own = entry("fid", 50.0, nodeid="tests/test_mine.py::test_fid")
    page = render(made([own], exit_status=1))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(re.findall(r' id="([^"]+)"', page))


def test_a_partial_comparison_keeps_its_pairs_and_a_comparison_of_nothing_is_none():
    facts = {"worst_pairs": [{"prompt": "a cat", "seed": 3, "images": ["data:,"] * 3, "scores": "clip 3"}]}
    comparison = [entry("paired_fid", lens="paired"), entry("fid")]
    settings = Settings(model="mine", baseline="parent")
    for expected in ((), ("fid", "kid")):
        assert "a cat (seed 3)" in shown(render(made(comparison, settings=settings, facts=facts, expected=expected)))
    alone = made([unmeasured("paired_fid", "no baseline", "paired"), entry("fid")], settings=settings)
    assert kind_of(alone) == "whole"
    assert "All figures at a glance" in render(alone)


def test_pictures_that_cannot_be_shown_do_not_take_the_page():
    uneven = entry("vae_psnr", lens="latent")
    measured = replace(uneven.verdict.measurement, series={"originals": ["data:,"], "round_trips": []})
    page = render(made([replace(uneven, verdict=replace(uneven.verdict, measurement=measured))]))
    assert "The pictures of vae_psnr could not be drawn: ValueError" in page
    gallery = {"title": "Samples", "rows": [["data:,", "data:,"]], "captions": ["one"]}
    assert "one" in shown(render(made([entry("fid")], facts={"gallery": gallery})))


def test_a_check_that_a_test_of_the_user_s_makes_too_is_drawn_once():
    series = {"sizes": [100, 200], "distances": [3.0, 2.0], "infinity": 1.0}
    both = []
    for nodeid in (None, "tests/test_mine.py::test_it"):
        one = entry("fid_infinity", nodeid=nodeid)
        both.append(replace(one, verdict=replace(one.verdict, measurement=replace(one.verdict.measurement, series=series))))
    assert render(made(both)).count('id="plot-fid_infinity"') == 1
    assert render(made(both[1:])).count('id="plot-fid_infinity"') == 1


def test_samples_of_code_that_may_change_are_not_called_kept():
    text = shown(render(made([entry("fid")], facts={"samples": 640}, **HALTED)))
    assert "The same command goes on." in text
    assert "are kept" not in text
