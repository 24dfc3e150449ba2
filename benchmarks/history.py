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
from diffusers import DPMSolverMultistepScheduler

from benchmarks.faults import DEMO, FAULTS, FLOW, Fault, copied
from pytest_diffusion.config.cache import cache_root
from pytest_diffusion.config.settings import Settings, resolve
from pytest_diffusion.config.thresholds import load_thresholds
from pytest_diffusion.data.prompts import load_prompts
from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.features.store import stored_reference_features
from pytest_diffusion.gate.comparison import size_of_family
from pytest_diffusion.gate.kinds import DAMAGES
from pytest_diffusion.gate.side import LiveSide
from pytest_diffusion.gate.stages import Material, scorers_of
from pytest_diffusion.gate.trial import PairedGate, applied
from pytest_diffusion.maths.statistics import wilson_interval
from pytest_diffusion.models.capabilities import denoiser
from pytest_diffusion.models.fingerprint import fingerprint
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.load import load_pipeline

PAIRS, SIZE = 256, 64
"""Pairs, and pixels a side: for other families, whose models are larger and whose weights are random."""


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
            plain = load_reference("demo", height=32, width=32, limit=512)
            images = plain.require_images().repeat_interleave(SIZE // 32, 2).repeat_interleave(SIZE // 32, 3)
            reference = Reference(plain.name, images, prompts=plain.prompts)
            material = Material()
            margins = replace(load_thresholds(["quantised"]).margins, pairs=PAIRS, references=512)
        if fault.before is not None:
            pipeline = copied(pipeline)
            fault.before(pipeline)
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


def as_flow(pipeline: Any, *, steps: int = 400, rate: float = 3e-4) -> None:
    """Train the demo's denoiser on as a rectified flow, and sample it with a shift of 3."""
    codec, network = LatentCodec.of(pipeline), pipeline.unet
    optimizer, generator = torch.optim.AdamW(network.parameters(), lr=rate), torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for step in range(steps):
            scenes = sample_scenes(16, seed=5_000_000 + step)
            with torch.no_grad():
                latents = codec.encode(to_uint8(render(scenes, seed=6_000_000 + step)[0]))
                kept = [one.caption if torch.rand((), generator=generator) > 0.1 else "" for one in scenes]
                tokens = pipeline.tokenizer(kept, padding="max_length", truncation=True, return_tensors="pt")
                states = pipeline.text_encoder(tokens.input_ids)[0]
            share = torch.rand(len(latents), 1, 1, 1, generator=generator)
            noise = torch.randn(latents.shape, generator=generator)
            noised = (1 - share) * latents + share * noise
            predicted = network(noised, 1000 * share.flatten(), encoder_hidden_states=states).sample
            loss = (predicted - (noise - latents)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    pipeline.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def with_gain(pipeline: Any) -> Any:
    """A pipeline of random weights in which all that a trained one heeds has a say.

    Its denoiser gives outputs of size one, its attention is not even, and what it is told beside the tokens counts.
    """
    part: Any = denoiser(pipeline)
    with torch.no_grad():
        for name, module in part.named_modules():
            if name.endswith(("guidance_embedder.linear_2", "text_embedder.linear_2", "add_embedding.linear_2")):
                module.weight.mul_(10)
            if name.endswith(("norm_q", "norm_k")) or (name.endswith(("to_q", "to_k")) and not hasattr(part, "x_embedder")):
                module.weight.mul_(3)
    layer: Any = getattr(part, "conv_out", None) or getattr(part, "proj_out", None)
    seen: list[float] = []
    handle = layer.register_forward_hook(lambda module, args, found: seen.append(float(found.std())))
    pipeline("a red circle", height=SIZE, width=SIZE, num_inference_steps=2, output_type="pt")
    handle.remove()
    with torch.no_grad():
        for weight in layer.parameters():
            weight.div_(seen[0])
    return pipeline


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
