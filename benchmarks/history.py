"""Real defects of pipelines, loaders and engines, as a score of the gate: how many it catches, after how many images, and why not the rest.

python -m benchmarks.history                       # the comparison with the parent, about 10 minutes on two cores
python -m benchmarks.history --only vae scaling    # parts of names
python -m benchmarks.history --absolute            # the absolute checks too, about a minute for each defect of the demo
python -m benchmarks.history --results build/history.jsonl   # goes on where it stopped
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import DEMO, FAULTS, FLOW, Fault, copied
from benchmarks.training import SIZE, as_flow, enlarged, with_gain
from pytest_diffusion.config.cache import cache_root
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.store import stored_reference_features
from pytest_diffusion.gate.comparison import size_of_family
from pytest_diffusion.gate.kinds import DAMAGES
from pytest_diffusion.gate.side import LiveSide
from pytest_diffusion.gate.stages import Material, scorers_of
from pytest_diffusion.gate.trial import PairedGate, applied
from pytest_diffusion.maths.statistics import wilson_interval
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.load import load_pipeline

PAIRS = REFERENCES = 1000
"""Most pairs and references of other families."""


class History:
    """The gate of a copy (`quantised`) on the demo, and on a model of each other family."""

    def __init__(self, cache_dir: str | None, folder: str, *, absolute: bool = False, pairs: int = 1000) -> None:
        self._cache_dir, self._folder, self._absolute, self._pairs = cache_dir, folder, absolute, pairs
        self._plain: tuple[str, PairedGate] | None = None

    def judge(self, fault: Fault) -> dict[str, Any]:
        """What the gate says of one defect."""
        gate = self._gate(fault)
        absolute = None
        if self._absolute and fault.family == DEMO:
            from pytest_diffusion.plugin.absolute import absolute_verdicts

            absolute = absolute_verdicts(gate.side.pipeline, self._folder)
        trial = gate.judge(fault.damage, 0.0, 0)
        if absolute is not None:
            with applied(fault.damage, gate.target(), 0.0, 0) as settings:
                trial = replace(trial, absolute=absolute(settings))
        found = {"name": fault.damage.name, "family": fault.family, "fact": fault.fact, "threads": list(fault.threads)}
        found |= {"caught_by": trial.caught_by, "undecided": trial.undecided, "at": trial.at, "note": trial.note}
        return {**found, "absolute": trial.absolute_by if trial.absolute is not None else None, "seconds": trial.seconds}

    def _gate(self, fault: Fault) -> PairedGate:
        if fault.before is None and self._plain is not None and self._plain[0] == fault.family:
            return self._plain[1]
        gate = self._made(fault)
        if fault.before is None:
            self._plain = fault.family, gate
        return gate

    def _made(self, fault: Fault) -> PairedGate:
        own = fault.before is not None
        if fault.family in (DEMO, FLOW):
            settings = replace(resolve(options={"model": "demo"}, ini={})[0], cache_dir=self._folder if own else self._cache_dir)
            pipeline, reference = load_pipeline(settings), load_reference("demo", height=32, width=32, limit=1000)
            if fault.family == FLOW:
                as_flow(pipeline)
                settings = replace(settings, steps=8, cache_dir=self._folder)
            extractor = load_extractor("demo")
            features = stored_reference_features(reference.require_images(), extractor, cache_root(self._cache_dir))
            material, margins = (
                Material(load_clip("demo"), extractor, features),
                replace(load_thresholds(["demo", "quantised"]).margins, pairs=self._pairs),
            )
        else:
            from tests.families.models import build

            pipeline = with_gain(build(fault.family))
            settings = Settings(model=fault.family, steps=4, guidance_scale=4.0, cache_dir=self._folder, features="pixels", device="cpu")
            settings = replace(settings, height=SIZE, width=SIZE)
            plain = load_reference("demo", height=32, width=32, limit=REFERENCES)
            reference = Reference(plain.name, enlarged(plain.require_images()), prompts=plain.prompts)
            material = Material()
            margins = replace(load_thresholds(["quantised"]).margins, pairs=PAIRS, references=REFERENCES)
        if fault.before is not None:
            pipeline = copied(pipeline)
            fault.before(pipeline)
        if fault.of is not None:
            reference = fault.of(reference)
        prompts = load_prompts("demo")
        side = LiveSide(
            f"{fault.family} with {fault.damage.name}" if own else fault.family,
            pipeline,
            prompts,
            settings,
            fingerprint(pipeline),
            scorers_of(pipeline, prompts, settings, material, {}),
            material.extractor,
            _quiet,
        )
        references = dict.fromkeys(("denoising_loss", "text_encoder_loss", "reconstruction_loss"), reference)
        return PairedGate(side, margins, size_of_family(margins, ()), references, material, _quiet)


def controls() -> list[Fault]:
    """A sound copy of each family, rounded to bfloat16, which the same gate must not call worse."""
    sound = DAMAGES["bfloat16_weights"]
    families = dict.fromkeys(one.family for one in FAULTS)
    return [Fault(replace(sound, name=f"{sound.name} {family}"), (), "weights rounded to bfloat16: sound", family) for family in families]


def _quiet(text: str) -> None:
    """Say nothing."""


def row(one: dict[str, Any]) -> str:
    """One defect in a line."""
    told = ", ".join(one["caught_by"]) or ("not decided: " + ", ".join(one["undecided"]) if one["undecided"] else one["note"] or "same")
    absolute = "" if one["absolute"] is None else f"  absolute: {', '.join(one['absolute'][:4]) or 'missed'}"
    return f"{one['name']:<28}{one['family']:<8}{'caught' if one['caught_by'] else 'missed':<8}{one['at']:<12}{told}{absolute}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="parts of names of defects")
    parser.add_argument("--absolute", action="store_true", help="ask the absolute checks too, of the demo's defects")
    parser.add_argument("--results", type=Path, help="a file of results, which is extended")
    parser.add_argument("--cache-dir", help="where the parent's samples are kept")
    arguments = parser.parse_args()
    path: Path | None = arguments.results
    known = [json.loads(line) for line in path.read_text().splitlines()] if path is not None and path.is_file() else []
    done = {one["name"] for one in known}
    chosen = [one for one in (*FAULTS, *controls()) if not arguments.only or any(part in one.damage.name for part in arguments.only)]
    with tempfile.TemporaryDirectory() as folder:
        history = History(arguments.cache_dir, folder, absolute=arguments.absolute)
        for fault in sorted(chosen, key=lambda one: one.before is not None):
            if fault.damage.name in done:
                continue
            torch.manual_seed(0)
            found = history.judge(fault)
            known.append(found)
            if path is not None:
                with path.open("a") as file:
                    file.write(json.dumps(found) + "\n")
            print(row(found), flush=True)
    sound = [one for one in known if not one["threads"]]
    print(f"sound copies that are called worse: {sum(bool(one['caught_by']) for one in sound)} of {len(sound)}")
    known = [one for one in known if one["threads"]]
    undecided = sum(bool(one["undecided"]) for one in known)
    print(f"not decided, so that the gate stays closed: {undecided} of {len(known)}")
    for what, key in (("compared with the parent", "caught_by"), ("by absolute checks", "absolute")):
        asked = [one for one in known if one[key] is not None]
        caught = sum(bool(one[key]) for one in asked)
        if asked:
            interval = [round(end, 2) for end in wilson_interval(caught, len(asked))]
            print(f"{what}: {caught} of {len(asked)} caught, {interval}")


if __name__ == "__main__":
    main()
