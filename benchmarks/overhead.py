"""What the harness costs beyond the model: the share of a run outside forward passes, and the start of a schedule-only run.

    python -m benchmarks.overhead [--rounds 5] [--samples 256] [--seconds 1]

Each case is a process of its own, with one thread. The model's are all calls of modules of torch (denoiser, text encoders, VAE,
extractor and CLIP), the import of torch and diffusers and the loading of its pipeline, which whoever uses it pays. The harness's is
all else: imports, stores, metrics, pictures and report. The slow model is the demo with a denoiser that sleeps so long at each call.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.timing import row

FOLDER = Path(__file__).parents[1] / "pytest_diffusion" / "demo" / "weights"
BARE = f"import torch; from diffusers import DDIMScheduler; DDIMScheduler.from_pretrained({str(FOLDER)!r}, subfolder='scheduler')"
"""What anybody loads who plans with the demo's scheduler; `from_pretrained` imports all schedulers that take its configuration."""
_MARK = "benchmark: "


class ForwardTimer:
    """Seconds inside the outermost calls of modules of torch; a plugin of pytest, so that torch is loaded when it would be."""

    def __init__(self, sleep: float) -> None:
        self.sleep, self.seconds, self.loading, self.depth = sleep, 0.0, 0.0, 0

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Any:
        begun = time.perf_counter()
        found = yield
        if fixturedef.argname == "diffusion_pipeline":
            self.loading = time.perf_counter() - begun
            self._watch(found)
        return found

    def _watch(self, pipeline: Any) -> None:
        import torch

        call = torch.nn.Module.__call__

        def timed(module: Any, *args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            self.depth += 1
            try:
                if module is pipeline.unet and self.sleep:
                    time.sleep(self.sleep)
                return call(module, *args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - begun

        torch.nn.Module.__call__ = timed  # type: ignore[method-assign]


class FirstVerdict:
    """Tells the CPU-seconds of this process at its first verdict."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getattr(report, "diffusion_verdicts", None) or report.when == "call":
            print(f"\n{_MARK}{time.process_time()}", flush=True)
            os._exit(0)


def _child(kind: str, sleep: float, arguments: list[str]) -> None:
    """One run in this process; prints what was measured of it."""
    if kind == "start":
        pytest.main(arguments, plugins=[FirstVerdict()])
        return
    importlib.import_module("torch")
    importlib.import_module("diffusers")
    timer, begun = ForwardTimer(sleep), time.perf_counter()
    pytest.main(arguments, plugins=[timer])
    whole = time.perf_counter() - begun
    print(f"\n{_MARK}{whole - timer.seconds - timer.loading} {timer.loading} {whole}", flush=True)


def _run(folder: str, *command: str) -> list[float]:
    # Bytecode is kept, as it is where nobody forbids it: both sides load modules that were loaded before.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    empty = Path(folder) / "empty"
    empty.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=empty)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not lines:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return [float(text) for text in lines[-1].removeprefix(_MARK).split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256, help="of the slow model")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long the slow model's denoiser sleeps at each call")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "SLEEP"), help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.child is not None:
        _child(options.child[0], float(options.child[1]), rest)
        return
    bare, started = [], []
    with tempfile.TemporaryDirectory() as folder:
        common = ["-m", "benchmarks.overhead", "--child"]
        asked = ["-q", "-p", "no:cacheprovider", "--diffusion-model=demo", f"--diffusion-cache-dir={folder}"]
        for _ in range(options.rounds + 1):
            bare += _run(folder, "-c", f"import time; {BARE}; print('{_MARK}', time.process_time())")
            started += _run(folder, *common, "start", "0", *asked, "--diffusion-lenses=schedule")
        bare, started = bare[1:], started[1:]
        ratio = statistics.median(started) / statistics.median(bare)
        shown = f"{statistics.median(started):.1f} s over {statistics.median(bare):.1f} s"
        row("schedule-only run, import to first verdict over bare imports", ratio, "<= 1.3", ratio <= 1.3, shown)
        slow = f"a model of {options.seconds} s a call"
        for name, sleep, samples in (("the demo", 0.0, 1000), (slow, options.seconds, options.samples)):
            own = [f"--diffusion-cache-dir={Path(folder) / str(sleep)}", f"--diffusion-num-samples={samples}"]
            arguments = [*common, "run", str(sleep), *asked[:-1], *own, "--diffusion-lenses=metrics"]
            _run(folder, *arguments, "--diffusion-num-samples=8", "--diffusion-steps=1")  # writes the bytecode
            own_seconds, loading, whole = _run(folder, *arguments)
            share = own_seconds / whole
            shown = f"{own_seconds:.1f} of {whole:.0f} s; loading {loading:.1f} s"
            row(f"the harness's share of a run, {name}, in per cent", 100 * share, "<= 3", share <= 0.03, shown)


if __name__ == "__main__":
    main()
