"""Imports that need care: torch-fidelity imports torchvision, which has no working build for some CPU-only torch.

Its package then raises whatever it likes, and so does torchmetrics, which imports it wherever it is installed. What we
need of both does not touch torchvision: it is imported past torch-fidelity's own `__init__`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from pytest_diffusion.verdicts.errors import missing_package

_PACKAGE = "torch_fidelity"


def import_past_torchvision(module: str, *, purpose: str, install: str) -> ModuleType:
    """A module of torchmetrics or torch-fidelity, also where torchvision is broken.

    Raises ImportError that names the package, the `purpose` and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        first = error
    try:
        with _bare_package():
            return importlib.import_module(module)
    except Exception:
        package = module.partition(".")[0].replace("_", "-")
        raise missing_package(package, f"{purpose} ({type(first).__name__}: {first})", install) from first


@contextmanager
def _bare_package() -> Iterator[None]:
    """torch-fidelity without its `__init__` while the block runs; its modules are forgotten afterwards."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.submodule_search_locations is None:
        yield
        return
    bare = ModuleType(_PACKAGE)
    bare.__path__ = list(found.submodule_search_locations)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == _PACKAGE}
    sys.modules[_PACKAGE] = bare
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE and name not in before]:
            del sys.modules[name]
        sys.modules.pop(_PACKAGE, None)
        sys.modules.update(before)
