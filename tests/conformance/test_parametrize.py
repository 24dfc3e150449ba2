"""The decorator and the command line, through pytest itself."""

import json

import pytest

from pytest_diffusion.config import parsers
from pytest_diffusion.conformance import subject
from pytest_diffusion.models.levels import PREDICTION_TYPES

pytest_plugins = ["pytester"]

MODULE = """
from tests.conformance.from_scratch import Euler
from tests.broken_schedulers.grids import LastSigmaTwice
from tests.broken_schedulers.steps import EndsBeforeTheEnd
"""


@pytest.fixture(autouse=True)
def _on_the_path(pytester, monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))
    monkeypatch.syspath_prepend(str(request.config.rootpath))


def run(pytester, *arguments):
    return pytester.runpytest("-p", "no:cacheprovider", *arguments)


def test_a_test_for_every_scheduler_and_check(pytester):
    pytester.makepyfile(
        MODULE
        + """
from pytest_diffusion import parametrize_with_scheduler_checks

@parametrize_with_scheduler_checks(
    [Euler(), LastSigmaTwice()], only=["sigmas_fall", "velocity"], expected_failures={"sigmas_fall": "the vendor is told"})
def test_mine(scheduler, check):
    check(scheduler)
"""
    )
    result = run(pytester, "-v", "-rxX")
    result.assert_outcomes(skipped=2, xfailed=1, xpassed=1)
    result.stdout.fnmatch_lines(["*test_mine?Euler-velocity?*", "*test_mine?LastSigmaTwice-sigmas_fall?*XFAIL*"])
    result.stdout.fnmatch_lines(["*the vendor is told*"])


def test_strict_expected_failures_must_fail_and_others_fail_with_the_message(pytester):
    pytester.makepyfile(
        MODULE
        + """
from pytest_diffusion import parametrize_with_scheduler_checks

@parametrize_with_scheduler_checks([Euler()], only=["sigmas_fall"], expected_failures={"sigmas_fall": "gone"}, strict=True)
def test_strict(scheduler, check):
    check(scheduler)

@parametrize_with_scheduler_checks([LastSigmaTwice, LastSigmaTwice], only=["sigmas_fall"])
def test_broken(scheduler, check):
    check(scheduler)

def test_another_scheduler_than_the_decorator_knows():
    from pytest_diffusion.conformance.parametrize import SchedulerCheck
    from pytest_diffusion.conformance.suite import Suite
    SchedulerCheck("sigmas_fall", Suite(LastSigmaTwice), LastSigmaTwice)(Euler())
"""
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["*XPASS(strict)*gone*", "*LastSigmaTwice fails `sigmas_fall`*", "*Seen: sigma *is followed by*"])
    result.stdout.fnmatch_lines(["FAILED*LastSigmaTwice#2-sigmas_fall*"])


def test_the_command_line_needs_no_model(pytester):
    result = run(pytester, "--diffusion-scheduler=EulerDiscreteScheduler", "--diffusion-scheduler-config=use_karras_sigmas=True")
    result.assert_outcomes(passed=39, skipped=15, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*scheduler=EulerDiscreteScheduler, scheduler_config=use_karras_sigmas=True*",
            "EulerDiscreteScheduler fails `velocity`*",
            "*= diffusion quality =*",
            "fail *velocity*Seen: get_velocity at timestep 999 gives*",
            "report: *diffusion-report.html",
        ]
    )
    data = json.loads((pytester.path / "diffusion-report.json").read_text())
    assert data["gate"] == "closed"
    assert data["command"] == "pytest --diffusion-scheduler=EulerDiscreteScheduler --diffusion-scheduler-config=use_karras_sigmas=True"
    series = {verdict["check"]: verdict["measurement"]["series"] for verdict in data["verdicts"] if verdict["measurement"]}
    assert series["convergence_order"]["declared"] == 1
    assert series["convergence_order"]["seen"] == pytest.approx(0.97, abs=0.05)
    assert len(series["point_mass_preserved"]["log_snr"]) == 30
    html = (pytester.path / "diffusion-report.html").read_text()
    for text in ("Error against steps, Gaussian data", "declared: order 1", "Noise level of the samples", "EulerDiscreteScheduler fails"):
        assert text in html


def test_ones_own_scheduler_selected_by_name(pytester):
    result = run(pytester, "--diffusion-scheduler=tests.conformance.from_scratch:Ancestral", "-k", "weak_convergence or velocity", "-v")
    result.assert_outcomes(passed=1, skipped=1, deselected=54)
    result.stdout.fnmatch_lines(["*diffusion::weak_convergence PASSED*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--diffusion-scheduler=EulerDiscreet"], "*--diffusion-scheduler is 'EulerDiscreet'; expected one of: *"),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-config=clip_sample"],
            "*expected key=value, as in beta_schedule=linear*",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-config=clip_samples=True"],
            "*config of DDIMScheduler is 'clip_samples'; expected one of: *Did you mean 'clip_sample'?*",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-profile=fast"],
            "*the profile is 'fast'; expected one of: standard, *",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-config=beta_schedule=round"],
            "*DDIMScheduler(beta_schedule=round) cannot be made: NotImplementedError: round*",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-plan=shift=5"],
            "*--diffusion-scheduler-plan is 'shift'; expected one of: device, num_inference_steps.*",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-step=etta=1"],
            "*--diffusion-scheduler-step is 'etta'; expected one of: *Did you mean 'eta'?*",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-expected=velocities=known"],
            "*--diffusion-scheduler-expected is 'velocities'; expected one of: *Did you mean 'velocity'?*",
        ),
        (["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-kind=flows"], "*the kind is 'flows'; expected one of: *"),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-prediction-type=eps"],
            "*the prediction type is 'eps'; expected one of: *Did you mean 'epsilon'?*",
        ),
        (
            ["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-shape=2,x"],
            "*-scheduler-shape*expected the batch and the dimensions*",
        ),
        (["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-shape=2,4,8,8"], "*expected at least 1024*"),
        (["--diffusion-scheduler=DDIMScheduler", "--diffusion-scheduler-baseline=DDIMM"], "*--diffusion-scheduler is 'DDIMM'; *"),
        (["--diffusion-scheduler=json:JSONDecoder"], "*JSONDecoder is not a scheduler: it has no set_timesteps and no step*"),
    ],
)
def test_wrong_options_are_named(pytester, arguments, message):
    result = run(pytester, *arguments)
    assert result.ret != 0
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert any(line for line in [*result.outlines, *result.errlines] if __import__("fnmatch").fnmatch(line, message)), result.outlines


def test_a_model_takes_the_entries_too(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.diffusion(model="demo", scheduler_config=["timestep_spacing=trailing"])
        def test_own(diffusion_scheduler):
            assert diffusion_scheduler.config.timestep_spacing == "trailing"
            assert type(diffusion_scheduler).__name__ == "DDIMScheduler"
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_what_is_declared_on_the_command_line_reaches_the_suite(pytester):
    pytester.makepyfile(declared="from tests.conformance.from_others import Guided, WithoutNoising\n")
    pytester.syspathinsert()
    ids = ("diffusion::runs", "diffusion::point_mass_preserved")
    given = ("--diffusion-scheduler-plan=stretch=7.0", "--diffusion-scheduler-step=omega=10")
    run(pytester, "--diffusion-scheduler=declared:Guided", *given, *ids).assert_outcomes(passed=2)
    run(pytester, "--diffusion-scheduler=declared:Guided", given[0], *ids).assert_outcomes(failed=1, skipped=1)
    run(pytester, "--diffusion-scheduler=declared:WithoutNoising", "--diffusion-scheduler-kind=flow", *ids).assert_outcomes(passed=2)
    given = ("--diffusion-scheduler=declared:WithoutNoising", "--diffusion-scheduler-kind=flow", *ids)
    run(pytester, *given, "--diffusion-scheduler-prediction-type=image_minus_noise").assert_outcomes(passed=2)
    run(pytester, *given, "--diffusion-scheduler-prediction-type=flow_prediction").assert_outcomes(passed=1, failed=1)


def test_the_named_end_of_a_plan_is_an_option(pytester):
    pytester.makepyfile(named_end="from tests.conformance.from_others import NamesItsEnd as Scheduler\n")
    pytester.syspathinsert()
    given = ("--diffusion-scheduler=named_end:Scheduler", "diffusion::runs")
    run(pytester, *given).assert_outcomes(failed=1)
    run(pytester, *given, "--diffusion-scheduler-names-end").assert_outcomes(passed=1)


def test_the_shape_of_samples_is_an_option(pytester):
    pytester.makepyfile(
        videos="from diffusers import DDIMScheduler\nfrom tests.conformance.test_declarations import of_one_shape\n"
        "Scheduler = of_one_shape(DDIMScheduler)\n"
    )
    pytester.syspathinsert()
    ids = ("diffusion::runs", "diffusion::point_mass_preserved")
    without = run(pytester, "--diffusion-scheduler=videos:Scheduler", *ids)
    assert without.ret == 1
    without.stdout.fnmatch_lines(["*declare it: check_scheduler(..., shape=(...))*"])
    run(pytester, "--diffusion-scheduler=videos:Scheduler", "--diffusion-scheduler-shape=2,16,4,8,8", *ids).assert_outcomes(passed=2)


def test_the_choices_of_the_options_are_those_of_the_suite():
    assert parsers.KINDS == subject.KINDS
    assert parsers.PREDICTIONS == (*PREDICTION_TYPES, subject.TOWARDS_DATA)


def test_known_failures_are_named_in_the_ini_file(pytester):
    pytester.makeini("[pytest]\ndiffusion_scheduler_expected = 'velocity=The vendor is told.'\n")
    result = run(pytester, "--diffusion-scheduler=EulerDiscreteScheduler", "diffusion::velocity")
    assert result.ret == 0
    (verdict,) = json.loads((pytester.path / "diffusion-report.json").read_text())["verdicts"]
    assert verdict["outcome"] == "fail"
    assert verdict["message"].endswith("This failure is expected: The vendor is told.")
