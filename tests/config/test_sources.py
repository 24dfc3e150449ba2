"""Sources and checks: one register of ours, and what other packages add to it."""

import json
import sys
import textwrap

import pytest

from pytest_diffusion.checks.registry import CHECKS
from pytest_diffusion.config import extensions, sources
from pytest_diffusion.config.imports import import_past_torchvision
from pytest_diffusion.config.registry import Registry
from pytest_diffusion.config.sources import FLAGS, Source, listed, source_of
from pytest_diffusion.verdicts.errors import SettingsError
from tests.nightly import nightly

PLUGIN = """
import torch

from pytest_diffusion import Limits, Measurement, ReferenceSource, check
from pytest_diffusion.verdicts.errors import SettingsError


def load_stripes(value, *, height, width, limit):
    from pytest_diffusion.data.references import Reference

    rows = torch.arange(height)[:, None].expand(height, width)
    images = torch.stack([((rows + index) % 7 * 36).to(torch.uint8).expand(3, -1, -1) for index in range(min(limit, 64))])
    return Reference(value, images, sizes={f"{width}x{height}": len(images)})


def check_stripes(flag, value):
    if value.partition(":")[2] not in ("", "wide"):
        raise SettingsError(f"{flag} is {value!r}; expected stripes or stripes:wide.")


stripes = ReferenceSource("reference", "stripes", load_stripes, check=check_stripes, cost="is drawn", images=64)


@check("schedule", "the schedule is long", figure="training timesteps", limits=Limits(at_least=2000, source="my package"))
def long_schedule(scheduler):
    return Measurement(len(scheduler.alphas_cumprod), "number of training timesteps")
"""


@pytest.fixture
def package(pytester, monkeypatch):
    """A package that adds a source and a check, as pip would have installed it, and one whose entry points are broken."""
    folder = pytester.path / "site"
    (folder / "stripes-1.0.dist-info").mkdir(parents=True)
    (folder / "stripes_plugin.py").write_text(textwrap.dedent(PLUGIN))
    (folder / "stripes-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (folder / "stripes-1.0.dist-info" / "entry_points.txt").write_text(
        "[pytest_diffusion.sources]\nstripes = stripes_plugin:stripes\n"
        "dots = no_such_module:dots\n"
        "[pytest_diffusion.checks]\nlong_schedule = stripes_plugin:long_schedule\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    forget()


def forget():
    """What other packages add, as if this process had not looked yet."""
    extensions.extensions.cache_clear()
    sources._added.cache_clear()
    if "long_schedule" in CHECKS:
        CHECKS.remove("long_schedule")


GATE = ("--diffusion-model=demo", "--diffusion-lenses=schedule", "-p", "no:cacheprovider")


def verdicts(pytester):
    return {one["check"]: one for one in json.loads((pytester.path / "diffusion-report.json").read_text())["verdicts"]}


@pytest.mark.parametrize(
    "extra", [(), pytest.param(("-n", "1"), marks=nightly("half a minute; tests/plugin/test_hooks.py has xdist"))], ids=["alone", "xdist"]
)
def test_a_packages_check_is_judged_and_reported(pytester, package, extra):
    run = pytester.runpytest_subprocess if extra else pytester.runpytest
    result = run(*GATE, *extra, "-k", "long or betas")
    result.stdout.fnmatch_lines(["*number of training timesteps is 1000; allowed at least 2000*"])
    assert verdicts(pytester)["long_schedule"]["outcome"] == "fail"
    assert "long_schedule" in (pytester.path / "diffusion-report.html").read_text()


def test_a_packages_check_has_a_table_in_thresholds_files(pytester, package):
    (pytester.path / "mine.toml").write_text('[long_schedule]\nat_least = 1000\nsource = "this test"\n')
    pytester.runpytest(*GATE, "--diffusion-thresholds=demo", "--diffusion-thresholds=mine.toml", "-k", "long")
    assert verdicts(pytester)["long_schedule"]["outcome"] == "pass"


def test_a_packages_source_is_loaded_by_name(pytester, package):
    select = (
        "--diffusion-lenses=metrics",
        "-k",
        "reference_images",
        "--diffusion-num-samples=64",
        "--diffusion-steps=4",
        "--diffusion-cache-dir=cache",
    )
    result = pytester.runpytest("--diffusion-model=demo", "--diffusion-reference=stripes", "-p", "no:cacheprovider", *select)
    result.stdout.fnmatch_lines(["*share of unfit reference images is *"])
    measured = verdicts(pytester)["reference_images"]["measurement"]
    assert measured["num_reference"] == 64
    assert "57 are repeated" in measured["hint"]
    result = pytester.runpytest_subprocess("--help")
    result.stdout.fnmatch_lines(["*--diffusion-reference=REF*"])
    assert "stripes" in result.stdout.str()


def test_a_packages_source_checks_its_own_values_before_anything_loads(pytester, package):
    result = pytester.runpytest("--diffusion-model=demo", "--diffusion-reference=stripes:tall")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --diffusion-reference is 'stripes:tall'; expected stripes or stripes:wide."])


def test_a_broken_entry_point_is_one_line_and_breaks_nothing_else(pytester, package):
    result = pytester.runpytest(*GATE, "-k", "betas_in_range")
    result.assert_outcomes(passed=1, deselected=8)
    line = "entry point dots = no_such_module:dots (pytest_diffusion.sources) cannot be loaded: ModuleNotFoundError: *"
    result.stdout.fnmatch_lines([f"diffusion: {line}"])
    result = pytester.runpytest(*GATE, "--diffusion-reference=dots:large")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --diffusion-reference is 'dots:large': the {line}"])


def test_a_broken_check_that_a_thresholds_file_names_is_a_usage_error(pytester, package):
    (package / "stripes-1.0.dist-info" / "entry_points.txt").write_text("[pytest_diffusion.checks]\nlost = no_such_module:lost\n")
    (pytester.path / "mine.toml").write_text('[lost]\nat_least = 1\nsource = "this test"\n')
    result = pytester.runpytest(*GATE, "--diffusion-thresholds=mine.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: mine.toml [[]lost]: the entry point lost = no_such_module:lost *cannot be loaded*"])


def test_an_entry_point_that_declares_no_check_of_its_name_stops_the_run(pytester, package):
    (package / "stripes-1.0.dist-info" / "entry_points.txt").write_text("[pytest_diffusion.checks]\nlost = json:dumps\n")
    result = pytester.runpytest(*GATE)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["The entry point lost (pytest_diffusion.checks) declares no check named 'lost'; expected *"])


def test_an_entry_point_that_gives_something_else_is_named(monkeypatch):
    loaded = extensions.Extensions({"odd": 3}, {})
    monkeypatch.setattr(sources, "extensions", lambda group: loaded)
    sources._added.cache_clear()
    try:
        with pytest.raises(SettingsError, match=r"The entry point odd \(pytest_diffusion.sources\) gives int; expected a Source"):
            source_of("prompts", "demo")
    finally:
        sources._added.cache_clear()


@pytest.mark.parametrize("kind", FLAGS)
def test_every_source_says_how_it_is_loaded(kind):
    assert listed(kind)
    for source in sources.sources(kind):
        assert callable(source.loader())


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        ("model", "demo", "demo"),
        ("model", "analytic:wiener", "analytic:NAME"),
        ("model", "my_package.models:make", "package.module:callable"),
        ("model", "owner/name", "a hub id (owner/name)"),
        ("model", "model.safetensors", "a .safetensors file"),
        ("model", "./somewhere", "a diffusers folder"),
        ("reference", "hf:owner/data.csv[train]", "hf:name[split]"),
        ("reference", "pairs.csv", ".jsonl/.csv of pairs"),
        ("reference", "stats.npz", "an .npz"),
        ("reference", "my_package:images", "package.module:callable"),
        ("extractor", "clip:./folder", "clip:PATH_OR_ID"),
        ("extractor", "inception:weights.pth", "inception:WEIGHTS_FILE"),
        ("scorer", "owner/name", "a folder or a hub id"),
        ("scheduler", "DDIMScheduler", "a class of diffusers"),
    ],
)
def test_a_value_is_of_one_source(kind, value, name):
    assert source_of(kind, value).name == name


def test_the_register_refuses_a_name_twice_and_keeps_the_order():
    register = Registry("thing")
    register.add("b", 1)
    register.add("a", 2)
    with pytest.raises(ValueError, match="There is already a thing named 'b'"):
        register.add("b", 3)
    assert (register.names, list(register), register["b"], register.get("c"), "a" in register) == (["b", "a"], [1, 2], 1, None, True)
    register.remove("a")
    assert register.names == ["b"]


def test_a_module_that_is_imported_anew_declares_its_items_again():
    register = Registry("thing")
    register.add("pad", 1, declared=textwrap.indent)
    register.add("pad", 2, declared=textwrap.indent)
    assert register["pad"] == 2
    with pytest.raises(ValueError, match=r"There is already a thing named 'pad': textwrap\.indent"):
        register.add("pad", 3, declared=textwrap.dedent)


def test_a_default_source_is_its_name_and_what_follows_a_colon():
    source = Source("prompts", "mine", len)
    assert [source.accepts(value) for value in ("mine", "mine:x", "mines", "x:mine")] == [True, True, False, False]


def test_a_package_that_cannot_be_imported_is_named_with_its_command(tmp_path, monkeypatch):
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = r"A figure \(RuntimeError: operator torchvision::nms does not exist\) needs broken-package.*pip install it"
    with pytest.raises(ImportError, match=wanted):
        import_past_torchvision("broken_package.part", purpose="A figure", install="it")


def test_torchmetrics_is_imported_past_a_torch_fidelity_that_cannot_be(tmp_path, monkeypatch):
    """torch-fidelity is there and its `__init__` raises, as beside a broken torchvision; what is asked for does not need it."""
    (tmp_path / "torch_fidelity").mkdir()
    (tmp_path / "torch_fidelity" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torch_fidelity" / "network.py").write_text("size = 2048\n")
    (tmp_path / "uses_it.py").write_text("from torch_fidelity.network import size\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_past_torchvision("uses_it", purpose="A figure", install="it").size == 2048
    assert not [name for name in sys.modules if name.startswith("torch_fidelity")]
