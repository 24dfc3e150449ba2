"""Pictures of the strangest and the most alike, and of real beside generated images, on images whose answer is known."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pytest_diffusion.checks import neighbours
from pytest_diffusion.checks.guards import same_resolution
from pytest_diffusion.checks.manifolds import memorisation, precision, recall
from pytest_diffusion.checks.neighbours import beside_nearest
from pytest_diffusion.checks.pictures import MAX_SIDE, Picture, data_uri, grid_uri
from pytest_diffusion.checks.registry import CHECKS
from pytest_diffusion.data.references import Reference
from pytest_diffusion.features.identity import Features
from pytest_diffusion.maths.feature_statistics import FeatureStatistics
from pytest_diffusion.samples.store import Samples


def shades(levels):
    """Images of one grey level each, by which they are told apart in a picture."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()


def level(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB").getpixel((0, 0))[0]


def samples(levels, prompts=None):
    return Samples(shades(levels), prompts, list(range(len(levels))), torch.ones(len(levels), dtype=torch.bool))


def line(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def features(values, levels):
    return Features(values, None, "places", first_images=lambda count: shades(levels)[:count])


OURS, THEIRS = features(line(0, 5, 9, 30), [10, 20, 30, 40]), features(line(1, 5.5, 20), [110, 120, 130])


def test_the_farthest_comes_first_beside_its_nearest():
    found = beside_nearest(OURS, THEIRS)
    assert [level(image) for image in found["images"]] == [40, 30, 10, 20]  # distances 10, 3.5, 1, 0.5
    assert [level(image) for image in found["nearest"]] == [130, 120, 110, 120]
    assert found["captions"] == ["distance 10", "distance 3.5", "distance 1", "distance 0.5"]


def test_the_most_alike_and_the_other_side():
    assert [level(image) for image in beside_nearest(OURS, THEIRS, alike=True)["images"]] == [20, 10, 30, 40]
    assert [level(image) for image in beside_nearest(THEIRS, OURS)["images"]] == [130, 110, 120]  # 10, 1, 0.5


@pytest.mark.parametrize(
    "theirs", [THEIRS.values, Features(THEIRS.values, None, "places"), FeatureStatistics(torch.zeros(1), torch.eye(1), 3)]
)
def test_no_picture_without_the_images_of_the_features(theirs):
    assert beside_nearest(OURS, theirs) == {}


def test_features_that_carry_a_gradient_are_shown_too():
    assert beside_nearest(features(OURS.values.clone().requires_grad_(), [1, 2, 3, 4]), THEIRS)


def test_a_search_among_some_says_so(monkeypatch):
    assert "Searched" not in beside_nearest(OURS, THEIRS)["note"]
    monkeypatch.setattr(neighbours, "SEARCHED", 3)
    found = beside_nearest(OURS, THEIRS)
    assert "Searched among the first 3 and 3." in found["note"]
    assert [level(image) for image in found["images"]] == [30, 10, 20]


@pytest.mark.parametrize("function", [precision, recall, memorisation])
def test_the_figures_are_the_same_with_and_without_pictures(function):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(count, 4, generator=generator) for count in (120, 130))
    alone = function(ours, theirs)
    shown = function(features(ours, [1] * 120), features(theirs, [2] * 130))
    assert (alone.value, alone.series) == (shown.value, {})
    # What a check calls its own stands above: samples for two of them, the reference's images for recall.
    above, below = (2, 1) if function is recall else (1, 2)
    assert {level(image) for image in shown.series["images"]} == {above}
    assert {level(image) for image in shown.series["nearest"]} == {below}
    (picture,) = CHECKS[function.__name__].pictures(shown.series)
    assert len(picture.columns) == neighbours.SHOWN


def test_real_and_generated_images_of_one_prompt_stand_together():
    reference = Reference("r", shades([110, 120, 130]), sizes={"8x8": 3}, prompts=["a", "b", "c"])
    found = same_resolution(samples([10, 20, 30], ["c", "x", "a"]), reference)
    (picture,) = CHECKS["same_resolution"].pictures(found.series)
    columns = [(caption, [level(image) for _, image in images]) for caption, images in picture.columns]
    assert columns == [("c", [130, 10]), ("a", [110, 30])]
    assert picture.columns[0][1][0][0] == "real: c"


def test_without_shared_prompts_the_first_of_each_stand_there_and_it_is_said():
    reference = Reference("r", shades([110, 120]), sizes={"8x8": 2})
    (picture,) = CHECKS["same_resolution"].pictures(same_resolution(samples([10, 20, 30], ["a", "b", "c"]), reference).series)
    assert [[level(image) for _, image in images] for _, images in picture.columns] == [[110, 10], [120, 20]]
    assert "share no prompts" in picture.note
    other = Reference("r", shades([110, 120]).repeat(1, 1, 2, 2), sizes={"16x16": 2})
    assert CHECKS["same_resolution"].pictures(same_resolution(samples([10]), other).series) == []


def test_small_images_keep_every_pixel_and_large_ones_stay_small():
    noise = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    kept = Image.open(io.BytesIO(base64.b64decode(data_uri(noise).partition(",")[2])))
    assert kept.format == "PNG"
    assert torch.equal(torch.from_numpy(np.array(kept)).permute(2, 0, 1), noise)
    smooth = torch.nn.functional.interpolate(torch.rand(17, 3, 16, 16), size=512, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    large = data_uri(smooth[0])
    assert max(Image.open(io.BytesIO(base64.b64decode(large.partition(",")[2]))).size) == MAX_SIDE
    assert len(large) < 12_000  # 150 pictures in a page of 2 MB
    strip = grid_uri(smooth, columns=17)
    assert len(strip) < 150_000


def test_rows_of_several_lengths_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        _ = Picture("t", [["a"], ["b", "c"]]).columns


def test_pictures_ask_for_no_fixture():
    """Else a fixture that gives features of one's own would have to draw samples, and a run without images could not be judged."""
    for name in ("precision", "recall", "memorisation"):
        assert not {"diffusion_samples", "diffusion_reference"} & set(CHECKS[name].fixtures.values())


def test_images_that_cannot_be_shown_are_judged_all_the_same():
    """A grey image has no picture, and a figure as any other."""
    grey = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    found = same_resolution(grey, Reference("r", shades([110, 120]), sizes={"8x8": 2}))
    assert (found.value, found.series) == (0, {})
