"""The figures as metrics of torchmetrics: equal to the plain functions however they were collected."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pytest_diffusion.demo import reference_images
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.maths.diversity import vendi_estimate
from pytest_diffusion.maths.frechet import frechet_distance, frechet_standard_error
from pytest_diffusion.maths.kernel import kernel_estimate
from pytest_diffusion.maths.manifold import density_coverage, precision_recall
from pytest_diffusion.maths.scores import clip_scores
from pytest_diffusion.torchmetrics import CLIPScore, DensityCoverage, FrechetDistance, KernelDistance, PrecisionRecall, VendiScore
from tests.nightly import nightly

GENERATOR = torch.Generator().manual_seed(0)
FAKE, REAL = torch.randn(90, 6, generator=GENERATOR) + 0.3, torch.randn(70, 6, generator=GENERATOR)


def filled(metric, fake=FAKE, real=REAL, batch=32):
    for rows, is_real in ((fake, False), (real, True)):
        for start in range(0, len(rows), batch):
            metric.update(rows[start : start + batch], real=is_real)
    return metric


PLAIN = {
    FrechetDistance: lambda fake, real: frechet_distance(fake, real),
    KernelDistance: lambda fake, real: kernel_estimate(fake, real).value,
    PrecisionRecall: lambda fake, real: precision_recall(fake, real)._asdict(),
    DensityCoverage: lambda fake, real: density_coverage(fake, real)._asdict(),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_batches_merged_halves_and_a_second_use_equal_the_plain_function(kind):
    expected = pytest.approx(PLAIN[kind](FAKE, REAL), rel=1e-9)
    metric = filled(kind())
    found = metric.compute()
    values = found.values() if isinstance(found, dict) else [found]
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in values)
    assert found == expected
    halves = filled(kind(), FAKE[:50], REAL[:20]), filled(kind(), FAKE[50:], REAL[20:])
    halves[0].merge_state(halves[1])
    assert halves[0].compute() == expected
    metric.reset()
    assert metric.interval is None
    assert filled(metric, batch=7).compute() == expected


@pytest.mark.parametrize("kind", [PrecisionRecall, DensityCoverage])
def test_which_side_is_which_matters(kind):
    assert PLAIN[kind](FAKE, REAL) != pytest.approx(PLAIN[kind](REAL, FAKE), rel=1e-3)
    assert filled(kind(), REAL, FAKE).compute() == pytest.approx(PLAIN[kind](REAL, FAKE), rel=1e-9)


@pytest.mark.parametrize("kind", [FrechetDistance, KernelDistance])
def test_the_interval_is_that_of_the_samples_where_the_distance_has_no_sides(kind):
    widths = []
    for sides in ((FAKE, REAL), (REAL, FAKE)):
        metric = filled(kind(), *sides)
        metric.compute()
        widths.append(metric.interval[1] - metric.interval[0])
    assert widths[0] != pytest.approx(widths[1], rel=1e-3)


def test_the_interval_is_that_of_the_checks():
    metric = filled(FrechetDistance(given_reference=True))
    assert metric.interval is None
    value = float(metric.compute())
    error = frechet_standard_error(FAKE, REAL, given_reference=True)
    assert metric.interval == pytest.approx((value - 1.96 * error, value + 1.96 * error), rel=1e-3)
    both = filled(FrechetDistance(given_reference=False))
    both.compute()
    assert both.interval[1] - both.interval[0] > metric.interval[1] - metric.interval[0]
    shares = filled(PrecisionRecall())
    shares.compute()
    assert set(shares.interval) == {"precision", "recall"}


def test_scores_of_samples_alone():
    metric = VendiScore()
    for start in range(0, 90, 32):
        metric.update(FAKE[start : start + 32])
    estimate = vendi_estimate(FAKE)
    assert float(metric.compute()) == pytest.approx(estimate.value)
    assert metric.interval[0] < estimate.value < metric.interval[1]


def test_images_are_embedded_by_the_extractor_and_the_clip_that_are_named():
    images = reference_images(24)
    features = load_extractor("demo")(images).values
    metric = FrechetDistance("demo")
    metric.update(images[:10], real=True)
    metric.update(images[10:], real=False)
    assert float(metric.compute()) == pytest.approx(frechet_distance(features[10:], features[:10]), rel=1e-6)
    clip, prompts = load_clip("demo"), ["a red circle"] * 24
    score = CLIPScore("demo")
    score.update(images[:10], prompts[:10])
    score.update(images[10:], prompts[10:])
    expected = clip_scores(clip.image_embeds(images), clip.text_embeds(prompts))
    assert float(score.compute()) == pytest.approx(float(expected.mean()))
    with pytest.raises(ValueError, match="24 images have 3 prompts"):
        score.update(images, prompts[:3])


def test_nothing_and_another_shape_are_refused():
    metric = FrechetDistance()
    metric.update(FAKE, real=False)
    with pytest.raises(ValueError, match=r"no reference \(real=True\) were added"):
        metric.compute()
    with pytest.raises(ValueError, match=r"features have shape \(2, 3, 4\); expected \(N, D\)"):
        metric.update(torch.zeros(2, 3, 4), real=True)


@nightly("a minute; `.ci/run` trains the example on two processes")
def test_two_processes_of_accelerate_have_the_figures_of_one(tmp_path):
    example = Path(__file__).parents[1] / "examples" / "training_metrics.py"
    found = []
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", str(example), "--steps", "40"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(done.stdout.splitlines()[-1])
    assert found[0] == found[1]
    assert found[0].startswith("step 40: Fréchet distance ")
