"""The pairs that lost most, and the distance to the baseline's images."""

from dataclasses import replace

import pytest
import torch

from pytest_diffusion.gate.drift import drift_of
from pytest_diffusion.gate.looks import Decided, Look
from pytest_diffusion.gate.pairs import PairedRun
from pytest_diffusion.gate.side import Rows
from pytest_diffusion.gate.slices import SliceFound
from pytest_diffusion.gate.worst import worst_of_slices, worst_pairs
from pytest_diffusion.maths.statistics import Estimate
from pytest_diffusion.verdicts.errors import NotApplicable

COUNT = 12


def rows(images, **scores):
    whole = torch.ones(len(images), dtype=torch.bool)
    named = {name: torch.as_tensor(values, dtype=torch.float64) for name, values in scores.items()}
    return Rows(named, None, whole, ~whole, [str(index) for index in range(len(images))], images)


def run(candidate, baseline):
    return PairedRun({}, candidate, baseline, [f"prompt {index}" for index in range(COUNT)], list(range(COUNT)), COUNT)


@pytest.fixture
def images():
    return torch.randint(0, 256, (COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_the_worst_pairs_are_those_whose_scores_fell_most(images):
    before, after = torch.arange(12.0), torch.arange(12.0)
    after[7] -= 9
    after[3] -= 4
    found = worst_pairs(
        run(rows(images, clip_score=after, brightness=-before), rows(images, clip_score=before, brightness=before)), count=2
    )
    assert [one["seed"] for one in found] == [7, 3]  # tones do not choose
    assert found[0]["prompt"] == "prompt 7"
    assert found[0]["scores"] == "clip_score 7 \u2192 -2"
    assert all(uri.startswith("data:image/png;base64,") for uri in found[0]["images"])


def test_without_scores_of_content_the_distance_of_images_chooses(images):
    changed = images.clone()
    changed[5] = 255 - changed[5]
    assert worst_pairs(run(rows(changed), rows(images)), count=1)[0]["seed"] == 5


def slice_of(name, word, worst, through=""):
    look = Look(12, Estimate(-1.0, 0.1, 11), -1.0, 50.0, 0.0)
    return SliceFound(name, "clip_score", 8, Decided(word, look, (-1.2, -0.8), 0.2, 0.0), worst, through)


def test_a_slice_that_is_worse_shows_its_own_pairs(images):
    found = [slice_of("purple", "worse", [4, 2, 9, 1]), slice_of("circle", "worse", [4], "purple"), slice_of("red", "same", [0])]
    scored = [rows(images, clip_score=torch.arange(12.0) - lost) for lost in (1, 0)]
    shown = worst_of_slices(replace(run(*scored), slices=found))
    assert [(one["slice"], one["figure"], [pair["seed"] for pair in one["pairs"]]) for one in shown] == [
        ("purple", "clip_score", [4, 2, 9])
    ]
    assert shown[0]["pairs"][0]["scores"] == "clip_score 4 \u2192 3"
    assert worst_of_slices(run(*scored)) == []


def test_a_saved_baseline_has_no_pictures(images):
    saved = replace(rows(images), images=None)
    assert worst_of_slices(replace(run(rows(images), saved), slices=[slice_of("purple", "worse", [1])])) == []
    assert worst_pairs(run(rows(images), saved)) == []
    with pytest.raises(NotApplicable, match="the baseline was saved without its images"):
        drift_of(run(rows(images), saved))


def test_drift_is_a_share_of_the_distance_between_two_seeds(images):
    assert drift_of(run(rows(images), rows(images))).value == 0
    apart = drift_of(run(rows(images.roll(COUNT // 2, 0)), rows(images)))
    assert apart.value == pytest.approx(1.0)
    shifted = drift_of(run(rows((images.int() + 2).clamp(0, 255).to(torch.uint8)), rows(images)))
    assert "Root mean square distance 1.9" in shifted.hint or "Root mean square distance 2" in shifted.hint
    assert shifted.unjudged
    with pytest.raises(NotApplicable, match="shapes"):
        drift_of(run(rows(images[..., :4]), rows(images)))
