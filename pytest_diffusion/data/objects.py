"""Objects named as `package.module:attribute`."""

from __future__ import annotations

import importlib
from typing import Any

from pytest_diffusion.verdicts.errors import SettingsError


def load_object(name: str, flag: str) -> Any:
    """The attribute that `package.module:attribute` names.

    Raises SettingsError when the module cannot be imported or lacks the attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingsError(f"{flag}: {module_name} cannot be imported: {error}.") from error
    if not hasattr(module, attribute):
        raise SettingsError(f"{flag}: {module_name} has no attribute {attribute!r}.")
    return getattr(module, attribute)
