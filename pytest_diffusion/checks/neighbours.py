"""Images beside what is nearest to them on the other side, for the report: the strangest, and the most alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pytest_diffusion.checks.pictures import data_uri
from pytest_diffusion.data.references import Reference
from pytest_diffusion.maths.manifold import nearest_distances
from pytest_diffusion.maths.tensors import ArrayLike
from pytest_diffusion.samples.store import Samples

SHOWN = 8
SEARCHED = 2000
"""Of either side: a picture is an example, and all pairs of 50,000 images would take minutes."""


class Side(NamedTuple):
    """Features (N, D) and the images that they are of, where those are at hand."""

    values: ArrayLike
    images: Samples | Reference | None

    def shown(self) -> torch.Tensor | None:
        """The first images, uint8 (n, 3, H, W); None where there are none, or not as many as features."""
        held = self.images.images if isinstance(self.images, Reference) else self.images
        if held is None or len(held) != len(self.values):
            return None
        return held.first(min(len(held), SEARCHED)) if isinstance(held, Samples) else held[:SEARCHED]


def beside_nearest(side: Side, other: Side, *, alike: bool = False) -> dict[str, Any]:
    """Series of the images of a side that lie farthest from all of the other, or with `alike` nearest to one; empty without images."""
    images, others = side.shown(), other.shown()
    if images is None or others is None:
        return {}
    ours, theirs = (torch.as_tensor(one.values)[:SEARCHED].double() for one in (side, other))
    distances, indices = nearest_distances(ours, theirs, 1)
    order = distances[:, 0].argsort(descending=not alike)[:SHOWN].tolist()
    is_cut = (len(ours), len(theirs)) != (len(side.values), len(other.values))
    return {
        "images": [data_uri(images[index]) for index in order],
        "nearest": [data_uri(others[int(indices[index, 0])]) for index in order],
        "captions": [f"distance {float(distances[index, 0]):.3g}" for index in order],
        "note": "Distances are those of the features." + (f" Searched among the first {len(ours)} and {len(theirs)}." if is_cut else ""),
    }
