"""What a run costs before it is run: seconds, from a probe of two batches or from the last run on this machine, disk and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from pytest_diffusion.config.durations import duration
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.models.capabilities import device_of, image_size, is_text_conditioned
from pytest_diffusion.samples.generate import generate_images, samples_in_store, shared_batch_size
from pytest_diffusion.samples.timings import Timing, known_timing
from pytest_diffusion.verdicts.errors import SetupError


def probe(pipeline: Any, prompts: Sequence[str] | None, settings: Settings) -> Timing:
    """The cost of one image, from the second of two batches, which are thrown away. Raises what a call of the pipeline raises."""
    device, size = device_of(pipeline), min(shared_batch_size(settings, pipeline).size, settings.num_samples)
    texts = [prompts[index % len(prompts)] for index in range(size)] if prompts and is_text_conditioned(pipeline) else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):  # the first batch warms up
        begun = time.perf_counter()
        generate_images(pipeline, texts, range(settings.seed, settings.seed + size), settings)
        spent = time.perf_counter() - begun
    return Timing(spent / size, *image_size(pipeline, settings), f"measured over {size} images", _most_memory(device))


def hold_to_budget(sides: Sequence[tuple[Any, Settings]], prompts: Sequence[str] | None, needs: dict[str, int]) -> None:
    """Hold the samples that are not in the store, of each pipeline under its settings, against `--diffusion-budget`.

    Raises SetupError where they take longer.
    """
    missing, worst = 0, None
    for pipeline, settings in sides:
        if settings.budget is None:
            return
        lacking = settings.num_samples - samples_in_store(pipeline, prompts, settings)
        if lacking:
            timing = known_timing(settings) or probe(pipeline, prompts, settings)
            missing, worst = missing + lacking, timing if worst is None or timing.seconds > worst.seconds else worst
    if worst is not None:
        require_budget(sides[0][1], missing, worst, needs, sides=len(sides))


def require_budget(settings: Settings, missing: int, timing: Timing, needs: dict[str, int], *, sides: int = 1) -> None:
    """Raise SetupError where the missing images take longer than `--diffusion-budget`, with the number that fits and what it decides.

    `needs` gives the samples that the figure of each check needs at least; `sides` is 2 for the pairs of a comparison.
    """
    if settings.budget is None or missing * timing.seconds <= settings.budget:
        return
    fits = max(0, (int(settings.budget / timing.seconds) + sides * settings.num_samples - missing) // sides)
    lacking = sorted(name for name, least in needs.items() if fits < least <= settings.num_samples)
    decides = f", and would leave {', '.join(lacking)} undecided, which need more" if lacking else ", and is enough for every check"
    option = "--diffusion-num-samples" if sides == 1 else "--diffusion-max-samples"
    raise SetupError(
        f"--diffusion-budget is {duration(settings.budget)}, and {missing} images take about {duration(missing * timing.seconds)} "
        f"({timing.seconds:.3g} s each, {timing.source}). {option}={fits} fits{decides}."
    )


def _most_memory(device: Any) -> int:
    """Most bytes in use since the probe began on an accelerator, or by this process on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else int(psutil.Process().memory_info().rss)
