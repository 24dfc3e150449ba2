import math
from dataclasses import replace

import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.checks import all_checks
from pytest_diffusion.checks.distances import fid
from pytest_diffusion.checks.guards import images_of
from pytest_diffusion.checks.manifolds import coverage, memorisation, precision, recall
from pytest_diffusion.checks.scores import clip_score
from pytest_diffusion.data.references import Reference
from pytest_diffusion.features.identity import Features
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.maths.memorisation import memorisation as of_half
from pytest_diffusion.maths.statistics import wilson_interval


def noise(count, *, seed=0, size=16):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def gauss(count, *, seed, shift=0.0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_sound_images_pass_every_guard():
    images = noise(20)
    for assertion in (pd.assert_finite_images, pd.assert_no_constant_images, pd.assert_no_duplicate_images):
        assert assertion(images).outcome == "pass"
    assert pd.assert_same_resolution(images, Reference("r", noise(5), sizes={"16x16": 5})).outcome == "pass"


def test_nan_is_counted_and_placed():
    images = noise(5).float() / 255
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(pd.QualityFailure, match=r"nan or infinity is 1 .*The first is sample 3"):
        pd.assert_finite_images(images)


def test_float_images_are_rounded_and_cut_to_the_range_of_levels():
    images = torch.tensor([0.0, 0.25, 1.0, -0.5, 1.5, math.nan, math.inf, -math.inf]).view(1, 1, 2, 4).repeat(1, 3, 1, 1)
    shown, finite = images_of(torch.cat([images, images.nan_to_num(0, 0, 0)]))
    assert shown[0, 0].flatten().tolist() == [0, 64, 255, 0, 255, 0, 255, 0]
    assert shown.dtype == torch.uint8
    assert finite.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"samples have shape \(3, 2, 4\); expected \(N, 3, H, W\)"):
        images_of(images[0])
    assert torch.equal(images_of((noise(3).float() / 255).numpy())[0], noise(3))


@pytest.mark.parametrize(("level", "shade"), [(0, "black"), (255, "white"), (128, "flat, at level 128 of 255")])
def test_constant_images_are_called_by_their_shade(level, shade):
    images = noise(5)
    images[2] = level
    with pytest.raises(pd.QualityFailure, match=f"sample 2, which is {shade}"):
        pd.assert_no_constant_images(images)


def test_repeated_images_are_found():
    with pytest.raises(pd.QualityFailure, match="Only 4 of 12 samples are different; sample 4 repeats sample 0"):
        pd.assert_no_duplicate_images(noise(4).repeat(3, 1, 1, 1))


def test_a_small_reference_is_refused():
    reference = Reference("r", noise(5), sizes={"16x16": 3, "8x8": 2})
    with pytest.raises(pd.QualityFailure, match="2 are 8x8, the samples 16x16"):
        pd.assert_same_resolution(noise(5), reference)


def test_fid_of_like_and_unlike():
    assert pd.assert_fid_below(gauss(500, seed=0), gauss(500, seed=1), at_most=1.0).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match=r"Fréchet distance is 7\d.*% of it is a shift of the mean"):
        pd.assert_fid_below(gauss(500, seed=0, shift=3.0), gauss(500, seed=1), at_most=1.0)


@pytest.mark.parametrize("shift", [0.05, 3.0])
def test_a_difference_in_the_mean_alone_is_named(shift):
    rows = gauss(500, seed=0)
    measured = fid(rows + shift, rows)
    assert measured.value == pytest.approx(8 * shift**2, rel=1e-4)
    assert measured.hint == "100% of it is a shift of the mean, the rest is a difference in spread."
    widened = fid(rows - rows.mean(0), 2 * (rows - rows.mean(0)))
    assert widened.hint.startswith("0% of it is a shift of the mean")
    assert fid(rows[:1].repeat(9, 1), rows[:1].repeat(9, 1)).hint == ""


def test_fid_near_its_limit_is_inconclusive():
    with pytest.raises(pd.InconclusiveFailure, match=r"its interval straddles the limit; .*samples and \d+ reference images would decide"):
        pd.assert_fid_below(gauss(500, seed=0, shift=0.5), gauss(500, seed=1), at_most=2.05)


def test_fid_with_too_few_samples_is_never_a_pass():
    features = [Features(gauss(500, seed=seed), None, "inception-v3-compat-0") for seed in (0, 1)]
    with pytest.raises(pd.InconclusiveFailure, match="not enough samples: 500 samples, at least 10000 are needed"):
        pd.assert_fid_below(*features)


def test_the_limit_of_fid_is_not_used_for_another_extractor():
    features = [Features(gauss(500, seed=seed), None, "dinov2:x-0") for seed in (0, 1)]
    with pytest.raises(pd.QualityFailure, match=r"is for the extractor inception, not for dinov2:x-0: reported and not judged"):
        pd.assert_fid_below(*features)
    assert pd.assert_fid_below(*features, at_most=1.0).outcome == "pass"


def test_statistics_serve_fid_and_refuse_the_rest():
    statistics = FeatureStatistics.from_features(gauss(500, seed=1))
    assert pd.assert_fid_below(gauss(500, seed=0), statistics, at_most=1.0).measurement.num_reference == 500
    with pytest.raises(pd.QualityFailure, match="needs the features of single images"):
        pd.assert_kid_below(gauss(500, seed=0), statistics, at_most=1.0)


def test_kid_precision_recall():
    real, other = gauss(400, seed=0), gauss(400, seed=1)
    assert pd.assert_kid_below(other, real, at_most=0.1).outcome == "pass"
    assert pd.assert_precision_above(other, real, at_least=0.6).outcome == "pass"
    assert pd.assert_recall_above(other, real, at_least=0.6).outcome == "pass"
    far = gauss(400, seed=2, shift=4.0)
    for assertion, limit in (
        (pd.assert_kid_below, {"at_most": 0.1}),
        (pd.assert_precision_above, {"at_least": 0.6}),
        (pd.assert_recall_above, {"at_least": 0.6}),
    ):
        with pytest.raises(pd.QualityFailure, match="allowed at"):
            assertion(far, real, **limit)


def test_inception_score():
    sure = torch.eye(10).repeat(20, 1)
    assert pd.assert_inception_score_above(sure, at_least=9).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match="Inception score is 1"):
        pd.assert_inception_score_above(torch.full((100, 10), 0.1), at_least=9)


class Embedder:
    """A CLIP whose images say which of the prompts they show."""

    name = "test"

    def __init__(self, shown):
        self.shown = shown

    def image_embeds(self, images):
        return torch.eye(10)[self.shown] + 0.3

    def text_embeds(self, prompts):
        return torch.eye(10)[[int(prompt) for prompt in prompts]] + 0.3


ZERO, ONE = (torch.eye(10, dtype=torch.float64)[index] + 0.3 for index in (0, 1))


def labelled(order):
    from pytest_diffusion.samples.store import Samples

    count = len(order)
    return Samples(noise(count), [str(index) for index in order], list(range(count)), torch.ones(count, dtype=torch.bool))


def test_clip_score_names_shuffled_prompts():
    order = [index % 10 for index in range(200)]
    # Rolled by half the list the prompts would meet themselves again, so another order is used.
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0)).remainder(10).tolist()
    aligned = pd.assert_clip_score_above(labelled(shuffled), Embedder(shuffled), at_least=90)
    assert aligned.outcome == "pass"
    with pytest.raises(pd.QualityFailure, match="prompts and images are not aligned"):
        pd.assert_clip_score_above(labelled(order), Embedder(shuffled), at_least=90)


def test_the_eight_worst_by_clip_score_are_shown():
    shown = [*range(9), 0, 1]
    measured = clip_score(replace(labelled(shown), prompts=["0"] * 11), Embedder(shown))
    # Only the first and the tenth image show what their prompt says.
    assert len(measured.series["images"]) == 8
    low, high = (float(100 * (left @ right) / (left @ left)) for left, right in ((ZERO, ONE), (ZERO, ZERO)))
    assert measured.series["captions"] == [f"0 ({low:.0f})"] * 8
    assert measured.series["scores"] == pytest.approx([low] * 9 + [high] * 2)
    assert measured.value == pytest.approx((9 * low + 2 * high) / 11)


def test_helpers_show_the_parameters_of_their_checks():
    import inspect

    signature = inspect.signature(pd.assert_fid_below)
    assert list(signature.parameters) == ["features", "reference_features", "at_least", "at_most", "min_samples", "thresholds"]
    assert "Source: arXiv:1706.08500" in pd.assert_fid_below.__doc__


def test_every_check_has_a_helper():
    import pytest_diffusion.checks.assertions as assertions
    from pytest_diffusion.checks import all_checks

    documented = {
        inner.__doc__.partition("Judged as the check `")[2].partition("`")[0]
        for name, inner in vars(assertions).items()
        if name.startswith("assert_") and inner.__doc__ and "Judged as the check" in inner.__doc__
    }
    assert documented == {check.name for check in all_checks() if check.lens != "paired"}
    shared = {"assert_not_worse", "assert_equivalent", "assert_denoising_not_worse"}  # by all checks of the comparison
    own = {name for name in vars(assertions) if name.startswith("assert_")}
    assert own | shared == {name for name in pd.__all__ if name.startswith("assert_")}


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(pd.QualityFailure, match="The reference was resized to 8x8, the samples are 16x16"):
        pd.assert_same_resolution(noise(5), Reference("r", noise(5, size=8), sizes={"64x64": 5}))


def test_extrapolation_removes_the_bias():
    sides = [torch.randn(400, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    verdict = pd.assert_fid_infinity_below(*sides, at_most=1.0)
    assert verdict.measurement.value < pd.frechet_distance(*sides)
    with pytest.raises(pd.QualityFailure, match="extrapolated Fréchet distance is"):
        pd.assert_fid_infinity_below(sides[0] + 2, sides[1], at_most=1.0)
    with pytest.raises(pd.QualityFailure, match="20 samples of 16 features cannot be extrapolated: 32 are needed"):
        pd.assert_fid_infinity_below(sides[0][:20], sides[1], at_most=1.0)


def test_density_and_coverage_see_a_collapse():
    real = gauss(300, seed=0)
    assert pd.assert_density_above(gauss(300, seed=1), real, at_least=0.6).outcome == "pass"
    assert pd.assert_coverage_above(gauss(300, seed=1), real, at_least=0.7).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match=r"coverage is 0\.0.*allowed at least 0\.8"):
        pd.assert_coverage_above(real[:1] + 0.01 * gauss(300, seed=1), real, at_least=0.8)
    with pytest.raises(pd.QualityFailure, match=r"density is 0"):
        pd.assert_density_above(gauss(300, seed=1, shift=9.0), real, at_least=0.8)


def test_diversity_sees_a_collapse():
    assert pd.assert_vendi_score_above(gauss(300, seed=0), at_least=6).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match=r"Vendi score is 1\."):
        pd.assert_vendi_score_above(gauss(1, seed=0) + 0.05 * gauss(300, seed=1), at_least=6)


def test_copies_are_found_and_named():
    real = gauss(1200, seed=0)
    assert pd.assert_no_memorisation(gauss(1000, seed=1), real).outcome == "pass"
    copier = gauss(1000, seed=1)
    copier[:400] = real[:400] + 0.01 * gauss(400, seed=2)
    with pytest.raises(pd.QualityFailure, match=r"share of samples that copy the reference is 0\.\d.*Sample \d+ is the nearest"):
        pd.assert_no_memorisation(copier, real)
    with pytest.raises(pd.QualityFailure, match="50 reference images are too few"):
        pd.assert_no_memorisation(copier, real[:50])


class _Embeds:
    name = "planted"

    def image_embeds(self, images):
        return images.float().mean((2, 3)) / 255


def test_cmmd_of_like_and_unlike():
    def side(images):
        return Reference("r", images)

    assert pd.assert_cmmd_below(side(noise(200)), side(noise(200, seed=1)), _Embeds(), at_most=0.1).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match=r"CMMD is .* \(N=200, CLIP planted\); allowed at most 0\.1"):
        pd.assert_cmmd_below(side(noise(200) // 2), side(noise(200, seed=1)), _Embeds(), at_most=0.1)
    with pytest.raises(pd.QualityFailure, match="this figure needs its images"):
        pd.assert_cmmd_below(side(noise(200)), Reference("statistics.npz"), _Embeds(), at_most=0.1)


def test_features_of_two_protocols_are_not_compared():
    one, other = (Features(gauss(200, seed=0), None, "a", {"extractor": name}) for name in ("a-1", "a-2"))
    for assertion in (pd.assert_fid_below, pd.assert_kid_below, pd.assert_precision_above, pd.assert_coverage_above):
        with pytest.raises(pd.ProtocolMismatchError, match="extractor is 'a-1' on one side and 'a-2' on the other"):
            assertion(one, other)
    statistics = FeatureStatistics.from_features(gauss(200, seed=1), protocol={"extractor": "a-2"})
    with pytest.raises(pd.ProtocolMismatchError):
        pd.assert_fid_below(one, statistics)


def test_a_foreign_file_of_statistics_says_so(tmp_path):
    import numpy as np

    np.savez(tmp_path / "s.npz", mu=np.zeros(8), sigma=np.eye(8))
    verdict = pd.assert_fid_below(gauss(500, seed=0), FeatureStatistics.load(tmp_path / "s.npz"), at_most=1.0)
    assert verdict.measurement.protocol["reference"] == "statistics file, protocol unverified"


def test_repeats_in_the_reference_hide_no_copies():
    real = gauss(1000, seed=0)
    real[1:60:2] = real[0:60:2]
    with pytest.raises(pd.QualityFailure, match=r"share of samples that copy the reference is 1"):
        pd.assert_no_memorisation(real.clone(), real)


def test_a_saved_reference_outlives_an_upgrade():
    features = Features(gauss(200, seed=0), None, "a", {"extractor": "a-1", "versions": "torch 2"})
    statistics = FeatureStatistics.from_features(gauss(200, seed=1), protocol={"extractor": "a-1", "versions": "torch 1"})
    assert pd.assert_fid_below(features, statistics, at_most=9.0).measurement.protocol["reference versions"] == "torch 1"


def test_the_least_interval_of_a_share_counts_its_own_side():
    """All of 60 samples lie among 400 references: precision is a share of samples, recall one of references."""
    generator = torch.Generator().manual_seed(0)
    samples, reference = 0.1 * torch.randn(60, 2, generator=generator), torch.randn(400, 2, generator=generator)
    inside = precision(samples, reference)
    assert inside.value == 1
    assert inside.interval[0] == pytest.approx(wilson_interval(60, 60)[0], abs=0.02)
    assert inside.interval[0] < wilson_interval(200, 200)[0]
    hit = recall(reference, samples)
    assert hit.value == 1
    assert hit.interval[0] <= wilson_interval(60, 60)[0] < wilson_interval(400, 400)[0]
    covered = coverage(reference, samples)
    assert covered.interval[0] <= wilson_interval(60, 60)[0]


@pytest.mark.parametrize("place", [4, 7])
def test_the_copied_image_is_named_whichever_half_it_lies_in(place):
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(200, 6, generator=generator), torch.randn(300, 6, generator=generator)
    samples[11] = reference[place]
    assert f"Sample 11 is the nearest to an image of the reference, number {place}." in memorisation(samples, reference).hint


def test_the_interval_of_copies_adds_both_halves():
    """What is a hit in both halves, a sample or a pair of images, counts twice in the sum: four times in its variance."""
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(200, 6, generator=generator), torch.randn(300, 6, generator=generator)
    samples[:40] = reference[:40]
    folds = [of_half(samples, reference[one::2], reference[1 - one :: 2]) for one in (0, 1)]
    measured = memorisation(samples, reference)
    share = sum(fold.share for fold in folds)
    assert measured.value == pytest.approx(share)

    def hits(rows, one):
        """Nearest row of the half by each row whose score lies below the 5 % quantile of the other half's scores."""
        near = torch.cdist(rows.double(), reference[one::2].double()).sort(1)
        scores = near.values[:, 0] / near.values[:, :50].mean(1)
        control = torch.cdist(reference[1 - one :: 2].double(), reference[one::2].double()).sort(1).values
        threshold = (control[:, 0] / control[:, :50].mean(1)).quantile(0.05)
        return {row: int(near.indices[row, 0]) for row in range(len(rows)) if scores[row] < threshold}

    of_samples, of_images = ([hits(rows[one], one) for one in (0, 1)] for rows in ([samples] * 2, [reference[1::2], reference[::2]]))
    twice = len(of_samples[0].keys() & of_samples[1].keys())
    mutual = sum(of_images[1].get(near) == row for row, near in of_images[0].items())
    assert (twice, mutual) > (1, 1)
    wider = [1 + 2 * both / sum(map(len, sets)) for both, sets in ((twice, of_samples), (mutual, of_images))]
    for side, measured_end in enumerate(measured.interval):
        variance = 0.0
        for of_fold in of_samples:
            portion, ends = len(of_fold) / 200, wilson_interval(len(of_fold), 200)
            chance = wilson_interval(round(0.05 * 150), 150)[1 - side]
            variance += wider[0] * (portion - ends[side]) ** 2 + wider[1] * (0.05 - chance) ** 2
        assert measured_end == pytest.approx(share + (-1, 1)[side] * math.sqrt(variance) / 0.95)


@pytest.mark.parametrize("name", ["fid", "fid_infinity", "kid", "precision", "density", "recall", "coverage"])
def test_features_of_a_reference_are_given_and_tensors_are_not(name):
    """Features of the store are of files, which are the same in every run: the interval is then that of the samples alone."""
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(300, 6, generator=generator), torch.randn(150, 6, generator=generator)
    measure = next(one.function for one in all_checks() if one.name == name)
    open_, given = measure(samples, reference), measure(samples, Features(reference, None, "own", {}))
    assert (open_.given_reference, given.given_reference) == (False, True)
    assert given.value == pytest.approx(open_.value)
    assert given.interval != open_.interval
    if name in ("fid", "kid", "precision", "density"):
        assert given.interval[1] - given.interval[0] < open_.interval[1] - open_.interval[0]


def test_a_share_of_all_of_a_given_reference_is_not_called_certain():
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(400, 2, generator=generator)
    given = recall(samples, Features(samples[:60] * 0.5, None, "own", {}))
    assert given.value == 1
    assert given.interval == (pytest.approx(wilson_interval(60, 60)[0]), 1.0)
