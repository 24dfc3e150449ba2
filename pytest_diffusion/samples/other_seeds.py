"""Which other seeds a model was drawn with: who repeats a run with new seeds until it is green has tested nothing."""

from __future__ import annotations

from pathlib import Path

from pytest_diffusion.config.cache import read_json


def other_seeds(folder: Path) -> list[int]:
    """Seeds of the samples of the same weights in the same cache as this store's folder, without its own, in order.

    Stores whose description cannot be read are left aside: this is a hint for people, and no verdict rests on it.
    """
    own = _description(folder)
    if not own.get("weights"):
        return []
    others = [_description(other) for other in folder.parent.iterdir()]
    seeds = [other.get("seed") for other in others if other.get("weights") == own["weights"]]
    return sorted({seed for seed in seeds if isinstance(seed, int)} - {own.get("seed")})


def _description(folder: Path) -> dict[str, object]:
    return read_json(folder / "manifest.json")
