"""Names that a module defines, read from its source without running it."""

import sys

import pytest

from pytest_diffusion.config.source_code import defined_names
from pytest_diffusion.config.sources import check_callable
from pytest_diffusion.verdicts.errors import SettingsError


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "garage" / "cars").mkdir(parents=True)
    (tmp_path / "garage" / "__init__.py").write_text("raise AssertionError('it was run')\n")
    (tmp_path / "garage" / "cars" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / "garage" / "cars" / f"{name}.py").write_text(text)
        return f"garage.cars.{name}"

    return write


def test_names_are_read_and_nothing_is_run(package):
    module = package(
        "red", "import os.path as p, json\nif True:\n    def make(): pass\nclass Car: pass\nA, (B, *C) = 1, (2, 3)\nasync def go(): pass\n"
    )
    assert {"p", "json", "make", "Car", "A", "B", "C", "go"} <= defined_names(module)
    assert "garage" not in sys.modules
    check_callable("--diffusion-model", f"{module}:make")
    with pytest.raises(SettingsError, match=r"--diffusion-model: garage\.cars\.red has no 'maker'\. Did you mean 'make'\?"):
        check_callable("--diffusion-model", f"{module}:maker")


@pytest.mark.parametrize(
    "text",
    [
        "from os import *",
        "def __getattr__(name): return 3",
        "globals()['make'] = 3",
        "setattr(thing, 'make', 3)",
        "import sys\nsys.modules[__name__] = 3",
        "eval('make')",
        "def broken(:",
        "exec('make = 3')",
    ],
)
def test_source_that_does_not_tell(package, text):
    module = package("grey", text)
    assert defined_names(module) is None
    check_callable("--diffusion-model", f"{module}:make")


def test_a_package_comes_before_a_module_of_the_same_name(package, tmp_path):
    package("blue", "old = 1")
    (tmp_path / "garage" / "cars" / "blue").mkdir()
    (tmp_path / "garage" / "cars" / "blue" / "__init__.py").write_text("new = 1")
    assert defined_names("garage.cars.blue") == {"new"}


def test_modules_without_source_or_file(package, tmp_path):
    assert defined_names("garage.cars.absent") is None
    assert defined_names("no_such_package_at_all") is None
    assert "dumps" in defined_names("json"), "it is loaded"
    sys.modules.pop("antigravity", None)
    assert "webbrowser" in defined_names("antigravity")
    (tmp_path / "lone").mkdir()
    assert defined_names("lone") is None, "a namespace has no file"
