"""Prompts from files or built in, and prompts with a known modifier and noun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pytest_diffusion.config.sources import imported, load_source, source_of
from pytest_diffusion.data.rows import read_rows
from pytest_diffusion.verdicts.errors import SetupError

_OBJECTS = (
    "car",
    "cat",
    "dog",
    "house",
    "flower",
    "boat",
    "bird",
    "chair",
    "bicycle",
    "apple",
    "horse",
    "clock",
    "train",
    "tree",
    "cup",
    "hat",
)
_COLOURS = ("red", "blue", "green", "yellow")
_SCENES = ("in a field", "on a table", "by the sea", "in the snow")


class Phrase(NamedTuple):
    """A prompt, and a modifier and its noun in this prompt."""

    prompt: str
    modifier: str
    noun: str


class DirectionPair(NamedTuple):
    """Two prompts that differ in one attribute."""

    source: str
    target: str


def load_prompts(name: str | None) -> list[str]:
    """The prompts that `--diffusion-prompts` names, or the built-in list.

    Raises SetupError, with file and line, for a row without a prompt.
    """
    if name is None:
        return [f"a photo of a {colour} {thing} {scene}" for thing in _OBJECTS for colour in _COLOURS for scene in _SCENES]
    return list(load_source("prompts", name))


def prompts_of(name: str | None, reference: str | None) -> list[str]:
    """The prompts of a run: those that are named, else those of a reference of pairs, else the built-in list."""
    if name is None and (reference or "").endswith((".jsonl", ".csv")):
        from pytest_diffusion.data.references import pair_prompts

        return pair_prompts(reference) or load_prompts(None)
    return load_prompts(name)


def demo_prompts(name: str) -> list[str]:
    """Captions of the demo's scenes."""
    from pytest_diffusion.demo import prompts

    return prompts()


def read_prompts(name: str) -> list[str]:
    """Prompts of a text file (one a line), or of a `.jsonl` or `.csv` (column `prompt`)."""
    path = Path(name)
    if path.suffix in (".jsonl", ".csv"):
        rows = read_rows(path, "--diffusion-prompts")
    else:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        rows = [(number, {"prompt": line.strip()}) for number, line in enumerate(lines, 1) if line.strip()]
    for number, row in rows:
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise SetupError(f"--diffusion-prompts: {path}, line {number} has no 'prompt'.")
    if not rows:
        raise SetupError(f"--diffusion-prompts: {path} holds no prompts.")
    return [row["prompt"] for _, row in rows]


def foreign_prompts(prompts: Sequence[str]) -> list[str]:
    """For each prompt a different one, half the list of distinct prompts further on; the same where there is only one."""
    distinct = list(dict.fromkeys(prompts))
    foreign = {prompt: distinct[(index + len(distinct) // 2) % len(distinct)] for index, prompt in enumerate(distinct)}
    return [foreign[prompt] for prompt in prompts]


def phrases(name: str | None, count: int) -> list[Phrase]:
    """`count` prompts with a known modifier and noun: those of the prompts' source, or coloured things."""
    own = _of_source(name, "phrases")
    found = (
        own() if own is not None else [Phrase(f"a photo of a {colour} {thing}", colour, thing) for thing in _OBJECTS for colour in _COLOURS]
    )
    return [found[index % len(found)] for index in range(count)]


def direction_pair(name: str | None) -> DirectionPair:
    """Two prompts that differ in a colour: those of the prompts' source, or two cars."""
    own = _of_source(name, "direction")
    return own() if own is not None else DirectionPair("a photo of a red car", "a photo of a blue car")


def demo_phrases() -> list[Phrase]:
    """The demo's single objects."""
    from pytest_diffusion.demo.scenes import KINDS, caption_of

    return [Phrase(caption_of(index), colour, shape) for index, (colour, shape) in enumerate(KINDS)]


def demo_direction() -> DirectionPair:
    """Two objects of the demo that differ in their colour."""
    return DirectionPair("a red circle", "a blue circle")


def _of_source(name: str | None, what: str) -> Callable[[], Any] | None:
    """The function that a source of prompts declares for phrases or for a direction, if it declares one."""
    declared = getattr(source_of("prompts", name), what, None) if name is not None else None
    return imported(declared) if declared is not None else None
