"""What a run would cost, before it is run: `--diffusion-plan`, `--diffusion-budget` and the header."""

import json

import pytest

from pytest_diffusion.config.durations import duration, parsed_duration
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.samples import cost, timings
from pytest_diffusion.samples.cost import hold_to_budget, probe, require_budget
from pytest_diffusion.samples.timings import Timing, cost_text, known_timing, remember_timing
from pytest_diffusion.verdicts.errors import SetupError

OPTIONS = ["--diffusion-model=demo", "--diffusion-steps=2", "--diffusion-num-samples=64"]


@pytest.fixture
def run(pytester, tmp_path):
    return lambda *options: pytester.runpytest(*OPTIONS, f"--diffusion-cache-dir={tmp_path}", *options)


def test_a_plan_judges_nothing_and_says_so(run, pytester, tmp_path):
    pytester.makepyfile("def test_never():\n    assert False\n")
    found = run("--diffusion-plan")
    assert found.ret == 0
    found.stdout.fnmatch_lines(
        [
            "*plan of this run; nothing was judged:*",
            "*load *demo: * MB on this machine*",
            "*generate *64 images, 256 denoiser evaluations, * for *finite_images*",
            "*features *64 images through demo. for *fid*",
            "*attention *64 images, *",
            "*all images *measured over 64 images*MB of disk*",
        ]
    )
    found.stdout.no_fnmatch_line("*gate: *")
    assert not list(pytester.path.glob("*.html"))
    assert not list(tmp_path.glob("samples/*/shards/*.json")), "the probe is thrown away"


def test_a_plan_counts_what_is_there(run):
    assert "64 of 64" not in run("-k", "finite_images").stdout.str()
    found = run("--diffusion-plan", "-k", "finite_images")
    found.stdout.fnmatch_lines(
        ["*cost: 64 images of 2 steps, 0.2 MB, about * by the run of 20*", "*generate *64 images (64 in the store), 0 denoiser*"]
    )
    found.stdout.no_fnmatch_line("*attention *")


@pytest.mark.parametrize("options", [["-o", "diffusion_plan=true"], []])
def test_the_ini_file_cannot_ask_for_it(run, options):
    """A run that exits with 0 and has judged nothing must be asked for on the command line."""
    found = run(*options, "-k", "finite_images")
    found.stdout.no_fnmatch_line("*plan of this run*")


@pytest.mark.parametrize(
    ("options", "ini", "reason"),
    [
        (["--diffusion-plan", "-n2"], "", "*runs in one process: leave -n out*"),
        ([], "[pytest]\naddopts = --diffusion-plan\n", "*--diffusion-plan must be typed*"),
    ],
)
def test_what_would_look_at_nothing_is_refused(run, pytester, options, ini, reason):
    if ini:
        pytester.makefile(".ini", pytest=ini)
    found = run(*options)
    assert found.ret == 4
    found.stderr.fnmatch_lines([reason])


def test_a_model_that_cannot_draw_is_told_in_one_line(run, pytester):
    pytester.makeconftest(
        """
        from pytest_diffusion.samples import generate
        def call_pipeline(*args, **kwargs):
            raise ValueError("no such size")
        generate.call_pipeline = call_pipeline
        """
    )
    # In a process of its own: the package itself is patched.
    found = pytester.runpytest_subprocess(*OPTIONS, "--diffusion-plan")
    assert found.ret == 4
    found.stderr.fnmatch_lines(["*--diffusion-plan: the model cannot draw: ValueError: no such size*"])


def test_a_plan_without_a_model_is_refused(pytester):
    pytester.makepyfile("def test_one(diffusion_settings):\n    pass\n")
    found = pytester.runpytest("--diffusion-plan")
    assert found.ret == 4
    found.stderr.fnmatch_lines(["*--diffusion-plan needs --diffusion-model*"])


def test_a_budget_that_does_not_suffice_stops_the_run_before_it_draws(run, tmp_path):
    found = run("--diffusion-budget=0.01s", "-k", "finite_images")
    assert found.ret != 0
    found.stdout.fnmatch_lines(["*--diffusion-budget is 0.0 s, and 64 images take about *--diffusion-num-samples=*fits*"])
    assert not list(tmp_path.glob("samples/*/shards/*.json"))
    assert "finite_images" in run("--diffusion-budget=1h", "-k", "finite_images").stdout.str()
    found = run("--diffusion-budget=0.01s", "-k", "finite_images")
    found.stdout.no_fnmatch_line("*--diffusion-budget is*")  # all samples are there


def test_what_fits_and_what_it_decides():
    settings, timing = Settings(num_samples=1000, budget=100.0), Timing(0.5, 32, 32, "measured over 8 images")
    require_budget(settings, 200, timing, {})
    with pytest.raises(SetupError, match=r"2 min, and 1000 images take about 8 min \(0.5 s each, measured over 8 images\)") as found:
        require_budget(settings, 1000, timing, {"fid": 500, "kid": 100, "huge": 10_000})
    assert str(found.value).endswith("--diffusion-num-samples=200 fits, and would leave fid undecided, which need more.")
    with pytest.raises(SetupError, match="--diffusion-num-samples=500 fits, and is enough for every check"):
        require_budget(settings, 700, timing, {"kid": 100})


def test_the_pairs_of_a_comparison_cost_both_models(monkeypatch, demo_pipeline, tmp_path):
    settings = Settings(model="demo", num_samples=100, budget=60.0, cache_dir=str(tmp_path))
    monkeypatch.setattr(cost, "probe", lambda *_: Timing(0.5, 32, 32, "measured"))
    hold_to_budget([(demo_pipeline, settings)], ["a"], {})
    with pytest.raises(SetupError, match=r"200 images take about 2 min .*--diffusion-max-samples=60 fits"):
        hold_to_budget([(demo_pipeline, settings), (demo_pipeline, settings)], ["a"], {})
    assert not list(tmp_path.iterdir())


def test_the_probe_measures_one_image(demo_pipeline):
    found = probe(demo_pipeline, ["a red circle"], Settings(steps=1, num_samples=8, guidance_scale=1.0))
    assert (found.height, found.width) == (32, 32)
    assert 0 < found.seconds < 10
    assert found.source == "measured over 8 images"
    assert found.memory > 10e6


def test_timings_are_kept_by_what_decides_them(tmp_path):
    settings = Settings(model="demo", cache_dir=str(tmp_path), steps=20)
    assert known_timing(settings) is None
    remember_timing(settings, 0.25, (32, 48))
    found = known_timing(settings)
    assert (found.seconds, found.height, found.width) == (0.25, 32, 48)
    assert known_timing(Settings(model="demo", cache_dir=str(tmp_path), steps=21)) is None
    assert known_timing(Settings(model="demo", cache_dir=str(tmp_path), steps=20, seed=7, num_samples=3)) == found
    (tmp_path / "timings.json").write_text("[1]")
    assert known_timing(settings) is None
    (tmp_path / "timings.json").write_text(json.dumps({timings._key(settings): {"seconds": "x"}}))
    assert known_timing(settings) is None


def test_a_long_run_is_marked():
    timing = Timing(1.0, 512, 512, "by the run of 2026-11-26")
    assert cost_text(Settings(steps=50), 1000, timing) == "1000 images of 50 steps, 786.4 MB, about 17 min by the run of 2026-11-26"
    assert cost_text(Settings(), 5000, timing).startswith("LONG RUN: 5000 images")
    assert cost_text(Settings(), 70_000, Timing(0.001, 512, 512, "")).startswith("LONG RUN: "), "55 GB"
    assert cost_text(Settings(), 7, None) == "7 images of 50 steps"


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("90m", 5400), ("2h", 7200), ("1.5h", 5400), ("30", 30), ("1d", 86_400)])
def test_durations_are_read(text, seconds):
    assert parsed_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "-3h", "2 weeks"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="expected a time"):
        parsed_duration(text)


@pytest.mark.parametrize(("seconds", "shown"), [(0.25, "0.2 s"), (5, "5 s"), (89, "89 s"), (720, "12 min"), (12_600, "3.5 hours")])
def test_times_for_people(seconds, shown):
    assert duration(seconds) == shown
