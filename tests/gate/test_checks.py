"""Every check of the comparison has a subject that passes and one that fails with the right message."""

import re
from dataclasses import replace

import pytest
import torch

from pytest_diffusion.checks import all_checks
from pytest_diffusion.checks.run import run_check
from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.config.thresholds import Thresholds
from pytest_diffusion.gate.checks import OF_PAIRS, scorer_checks
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.denoising import LossRun, run_losses
from pytest_diffusion.gate.figures import FIGURES, figure_named
from pytest_diffusion.gate.looks import Decided, Look, Rules
from pytest_diffusion.gate.measured import limits_of
from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.gate.parts import Part, Parts
from pytest_diffusion.gate.side import Rows
from pytest_diffusion.maths.sequential import Plan
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.models.lora import LoraChange
from pytest_diffusion.verdicts.errors import SetupError

CHECKS = {one.name: one for one in all_checks() if one.lens == "paired"}
MARGINS = Margins({figure.name: Margin(margin=1.0, source="a test") for figure in FIGURES} | {"mine": Margin(margin=1.0, source="a test")})
COMPARISON = Comparison("parent", MARGINS, Parts([Part("unet", False, 0.1, 2, 3)]))
COUNT = 64


def rows(*, constant=0):
    whole = torch.ones(COUNT, dtype=torch.bool)
    flags = torch.arange(COUNT) < constant
    images = torch.randint(0, 256, (COUNT, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Rows({}, None, whole, flags, [str(index) for index in range(COUNT)], images)


def pairs(name="clip_score", value=0.0, **candidate):
    rule = Rules(MARGINS, {name: figure_named(name).direction}, Plan(COUNT))
    look = Look(COUNT, Estimate(value, 0.05, COUNT - 1), 10 + value, 10.0, 1.0)
    decided = rule.decide({name: [look]})
    return PairedRun(decided, rows(**candidate), rows(), None, list(range(COUNT)), COUNT)


def losses(figure, factor):
    baseline = 1 + 0.1 * torch.rand(COUNT, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rule = Rules(MARGINS, {figure: -1}, Plan(COUNT))
    return run_losses(
        figure,
        lambda count: factor * baseline[:count],
        lambda count: baseline[:count],
        rule,
        count=COUNT,
        log_snr=[4.0, 2.0, 0.0, -2.0, -4.0],
    )


def of_figure(figure):
    worse = -3.0 if figure.direction > 0 else 3.0
    frame = {"comparison": COMPARISON}
    return (
        {"pairs": pairs(figure.name), **frame},
        {"pairs": pairs(figure.name, worse), **frame},
        rf"worse: change of {re.escape(figure.title)} is",
    )


def of_loss(figure):
    frame = {"comparison": COMPARISON}
    return {"run": losses(figure, 1.001), **frame}, {"run": losses(figure, 1.2), **frame}, r"worse: .* is 20 "


SUBJECTS = {
    "paired_parts": (
        {"comparison": COMPARISON},
        {"comparison": replace(COMPARISON, parts=Parts([Part("vae", False, faults=["conv.weight has 2 values that are not finite"])]))},
        "The first is in vae: conv.weight has 2 values that are not finite",
    ),
    "paired_lora": (
        {"comparison": replace(COMPARISON, lora=LoraChange("a.safetensors", 4, 0.02))},
        {"comparison": replace(COMPARISON, lora=LoraChange("a.safetensors", 4, 0.0))},
        "The adapter does nothing",
    ),
    "paired_guards": ({"pairs": pairs()}, {"pairs": pairs(constant=3)}, r"Of 64 samples of the candidate, 3 of one colour \(baseline 0\)"),
    **{f"paired_{figure.name}": of_loss(figure.name) for figure in FIGURES if figure.name.endswith("_loss")},
    **{f"paired_{figure.name}": of_figure(figure) for figure in OF_PAIRS},
}


def test_every_check_of_the_comparison_has_subjects():
    assert set(SUBJECTS) | {"paired_drift"} == set(CHECKS)  # drift is reported, never judged


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_sound_subject_passes_and_the_broken_one_fails(name):
    sound, broken, message = SUBJECTS[name]
    found = run_check(CHECKS[name], sound, Thresholds())
    assert found.outcome == "pass", found.message
    found = run_check(CHECKS[name], broken, Thresholds())
    assert found.outcome == "fail", found.message
    assert re.search(message, found.message), found.message


def test_drift_is_reported():
    assert run_check(CHECKS["paired_drift"], {"pairs": pairs()}, Thresholds()).outcome == "reported"


def test_a_figure_that_could_not_be_measured_raises_its_reason():
    lacking = replace(pairs(), missing={"clip_score": SetupError("no CLIP")})
    with pytest.raises(SetupError, match="no CLIP"):
        run_check(CHECKS["paired_clip_score"], {"pairs": lacking, "comparison": COMPARISON}, Thresholds())
    assert run_check(CHECKS["paired_fid"], {"pairs": pairs(), "comparison": COMPARISON}, Thresholds()).outcome == "skipped"


def test_what_was_left_open_because_another_figure_is_worse_is_reported():
    run = pairs("clip_score", -1.0)
    assert run_check(CHECKS["paired_clip_score"], {"pairs": run, "comparison": COMPARISON}, Thresholds()).outcome == "inconclusive"
    worse = Decided("worse", run.decided["clip_score"].look, (-3.0, -2.0), 1.0)
    stopped = replace(run, decided={**run.decided, "fid": worse})
    found = run_check(CHECKS["paired_clip_score"], {"pairs": stopped, "comparison": COMPARISON}, Thresholds())
    assert found.outcome == "reported"
    assert "the comparison stopped after 64 pairs, because another figure is worse" in found.message


def test_a_scorer_has_a_check_of_its_own():
    (one,) = scorer_checks(["my.module:mine"])
    assert (one.name, one.lens) == ("paired_mine", "paired")
    assert run_check(one, {"pairs": pairs("mine", -3.0), "comparison": COMPARISON}, Thresholds()).outcome == "fail"
    assert scorer_checks(["clip"]) == []


def test_predictions_that_are_not_finite_are_worse_and_a_baseline_of_them_is_broken():
    good, bad = torch.ones(COUNT, 5, dtype=torch.float64), torch.full((COUNT, 5), float("nan"), dtype=torch.float64)
    rule = Rules(MARGINS, {"denoising_loss": -1}, Plan(COUNT))
    run = run_losses("denoising_loss", lambda count: bad[:count], lambda count: good[:count], rule, count=COUNT, log_snr=[0.0] * 5)
    assert isinstance(run, LossRun)
    found = run_check(CHECKS["paired_denoising_loss"], {"run": run, "comparison": COMPARISON}, Thresholds())
    assert found.outcome == "fail"
    assert "Predictions of the candidate for 16 of 16 images are not finite" in found.message
    with pytest.raises(SetupError, match="the baseline's own denoising_loss is not finite"):
        run_losses("denoising_loss", lambda count: good[:count], lambda count: bad[:count], rule, count=COUNT)


@pytest.mark.parametrize(
    ("name", "kind", "limits"),
    [
        ("clip_score", "not_worse", (-0.5, None)),
        ("kid", "not_worse", (None, 0.5)),
        ("clip_score", "equivalence", (-0.5, 0.5)),
    ],
)
def test_the_margin_is_shown_as_limits_of_the_change(name, kind, limits):
    margin = Margin(margin=0.5, kind=kind, source="a test")
    look = Look(COUNT, Estimate(0.0, 0.05, COUNT - 1), 10.0, 10.0, 1.0)
    figure = figure_named(name)
    decided = Rules(Margins({name: margin}), {name: figure.direction}, Plan(COUNT)).decide({name: [look]})[name]
    found = limits_of(decided, margin, figure)
    assert (found.at_least, found.at_most) == limits
    assert found.source == "a test; margin 0.5"
