"""How often the comparison with a baseline errs: simulated differences with heavy tails, clusters and rare losses.

python -m benchmarks.looks             # 20,000 runs a row, about a minute on one core
python -m benchmarks.looks --runs 2000

Each run has a family of figures, looks after every planned number of pairs, stops as the gate does, and may be continued to four times
the pairs. "worse at the margin": any of the family is called worse although each lies exactly at its margin. "same at twice the margin":
one that lies at twice its margin is called the same. Both must be at most 5 %. "sound decided" and "pairs": of a model without any
difference.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pytest_diffusion.maths.sequential import Plan, as_ratio

FIGURES, ALPHA = 12, 0.05
Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Student's t with three degrees of freedom, scaled to variance 1."""
    return rng.standard_t(3, shape) / math.sqrt(3)


def rare(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """One pair in fifty loses five units, the others hardly move; centred."""
    return np.where(rng.random(shape) < 0.02, -5.0, 0.0) + 0.1 + 0.05 * rng.standard_normal(shape)


def rare_gain(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """The mirror image: rare gains hide a small loss of all others."""
    return -rare(rng, shape)


@dataclass(frozen=True)
class Rates:
    """What a number of runs gave."""

    worse: float
    same: float
    decided: float
    pairs: float


def simulate(
    draw: Draw, *, prompts: int, runs: int, margin: float, spread: float, continued: bool, seed: int = 0, horizon: int = 1000
) -> Rates:
    """Rates over runs of a family of figures that share half of their noise. Pairs of one prompt share half of theirs."""
    plan = Plan(horizon)
    looks = plan.looks(4 * horizon if continued else horizon)
    prompts = min(prompts, looks[-1])
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("worse", "same", "decided", "pairs"), 0.0)
    for _ in range(runs):
        noise = _correlated(draw, rng, prompts, looks[-1])
        errors = [_error(noise[:, :count], prompts, spread) for count in looks]
        means = np.array([noise[:, :count].mean(1) for count in looks])
        found = np.array([error for error, _ in errors])
        degrees = [groups - 1 for _, groups in errors]
        single, family = (
            np.array([_ratio(plan, count, alpha, df) for count, df in zip(looks, degrees, strict=True)])
            for alpha in (ALPHA, ALPHA / FIGURES)
        )
        # At the margin, a figure is worse where its mean lies so far below it.
        counts["worse"] += bool((-means / found > family[:, None]).any())
        # At twice the margin it is the same where the whole interval lies above minus one margin.
        at_twice = means[:, 0] - 2 * margin
        counts["same"] += bool((at_twice - single * found[:, 0] > -margin).any())
        decided = (means - single[:, None] * found > -margin) & (np.array(looks) <= horizon)[:, None]
        all_at = np.maximum.accumulate(decided, 0).all(1)
        counts["decided"] += bool(all_at.any())
        counts["pairs"] += looks[int(all_at.argmax())] if all_at.any() else horizon
    return Rates(**{name: value / runs for name, value in counts.items()})


def _correlated(draw: Draw, rng: np.random.Generator, prompts: int, pairs: int) -> Array:
    """Differences (F, pairs): figures share the noise of pairs, and pairs of one prompt share theirs."""
    own, common = draw(rng, (FIGURES, pairs)), draw(rng, (1, pairs))
    by_prompt = draw(rng, (FIGURES, prompts))[:, np.arange(pairs) % prompts]
    return (own + common + by_prompt) / math.sqrt(3)


def _error(values: Array, prompts: int, spread: float) -> tuple[Array, int]:
    """The clustered standard error of `maths.paired`, for many figures at a time, and the number of clusters."""
    pairs = values.shape[1]
    groups = min(prompts, pairs)
    residuals = values - values.mean(1, keepdims=True)
    padded = np.pad(residuals, ((0, 0), (0, -pairs % groups)))
    totals = padded.reshape(len(values), -1, groups).sum(1)
    variance = groups / (groups - 1) * (totals**2).sum(1) / pairs**2 + 4 * (spread / groups) ** 2
    return np.sqrt(variance), groups


_RATIOS: dict[tuple[int, float, int], float] = {}


def _ratio(plan: Plan, count: int, alpha: float, degrees: int) -> float:
    key = (count, alpha, degrees)
    if key not in _RATIOS:
        _RATIOS[key] = as_ratio(plan.critical(count, alpha), degrees)
    return _RATIOS[key]


ROWS: tuple[tuple[str, Draw, int, float], ...] = (
    ("normal, every prompt once", normal, 10**6, 1.0),
    ("normal, 100 prompts", normal, 100, 1.0),
    ("t with 3 degrees, every prompt once", heavy, 10**6, 1.0),
    ("t with 3 degrees, 100 prompts", heavy, 100, 1.0),
    ("rare losses, every prompt once", rare, 10**6, 5.0),
    ("rare gains, every prompt once", rare_gain, 10**6, 5.0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    runs = parser.parse_args().runs
    print(f"{'differences':<38}{'worse at margin':>16}{'continued':>11}{'same at twice':>15}{'continued':>11}{'decided':>9}{'pairs':>7}")
    for name, draw, prompts, spread in ROWS:
        once, on = (
            simulate(draw, prompts=prompts, runs=runs, margin=0.1, spread=spread * share, continued=continued)
            for share, continued in ((1.0, False), (1.0, True))
        )
        print(
            f"{name:<38}{once.worse:>16.4f}{on.worse:>11.4f}{once.same:>15.4f}{on.same:>11.4f}{once.decided:>9.3f}{once.pairs:>7.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
