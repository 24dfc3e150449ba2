import pytest
import torch

import pytest_diffusion as pd
from pytest_diffusion.data.references import Reference
from pytest_diffusion.demo import reference_images
from pytest_diffusion.demo.scenes import render, sample_scenes, to_uint8


@pytest.fixture(scope="module")
def reference():
    return Reference("demo", reference_images(300))


@pytest.fixture(scope="module")
def samples():
    return to_uint8(render(sample_scenes(300, seed=5), seed=5)[0])


def test_sound_colours_pass(samples, reference):
    for assertion in (pd.assert_value_range, pd.assert_channel_order, pd.assert_not_grey):
        assert assertion(samples, reference).outcome == "pass"
    assert pd.assert_reference_images(reference).outcome == "pass"


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


def test_statistics_have_no_colours(samples):
    with pytest.raises(pd.QualityFailure, match="a file of statistics"):
        pd.assert_value_range(samples, Reference("statistics.npz"))


def test_a_range_that_nobody_could_see_is_not_judged():
    """Of images in pure black and white, those that were never mapped look the same."""
    binary = torch.randint(0, 2, (100, 1, 8, 8), generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1).to(torch.uint8) * 255
    with pytest.raises(pd.QualityFailure, match=r"the reference would look the same if \[-1, 1\] was never mapped"):
        pd.assert_value_range(binary, Reference("binary", binary))
