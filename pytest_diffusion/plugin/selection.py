"""Which of the tests the user chose: by pytest's options, or by the ids of checks, and where these were typed."""

from __future__ import annotations

import shlex

import pytest

from pytest_diffusion.plugin.stash import CHOSEN

_PREFIX = "diffusion::"
_TEXTS = {"keyword": ("-k",), "markexpr": ("-m",), "deselect": ("--deselect",)}
_SWITCHES = {
    "lf": ("--lf", "--last-failed"),
    "stepwise": ("--sw", "--stepwise"),
    "stepwise_skip": ("--sw-skip", "--stepwise-skip"),
    "maxfail": ("-x", "--exitfirst", "--maxfail"),
}


def take_check_ids(config: pytest.Config) -> None:
    """Take ids of checks, as the terminal prints them, from the arguments: they name no file that pytest could find."""
    ids = [argument for argument in config.args if argument.startswith(_PREFIX)]
    if ids:
        config.args[:] = [argument for argument in config.args if argument not in ids]
        # In the options, because these are what xdist hands to its workers.
        config.option.diffusion_checks = [argument.removeprefix(_PREFIX) for argument in ids]
    config.stash[CHOSEN] = list(getattr(config.option, "diffusion_checks", None) or [])


def selection_of(config: pytest.Config) -> list[str]:
    """The arguments that leave tests out, as they can be typed again."""
    parts = [_PREFIX + name for name in config.stash.get(CHOSEN, [])]
    for name, flags in _TEXTS.items():
        value = getattr(config.option, name, None)
        for text in value if isinstance(value, list) else [value]:
            if text:
                parts += [flags[0], text]
    return parts + [flags[0] for name, flags in _SWITCHES.items() if getattr(config.option, name, None)]


def selection_text(config: pytest.Config) -> str:
    """The selection as one text, quoted for a shell; empty where nothing is left out."""
    return " ".join(shlex.quote(part) for part in selection_of(config))


def is_typed(config: pytest.Config) -> bool:
    """Whether all of the selection stands on the command line, and none in the ini file or in PYTEST_ADDOPTS."""
    typed = [str(argument) for argument in config.invocation_params.args]
    flags = {name: shown for name, shown in (_TEXTS | _SWITCHES).items() if getattr(config.option, name, None)}
    return all(any(argument.startswith(flag) for argument in typed for flag in shown) for shown in flags.values())
