"""The forgetting map: the same differences by slice of the prompts, where the mean of all hides what was lost."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_diffusion.config.margins import Margin, Margins
from pytest_diffusion.gate.figures import clusters_of, score_look
from pytest_diffusion.gate.looks import Decided, Look, Rules, Word
from pytest_diffusion.verdicts.errors import SetupError

WORDS = "words"
"""The name under which slices are the words that prompts share."""
FEWEST_PAIRS = 8
"""A smaller slice says nothing."""
MOST_SLICES = 64
"""Of words, the most frequent ones."""
ALPHA_SHARE = 0.2
"""Of the chance of a false alarm, what slices get where they are asked for: a third of it each for two losses and the scores."""
_COMMON = frozenset("a an and as at by for from in into is of on or over the to under with photo picture image".split())
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_MOST_OF_ALL = 0.9
_SHOWN = 5

Values = tuple[torch.Tensor, torch.Tensor]
"""A score of both models, (N,) each, in the order of the pairs: candidate and baseline."""


@dataclass(frozen=True)
class SliceFound:
    """One figure on one slice."""

    name: str
    figure: str
    pairs: int
    decided: Decided
    worst: list[int]
    """Places of the pairs that lost most."""
    through: str = ""
    """The slices whose pairs alone make this one worse; without them it is not."""

    @property
    def is_named(self) -> bool:
        """Whether it is worse of itself."""
        return self.decided.word == "worse" and not self.through

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = self.decided.interval
        return {
            "slice": self.name,
            "figure": self.figure,
            "pairs": self.pairs,
            "change": self.decided.look.difference.value,
            "interval": [low, high],
            "margin": self.decided.margin,
            "p_worse": self.decided.p_worse,
            "word": self.decided.word,
            "worst": self.worst,
            "through": self.through,
        }


def slices_by_words(prompts: Sequence[str]) -> dict[str, list[int]]:
    """Places (index) of the prompts that share a word: 8 or more, but not nearly all of them. Words of the same prompts are one slice."""
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        for word in dict.fromkeys(_WORD.findall(prompt.lower())):
            if word not in _COMMON:
                places.setdefault(word, []).append(index)
    kept = {word: found for word, found in places.items() if FEWEST_PAIRS <= len(found) <= _MOST_OF_ALL * len(prompts)}
    together: dict[tuple[int, ...], list[str]] = {}
    for word, found in sorted(kept.items(), key=lambda item: (-len(item[1]), item[0])):
        together.setdefault(tuple(found), []).append(word)
    return {" and ".join(words[:3]): list(found) for found, words in list(together.items())[:MOST_SLICES]}


def slices_by_values(values: Sequence[str | None]) -> dict[str, list[int]]:
    """Places of the prompts that have the same value in a column; those without a value are in no slice."""
    places: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        if value is not None and value.strip():
            places.setdefault(value.strip(), []).append(index)
    return {value: found for value, found in places.items() if len(found) >= FEWEST_PAIRS}


@dataclass(frozen=True)
class Slicing:
    """How differences are judged by slice: the places of each slice, and the rules of its figures."""

    places: Mapping[str, list[int]]
    texts: list[str]
    """Of all planned pairs."""
    rules: Rules
    """Those of all pairs: margins, directions and floors by figure, and the looks."""
    alpha: float

    def decide(self, values: Mapping[str, Values], looks: Sequence[int]) -> list[SliceFound]:
        """Each judged figure on each slice after some looks, worst first. Margins are those of all pairs, in the figure's units."""
        sizes = self._sizes(values)
        keys = {f"{figure}|{name}": (figure, name) for figure in sizes for name in self.places}
        margins = Margins({key: sizes[figure] for key, (figure, _) in keys.items()}, alpha=self.alpha)
        directions = {key: self.rules.directions.get(figure, 0) for key, (figure, _) in keys.items()}
        floors = {key: self.rules.floors.get(figure, 0.0) for key, (figure, _) in keys.items()}
        own = Rules(margins, directions, self.rules.plan, floors, family=len(keys))
        # A loss too rare to have been seen must not be excluded, but it makes no other loss uncertain.
        found, cautious = (own.decide(self._histories(values, keys, looks, rare=rare)) for rare in (False, True))
        slices = []
        for key, decided in found.items():
            figure, name = keys[key]
            word: Word = decided.word if decided.word == "worse" else cautious[key].word
            inside = [place for place in self.places[name] if place < looks[-1]]
            slices.append(SliceFound(name, figure, len(inside), replace(decided, word=word), self._worst(values[figure], figure, inside)))
        ordered = sorted(slices, key=lambda one: (one.decided.word != "worse", one.decided.p_worse, one.name))
        return self._told_apart(ordered, values, looks, own)

    def _told_apart(self, found: list[SliceFound], values: Mapping[str, Values], looks: Sequence[int], rules: Rules) -> list[SliceFound]:
        """Slices that are worse through others say so: prompts with the lost word make the other words of theirs worse too."""
        named: list[SliceFound] = []
        told = []
        for one in found:
            if one.decided.word == "worse":
                before = [other for other in named if other.figure == one.figure]
                lost = {place for other in before for place in self.places[other.name]}
                rest = [place for place in self.places[one.name] if place not in lost]
                if before and not self._is_worse(one, values[one.figure], rest, looks, rules):
                    one = replace(one, through=" and ".join(other.name for other in before))
                else:
                    named.append(one)
            told.append(one)
        return told

    def _is_worse(self, one: SliceFound, values: Values, places: list[int], looks: Sequence[int], rules: Rules) -> bool:
        """Whether some of a slice's pairs are worse by themselves, without a correction for other slices."""
        history = self._looks(values, places, looks, rare=False)
        key = f"{one.figure}|{one.name}"
        return bool(history) and replace(rules, family=1).decide({key: history})[key].word == "worse"

    def is_over(self, found: Sequence[SliceFound]) -> bool:
        """Whether every slice is decided."""
        return all(one.decided.word != "cannot tell" or one.decided.is_blurred for one in found)

    def _sizes(self, values: Mapping[str, Values]) -> dict[str, Margin]:
        """The margin of each judged figure, in its units on all pairs."""
        found = {}
        for figure, (_, baseline) in values.items():
            margin = self.rules.margins.of(figure)
            if margin is not None:
                size = margin.in_units(float(baseline.mean()), float(baseline.std()) if len(baseline) > 1 else 0.0)
                found[figure] = replace(margin, margin=size, spreads=None, share=None)
        return found

    def _histories(
        self, values: Mapping[str, Values], keys: Mapping[str, tuple[str, str]], looks: Sequence[int], *, rare: bool
    ) -> dict[str, list[Look]]:
        found = {key: self._looks(values[figure], self.places[name], looks, rare=rare) for key, (figure, name) in keys.items()}
        return {key: history for key, history in found.items() if history}

    def _looks(self, values: Values, places: Sequence[int], looks: Sequence[int], *, rare: bool) -> list[Look]:
        candidate, baseline = values
        found = []
        for count in looks:
            inside = [place for place in places if place < count]
            if len(inside) >= FEWEST_PAIRS:
                groups = clusters_of([self.texts[place] for place in inside])
                look = score_look(candidate[inside], baseline[inside], groups, rare=rare)
                found.append(replace(look, pairs=count))  # looks are planned for all pairs
        return found

    def _worst(self, values: Values, figure: str, inside: Sequence[int]) -> list[int]:
        candidate, baseline = values
        loss = (baseline - candidate)[list(inside)] * (self.rules.directions.get(figure, 1) or 1)
        return [inside[int(place)] for place in loss.argsort(descending=True)[:_SHOWN]]


def slicing(
    names: Sequence[str],
    texts: list[str] | None,
    columns: Mapping[str, Sequence[str | None]],
    rules: Rules,
    alpha: float,
    *,
    required: Sequence[str] = (),
) -> Slicing | None:
    """The slices of the texts of all planned pairs, by words and by columns of their table; None where no slice has 8 pairs.

    `columns` has a value for each row of the table, which pairs go through again and again. A column that it does not have gives none.

    Raises SetupError for a `required` column by whose values nothing can be sliced: it was asked for, and would not be judged.
    """
    if not names or texts is None:
        return None
    found: dict[str, list[int]] = {}
    for name in names:
        if name == WORDS:
            found |= slices_by_words(texts)
        elif name in columns:
            values = [columns[name][index % len(columns[name])] for index in range(len(texts))]
            found |= {f"{name}={value}": places for value, places in slices_by_values(values).items()}
        if name in required and not any(one.startswith(f"{name}=") for one in found):
            raise SetupError(f"--diffusion-slices: no value of the column {name} has {FEWEST_PAIRS} of the {len(texts)} pairs or images.")
    return Slicing(found, texts, rules, alpha) if found else None
