"""The forgetting map on the demo: the slice that a fine-tune lost is named, and no slice of a sound model is.

python -m benchmarks.forgetting                  # two fine-tunes that forget, and 100 sound runs, about 15 minutes on two cores
python -m benchmarks.forgetting --sound 10
python -m benchmarks.forgetting --results build/forgetting.jsonl   # goes on where it stopped

Sound runs compare losses by word of the captions, each with other noise: copies rounded to bfloat16 or to 8 bits, and sound fine-tunes.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired import Gate
from benchmarks.variants import bfloat16, fine_tuned, purple_half_blue, quantised, train
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.demo.scenes import KINDS, SHAPES, render, sample_scenes, to_uint8
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.loss_stages import compare_losses
from pytest_diffusion.gate.parts import compare_parts
from pytest_diffusion.gate.slices import ALPHA_SHARE
from pytest_diffusion.maths.statistics import wilson_interval

Change = Callable[[Any, int], None]


def forgets_triangles(pipeline: Any, seed: int) -> None:
    """A fine-tune on scenes in which each triangle is drawn as a square, under captions that say triangle."""

    def as_square(kind: int) -> int:
        colour, shape = KINDS[kind]
        return KINDS.index((colour, SHAPES[1])) if shape == SHAPES[2] else kind

    def scenes(step: int) -> tuple[torch.Tensor, list[str]]:
        drawn = sample_scenes(32, seed=3_000_000 + 1000 * seed + step)
        shown = [
            replace(one, first=as_square(one.first), second=as_square(one.second) if one.second is not None else None) for one in drawn
        ]
        return to_uint8(render(shown, seed=4_000_000 + 1000 * seed + step)[0]), [one.caption for one in drawn]

    train(pipeline, scenes, rate=1e-4, steps=150, seed=seed)


FORGETFUL: dict[str, tuple[Change, list[str]]] = {
    "purple half blue": (purple_half_blue, ["purple"]),
    "fine-tune, triangles as squares": (forgets_triangles, ["triangle"]),
}
SOUND: dict[str, Change] = {
    "bfloat16": bfloat16,
    "int8": quantised(8),
    "fine-tune, rate 1e-5": fine_tuned(1e-5, steps=40),
    "fine-tune, rate 1e-4": fine_tuned(1e-4, steps=40),
}


def slices_of(gate: Gate, change: Change, seed: int) -> tuple[list[str], int]:
    """The slices that are named by the denoising loss, and how many were judged."""
    margins = load_thresholds(["demo", "finetune"]).margins
    by_slice = ALPHA_SHARE * margins.alpha
    candidate = copy.deepcopy(gate.baseline)
    change(candidate, seed)
    settings = replace(gate.settings, slices=("words",), seed=10_000 * seed)
    family = sum(margins.of(name) is not None for name in margins.by_figure)
    own = replace(margins, alpha=margins.alpha - by_slice)
    comparison = Comparison("demo", own, compare_parts(candidate, gate.baseline), family=family, slice_alpha=by_slice / 3)
    run = compare_losses(
        "denoising_loss", candidate, gate.baseline, None, gate.reference, settings, comparison, attributes=False, say=lambda text: None
    )
    return [one.name for one in run.slices or [] if one.is_named], len(run.slices or [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", type=int, default=100)
    parser.add_argument("--results", type=Path, help="a file of results, which is extended")
    arguments = parser.parse_args()
    path: Path | None = arguments.results
    known = [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []
    done = {(one["name"], one["seed"]) for one in known}
    gate = Gate(None)
    kinds = list(SOUND)
    planned: list[tuple[str, int, Change, list[str]]] = [(name, 0, change, wanted) for name, (change, wanted) in FORGETFUL.items()]
    planned += [(kinds[place % len(kinds)], place // len(kinds), SOUND[kinds[place % len(kinds)]], []) for place in range(arguments.sound)]
    for name, seed, change, wanted in planned:
        if (name, seed) in done:
            continue
        named, judged = slices_of(gate, change, seed)
        known.append({"name": name, "seed": seed, "named": named, "wanted": wanted, "slices": judged})
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(known[-1]) + "\n")
        print(f"{name:<34}{seed:>3}  named: {', '.join(named) or 'none'} of {judged}", flush=True)
    right = [one for one in known if one["wanted"]]
    sound = [one for one in known if not one["wanted"]]
    print(f"forgetful: the slice that was lost, and no other, in {sum(one['named'] == one['wanted'] for one in right)} of {len(right)}")
    if sound:
        alarms = sum(bool(one["named"]) for one in sound)
        interval = [round(end, 3) for end in wilson_interval(alarms, len(sound))]
        print(f"sound: a slice is named in {alarms} of {len(sound)} runs, {interval}")


if __name__ == "__main__":
    main()
