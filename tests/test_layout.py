"""The layout: rooms by subject, imports that only go down, files of one idea, and where each is tested."""

import ast
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_diffusion"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)
LISTED = tomllib.loads((ROOT / "tests" / "tested_in.toml").read_text(encoding="utf-8"))


def own_test(module):
    """The test file that mirrors a module."""
    name = module.parent.name if module.name == "__init__.py" else module.stem
    folder = module.parent.parent if module.name == "__init__.py" else module.parent
    return (
        ROOT / "tests" / folder.relative_to(PACKAGE) / f"test_{name}.py" if module.parent != PACKAGE else ROOT / "tests" / f"test_{name}.py"
    )


def test_a_reader_sees_few_rooms():
    # The marks of a typed package are no rooms.
    entries = [path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed", "__init__.pyi")]
    assert len(entries) <= 20, sorted(entries)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_short_and_says_what_it_is(module):
    text = module.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert len(text.splitlines()) <= 300


def test_every_module_is_tested_where_a_reader_looks():
    missing = []
    for module in MODULES:
        name = str(module.relative_to(PACKAGE))
        if len(module.read_text(encoding="utf-8").splitlines()) > 40 and not own_test(module).is_file() and name not in LISTED:
            missing.append(name)
    assert not missing


@cache
def import_graph():
    return grimp.build_graph("pytest_diffusion")


def reaches(test, name):
    """Whether a test file imports a module, by way of others too; the public names and the command line reach all of them."""
    # Sources are imported by name, by the register of all of them.
    name = "config/sources.py" if name.endswith("/sources.py") else name
    target = "pytest_diffusion." + name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    tree = ast.parse(test.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    if "pytest_diffusion" in imported or "pytester" in ast.dump(tree) or "tests.broken_schedulers" in imported:
        return True
    graph = import_graph()
    known = imported & graph.modules
    return target in known or any(graph.chain_exists(importer=one, imported=target) for one in known)


@pytest.mark.parametrize("name", LISTED)
def test_the_list_of_tests_is_true(name):
    """Listed tests are there and import the module, and the module has no test file of its own name."""
    assert (PACKAGE / name).is_file()
    assert not own_test(PACKAGE / name).is_file(), "it has a test file of its own name"
    for listed in LISTED[name]:
        path = ROOT / listed
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        assert any(reaches(file, name) for file in files), listed


def contracts(folder):
    """The outcome of the import contracts of a copy of the project."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "pytest_diffusion", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_are_kept_and_know_every_folder(project):
    result = contracts(project)
    assert result.returncode == 0, result.stdout[-2000:]
    (project / "pytest_diffusion" / "attic").mkdir()
    (project / "pytest_diffusion" / "attic" / "__init__.py").write_text('"""A room that no floor has."""\n')
    result = contracts(project)
    assert result.returncode == 1
    assert "attic" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("maths/scores.py", "from pytest_diffusion.checks import registry", "Imports only go down, folder by folder BROKEN"),
        ("models/memory.py", "def late():\n    import pytest_diffusion.samples.store", "Imports only go down, folder by folder BROKEN"),
        ("features/identity.py", "import pytest_diffusion.features.clip", "No circles among the modules of a folder BROKEN"),
        ("verdicts/verdict.py", "import pytest", "Maths knows no diffusers and no pytest BROKEN"),
    ],
    ids=["upward", "upward inside a function", "circle", "pytest below the plugin"],
)
def test_the_contracts_can_fail(project, module, line, broken):
    with (project / "pytest_diffusion" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{line}\n")
    result = contracts(project)
    assert result.returncode == 1
    assert broken in result.stdout
