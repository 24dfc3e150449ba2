"""Ways in which a gate could open, or pytest could end with 0, though something failed or was never looked at.

Each row is a folder, a command, and what must come of it: the exit code, the gate in both files of the report, and a sentence. A new
way is a new row.
"""

import json
import textwrap
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch

import pytest

from pytest_diffusion.verdicts.gate import BROKEN_SETUP
from tests.nightly import mostly_nightly

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEDULE = ("--diffusion-model=demo", "--diffusion-lenses=schedule")
SCHEDULER = ("--diffusion-scheduler=DDIMScheduler",)
TITLES = {
    "open": "The gate is open.",
    "amber": "The gate is open, with figures that are not decided.",
    "partial": "Partial: the gate is not open.",
    "empty": "Nothing was judged: the gate is closed.",
    "closed": "The gate is closed.",
    "unfinished": "ot finished",
}
PASSING = {"test_mine.py": "def test_mine():\n    pass\n"}
PIXELS = {
    "pixels.py": """
        import torch
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        def make():
            torch.manual_seed(0)
            blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
            unet = UNet2DModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, **blocks)
            return DDPMPipeline(unet, DDPMScheduler())
        """,
    "pytest.ini": "[pytest]\npythonpath = .\n",
}
OF_PIXELS = ("--diffusion-model=pixels:make", "--diffusion-num-samples=2", "--diffusion-steps=1", "--diffusion-cache-dir=cache")


def pipeline_of(body, decorator='@pytest.fixture(scope="session")', arguments=""):
    """A conftest.py that overrides the pipeline."""
    return f"""
        import types, unittest
        import pytest
        {decorator}
        def diffusion_pipeline({arguments}):
            import diffusers, torch
            SOUND = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
            REVERSED = diffusers.DDIMScheduler(trained_betas=torch.linspace(0.02, 1e-4, 1000).numpy())
            {body}
        """


SOUND = pipeline_of("return types.SimpleNamespace(scheduler=SOUND)")
REVERSED = pipeline_of("return types.SimpleNamespace(scheduler=REVERSED)")
FLAKY = """
    import pytest
    calls = []
    @pytest.fixture
    def diffusion_scheduler():
        import diffusers, torch
        calls.append(1)
        if len(calls) == 1:
            return diffusers.DDIMScheduler(trained_betas=torch.linspace(0.02, 1e-4, 1000).numpy() - 0.03)
        return diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    """
LIMIT = '[{check}]\nat_most = 10\nsource = "ours"\n{more}'


def limit(check, more=""):
    return {"own.toml": LIMIT.format(check=check, more=more)}


OWN = ("--diffusion-thresholds=demo", "--diffusion-thresholds=own.toml")


@dataclass
class Way:
    arguments: tuple[str, ...]
    code: int
    gate: str | None
    """The gate of both files; None where no run begins, so that there is no report."""
    sentence: str
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def changes_items(body):
    return f"""
        import pytest
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(items):
            {body}
        """


WAYS = {
    # What may pass.
    "a whole run": Way(SCHEDULE, 0, "open", "gate: open"),
    "a selection that was typed": Way((*SCHEDULE, "-k", "log_snr"), 0, "partial", "Partial: 3 of 8 checks were run (-k log_snr)."),
    "an id": Way((*SCHEDULE, "diffusion::log_snr_last"), 0, "partial", "Partial: 1 of 8 checks were run (diffusion::log_snr_last)."),
    "deselected": Way((*SCHEDULE, "--deselect=diffusion::betas_in_range"), 0, "partial", "not run: betas_in_range"),
    # Nothing, or not all, was judged.
    "-k that chooses nothing": Way((*SCHEDULE, "-k", "nothing_of_this_name"), 1, "closed", "Nothing was judged*"),
    "-m that leaves the checklist out": Way(("--diffusion-model=demo", "-m", "not diffusion"), 1, "empty", "Nothing was judged*", PASSING),
    "addopts with -m": Way(
        ("--diffusion-model=demo",),
        1,
        "empty",
        "Partial: 0 of 63 checks were run (-m unit).",
        {**PASSING, "pytest.ini": "[pytest]\naddopts = -m unit\nmarkers = unit\n"},
    ),
    "addopts with -k": Way(SCHEDULE, 1, "partial", "Partial: 3 of 8 *(-k log_snr).", {"pytest.ini": "[pytest]\naddopts = -k log_snr\n"}),
    "addopts beside what was typed": Way(
        (*SCHEDULE, "--deselect=diffusion::betas_in_range"),
        1,
        "partial",
        "not run: betas_in_range, log_snr_first",
        {"pytest.ini": "[pytest]\naddopts = --deselect diffusion::log_snr_first\n"},
    ),
    "PYTEST_ADDOPTS with -k": Way(SCHEDULE, 1, "partial", "gate: partial", environment={"PYTEST_ADDOPTS": "-k log_snr"}),
    "an id that does not exist": Way((*SCHEDULE, "diffusion::log_snr_lost"), 2, "unfinished", "*Did you mean 'log_snr_last'*"),
    "a hook that drops items": Way(SCHEDULE, 1, "partial", "Partial: 1 of 8*", {"conftest.py": changes_items("items[:] = items[:1]")}),
    "-x beside a hook that drops items": Way(
        (*SCHEDULE, "-x"), 1, "partial", "Partial: 1 of 8*", {"conftest.py": changes_items("items[:] = items[:1]")}
    ),
    "a hook that drops all items": Way(SCHEDULE, 1, "closed", "Partial: 0 of 8*", {"conftest.py": changes_items("items[:] = []")}),
    "a mark that skips": Way(
        SCHEDULE,
        1,
        "partial",
        "not run: log_snr_last",
        {"conftest.py": changes_items("[item.add_marker(pytest.mark.skip('no')) for item in items if item.name == 'log_snr_last']")},
    ),
    "a hook that skips every test": Way(
        SCHEDULE,
        1,
        "closed",
        "*none of the checks of the lens schedule was judged*",
        {"conftest.py": "import pytest\ndef pytest_runtest_setup(item):\n    pytest.skip('not today')\n"},
    ),
    "a failure that pytest-rerunfailures repeats until it passes": Way(
        (*SCHEDULE, "--reruns", "1"),
        1,
        "partial",
        "alphas_cumprod_monotonic did not pass and was not counted (it was run again).",
        {"conftest.py": FLAKY},
    ),
    "a failure that stays when it is repeated": Way((*SCHEDULE, "--reruns", "1"), 1, "closed", "gate: closed", {"conftest.py": REVERSED}),
    "xfail": Way(
        SCHEDULE,
        1,
        "partial",
        "betas_in_range did not pass and was not counted (xfail).",
        {"conftest.py": textwrap.dedent(REVERSED) + textwrap.dedent(changes_items("[item.add_marker('xfail') for item in items]"))},
    ),
    "a hook that calls a failure passed": Way(
        SCHEDULE,
        1,
        "partial",
        "*was not counted (pytest counts it as passed).",
        {
            "conftest.py": textwrap.dedent(REVERSED)
            + "@pytest.hookimpl(wrapper=True, tryfirst=True)\ndef pytest_runtest_makereport():\n    report = yield\n"
            "    report.outcome = 'passed'\n    return report\n"
        },
    ),
    "a hook that sets the exit status": Way(
        SCHEDULE,
        1,
        "closed",
        "fail*betas_in_range*",
        {
            "conftest.py": textwrap.dedent(REVERSED)
            + "@pytest.hookimpl(wrapper=True, tryfirst=True)\ndef pytest_sessionfinish(session):\n    yield\n    session.exitstatus = 0\n"
        },
    ),
    "-x after a failure": Way((*SCHEDULE, "-x"), 1, "closed", "Partial: 2 of 8 checks were run (-x).", {"conftest.py": REVERSED}),
    "a factory that skips": Way(
        (*SCHEDULE[1:], "--diffusion-model=factory:make"),
        1,
        "closed",
        "*none of the checks of the lens schedule was judged*no_such_package*",
        {
            "factory.py": "import pytest\ndef make():\n    pytest.importorskip('no_such_package')\n",
            "pytest.ini": "[pytest]\npythonpath = .\n",
        },
    ),
    "unittest.SkipTest in a fixture": Way(
        SCHEDULE, 1, "closed", "missing*schedule*not here*", {"conftest.py": pipeline_of("raise unittest.SkipTest('not here')")}
    ),
    "pytest.skip in a fixture": Way(
        SCHEDULE, 1, "closed", "missing*schedule*not here*", {"conftest.py": pipeline_of("pytest.skip('not here')")}
    ),
    # The run did not come to its end.
    "pytest.exit(returncode=0) in a test": Way(
        SCHEDULE,
        1,
        "unfinished",
        "The run was stopped: enough.",
        {"test_mine.py": "import pytest\ndef test_mine():\n    pytest.exit('enough', returncode=0)\n"},
    ),
    "pytest.exit(returncode=0) in a fixture": Way(
        SCHEDULE, 1, "unfinished", "The run was stopped: enough.", {"conftest.py": pipeline_of("pytest.exit('enough', returncode=0)")}
    ),
    "pytest.exit(returncode=0) at the start": Way(
        SCHEDULE,
        1,
        "unfinished",
        "*",
        {"conftest.py": "import pytest\ndef pytest_configure(config):\n    pytest.exit('enough', returncode=0)\n"},
    ),
    "SystemExit in a conftest.py": Way(
        SCHEDULE, 4, "unfinished", "*ended Python while it was loaded*", {"conftest.py": "raise SystemExit(0)\n"}
    ),
    "SystemExit in a test": Way(
        SCHEDULE, 1, "closed", "1 test that gave no verdict failed*", {"test_mine.py": "def test_mine():\n    raise SystemExit(0)\n"}
    ),
    "a hook that stops the session": Way(
        SCHEDULE,
        2,
        "unfinished",
        "The run was stopped: enough.",
        {"conftest.py": "def pytest_runtest_setup(item):\n    item.session.shouldstop = 'enough'\n"},
    ),
    "Ctrl-C": Way(
        SCHEDULE, 2, "unfinished", "The run was stopped: KeyboardInterrupt.", {"conftest.py": pipeline_of("raise KeyboardInterrupt")}
    ),
    "a module that cannot be imported": Way(
        SCHEDULE, 2, "unfinished", "1 test that gave no verdict failed*", {"test_mine.py": "import nowhere\n"}
    ),
    "a test of the user's that fails": Way(
        SCHEDULE, 1, "closed", "1 test that gave no verdict failed*", {"test_mine.py": "def test_mine():\n    assert False\n"}
    ),
    "a report that cannot be written": Way((*SCHEDULE, "--diffusion-report=file/r.html"), 1, None, "*could not be written*", {"file": ""}),
    # A promise that was not kept.
    "a lens that the model does not have": Way(
        (*OF_PIXELS, "--diffusion-modes=attention"), 1, "closed", "missing*attention*required by --diffusion-lenses*", PIXELS
    ),
    "a lens beside one that was judged": Way(
        (*OF_PIXELS, "--diffusion-lenses=schedule,latent"), 1, "closed", "missing*latent*required by --diffusion-lenses*", PIXELS
    ),
    "a limit without its reference": Way(
        (*OF_PIXELS, "--diffusion-lenses=metrics", "--diffusion-thresholds=own.toml", "-k", "fid or finite"),
        1,
        "closed",
        "missing*fid*required by own.toml ?fid?*no reference images are given*",
        {**PIXELS, **limit("fid")},
    ),
    "a limit for another extractor": Way(
        ("--diffusion-model=demo", "--diffusion-num-samples=4", "--diffusion-steps=1", "-k", "precision", *OWN),
        1,
        "closed",
        "missing*precision*for the extractor inception*",
        limit("precision", 'extractor = "inception"\n'),
    ),
    "a limit outside the lens": Way((*SCHEDULE, *OWN), 1, "closed", "missing*clip_score*since its test was not run.", limit("clip_score")),
    "a limit on too few samples": Way(
        ("--diffusion-model=demo", "--diffusion-num-samples=4", "--diffusion-steps=1", "-k", "fid_infinity", *OWN),
        1,
        "closed",
        "undersampled*fid_infinity*4 samples of 128 features cannot be extrapolated*",
        limit("fid_infinity"),
    ),
    "a limit whose check was skipped": Way(
        (*SCHEDULE, *OWN), 1, "closed", "missing*sigmas_monotonic*has no sigmas*", limit("sigmas_monotonic")
    ),
    "a check that is required": Way(
        (*SCHEDULE, *OWN),
        1,
        "closed",
        "missing*clip_score*required by own.toml ?gate?*",
        {"own.toml": '[gate]\nrequire = ["clip_score"]\n'},
    ),
    "a lens that is required": Way(
        (*SCHEDULE, *OWN), 1, "closed", "missing*attention*required by own.toml ?gate?*", {"own.toml": '[gate]\nrequire = ["attention"]\n'}
    ),
    "skips that must not be": Way((*SCHEDULE, *OWN), 1, "closed", "missing*sigmas_monotonic*", {"own.toml": '[gate]\nskipped = "fail"\n'}),
    "a reference that nothing used": Way(
        (*SCHEDULE, "--diffusion-reference=demo"), 1, "closed", "missing*reference*required by --diffusion-reference*"
    ),
    "a preset's requirement": Way(
        (*OF_PIXELS, "--diffusion-thresholds=demo", "--diffusion-steps=1", "-k", "attention_sharpens"),
        1,
        "closed",
        "missing*attention*required by thresholds/demo.toml*",
        PIXELS,
    ),
    "close calls that are let through, with too few samples": Way(
        ("--diffusion-model=demo", "--diffusion-num-samples=4", "--diffusion-steps=1", "-k", "clip_score", *OWN),
        1,
        "closed",
        "undersampled*clip_score*not enough samples: 4 samples*",
        {"own.toml": '[gate]\ninconclusive = "warn"\n[clip_score]\nat_most = 100\nmin_samples = 10\nsource = "ours"\n'},
    ),
    # A broken set-up.
    "a reference of three images": Way(
        (*OF_PIXELS, "--diffusion-reference=three:images", "--diffusion-features=pixels", "--diffusion-lenses=metrics", "-k", "fid"),
        BROKEN_SETUP,
        "closed",
        "broken*three:images holds 3 images; at least 5 are needed*",
        {**PIXELS, "three.py": "import torch\nimages = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)\n"},
    ),
    "a model on a hub that cannot be reached": Way(
        ("--diffusion-model=nobody/nothing", "--diffusion-lenses=schedule"), BROKEN_SETUP, "closed", "broken*8 checks*cannot be loaded*"
    ),
    # Refused before anything is run.
    "an empty model": Way(("--diffusion-model=",), 4, None, "*--diffusion-model is empty*"),
    "a blank model": Way(("--diffusion-model= ",), 4, "unfinished", "*--diffusion-model is empty*"),
    "an empty reference": Way((*SCHEDULE, "--diffusion-reference="), 4, "unfinished", "*--diffusion-reference is empty*"),
    "an empty number": Way((*SCHEDULE, "--diffusion-num-samples="), 4, "unfinished", "*--diffusion-num-samples is empty*"),
    "no lens": Way(("--diffusion-model=demo", "--diffusion-modes="), 4, "unfinished", "*--diffusion-lenses is empty*"),
    "an empty file of limits": Way((*SCHEDULE, "--diffusion-thresholds="), 4, "unfinished", "*--diffusion-thresholds is empty*"),
    "an option without a model": Way(("--diffusion-num-samples=4",), 4, None, "*--diffusion-num-samples has no effect*", PASSING),
    "two options without a model": Way(
        ("--diffusion-reference=demo", "--diffusion-features=demo"), 4, None, "*have no effect: give --diffusion-model or*", PASSING
    ),
    "a misspelt name in the ini file": Way(
        (), 4, None, "*diffusion_modell*Did you mean 'diffusion_model'?*", {**PASSING, "pytest.ini": "[pytest]\ndiffusion_modell = demo\n"}
    ),
    "a misspelt name behind -o": Way((*SCHEDULE, "-o", "diffusion_stesp=4"), 4, "unfinished", "*Did you mean 'diffusion_steps'?*"),
    "an empty line in the ini file": Way((), 4, None, "*ini diffusion_model is empty*", {"pytest.ini": "[pytest]\ndiffusion_model =\n"}),
    "an extractor that is misspelt": Way(
        (*SCHEDULE, *OWN), 4, "unfinished", "*Did you mean 'demo-judge'?*", limit("fid", 'extractor = "demo_judge"\n')
    ),
    "a requirement that is misspelt": Way(
        (*SCHEDULE, *OWN), 4, "unfinished", "*Did you mean 'attention'?*", {"own.toml": '[gate]\nrequire = ["atention"]\n'}
    ),
    # Overrides that the checklist would not have heard.
    "a conftest.py beside a sibling": Way(
        SCHEDULE,
        2,
        "unfinished",
        "a/conftest.py overrides diffusion_pipeline for a part of the tests*",
        {"a/conftest.py": REVERSED, "a/test_a.py": "def test_a():\n    pass\n", "b/test_b.py": "def test_b():\n    pass\n"},
    ),
    "two that compete": Way(
        SCHEDULE,
        2,
        "unfinished",
        "a/conftest.py overrides diffusion_pipeline for a part of the tests*",
        {"a/conftest.py": SOUND, "a/test_a.py": PASSING["test_mine.py"], "b/conftest.py": REVERSED, "b/test_b.py": PASSING["test_mine.py"]},
    ),
    "one that holds for all tests is heard": Way(
        SCHEDULE, 1, "closed", "fail*betas_in_range*", {"a/conftest.py": REVERSED, "a/test_a.py": "def test_a():\n    pass\n"}
    ),
    "a module's own, alone, is heard": Way(
        SCHEDULE, 1, "closed", "fail*betas_in_range*", {"test_mine.py": REVERSED + "def test_a(): pass\n"}
    ),
    "an override of a smaller scope": Way(
        SCHEDULE,
        2,
        "unfinished",
        "*diffusion_pipeline has the scope ?function?*",
        {"conftest.py": pipeline_of("return 1", "@pytest.fixture")},
    ),
    "an override with parameters": Way(
        SCHEDULE,
        2,
        "unfinished",
        "*diffusion_pipeline has 2 parameters*",
        {"conftest.py": pipeline_of("return 1", '@pytest.fixture(scope="session", params=[1, 2])', "request")},
    ),
    # Schedulers without a model.
    "scheduler checks that were chosen": Way(
        (*SCHEDULER, "-k", "runs or plan_length"), 0, "partial", "Partial: *(-k ?runs or plan_length?)."
    ),
    "scheduler checks of which none was chosen": Way((*SCHEDULER, "-k", "nothing_of_this_name"), 1, "empty", "Nothing was judged*"),
    "scheduler checks by addopts": Way(
        SCHEDULER, 1, "partial", "gate: partial", {"pytest.ini": "[pytest]\naddopts = -k 'runs or plan_length'\n"}
    ),
    "an empty scheduler": Way(("--diffusion-scheduler=",), 4, None, "*--diffusion-scheduler is empty*"),
    "a scheduler check that does not exist": Way((*SCHEDULER, "diffusion::run"), 2, "unfinished", "*Did you mean 'runs'?*"),
    "limits that scheduler checks do not have": Way(
        (*SCHEDULER, "diffusion::runs", "--diffusion-thresholds=own.toml"), 1, "closed", "missing*fid*required by own.toml*", limit("fid")
    ),
    "a scheduler that cannot be made": Way(
        (*SCHEDULER, "--diffusion-scheduler-config=beta_schedule=nonsense"), 2, "unfinished", "*cannot be made*"
    ),
}
WITH_XDIST = {
    # Workers collect by themselves: an error of theirs stops nobody, and it counts as a failure.
    "a conftest.py beside a sibling": {"code": 1, "gate": "closed"},
    "xfail": {},
    "an option without a model": {},
}
"""Ways that take another path in a worker of xdist, and what is different there."""


def lay_out(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def expect(pytester, result, way):
    assert result.ret == way.code
    output = result.outlines + result.errlines
    sentence = way.sentence.replace("[", "[[]")
    assert any(fnmatch(line.strip(), sentence) for line in output), "\n".join(output)
    data, page = pytester.path / "diffusion-report.json", pytester.path / "diffusion-report.html"
    assert data.exists() == page.exists() == (way.gate is not None)
    if way.gate is not None:
        assert json.loads(data.read_text())["gate"] == way.gate
        assert TITLES[way.gate] in page.read_text()


@pytest.mark.parametrize("name", WAYS)
def test_the_gate_does_not_open_by_itself(pytester, monkeypatch, name):
    way = WAYS[name]
    lay_out(pytester.path, way.files)
    for variable, value in way.environment.items():
        monkeypatch.setenv(variable, value)
    expect(pytester, pytester.runpytest_inprocess(*way.arguments, no_reraise_ctrlc=True), way)


@pytest.mark.parametrize("name", mostly_nightly([(name,) for name in WITH_XDIST], "half a minute; one of them runs always", every=3))
def test_nor_in_a_worker(pytester, name):
    way = replace(WAYS[name], **WITH_XDIST[name])
    lay_out(pytester.path, way.files)
    expect(pytester, pytester.runpytest_subprocess(*way.arguments, "-n", "1"), way)
