"""Metrics of torchmetrics as scores of single images."""

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.image import TotalVariation

from pytest_diffusion.config.sources import check_source
from pytest_diffusion.features.foreign_metrics import load_metric
from pytest_diffusion.features.image_scores import load_scorer, names_of
from pytest_diffusion.verdicts.errors import SettingsError, SetupError

IMAGES = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]


class LengthOfPrompt(Metric):
    """The number of letters of the prompt, plus the brightest pixel: it must get uint8 and one prompt at a time."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0))

    def update(self, images, prompts):
        assert images.dtype == torch.uint8
        assert len(images) == len(prompts) == 1
        self.total += len(prompts[0]) + int(images.max())

    def compute(self):
        return self.total


class Three(LengthOfPrompt):
    def update(self, images, prompts, real):
        pass


class Map(LengthOfPrompt):
    def update(self, images):
        self.total = images

    def compute(self):
        return self.total


class Undecided(LengthOfPrompt):
    higher_is_better = None


class Needy(LengthOfPrompt):
    def __init__(self, model):
        super().__init__()


def scorer(name, prompts=PROMPTS):
    return load_scorer(f"torchmetrics:{name}", device="cpu", prompts=prompts, clip=lambda: None, subject=lambda: None)


def test_each_image_has_the_metrics_own_value():
    found = scorer("torchmetrics.image.TotalVariation")(IMAGES, None)
    # Less of it is better, so that the score is the negative.
    expected = [-float(TotalVariation()(image[None].float() / 255)) for image in IMAGES]
    assert found["TotalVariation"].tolist() == pytest.approx(expected)
    assert names_of("torchmetrics:torchmetrics.image.TotalVariation") == ("TotalVariation",)


def test_a_metric_with_prompts_gets_the_images_own():
    found = scorer(f"{__name__}.LengthOfPrompt")(IMAGES, PROMPTS)
    assert found["LengthOfPrompt"].tolist() == [len(prompt) + int(image.max()) for prompt, image in zip(PROMPTS, IMAGES, strict=True)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Three", "takes 3 arguments; expected images, or images and prompts"),
        ("Undecided", "does not say whether more of it is better"),
        ("Needy", "cannot be made: TypeError"),
        ("scorer", "cannot be made: TypeError"),
        ("Absent", "cannot be made: AttributeError"),
    ],
)
def test_what_is_no_metric_of_images_is_refused(name, message):
    with pytest.raises(SetupError, match=message):
        load_metric(f"torchmetrics:{__name__}.{name}", device="cpu")


def test_values_that_are_not_one_number_are_refused():
    with pytest.raises(SetupError, match=r"gave shape \(1, 3, 16, 16\) for an image; expected one number"):
        scorer(f"{__name__}.Map")(IMAGES, None)
    with pytest.raises(SetupError, match="needs prompts, and the model takes none"):
        scorer(f"{__name__}.LengthOfPrompt")(IMAGES, None)
    # Two sets of images are compared by it, and a prompt is no image.
    with pytest.raises(SetupError, match="StructuralSimilarityIndexMeasure cannot score an image"):
        scorer("torchmetrics.image.StructuralSimilarityIndexMeasure")(IMAGES, PROMPTS)


@pytest.mark.parametrize("value", ["torchmetrics:", "torchmetrics:Class", "torchmetrics:a b.Class", "torchmetrics:no_such_package.Class"])
def test_a_wrong_name_is_refused_before_anything_is_loaded(value):
    with pytest.raises(SettingsError, match="--diffusion-scorer"):
        check_source("score", value)
