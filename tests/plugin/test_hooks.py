"""The plugin as a user meets it: collection, overriding, selection, xdist, the marker, the report."""

import json
import re
import textwrap
import types

import pytest

from pytest_diffusion.checks import all_checks
from pytest_diffusion.plugin.junit import properties
from pytest_diffusion.verdicts.verdict import Limits, Measurement, judge

OF_THE_MODEL = [check for check in all_checks() if check.lens != "paired"]
"""Checks of a run without a baseline."""
SCHEDULE = ("--diffusion-model=demo", "--diffusion-lenses=schedule")

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_checklist_is_collected_in_an_empty_folder(pytester):
    result = pytester.runpytest(*SCHEDULE, "-v")
    result.assert_outcomes(passed=7, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "diffusion: model=demo, lenses=schedule*",
            "diffusion: pytest-diffusion * torch *",
            "diffusion::alphas_cumprod_monotonic PASSED*",
            "*= diffusion quality =*",
            "skipped*sigmas_monotonic*DDIMScheduler steps in timesteps and has no sigmas.",
            "pass*log_snr_first*is 7.07 nats; allowed between*",
            "1 skipped, 7 pass",
            "report: *diffusion-report.html",
            "report: *diffusion-report.json",
        ]
    )
    assert result.ret == 0


def test_beside_the_users_own_tests(pytester):
    pytester.makepyfile("def test_mine():\n    pass\n")
    result = pytester.runpytest(*SCHEDULE)
    result.assert_outcomes(passed=8, skipped=1)


def test_without_a_model_the_plugin_is_silent(pytester):
    pytester.makepyfile("def test_mine():\n    pass\n")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*diffusion:*")
    assert not (pytester.path / "diffusion-report.html").exists()


def test_a_schedule_only_run_never_loads_a_unet(pytester):
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture(autouse=True)
        def no_weights(monkeypatch):
            import diffusers
            def refuse(*args, **kwargs):
                raise AssertionError("weights were loaded")
            monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", refuse)
            monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", refuse)
        """
    )
    pytester.runpytest(*SCHEDULE).assert_outcomes(passed=7, skipped=1)


OVERRIDE = """
    import pytest
    @pytest.fixture(scope="session")
    def diffusion_pipeline():
        from diffusers import DDIMScheduler
        from types import SimpleNamespace
        import torch
        return SimpleNamespace(scheduler=DDIMScheduler(trained_betas=torch.linspace(0.02, 1e-4, 1000).numpy()))
"""


@pytest.mark.parametrize("place", [".", "tests"])
def test_an_overridden_pipeline_is_the_one_that_is_checked(pytester, place):
    folder = pytester.path / place
    folder.mkdir(exist_ok=True)
    (folder / "conftest.py").write_text(textwrap.dedent(OVERRIDE))
    (folder / "test_mine.py").write_text("def test_mine():\n    pass\n")
    result = pytester.runpytest("-v", *SCHEDULE, place)
    result.stdout.fnmatch_lines(["*betas_in_range*The betas fall from 0.02 to 0.0001: they look reversed.*"])
    assert result.ret == 1


@pytest.mark.parametrize("place", [".", "tests"])
def test_samples_of_code_that_may_change_are_never_reused(pytester, shared_cache, place):
    """The same weights, another code: black in the second run, whatever the cache holds."""
    folder = pytester.path / place
    folder.mkdir(exist_ok=True)
    (folder / "test_mine.py").write_text("def test_mine():\n    pass\n")
    arguments = ("--diffusion-model=demo", "--diffusion-num-samples=4", "--diffusion-steps=1", f"--diffusion-cache-dir={shared_cache}")
    for level, outcome in ((0.5, "pass"), (0.0, "fail")):
        (folder / "conftest.py").write_text(
            f"""
import pytest
@pytest.fixture(scope="session")
def diffusion_pipeline(diffusion_settings):
    from pytest_diffusion.models.load import load_pipeline
    pipeline = load_pipeline(diffusion_settings)
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda *args, **kwargs: (decode(*args, **kwargs)[0] * {level} - (1 - {level}),)
    return pipeline
"""
        )
        result = pytester.runpytest(*arguments, place, "-k", "constant_images")
        result.stdout.fnmatch_lines([f"{outcome} *constant_images*"])


def test_the_gate_of_the_report_is_pytests(pytester):
    """An error before anything was measured closes the gate, and a failure that a test expects does not."""
    result = pytester.runpytest("--diffusion-model=demo", "--diffusion-device=xpu", "-k", "same_seed")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["broken*same_seed*--diffusion-device: demo cannot be moved to xpu*"])
    assert json.loads((pytester.path / "diffusion-report.json").read_text())["gate"] == "closed"
    pytester.makepyfile(
        """
        import diffusers, pytest
        from pytest_diffusion import QualityFailure, assert_log_snr_first
        def test_expected():
            with pytest.raises(QualityFailure):
                assert_log_snr_first(diffusers.DDPMScheduler(beta_start=0.01))
        """
    )
    assert pytester.runpytest(*SCHEDULE).ret == 0
    data = json.loads((pytester.path / "diffusion-report.json").read_text())
    assert (data["gate"], data["counts"]) == ("open", {"fail": 1, "skipped": 1, "pass": 7})
    pytester.makepyfile("def test_broken():\n    assert False\n")
    assert pytester.runpytest(*SCHEDULE, "-k", "broken or log_snr_last").ret == 1
    assert json.loads((pytester.path / "diffusion-report.json").read_text())["gate"] == "closed"


def test_selection(pytester):
    pytester.makepyfile("def test_mine():\n    pass\n")
    pytester.runpytest(*SCHEDULE, "-k", "log_snr").assert_outcomes(passed=3, deselected=6)
    pytester.runpytest(*SCHEDULE, "-k", "schedule").assert_outcomes(passed=7, skipped=1, deselected=1)
    pytester.runpytest(*SCHEDULE, "-m", "diffusion").assert_outcomes(passed=7, skipped=1, deselected=1)
    pytester.runpytest(*SCHEDULE, "-m", "not diffusion").assert_outcomes(passed=1, deselected=8)


def test_collect_only(pytester):
    result = pytester.runpytest(*SCHEDULE, "--collect-only", "-q")
    result.stdout.fnmatch_lines(["diffusion::alphas_cumprod_monotonic", "diffusion::timesteps_well_formed", "8 tests collected*"])
    assert not (pytester.path / "diffusion-report.html").exists()


def test_exitfirst(pytester):
    pytester.makeconftest(OVERRIDE)
    result = pytester.runpytest(*SCHEDULE, "-x")
    result.assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize("extra", [("-n", "2"), ("-p", "no:xdist")])
def test_with_and_without_xdist(pytester, extra):
    pytester.makepyfile("def test_mine():\n    pass\n")
    run = pytester.runpytest_subprocess if "-n" in extra else pytester.runpytest
    result = run(*SCHEDULE, *extra)
    result.assert_outcomes(passed=8, skipped=1)
    result.stdout.fnmatch_lines(["1 skipped, 7 pass", "report: *diffusion-report.html"])
    data = json.loads((pytester.path / "diffusion-report.json").read_text())
    assert len(data["verdicts"]) == 8
    assert data["run"]["thresholds"] == ["thresholds/default.toml", "thresholds/demo.toml"]


def test_ini_twins(pytester):
    pytester.makeini("[pytest]\ndiffusion_model = demo\ndiffusion_modes = schedule\ndiffusion_thresholds = demo ddpm\n")
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(["*thresholds=demo,ddpm*", "fail*log_snr_first*thresholds/ddpm.toml*"])
    assert result.ret == 1


def test_the_preset_follows_the_scheduler_that_was_asked_for(pytester):
    result = pytester.runpytest(*SCHEDULE, "--diffusion-scheduler=EulerDiscreteScheduler")
    result.assert_outcomes(passed=8)


def test_a_reference_made_from_samples_is_built_after_them(pytester, shared_cache):
    """An override may need the samples, for their number or their size."""
    pytester.makeconftest(
        """
        import pytest, torch
        from pytest_diffusion.data.references import Reference
        @pytest.fixture(scope="session")
        def diffusion_reference(diffusion_samples):
            return Reference("own", torch.randint(256, (len(diffusion_samples.images), 3, 32, 32), dtype=torch.uint8), sizes={"32x32": 4})
        """
    )
    chosen = ("-k", "finite_images or same_resolution", "--diffusion-num-samples=4", "--diffusion-steps=1")
    result = pytester.runpytest("--diffusion-model=demo", f"--diffusion-cache-dir={shared_cache}", *chosen)
    result.assert_outcomes(passed=2, deselected=len(OF_THE_MODEL) - 2)


def test_a_modules_own_reference_with_a_scope_of_its_own_is_not_asked_for(pytester, shared_cache):
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="module")
        def diffusion_reference():
            return "mine"
        def test_both(diffusion_samples, diffusion_reference):
            assert diffusion_reference == "mine" and len(diffusion_samples.images) == 4
        """
    )
    pytester.makepyfile(test_other="def test_other():\n    pass\n")
    pytester.makeini("[pytest]\ndiffusion_model = demo\ndiffusion_num_samples = 4\ndiffusion_steps = 1\n")
    chosen = ("-k", "test_both or finite_images", f"--diffusion-cache-dir={shared_cache}")
    pytester.runpytest(*chosen).assert_outcomes(passed=2, deselected=len(OF_THE_MODEL))


def test_marker_overrides_options_for_one_test(pytester, shared_cache):
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.diffusion(num_samples=3, steps=1)
        def test_few(diffusion_samples, diffusion_settings):
            assert len(diffusion_samples.images) == 3 and diffusion_settings.steps == 1
        @pytest.mark.diffusion(num_samples=2, steps=1)
        def test_fewer(diffusion_samples):
            assert len(diffusion_samples.images) == 2
        @pytest.mark.diffusion(scheduler="EulerDiscreteScheduler")
        def test_scheduler(diffusion_scheduler):
            assert type(diffusion_scheduler).__name__ == "EulerDiscreteScheduler"
        """
    )
    result = pytester.runpytest(
        "--diffusion-model=demo", f"--diffusion-cache-dir={shared_cache}", "-m", "diffusion", "-k", "few or fewer or test_scheduler"
    )
    result.assert_outcomes(passed=3, deselected=len(OF_THE_MODEL))


def test_markers_of_function_class_and_module_count_together(pytester):
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.diffusion(seed=7, steps=9)
        @pytest.mark.diffusion(num_samples=3, steps=5)
        class TestAll:
            @pytest.mark.diffusion(num_samples=2, width=16)
            def test_nearest_wins(self, diffusion_settings):
                found = diffusion_settings
                assert (found.num_samples, found.steps, found.width, found.seed) == (2, 5, 16, 7)
            def test_class(self, diffusion_settings):
                assert (diffusion_settings.num_samples, diffusion_settings.steps) == (3, 5)
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_wrong_marker_arguments_are_usage_errors(pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.diffusion(numsamples=3)\ndef test_few(diffusion_settings):\n    pass\n")
    result = pytester.runpytest()
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*setting is 'numsamples'*Did you mean 'num_samples'*"])


def test_fixtures_of_the_session(pytester, shared_cache):
    pytester.makepyfile(
        """
        import torch
        def test_fixtures(diffusion_pipeline, diffusion_prompts, diffusion_reference, diffusion_samples, diffusion_features,
                          diffusion_reference_features, diffusion_latents, diffusion_thresholds, diffusion_generator, diffusion_scheduler):
            assert diffusion_samples.images.shape == (4, 3, 32, 32)
            assert diffusion_features.values.shape == (4, 128)
            assert len(diffusion_reference_features.values) == len(diffusion_reference.images) == 1000
            assert diffusion_latents.encode(diffusion_samples.images).shape == (4, 4, 8, 8)
            assert diffusion_thresholds.for_check("fid").min_samples
            assert diffusion_prompts[0] == diffusion_samples.prompts[0]
            assert diffusion_scheduler is not diffusion_pipeline.scheduler
            assert diffusion_generator.initial_seed() == 0
        def test_fresh(diffusion_scheduler, diffusion_generator):
            diffusion_scheduler.set_timesteps(3)
            torch.randn(3, generator=diffusion_generator)
        def test_fresh_again(diffusion_scheduler, diffusion_generator):
            assert diffusion_scheduler.num_inference_steps is None
            assert torch.equal(diffusion_generator.get_state(), torch.Generator("cpu").manual_seed(0).get_state())
        """
    )
    result = pytester.runpytest(
        "--diffusion-model=demo",
        "--diffusion-num-samples=4",
        "--diffusion-steps=2",
        f"--diffusion-cache-dir={shared_cache}",
        "-m",
        "not diffusion",
    )
    result.assert_outcomes(passed=3, deselected=len(OF_THE_MODEL))


def test_helpers_in_a_users_test_reach_report_and_summary(pytester):
    pytester.makepyfile(
        """
        import diffusers, torch
        from pytest_diffusion import assert_log_snr_first
        def test_schedule(diffusion_report):
            diffusion_report.add_number("answer", 42.0, "units")
            diffusion_report.add_figure("grey", torch.full((3, 4, 4), 128, dtype=torch.uint8))
            assert_log_snr_first(diffusers.DDPMScheduler())
        def test_bad_schedule():
            assert_log_snr_first(diffusers.DDPMScheduler(beta_start=0.01))
        """
    )
    result = pytester.runpytest("--diffusion-report=out/own.html")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*QualityFailure: log-SNR at the first timestep is 4.6 nats; allowed between 6 and 16*",
            "fail*log_snr_first*",
            "pass*log_snr_first*",
        ]
    )
    data = json.loads((pytester.path / "out" / "own.json").read_text())
    assert data["notes"][0]["numbers"] == [{"name": "answer", "value": 42.0, "unit": "units"}]
    html = (pytester.path / "out" / "own.html").read_text()
    assert "answer" in html
    assert "data:image/png;base64" in html


def test_figures_appear_as_junit_properties(pytester):
    pytester.runpytest(*SCHEDULE, "-k", "log_snr_last", "--junitxml=junit.xml", "-o", "junit_family=xunit1")
    text = (pytester.path / "junit.xml").read_text()
    assert '<property name="diffusion.log_snr_last" value="-5.36' in text
    assert '<property name="diffusion.log_snr_last.outcome" value="pass"' in text
    assert '<property name="diffusion.log_snr_last.at_most" value="' in text
    assert '<property name="diffusion.log_snr_last.limit_from" value="thresholds/demo.toml [log_snr_last]"' in text
    assert 'name="diffusion.log_snr_last.unit" value="nats"' in text
    # Exact figures have no interval.
    assert "log_snr_last.low" not in text


def test_a_figures_interval_and_number_of_samples_are_properties_too():
    measured = Measurement(30.0, interval=(29.0, float("inf")), num_samples=500)
    found = dict(properties([judge("fid", measured, Limits(at_most=50.0, source="a paper"))]))
    assert found["diffusion.fid.low"] == 29.0
    assert found["diffusion.fid.high"] == "inf"
    assert found["diffusion.fid.num_samples"] == 500
    assert found["diffusion.fid.source"] == "a paper"


def test_markdown_summary_for_github(pytester, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    pytester.runpytest(*SCHEDULE, "-k", "log_snr_last")
    text = (pytester.path / "summary.md").read_text()
    assert "## Diffusion quality: gate partial" in text
    assert "Partial: 1 of 8 checks were run (-k log\\_snr\\_last)." in text
    assert "| pass | log_snr_last |" in text


def test_a_report_that_cannot_be_written_hides_no_verdict(pytester):
    (pytester.path / "blocked").write_text("")
    result = pytester.runpytest(*SCHEDULE, "--diffusion-report=blocked/report.html")
    result.stdout.fnmatch_lines(["1 skipped, 7 pass", "*could not be written*", "gate: closed", "report: *could not be written*"])
    assert result.ret == 1


def test_close_calls_may_be_let_through_and_others_not(pytester, shared_cache):
    (pytester.path / "soft.toml").write_text('[gate]\ninconclusive = "warn"\n')
    arguments = (
        "--diffusion-model=demo",
        "--diffusion-num-samples=8",
        "--diffusion-steps=2",
        f"--diffusion-cache-dir={shared_cache}",
        "-k",
        "recall",
    )
    hard = pytester.runpytest(*arguments)
    hard.assert_outcomes(failed=1, deselected=len(OF_THE_MODEL) - 1)
    hard.stdout.fnmatch_lines(["undersampled*recall*not enough samples: 8 samples*"])
    soft = pytester.runpytest(*arguments, "--diffusion-thresholds=demo", "--diffusion-thresholds=soft.toml")
    soft.assert_outcomes(skipped=1, deselected=len(OF_THE_MODEL) - 1)
    assert soft.ret == 0
    soft.stdout.fnmatch_lines(["undersampled*recall*", "gate: partial"])


def test_a_crash_inside_a_check_is_no_pass(pytester):
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture
        def diffusion_scheduler():
            return 3
        """
    )
    result = pytester.runpytest(*SCHEDULE, "-k", "timesteps_well_formed")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*timesteps_well_formed*AttributeError*"])


USAGE = [
    (("--diffusion-model=dmeo",), "*--diffusion-model is 'dmeo'; expected 'demo', analytic:NAME, a diffusers folder*"),
    (("--diffusion-model=demo", "--diffusion-lenses=latents"), "*Did you mean 'latent'*"),
    (("--diffusion-model=demo", "--diffusion-steps=ten"), "*--diffusion-steps is 'ten': expected a number.*"),
    (("--diffusion-model=demo", "--diffusion-thresholds=sd16"), "*Did you mean 'sd15'*"),
    (("--diffusion-model=empty",), "*empty has no model_index.json*"),
    (("--diffusion-model=notjson",), "*scheduler_config.json is not valid JSON*"),
    (("--diffusion-model=demo", "--diffusion-prompts=none.txt"), "*the file none.txt does not exist*"),
    (("--diffusion-model=demo", "--diffusion-reference=./none"), "*--diffusion-reference: ./none does not exist*"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE, ids=[message.strip("*")[:30] for _, message in USAGE])
def test_usage_errors_are_one_line_and_come_before_torch(pytester, arguments, message):
    (pytester.path / "empty").mkdir()
    (pytester.path / "notjson" / "scheduler").mkdir(parents=True)
    (pytester.path / "notjson" / "model_index.json").write_text('{"scheduler": ["diffusers", "DDIMScheduler"]}')
    (pytester.path / "notjson" / "scheduler" / "scheduler_config.json").write_text("{")
    # A torch that cannot be imported: whoever touches it fails.
    (pytester.path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    result = pytester.runpytest_subprocess(*arguments, "-p", "no:hypothesispytest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: " + message.lstrip("*") if not message.startswith("*") else "ERROR: " + message])
    assert len([line for line in result.stderr.lines if line.strip()]) == 1


def test_a_reason_that_takes_down_many_checks_is_said_once(pytester):
    result = pytester.runpytest("--diffusion-model=nobody/nothing", "--diffusion-modes=schedule")
    result.assert_outcomes(errors=8)
    reason = "could not be measured: --diffusion-model: nobody/nothing cannot be loaded: the hub is switched off (HF_HUB_OFFLINE)*"
    result.stdout.fnmatch_lines(
        [
            "log_snr_first could not be measured, for the same reason as alphas_cumprod_monotonic.",
            f"broken*8 checks (alphas_cumprod_monotonic, betas_in_range, *, ...)*{reason}",
            "8 broken",
        ]
    )
    output = result.stdout.str()
    assert output.count("the hub is switched off") <= 3, "once as pytest's error, once in the summary, and in CI in pytest's own list"


def test_help_lists_every_option(pytester):
    from pytest_diffusion.config.options import OPTIONS

    text = "\n".join(pytester.runpytest("--help").outlines)
    for option in OPTIONS:
        assert re.search(rf"{option.flag}{'' if option.is_switch else '(=|, --)'}", text), "from Python 3.13 on, aliases share the value"
        assert f"{option.ini} (" in text


def test_generation_shows_its_progress_on_a_terminal(pytester, tmp_path):
    """A real terminal, made by pty; pytest's capture must not swallow the bar."""
    import fcntl
    import os
    import pty
    import struct
    import subprocess
    import sys
    import termios

    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, "-m", "pytest", "--diffusion-model=demo", "--diffusion-num-samples=80", "--diffusion-steps=1"]
    command += [f"--diffusion-cache-dir={tmp_path}", "-k", "finite_images"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    streams = {"stdin": terminal, "stdout": subprocess.DEVNULL, "stderr": terminal}
    done = subprocess.run(command, cwd=pytester.path, env=alone, check=False, **streams)
    shown = os.read(main, 100_000).decode(errors="replace")
    os.close(terminal)
    os.close(main)
    assert done.returncode == 0
    assert "generate" in shown
    assert "/80" in shown


def test_paths_in_the_ini_file_are_relative_to_it(pytester, monkeypatch):
    (pytester.path / "own.toml").write_text('[log_snr_last]\nat_most = -5.0\nsource = "ours"\n')
    pytester.makeini(
        "[pytest]\ndiffusion_model = demo\ndiffusion_lenses = schedule\ndiffusion_thresholds = demo ./own.toml\n"
        "diffusion_report = out/r.html\ndiffusion_cache_dir = kept\n"
    )
    (pytester.path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(pytester.path / "deep" / "er")
    result = pytester.runpytest_inprocess()
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"*thresholds=demo,*own.toml*cache_dir={pytester.path / 'kept'}*"])
    assert json.loads((pytester.path / "out" / "r.json").read_text())["gate"] == "open"
    # An option is relative to where it was typed.
    pytester.runpytest_inprocess("--diffusion-report=typed.html")
    assert (pytester.path / "deep" / "er" / "typed.json").exists()


def test_cores_are_shared_once_however_often_the_pipeline_is_built():
    import torch

    from pytest_diffusion.plugin.fixtures.model import _share_cores

    config = types.SimpleNamespace(workerinput={"workercount": 2}, stash=pytest.Stash())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        for _ in range(3):
            _share_cores(config)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_was_made_from_one_override_is_not_used_beside_another(pytester, shared_cache):
    """The second folder once had one pipeline and the samples of another."""
    level = """
        import pytest
        @pytest.fixture(scope="session")
        def diffusion_pipeline(diffusion_settings):
            from pytest_diffusion.models.load import load_pipeline
            pipeline = load_pipeline(diffusion_settings)
            decode = pipeline.vae.decode
            pipeline.vae.decode = lambda *args, **kwargs: (decode(*args, **kwargs)[0] * 0 + {level},)
            return pipeline
        """
    for name, value in (("a", -1.0), ("b", 1.0)):
        (pytester.path / name).mkdir()
        (pytester.path / name / "conftest.py").write_text(textwrap.dedent(level.format(level=value)))
        (pytester.path / name / f"test_{name}.py").write_text(
            f"def test_it(diffusion_samples):\n    assert diffusion_samples.images.float().mean() == {255 * (value > 0)}\n"
        )
    (pytester.path / "test_stock.py").write_text(
        "def test_it(diffusion_samples):\n    assert 20 < diffusion_samples.images.float().mean() < 235\n"
    )
    pytester.makeini("[pytest]\ndiffusion_num_samples = 2\ndiffusion_steps = 1\ndiffusion_prompts = demo\n")
    pytester.makeconftest(
        """
        import pytest
        @pytest.fixture(scope="session")
        def diffusion_settings():
            from pytest_diffusion.config.settings import Settings
            return Settings(model="demo", num_samples=2, steps=1, prompts="demo", device="cpu", cache_dir="cache")
        """
    )
    pytester.runpytest().assert_outcomes(passed=3)


def test_each_parameter_of_an_override_has_its_own_samples(pytester):
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="session")
        def diffusion_settings():
            from pytest_diffusion.config.settings import Settings
            return Settings(model="demo", num_samples=2, steps=1, prompts="demo", device="cpu", cache_dir="cache")
        @pytest.fixture(scope="session", params=[-1.0, 1.0])
        def diffusion_pipeline(request, diffusion_settings):
            from pytest_diffusion.models.load import load_pipeline
            pipeline = load_pipeline(diffusion_settings)
            decode, level = pipeline.vae.decode, request.param
            pipeline.vae.decode = lambda *args, **kwargs: (decode(*args, **kwargs)[0] * 0 + level,)
            return pipeline
        @pytest.fixture
        def level(diffusion_pipeline, request):
            return request.node.callspec.params["diffusion_pipeline"]
        def test_it(diffusion_samples, level):
            assert diffusion_samples.images.float().mean() == 255 * (level > 0)
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_other_formats_carry_outcomes_and_messages(pytester):
    """CTRF is written by pytest-json-ctrf, JUnit by pytest."""
    pytest.importorskip("ctrf", reason="the environments of the lowest and newest versions do not have it")
    result = pytester.runpytest(*SCHEDULE, "--ctrf=ctrf.json", "--junitxml=junit.xml", "-k", "sigmas_monotonic or log_snr_first")
    assert result.ret == 0
    written = json.loads((pytester.path / "ctrf.json").read_text(encoding="utf-8"))["results"]
    assert (written["summary"]["passed"], written["summary"]["skipped"], written["summary"]["failed"]) == (1, 1, 0)
    by_name = {test["name"].split("::")[-1]: test for test in written["tests"]}
    assert "has no sigmas" in by_name["sigmas_monotonic"]["message"]
    assert 'name="diffusion.log_snr_first"' in (pytester.path / "junit.xml").read_text(encoding="utf-8")
    pytester.makefile(".toml", strict="[log_snr_first]\nat_least = 1000.0\nsource = 'a test'\n")
    pytester.runpytest(*SCHEDULE, "--ctrf=failed.json", "--diffusion-thresholds=strict.toml", "-k", "log_snr_first")
    failed = json.loads((pytester.path / "failed.json").read_text(encoding="utf-8"))["results"]["tests"]
    assert [test["status"] for test in failed] == ["failed"]
    assert "at least 1000" in failed[0]["trace"]
