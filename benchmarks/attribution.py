"""Does the comparison name the part that is damaged? Damage is planted in a copy of the demo in which every part differs a little.

python -m benchmarks.attribution                     # 20 seeds of each kind, about 15 minutes on two cores
python -m benchmarks.attribution --seeds 2 --only vae
python -m benchmarks.attribution --results build/attribution.jsonl   # goes on where it stopped
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired import Gate
from benchmarks.variants import Change, Variant, bfloat16, noise, v_prediction
from pytest_diffusion.gate.hybrids import Blame
from pytest_diffusion.maths.statistics import wilson_interval


def slightly(*damages: Change) -> Change:
    """All weights rounded to bfloat16, the tokenizer and the scheduler changed without effect, and then the damage."""

    def change(pipeline: Any, seed: int) -> None:
        bfloat16(pipeline, seed)
        pipeline.scheduler.register_to_config(clip_sample_range=2.0)
        for damage in damages:
            damage(pipeline, seed)

    return change


def colours_permuted(pipeline: Any, seed: int) -> None:
    """The ids of some words are exchanged in the tokenizer."""
    vocabulary = pipeline.tokenizer.get_vocab()
    colours = sorted(word for word in vocabulary if word in ("red</w>", "green</w>", "blue</w>", "purple</w>", "yellow</w>", "orange</w>"))
    moved = colours[1:] + colours[:1]
    ids = {vocabulary[one]: vocabulary[other] for one, other in zip(colours, moved, strict=True)}
    call = type(pipeline.tokenizer).__call__

    class Permuted(type(pipeline.tokenizer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            found = call(self, *args, **kwargs)
            plain = found["input_ids"].clone()
            for before, after in ids.items():
                found["input_ids"][plain == before] = after
            return found

        def get_vocab(self) -> dict[str, int]:
            return {word: ids.get(number, number) for word, number in super().get_vocab().items()}

    Permuted.__name__ = type(pipeline.tokenizer).__name__
    pipeline.tokenizer.__class__ = Permuted


CASES = {
    ("unet",): Variant("unet", slightly(noise("unet", 0.1)), is_seeded=True),
    ("text_encoder",): Variant("text_encoder", slightly(noise("text_encoder", 0.3)), is_seeded=True),
    ("vae",): Variant("vae", slightly(noise("vae.decoder", 0.1)), is_seeded=True),
    ("tokenizer",): Variant("tokenizer", slightly(colours_permuted), is_seeded=True),
    ("scheduler",): Variant("scheduler", slightly(v_prediction), is_seeded=True),
    ("text_encoder", "unet"): Variant("unet and text_encoder", slightly(noise("unet", 0.06), noise("text_encoder", 0.3)), is_seeded=True),
    ("unet", "vae"): Variant("unet and vae", slightly(noise("unet", 0.1), noise("vae", 0.1)), is_seeded=True),
}
BLOCKS = ("mid_block", "down_blocks.0", "up_blocks.0")


@dataclass(frozen=True)
class Attributed:
    """What was named in one run."""

    damaged: list[str]
    seed: int
    figures: dict[str, list[str]]
    texts: list[str]

    @property
    def is_right(self) -> bool:
        """Whether all damaged parts are named, and no others."""
        return sorted({name for names in self.figures.values() for name in names}) == self.damaged


def attributed(gate: Gate, damaged: tuple[str, ...], variant: Variant, seed: int) -> Attributed:
    """The parts that the gate names for one damaged copy."""
    blames: dict[str, Blame] = gate.blames("finetune", variant, seed)
    return Attributed(list(damaged), seed, {name: one.named for name, one in blames.items()}, [one.text for one in blames.values()])


def block_case(name: str, seed: int) -> Variant:
    """Noise in one block of the denoiser; all other weights are rounded."""
    return Variant(name, slightly(noise(f"unet.{name}", 0.3)), is_seeded=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="parts of names of cases")
    parser.add_argument("--results", type=Path, help="a file of results, which is extended")
    parser.add_argument("--cache-dir", help="where the baseline's samples are kept")
    arguments = parser.parse_args()
    path: Path | None = arguments.results
    known = [Attributed(**json.loads(line)) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []
    done = {(tuple(one.damaged), one.seed) for one in known}
    gate = Gate(arguments.cache_dir)
    torch.manual_seed(0)
    random.seed(0)
    for damaged, variant in CASES.items():
        if arguments.only and not any(part in variant.name for part in arguments.only):
            continue
        for seed in range(arguments.seeds):
            if (damaged, seed) in done:
                continue
            found = attributed(gate, damaged, variant, seed)
            known.append(found)
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
            print(
                f"{variant.name:<24}{seed:>3}  {'right' if found.is_right else 'wrong'}  {found.figures}  {' '.join(found.texts)}",
                flush=True,
            )
    for damaged in dict.fromkeys(tuple(one.damaged) for one in known):
        runs = [one for one in known if tuple(one.damaged) == damaged]
        right = sum(one.is_right for one in runs)
        interval = [round(end, 3) for end in wilson_interval(right, len(runs))]
        print(f"{' and '.join(damaged)}: named, and no other, in {right} of {len(runs)}, {interval}")


if __name__ == "__main__":
    main()
