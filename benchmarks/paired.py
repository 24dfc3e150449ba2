"""What the comparison with a baseline catches on the demo, what it lets pass, and what each verdict costs.

python -m benchmarks.paired                          # both presets, one seed each, about 25 minutes on two cores
python -m benchmarks.paired --seeds 20 --only noise  # power over seeds of one kind of damage
python -m benchmarks.paired --results build/paired.jsonl   # goes on where it stopped

A cost is a denoiser evaluation: one sample at one timestep, twice where guidance needs it. The absolute gate that it is compared with
draws 10,000 images in 50 steps with guidance: 1,000,000 evaluations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.variants import COPIES, DAMAGED, FINE_TUNES, Variant
from pytest_diffusion.config.cache import cache_root
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import load_reference
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.store import stored_reference_features
from pytest_diffusion.gate.comparison import Comparison
from pytest_diffusion.gate.denoising import LossRun
from pytest_diffusion.gate.hybrids import Blame
from pytest_diffusion.gate.loss_stages import compare_losses, is_same_for
from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.gate.parts import compare_parts
from pytest_diffusion.gate.stages import Material, draw_pairs
from pytest_diffusion.models.load import load_pipeline

ABSOLUTE = 10_000 * 50 * 2
PRESETS = {"quantised": (*DAMAGED, *COPIES), "finetune": (*DAMAGED[1:], *COPIES, *FINE_TUNES)}
IN_SAMPLES_ALONE = ("guidance lost", "4 steps", "channels swapped", "prompts shuffled")
"""Nothing in the parts says so: code of the user's, or the settings of a run."""


@dataclass(frozen=True)
class Result:
    """One run of the gate."""

    preset: str
    variant: str
    seed: int
    words: dict[str, str]
    images: int
    pairs: int
    evaluations: int

    @property
    def worse(self) -> list[str]:
        """Figures that are worse."""
        return [name for name, word in self.words.items() if word == "worse"]

    @property
    def word(self) -> str:
        """The gate's."""
        if self.worse:
            return "worse"
        return "cannot tell" if "cannot tell" in self.words.values() else "same"


class Gate:
    """The comparison with the demo, as the plugin makes it, without pytest."""

    def __init__(self, cache_dir: str | None) -> None:
        self.settings: Settings = replace(resolve(options={"model": "demo", "baseline": "demo"}, ini={})[0], cache_dir=cache_dir)
        self.baseline, self.prompts = load_pipeline(self.settings), load_prompts("demo")
        self.reference = load_reference("demo", height=32, width=32, limit=1000)
        extractor, images = load_extractor("demo"), self.reference.require_images()
        self.material = Material(load_clip("demo"), extractor, stored_reference_features(images, extractor, cache_root(cache_dir)))

    def judge(self, preset: str, variant: Variant, seed: int) -> Result:
        """The verdict on one variant. Stops where a figure is worse, as the plugin does."""
        losses, pairs, settings = self.run(preset, variant, seed)
        words = {run.figure: run.decided.word for run in losses}
        images, evaluations = max([len(run.baseline) for run in losses], default=0), sum(run.evaluations for run in losses)
        if pairs is None:
            return Result(preset, variant.name, seed, words, images, 0, evaluations)
        words |= {name: one.word for name, one in pairs.decided.items()}
        evaluations += pairs.pairs * (_cost(settings) + _cost(self.settings)) + 2 * 16 * _cost(self.settings)
        return Result(preset, variant.name, seed, words, images, pairs.pairs, evaluations)

    def blames(self, preset: str, variant: Variant, seed: int) -> dict[str, Blame]:
        """The parts that are named for each figure that is worse."""
        losses, pairs, _ = self.run(preset, variant, seed)
        found = {run.figure: run.blame for run in losses if run.blame is not None}
        return found | (pairs.blame if pairs is not None else {})

    def run(self, preset: str, variant: Variant, seed: int) -> tuple[list[LossRun], PairedRun | None, Settings]:
        """The stages on one variant, up to the one that closes the gate, and the settings of the samples."""
        margins = load_thresholds(["demo", preset]).margins
        # What a seed does not decide is drawn with other seeds.
        own = self.settings if variant.is_seeded else replace(self.settings, seed=10_000 * seed)
        candidate = variant.of(self.baseline, seed)
        own_code = variant.name in IN_SAMPLES_ALONE
        family = sum(margins.of(name) is not None for name in margins.by_figure)
        comparison = Comparison("demo", margins, compare_parts(candidate, self.baseline), own_code, family=family)
        losses: list[LossRun] = []
        for figure in ("denoising_loss", "text_encoder_loss", "reconstruction_loss"):
            if is_same_for(figure, comparison):
                continue
            losses.append(compare_losses(figure, candidate, self.baseline, None, self.reference, own, comparison, say=lambda text: None))
            if losses[-1].decided.word == "worse":
                return losses, None, own
        with tempfile.TemporaryDirectory() as folder:
            settings = replace(own, **variant.settings, cache_dir=folder)
            pairs = draw_pairs(
                candidate,
                self.baseline,
                None,
                self.prompts,
                settings,
                own,
                comparison,
                self.material,
                say=lambda text: None,
            )
        return losses, pairs, settings


def _cost(settings: Settings) -> int:
    """Evaluations for one sample."""
    return settings.steps * (2 if (settings.guidance_scale or 1) > 1 else 1)


def results(path: Path | None, arguments: argparse.Namespace) -> list[Result]:
    """Results of all runs, those in the file first; each new one is appended to it."""
    known = [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []
    done = {(one.preset, one.variant, one.seed) for one in known}
    gate = Gate(arguments.cache_dir)
    for preset in arguments.presets:
        for variant in PRESETS[preset]:
            if arguments.only and not any(part in variant.name for part in arguments.only):
                continue
            for seed in range(
                arguments.first_seed, arguments.first_seed + (arguments.seeds if variant.is_seeded or variant not in DAMAGED else 1)
            ):
                if (preset, variant.name, seed) in done:
                    continue
                found = gate.judge(preset, variant, seed)
                known.append(found)
                if path is not None:
                    with path.open("a") as file:
                        file.write(json.dumps(asdict(found)) + "\n")
                print(row(found), flush=True)
    return known


def row(one: Result) -> str:
    """One run in a line."""
    told = ", ".join(one.worse) or ", ".join(name for name, word in one.words.items() if word == "cannot tell") or "all same"
    ratio = ABSOLUTE / one.evaluations if one.evaluations else float("inf")
    counts = f"{one.images:>5}{one.pairs:>6}{one.evaluations:>8}{ratio:>9.0f}x"
    return f"{one.preset:<10}{one.variant:<26}{one.seed:>3}  {one.word:<12}{counts}  {told}"


def summary(found: list[Result]) -> list[str]:
    """Power, false alarms and costs."""
    from pytest_diffusion.maths.statistics import wilson_interval

    damaged, lines = {variant.name for variant in DAMAGED}, []
    for preset in sorted({one.preset for one in found}):
        bad = [one for one in found if one.preset == preset and one.variant in damaged]
        good = [one for one in found if one.preset == preset and one.variant not in damaged]
        for name in dict.fromkeys(one.variant for one in bad):
            runs = [one for one in bad if one.variant == name]
            caught = sum(one.word == "worse" for one in runs)
            lines.append(
                f"{preset}: {name}: {caught} of {len(runs)} caught, {[round(end, 3) for end in wilson_interval(caught, len(runs))]}"
            )
        alarms, undecided = sum(one.word == "worse" for one in good), sum(one.word == "cannot tell" for one in good)
        if good:
            interval = [round(end, 3) for end in wilson_interval(alarms, len(good))]
            lines.append(f"{preset}: {alarms} of {len(good)} sound runs called worse, {interval}; {undecided} not decided")
        if costs := [ABSOLUTE / one.evaluations for one in bad if one.evaluations]:
            lines.append(
                f"{preset}: median cost of a refusal 1/{statistics.median(costs):.0f} of the absolute gate, most 1/{min(costs):.0f}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="parts of names of variants")
    parser.add_argument("--results", type=Path, help="a file of results, which is extended")
    parser.add_argument("--cache-dir", help="where the baseline's samples are kept")
    arguments: Any = parser.parse_args()
    print(f"{'preset':<10}{'variant':<26}{'':>3}  {'verdict':<12}{'imgs':>5}{'pairs':>6}{'evals':>8}{'cheaper':>10}  by")
    for line in summary(results(arguments.results, arguments)):
        print(line)


if __name__ == "__main__":
    main()
