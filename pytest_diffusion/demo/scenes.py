"""The demo's data: captioned scenes of one or two coloured shapes, drawn from closed-form outlines.

Everything is a pure function of a seed, so the data set needs no files, and every image has exact
masks. Backgrounds are light and the palette is not closed under inversion, so an inverted image lies
outside the distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

IMAGE_SIZE = 32
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.87, 0.10, 0.14),
    "orange": (0.96, 0.52, 0.06),
    "yellow": (0.93, 0.83, 0.12),
    "green": (0.10, 0.60, 0.22),
    "blue": (0.13, 0.27, 0.86),
    "purple": (0.50, 0.12, 0.62),
}
RELATIONS = ("above", "below", "left of", "right of")
LAYOUTS = ("single", "vertical", "horizontal")
KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""The 24 kinds of object; a kind's index here is its class index in the classifier."""

_EDGE_WIDTH = 1.8  # width in pixels of an outline's soft edge: hard edges would cause ringing in the VAE


@dataclass(frozen=True)
class Scene:
    """Content of a caption: a layout, and its objects in order from the top or the left.

    `first` and `second` index `KINDS`; `second` is None in a scene of one object.
    """

    layout: str
    first: int
    second: int | None
    caption: str


def caption_of(first: int, second: int | None = None, relation: str | None = None) -> str:
    """The caption "a red circle" or "a red circle above a blue square"."""
    head = _noun_phrase(first)
    if second is None:
        return head
    return f"{head} {relation} {_noun_phrase(second)}"


def scene_of(first: int, second: int | None = None, relation: str | None = None) -> Scene:
    """The scene that a caption describes, its objects put in order from the top or the left."""
    caption = caption_of(first, second, relation)
    if second is None:
        return Scene("single", first, None, caption)
    if relation not in RELATIONS:
        raise ValueError(f"relation is {relation!r}; expected one of {', '.join(RELATIONS)}.")
    layout = "vertical" if relation in ("above", "below") else "horizontal"
    if relation in ("below", "right of"):
        first, second = second, first
    return Scene(layout, first, second, caption)


def sample_scenes(num_scenes: int, *, seed: int, single_fraction: float = 0.4) -> list[Scene]:
    """Scenes drawn independently: one object with probability `single_fraction`, else two different ones."""
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(num_scenes):
        first = int(rng.integers(len(KINDS)))
        if rng.random() < single_fraction:
            scenes.append(scene_of(first))
            continue
        second = int(rng.integers(len(KINDS) - 1))
        second += second >= first
        scenes.append(scene_of(first, second, RELATIONS[rng.integers(len(RELATIONS))]))
    return scenes


def render(scenes: list[Scene], *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and object masks of scenes, with positions, sizes, tints and backgrounds drawn from `seed`.

    Returns images, float32 (N, 3, 32, 32) in [0, 1], and masks, float32 (N, 2, 32, 32): the coverage of
    the first and the second object in each pixel (zero where a scene has one object).
    """
    rng = np.random.default_rng(seed)
    count = len(scenes)
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images = _backgrounds(rng, count, x, y)
    masks = torch.zeros(count, 2, IMAGE_SIZE, IMAGE_SIZE)
    palette = np.array(list(COLOURS.values()))
    for index, scene in enumerate(scenes):
        for slot, kind in enumerate((scene.first, scene.second)):
            if kind is None:
                continue
            centre_x, centre_y, radius = _place(rng, scene.layout, slot)
            colour_index, shape_index = divmod(kind, len(SHAPES))
            distance = _outline(SHAPES[shape_index], x - centre_x, y - centre_y, radius)
            coverage = (0.5 - distance / _EDGE_WIDTH).clamp(0, 1)
            tint = palette[colour_index] + rng.uniform(-0.03, 0.03, 3)
            colour = torch.tensor(tint.clip(0, 1), dtype=torch.float32)[:, None, None]
            images[index] = images[index] * (1 - coverage) + colour * coverage
            masks[index, slot] = coverage
    return images, masks


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [0, 1] as uint8, rounded once."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _noun_phrase(kind: int) -> str:
    colour, shape = KINDS[kind]
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def _backgrounds(rng: np.random.Generator, count: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Light greys with a faint linear gradient in a random direction: (N, 3, 32, 32)."""
    draws = rng.uniform(0.86, 0.96, count), rng.uniform(0, 0.08, count), rng.uniform(0, 2 * np.pi, count)
    level, slope, angle = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in draws)
    ramp = (x / IMAGE_SIZE - 0.5) * angle.cos() + (y / IMAGE_SIZE - 0.5) * angle.sin()
    grey: torch.Tensor = (level + slope * ramp).clamp(0, 1)
    return grey[:, None].repeat(1, 3, 1, 1)


def _place(rng: np.random.Generator, layout: str, slot: int) -> tuple[float, float, float]:
    """Centre and radius in pixels; each of two objects stays in its half of the image."""
    if layout == "single":
        radius = rng.uniform(7.0, 10.0)
        return rng.uniform(radius + 1.5, IMAGE_SIZE - radius - 1.5), rng.uniform(radius + 1.5, IMAGE_SIZE - radius - 1.5), radius
    radius = rng.uniform(5.4, 6.6)
    along = rng.uniform(8.0, 9.0) if slot == 0 else rng.uniform(23.0, 24.0)
    across = rng.uniform(radius + 2.5, IMAGE_SIZE - radius - 2.5)
    return (across, along, radius) if layout == "vertical" else (along, across, radius)


def _outline(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """Signed distance in pixels to a shape's outline, negative inside."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    if shape == "triangle":
        # Equilateral, pointing up, centred on its bounding box so that it fills its cell.
        sides = x.abs() * 0.894 - (y + radius) * 0.447
        return torch.maximum(sides, y - 0.9 * radius)
    arm, length = 0.36 * radius, radius
    upright = torch.maximum(x.abs() - arm, y.abs() - length)
    level = torch.maximum(x.abs() - length, y.abs() - arm)
    return torch.minimum(upright, level)
