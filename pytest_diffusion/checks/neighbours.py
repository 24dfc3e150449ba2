"""Images beside what is nearest to them on the other side, for the report: the strangest, and the most alike."""

from __future__ import annotations

from typing import Any

from pytest_diffusion.checks.comparable import FeatureLike, ReferenceLike
from pytest_diffusion.checks.pictures import data_uri
from pytest_diffusion.features.identity import Features
from pytest_diffusion.maths.manifold import nearest_distances

SHOWN = 8
SEARCHED = 2000
"""Of either side: a picture is an example, and all pairs of 50,000 images would take minutes."""


def beside_nearest(ours: FeatureLike | ReferenceLike, theirs: FeatureLike | ReferenceLike, *, alike: bool = False) -> dict[str, Any]:
    """Series of our images that lie farthest from all of theirs, or with `alike` nearest to one, each with that one.

    Empty where features do not know their images: those of a user's own fixture, say, whose order nobody here knows.
    """
    if not isinstance(ours, Features) or not isinstance(theirs, Features) or ours.first_images is None or theirs.first_images is None:
        return {}
    of = [min(len(one.values), SEARCHED) for one in (ours, theirs)]
    images, others = ours.first_images(of[0]), theirs.first_images(of[1])
    left, right = (one.values[:count].detach().cpu().double() for one, count in zip((ours, theirs), of, strict=True))
    distances, indices = nearest_distances(left, right, 1)
    order = distances[:, 0].argsort(descending=not alike)[:SHOWN].tolist()
    is_cut = of != [len(ours.values), len(theirs.values)]
    return {
        "images": [data_uri(images[index]) for index in order],
        "nearest": [data_uri(others[int(indices[index, 0])]) for index in order],
        "captions": [f"distance {float(distances[index, 0]):.3g}" for index in order],
        "note": "Distances are those of the features." + (f" Searched among the first {of[0]} and {of[1]}." if is_cut else ""),
    }
