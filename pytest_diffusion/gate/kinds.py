"""All kinds of damage and sound changes: ours, which the imports here declare, and those of other packages; and those that are required."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Each declares its kinds. Imported by their full names: `from ... import` would take a module that is no longer the loaded one.
import pytest_diffusion.gate.damages
import pytest_diffusion.gate.damages_in_code
import pytest_diffusion.gate.sound_changes  # noqa: F401
from pytest_diffusion.config import extensions
from pytest_diffusion.gate.damage import DAMAGES, Damage
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name


def all_damages() -> list[Damage]:
    """All kinds, those of other packages (entry points `pytest_diffusion.damages`) included. Raises SettingsError for a broken one."""
    added = extensions.extensions(extensions.DAMAGES)
    if added.broken:
        raise SettingsError(f"--diffusion-selftest: the {next(iter(added.broken.values()))}.")
    for name, found in added.loaded.items():
        if not isinstance(found, Damage):
            raise SettingsError(f"--diffusion-selftest: the entry point {name} is a {type(found).__name__}; expected a Damage.")
        if found.name not in DAMAGES:
            DAMAGES.add(found.name, found)
    return list(DAMAGES)


@dataclass(frozen=True)
class Required:
    """A damage that the gate must catch, at a strength."""

    damage: Damage
    strength: float

    @property
    def text(self) -> str:
        """As it is typed."""
        return f"{self.damage.name}:{self.strength:g}" if self.damage.strengths else self.damage.name


def required_damages(texts: Iterable[str]) -> list[Required]:
    """The damages that `NAME[:STRENGTH]` name. Raises SettingsError, in one sentence, for an unknown name or a wrong strength."""
    known = {one.name: one for one in all_damages() if not one.sound}
    found = []
    for text in texts:
        name, given, strength = text.partition(":")
        if name not in known:
            raise SettingsError(f"--diffusion-selftest-require: {unknown_name('the damage', name, known)}")
        one = known[name]
        if given and not one.strengths:
            raise SettingsError(f"--diffusion-selftest-require: {name} has no strength; give {name} alone.")
        try:
            value = float(strength) if given else one.usual
        except ValueError:
            value = -1.0
        fits = 0 < value <= 1 if one.is_continuous else not one.strengths or value in one.strengths
        if not fits:
            expected = (
                "a share above 0 and up to 1, as 0.05"
                if one.is_continuous
                else f"one of {', '.join(f'{each:g}' for each in one.strengths)}"
            )
            raise SettingsError(f"--diffusion-selftest-require: the strength of {name} is {strength!r}; expected {expected}.")
        found.append(Required(one, value))
    return found
