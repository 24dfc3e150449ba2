from dataclasses import replace

import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.checks.colours import channel_order, grey_images, reference_images, value_range
from pytest_diffusion.data.references import Reference
from pytest_diffusion.demo import reference_images as demo_images
from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8
from pytest_diffusion.verdicts.errors import NotApplicable


@pytest.fixture(scope="module")
def reference():
    return Reference("demo", demo_images(300))


@pytest.fixture(scope="module")
def samples():
    return to_uint8(render(sample_scenes(300, seed=5), seed=5)[0])


def test_sound_colours_pass(samples, reference):
    for assertion in (pd.assert_value_range, pd.assert_channel_order, pd.assert_not_grey):
        assert assertion(samples, reference).outcome == "pass"
    assert pd.assert_reference_images(reference).outcome == "pass"


WRONG_RANGES = {
    "[-1, 1] was mapped to [0, 1] twice": lambda levels: ((levels + 255) / 2).floor(),
    "[-1, 1] was never mapped to [0, 1]": lambda levels: (2 * levels - 255).clamp(min=0),
    "[0, 1] was taken for levels of 255": lambda levels: (levels / 255).round(),
}


@pytest.mark.parametrize("cause", WRONG_RANGES)
def test_the_gain_is_plus_one_for_a_wrong_mapping_of_the_reference_itself_and_minus_one_for_none(cause):
    """All images have all levels, and the two in the middle more often."""
    levels = torch.cat([torch.arange(256).repeat(3), torch.tensor([127, 128]).repeat(24)])
    images = levels.view(1, 3, 16, 17).repeat(50, 1, 1, 1)
    wrong = WRONG_RANGES[cause](images.double()).to(torch.uint8)
    measured = value_range(wrong, Reference("levels", images.to(torch.uint8)))
    assert measured.value == pytest.approx(1, abs=1e-12)
    mean = float(images.double().mean())
    assert measured.hint == f"Their mean level is {wrong.double().mean():.0f} of 255, the reference's {mean:.0f}: they look as if {cause}."
    right = value_range(images.to(torch.uint8), Reference("levels", images.to(torch.uint8)))
    assert right.value == pytest.approx(-1, abs=1e-12)
    assert right.hint == f"Their mean level is {mean:.0f} of 255, the reference's {mean:.0f}."


def test_half_a_level_is_rounded_to_the_nearer_one():
    """Levels 127 and 128 of 255 are 0 and 1 where [0, 1] is taken for levels; all samples have level 1, which lies between them."""
    reference = torch.tensor([127, 128, 255]).view(1, 3, 1, 1).repeat(50, 1, 16, 16).to(torch.uint8)
    measured = value_range(torch.ones_like(reference), Reference("levels", reference))
    assert measured.hint.endswith("they look as if [0, 1] was taken for levels of 255.")
    # Samples are 169 levels from the reference and a third of one from the mapped reference, which is 169 1/3 from it.
    assert measured.value == pytest.approx((169 - 1 / 3) / (170 - 2 / 3))


def test_a_range_mapped_twice_is_found(samples, reference):
    with pytest.raises(pd.QualityFailure, match=r"gain by another value range is 0\.\d.*look as if \[-1, 1\] was mapped to \[0, 1\] twice"):
        pd.assert_value_range((samples.float() / 2 + 127).to(torch.uint8), reference)


def test_a_range_not_mapped_is_found(samples, reference):
    with pytest.raises(pd.QualityFailure, match=r"look as if \[-1, 1\] was never mapped"):
        pd.assert_value_range(((samples.float() / 127.5 - 1).clamp(0, 1) * 255).to(torch.uint8), reference)


def test_a_scale_that_was_forgotten_is_found(samples, reference):
    with pytest.raises(pd.QualityFailure, match=r"look as if \[0, 1\] was taken for levels of 255"):
        pd.assert_value_range((samples.float() / 255).round().to(torch.uint8), reference)


def test_more_contrast_is_no_other_range(samples, reference):
    """A model with saturated colours is not accused of a wrong mapping."""
    saturated = ((samples.float() - 128) * 1.3 + 128).clamp(0, 255).to(torch.uint8)
    assert pd.assert_value_range(saturated, reference).outcome == "pass"


def test_swapped_channels_are_found(samples, reference):
    with pytest.raises(pd.QualityFailure, match=r"gain by another channel order is .* As BGR the samples fit the reference better"):
        pd.assert_channel_order(samples[:, [2, 1, 0]], reference)


def test_the_gain_is_plus_one_for_swapped_channels_of_the_reference_itself_and_minus_one_for_none(reference):
    swapped, right = (channel_order(images, reference) for images in (reference.images.flip(1), reference.images))
    assert swapped.value == pytest.approx(1, rel=1e-6)
    assert swapped.hint == "As BGR the samples fit the reference better."
    assert right.value == pytest.approx(-1, rel=1e-6)
    assert right.hint.endswith("the samples fit the reference worse.")
    assert (right.num_samples, right.num_reference) == (300, 300)


def test_forty_images_a_side_have_colours_to_compare(samples, reference):
    few = replace(reference, images=reference.images[:40])
    assert grey_images(samples[:40], few).value == 0
    for sides in ((samples[:39], few), (samples, replace(few, images=few.images[:39]))):
        with pytest.raises(NotApplicable, match="at least 40 images are needed on both sides"):
            grey_images(*sides)


def test_an_order_that_nobody_could_see_is_not_judged(samples):
    grey = samples.float().mean(1, keepdim=True).repeat(1, 3, 1, 1).to(torch.uint8)
    with pytest.raises(pd.QualityFailure, match="look alike in every channel order"):
        pd.assert_channel_order(samples, Reference("grey", grey))


def test_lost_hues_are_counted(samples, reference):
    partly = samples.clone()
    partly[100:] = partly[100:, :1]
    with pytest.raises(pd.QualityFailure, match="200 samples are grey, the first is sample 100; of the reference 0"):
        pd.assert_not_grey(partly, reference)
    assert pd.assert_not_grey(samples[:, :1].repeat(1, 3, 1, 1), Reference("grey", samples[:, :1].repeat(1, 3, 1, 1))).outcome == "pass"


def test_unfit_references_are_counted_and_named(reference):
    images = reference.images.clone()
    images[10:30] = images[10]
    images[50] = 128
    names = tuple(f"{index}.png" for index in range(300))
    message = r"1 is constant, the first 50\.png. 19 are repeated, the first 11\.png. 2 are with an alpha channel, the first 7\.png"
    with pytest.raises(pd.QualityFailure, match=message):
        pd.assert_reference_images(Reference("r", images, labels=names, alpha=(7, 9)))
    assert reference_images(Reference("r", images, alpha=(7, 9, 50))).value == pytest.approx(22 / 300), "one has two faults"


def test_a_grey_or_printed_reference_does_not_fit_samples_in_colour(samples, reference):
    grey = Reference("grey", reference.images.float().mean(1, keepdim=True).round().to(torch.uint8).repeat(1, 3, 1, 1))
    assert pd.assert_reference_images(reference, samples).outcome == "pass"
    with pytest.raises(pd.QualityFailure, match="300 are grey, though the samples are in colour, the first image 0"):
        pd.assert_reference_images(grey, samples)
    assert pd.assert_reference_images(grey, grey.images).outcome == "pass", "a grey model has a grey reference"
    assert pd.assert_reference_images(grey).outcome == "pass", "without samples nobody knows"
    some = Reference("some", torch.cat([grey.images[:30], reference.images[30:]]))
    assert reference_images(some, samples).value == pytest.approx(30 / 300)
    mixed = torch.cat([grey.images[200:230], samples[30:]])
    assert reference_images(some, mixed).value == 0, "a model of a data set with some photographs in black and white"
    few = torch.cat([grey.images[200:207], samples[7:]])
    assert reference_images(some, few).value == pytest.approx(30 / 300), "less than a fourth of the reference's share"
    printed = Reference("printed", reference.images, cmyk=tuple(range(40)))
    with pytest.raises(pd.QualityFailure, match="40 are in CMYK, the first image 0"):
        pd.assert_reference_images(printed)


def test_statistics_have_no_colours(samples):
    with pytest.raises(pd.QualityFailure, match="a file of statistics"):
        pd.assert_value_range(samples, Reference("statistics.npz"))


def test_a_range_that_nobody_could_see_is_not_judged():
    """Of images in pure black and white, those that were never mapped look the same."""
    binary = torch.randint(0, 2, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1).to(torch.uint8) * 255
    with pytest.raises(pd.QualityFailure, match=r"the reference would look the same if \[-1, 1\] was never mapped"):
        pd.assert_value_range(binary, Reference("binary", binary))


@pytest.mark.parametrize("assertion", [pd.assert_value_range, pd.assert_channel_order])
@pytest.mark.parametrize(("count", "said"), [(39, "at least 40 images are needed"), (64, "not enough samples: 64 samples, at least 100")])
def test_fewer_samples_do_not_make_a_weaker_gate(samples, reference, assertion, count, said):
    """A guard that needs 100 samples closes the gate with 64, and with the 39 of which it can say nothing."""
    with pytest.raises(pd.InconclusiveFailure, match=said) as failure:
        assertion(samples[:count], reference)
    assert (failure.value.verdict.outcome, failure.value.verdict.gates) == ("undersampled", True)
    assert assertion(samples[:100], reference).outcome == "pass"
