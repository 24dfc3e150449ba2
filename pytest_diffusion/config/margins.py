"""Margins of the comparison with a baseline: the tables `[paired]` and `[paired.NAME]` of thresholds files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pytest_diffusion.config.tables import read_table
from pytest_diffusion.verdicts.errors import SettingsError, unknown_name
from pytest_diffusion.verdicts.verdict import Origin

Kind = Literal["not_worse", "equivalence", "reported"]
KINDS: tuple[Kind, ...] = ("not_worse", "equivalence", "reported")
_SIZES = ("margin", "spreads", "share")
_RULES: dict[str, type] = {"alpha": float, "pairs": int, "references": int}


@dataclass(frozen=True)
class Margin:
    """How far a figure of the candidate may lie from the baseline's, and who says so.

    Exactly one of `margin`, `spreads` and `share` is set: in the figure's units, in standard deviations of the baseline's own values,
    or as a share of the baseline's figure.
    """

    margin: float | None = None
    spreads: float | None = None
    share: float | None = None
    kind: Kind = "not_worse"
    """`not_worse` allows any improvement; under `equivalence` a change in either direction counts; `reported` figures are not judged."""
    source: str = ""
    where: str = ""
    """File and table, such as `thresholds/default.toml [paired.fid]`."""
    origin: Origin = "preset"

    def __post_init__(self) -> None:
        """Raise ValueError unless exactly one size is given, finite and at least 0."""
        given = {name: getattr(self, name) for name in _SIZES if getattr(self, name) is not None}
        if self.kind == "reported":
            if given:
                raise ValueError(f"{next(iter(given))} is set, but a figure that is only reported has no margin.")
            return
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_SIZES)}, not {', '.join(given) or 'none'}.")
        for name, value in given.items():
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value}; expected a finite number of at least 0.")
        if self.kind == "equivalence" and not any(given.values()):
            raise ValueError("a margin of 0 leaves no room under equivalence: no two models could be told to be the same.")

    def is_two_sided(self, direction: int) -> bool:
        """Whether a change in either direction counts, for a figure of which more is better (1), less is (-1), or neither (0)."""
        return self.kind == "equivalence" or direction == 0

    def in_units(self, baseline: float, spread: float) -> float:
        """The margin in the figure's units, for a baseline's figure and the standard deviation of its values."""
        if self.margin is not None:
            return self.margin
        return self.spreads * spread if self.spreads is not None else (self.share or 0.0) * abs(baseline)

    @property
    def text(self) -> str:
        """The margin as it was given: "0.1", "0.2 standard deviations of the baseline", "10 % of the baseline"."""
        if self.margin is not None:
            return f"{self.margin:g}"
        if self.spreads is not None:
            return f"{self.spreads:g} standard deviations of the baseline's values"
        return f"{100 * (self.share or 0.0):g} % of the baseline"


@dataclass(frozen=True)
class Margins:
    """Margins by figure, and the rules of the comparison."""

    by_figure: Mapping[str, Margin] = field(default_factory=dict)
    alpha: float = 0.05
    """Chance that any figure is called worse although none is beyond its margin."""
    pairs: int = 1000
    """Pairs that are expected to decide; the looks are planned for them."""
    references: int = 512
    """Reference images that are noised for the denoising loss."""

    def of(self, figure: str) -> Margin | None:
        """The margin of a figure, None where it is only reported; a scorer without a table of its own has that of `scorer`."""
        found = self.by_figure.get(figure) or self.by_figure.get("scorer")
        return found if found is not None and found.kind != "reported" else None


def overlay(below: Margins, shown: str, table: Any, *, is_own: bool) -> Margins:
    """The margins of a file's table `[paired]` on top of others. Raises SettingsError for a key or value that it may not have."""
    if not isinstance(table, dict):
        raise SettingsError(f"{shown}: paired is {table!r}; expected a table [paired].")
    rules: dict[str, Any] = {}
    found = dict(below.by_figure)
    for name, value in table.items():
        if isinstance(value, dict):
            found[name] = _margin(f"{shown} [paired.{name}]", value, is_own=is_own)
            continue
        value = read_table(f"{shown} [paired]", {name: value}, _RULES)[name]
        if not (0 < value < 0.5 if name == "alpha" else value >= 16):
            raise SettingsError(
                f"{shown} [paired]: {name} is {value!r}; expected {'0 < alpha < 0.5' if name == 'alpha' else 'at least 16'}."
            )
        rules[name] = value
    return replace(below, by_figure=found, **rules)


def _margin(where: str, table: Mapping[str, Any], *, is_own: bool) -> Margin:
    values = read_table(where, table, {**dict.fromkeys(_SIZES, float), "kind": str, "source": str})
    if values.get("kind", "not_worse") not in KINDS:
        raise SettingsError(f"{where}: " + unknown_name("kind", values["kind"], KINDS))
    if not values.get("source"):
        raise SettingsError(f'{where} has no source: say where the margin comes from, as in source = "measured on our last ten releases".')
    try:
        return Margin(**values, where=where, origin="file" if is_own else "preset")
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None
