"""Which of the tests the user chose: by pytest's options, or by the ids of checks, and where these were typed."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pytest

from pytest_diffusion.plugin.stash import CHOSEN
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name

_PREFIX = "diffusion::"
_TEXTS = {"keyword": "-k", "markexpr": "-m", "deselect": "--deselect"}
_SWITCHES = {
    "lf": ("--lf", "--last-failed"),
    "stepwise": ("--sw", "--stepwise"),
    "stepwise_skip": ("--sw-skip", "--stepwise-skip"),
    "maxfail": ("-x", "--exitfirst", "--maxfail"),
}


def take_check_ids(config: pytest.Config) -> None:
    """Take ids of checks, as the terminal prints them, from the arguments: they name no file that pytest could find."""
    ids = [argument for argument in config.args if argument.startswith(_PREFIX)]
    config.args[:] = [argument for argument in config.args if argument not in ids]
    config.stash[CHOSEN] = [argument.removeprefix(_PREFIX) for argument in ids]


def chosen_checks(config: pytest.Config, names: Sequence[str]) -> list[str]:
    """Those of `names` that were chosen by their ids, or all of them. Raises SettingsError for an id that names no check."""
    chosen = config.stash[CHOSEN]
    for name in chosen:
        if name not in names:
            raise SettingsError(unknown_name("the check", name, names))
    return [name for name in names if not chosen or name in chosen]


def selection_of(config: pytest.Config) -> list[str]:
    """The arguments that leave tests out, as they can be typed again."""
    parts = [_PREFIX + name for name in config.stash.get(CHOSEN, [])]
    for name, flag in _TEXTS.items():
        for text in _texts(config, name):
            parts += [flag, text]
    return parts + [flags[0] for name, flags in _SWITCHES.items() if getattr(config.option, name, None)]


def selection_text(config: pytest.Config) -> str:
    """The selection as one text, quoted for a shell; empty where nothing is left out."""
    return " ".join(shlex.quote(part) for part in selection_of(config))


def is_typed(config: pytest.Config) -> bool:
    """Whether there is a selection, and all of it stands on the command line, not in the ini file or in PYTEST_ADDOPTS.

    `-x` alone is none: without a failure it leaves nothing out.
    """
    typed = [str(argument) for argument in config.invocation_params.args]
    texts = [text for name in _TEXTS for text in _texts(config, name)]
    switches = [flags for name, flags in _SWITCHES.items() if name != "maxfail" and getattr(config.option, name, None)]
    # Each text by itself: `--deselect` adds up, so that one may be typed and another may not.
    found = [any(argument.endswith(text) for argument in typed) for text in texts]
    found += [any(argument in flags for argument in typed) for flags in switches]
    return all(found) and bool(found or config.stash.get(CHOSEN, []))


def _texts(config: pytest.Config, name: str) -> list[str]:
    """The texts of one of pytest's options, whether it may be given once or more often."""
    value = getattr(config.option, name, None)
    return [text for text in (value if isinstance(value, list) else [value]) if text]
