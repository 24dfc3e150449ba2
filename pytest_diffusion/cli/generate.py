"""`pytest-diffusion generate`: the samples, features and scores of a run, made by several processes of an engine.

Every worker runs the same loop (`pytest_diffusion.generate`): it claims shards until none is left. An engine only starts workers and
starts them again when they die, so that a machine that vanishes costs the shard that it was making.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from pytest_diffusion.verdicts.errors import SettingsError

ENGINES = ("torchrun", "ray")
_RESTARTS = 3


def add_parser(commands: Any) -> None:
    """Add `generate` to the commands."""
    parser = commands.add_parser("generate", help="make samples, features and scores with several processes, and judge nothing")
    parser.add_argument("--engine", choices=ENGINES, default="torchrun", help="what starts the processes (default: torchrun)")
    parser.add_argument("--num-workers", type=int, metavar="N", default=1, help="processes (default: 1)")
    parser.add_argument(
        "--gpus-per-worker", type=float, metavar="X", help="GPUs that Ray reserves for a worker (default: 1 where the cluster has any)"
    )
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="-- --diffusion-model=...", help="the options of pytest")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    given = options.options[1:] if options.options[:1] == ["--"] else options.options
    if options.num_workers < 1:
        raise SettingsError(f"--num-workers is {options.num_workers}; expected at least 1.")
    if options.engine == "ray":
        return _with_ray(given, options.num_workers, options.gpus_per_worker)
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={options.num_workers}", f"--max-restarts={_RESTARTS}"]
    return subprocess.call([sys.executable, "-m", *command, "-m", "pytest_diffusion.generate", *given])  # noqa: S603


def _with_ray(given: Sequence[str], count: int, gpus: float | None) -> int:
    """Workers as actors, each with its own GPU; one that dies is started again and goes on."""
    try:
        import ray
    except ImportError as error:
        raise SettingsError("--engine=ray needs Ray: pip install 'pytest-diffusion[ray]'.") from error
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    worker = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(_Worker)
    actors = [worker.remote(rank, count) for rank in range(count)]
    running = [actor.work.remote(list(given), os.getcwd()) for actor in actors]  # noqa: PTH109 - as text, for another machine
    codes = list[int]()
    while running:
        ended, running = ray.wait(running, num_returns=1)
        try:
            codes.append(ray.get(ended[0]))
        except ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [""])[-1]
            print(f"pytest-diffusion: a worker was lost: {type(error).__name__}: {first}", file=sys.stderr)  # noqa: T201
            codes.append(1)
        if codes[-1] == 0:
            break  # a worker ends when all is there; one that still waits for a place in the cluster is not needed
    ray.shutdown()
    return 0 if 0 in codes else max(codes)


class _Worker:
    """One process of the job; it loads the model once and claims shards until none is left."""

    def __init__(self, rank: int, world: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        # Ray shows a worker its own GPU alone, whose number is 0 there.
        os.environ["LOCAL_RANK"] = "0"

    def work(self, options: list[str], folder: str) -> int:
        """Make this worker's share, in the folder in which the command was given."""
        from pytest_diffusion.generate import main

        os.chdir(folder)
        return main(options)
