"""The metrics against their peers, as ratios of CPU-seconds in one run: above 1, we are cheaper.

    make bench                                     # installs the peers into build/peers and runs this there
    python -m benchmarks.metrics frechet prdc      # only some of: frechet prdc kid inception

10,000 samples of 2,048 features on both sides unless said; one thread; the sides are interleaved and medians
of --rounds (5) compared. The rest of the table, generation, the second run and the whole job: `python -m benchmarks.generation`.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import torch  # noqa: E402

from benchmarks import peers  # noqa: E402
from benchmarks.timing import interleaved, row  # noqa: E402
from pytest_diffusion import FeatureStatistics, frechet_distance, kernel_distance, manifold_scores, precision_recall  # noqa: E402

COUNT, SIZE = 10_000, 2048


def features(count: int, size: int, *, seed: int) -> torch.Tensor:
    """Rows with a decaying spectrum, as Inception's: float32 (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(99))).Q
    scales = torch.linspace(0, -3, size).exp() * 0.5
    return (torch.randn(count, size, generator=generator) * scales * (1 + 0.05 * seed)) @ turn + 0.4 + 0.01 * seed


def frechet(rounds: int) -> None:
    for size in (512, 768, SIZE):
        left, right = (FeatureStatistics.from_features(features(COUNT, size, seed=seed)) for seed in (1, 2))
        _ = right.factor  # the reference is cached
        arrays = [array.numpy() for side in (left, right) for array in (side.mean, side.covariance)]
        ours, eigvals, tm = interleaved(
            rounds,
            lambda left=left, right=right: frechet_distance(left, right),
            lambda arrays=arrays: peers.eigvals_distance(*arrays),
            lambda arrays=arrays: peers.torchmetrics_distance(*arrays),
        )
        wanted = 3 if size == SIZE else 5
        row(f"Frechet trace, d={size}, over torch-fidelity (eigvals)", eigvals / ours, f">= {wanted}", eigvals / ours >= wanted)
        row(f"Frechet trace, d={size}, over torchmetrics", tm / ours, f">= {wanted}", tm / ours >= wanted, f"{ours:.2f} s")
        if size == SIZE:
            ours, sqrtm = interleaved(
                1,
                lambda left=left, right=right: frechet_distance(left, right),
                lambda arrays=arrays: peers.sqrtm_distance(*arrays),
            )
            row("Frechet trace, d=2048, over sqrtm (pytorch-fid, clean-fid)", sqrtm / ours, ">= 10", sqrtm / ours >= 10)
    reference = right
    for count, wanted in ((256, 40), (500, 20)):
        few = features(count, SIZE, seed=1)
        mu, sigma = peers.numpy_statistics(few)
        ours, theirs = interleaved(
            rounds,
            lambda few=few: frechet_distance(few, reference),
            lambda mu=mu, sigma=sigma: peers.eigvals_distance(mu, sigma, arrays[2], arrays[3]),
        )
        row(f"Frechet, N={count}, cached reference, over torch-fidelity", theirs / ours, f">= {wanted}", theirs / ours >= wanted)
    many, other = features(COUNT, SIZE, seed=1), features(COUNT, SIZE, seed=2)
    streaming = peers.torchmetrics_streaming(other)
    ours, fidelity, streamed = interleaved(
        rounds,
        lambda: frechet_distance(many, reference),
        lambda: peers.eigvals_distance(*peers.numpy_statistics(many), arrays[2], arrays[3]),
        lambda: streaming(many),
    )
    row("features to FID, cached reference, over torch-fidelity", fidelity / ours, ">= 2", fidelity / ours >= 2, f"{ours:.2f} s")
    row("features to FID, over torchmetrics in batches of 32", streamed / ours, ">= 6", streamed / ours >= 6)
    accuracy(arrays[2], arrays[3], reference)


def accuracy(mu: object, sigma: object, reference: FeatureStatistics) -> None:
    """Relative error against the nuclear norm of the factors by singular values, which squares nothing."""
    for name, rows in (("singular, N=500", features(500, SIZE, seed=1)), ("full rank, N=10,000", features(COUNT, SIZE, seed=1))):
        side = FeatureStatistics.from_features(rows.double())
        centred = (rows.double() - side.mean) / (len(rows) - 1) ** 0.5
        cross = float(torch.linalg.svdvals(centred @ reference.factor).sum())
        exact = float((side.mean - reference.mean).square().sum() + side.covariance.trace() + reference.covariance.trace()) - 2 * cross
        own = abs(frechet_distance(rows, reference) / exact - 1)
        theirs = abs(peers.eigvals_distance(*peers.numpy_statistics(rows), mu, sigma) / exact - 1)
        row(f"FID relative error, {name}", own, "<= 1e-9", own <= 1e-9, f"ours {own:.0e}, torch-fidelity {theirs:.0e}")


def prdc(rounds: int) -> None:
    left, right = features(COUNT, SIZE, seed=1), features(COUNT, SIZE, seed=2)
    ours, ours_pr, theirs, fidelity = interleaved(
        rounds,
        lambda: manifold_scores(left, right, k=5),
        lambda: precision_recall(left, right, k=5),
        lambda: peers.prdc(left, right),
        lambda: peers.fidelity_precision_recall(left, right),
    )
    row("precision, recall, density, coverage over prdc", theirs / ours, ">= 3", theirs / ours >= 3, f"{ours:.2f} s")
    row("precision, recall over torch-fidelity", fidelity / ours_pr, ">= 1.7", fidelity / ours_pr >= 1.7, f"{ours_pr:.2f} s")
    our_memory, prdc_memory = memory("ours"), memory("prdc")
    row(
        "memory of all four over prdc",
        prdc_memory / our_memory,
        ">= 4",
        prdc_memory / our_memory >= 4,
        f"{our_memory:.0f} MB and {prdc_memory:.0f} MB",
    )


def memory(side: str) -> float:
    """Peak memory in MB beyond the features themselves, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.metrics", "--memory", side]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure_memory(side: str) -> None:
    left, right = features(COUNT, SIZE, seed=1), features(COUNT, SIZE, seed=2)
    if side == "ours":
        manifold_scores(left[:100], right[:100])
    else:
        peers.prdc(left[:100], right[:100])
    # Reset the high-water mark: making the features took more than what follows may take.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    if side == "ours":
        manifold_scores(left, right, k=5)
    else:
        peers.prdc(left, right)
    print(high_water() - before)


def high_water() -> float:
    """Peak resident memory of this process in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def kid(rounds: int) -> None:
    left, right = features(COUNT, SIZE, seed=1), features(COUNT, SIZE, seed=2)
    ours, theirs = interleaved(rounds, lambda: kernel_distance(left, right), lambda: peers.fidelity_kid(left, right))
    row("KID on all samples over torch-fidelity's 100 subsets of 1,000", theirs / ours, ">= 1", theirs / ours >= 1, f"{ours:.2f} s")


def inception(rounds: int) -> None:
    from pytest_diffusion.features.inception import build_network, random_state

    state = random_state()
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    theirs, ours = peers.fidelity_inception(saved), build_network(state)
    images = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = theirs(images)[0], ours(images)[0]
        error = float((got - expected).norm() / expected.norm())
        own, other = interleaved(rounds, lambda: ours(images), lambda: theirs(images))
    row(
        "Inception features over torch-fidelity",
        other / own,
        ">= 1.3",
        other / own >= 1.3,
        f"{16 / own:.1f} images/CPU-s, error {error:.0e}",
    )
    row("Inception features, relative error", error, "<= 1e-6", error <= 1e-6, f"{error:.1e}")


SECTIONS = {"frechet": frechet, "prdc": prdc, "kid": kid, "inception": inception}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"any of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=["ours", "prdc"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    peers.stand_in_for_torchvision()
    torch.set_num_threads(1)
    if options.memory:
        return measure_memory(options.memory)
    for name in options.sections or SECTIONS:
        SECTIONS[name](options.rounds)


if __name__ == "__main__":
    main()
