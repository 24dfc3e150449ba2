import pytest
import torch

from pytest_diffusion.data.references import Reference, load_reference
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import Extractor, load_extractor
from pytest_diffusion.samples.canaries import canary_figures, require_aligned, require_telling
from pytest_diffusion.verdicts.errors import SetupError


@pytest.fixture(scope="module")
def reference():
    return load_reference("demo", height=32, width=32, limit=400)


def figures(reference, extractor, tmp_path):
    return canary_figures(reference, extractor(reference.images), extractor, tmp_path)


def test_a_sound_set_up_sings(reference, tmp_path):
    extractor = load_extractor("demo")
    found = figures(reference, extractor, tmp_path)
    require_telling(found, extractor.name)
    assert set(found) == {"real", "black", "noise", "cluster"}
    assert found["cluster"]["recall"] < 0.1


def test_features_are_kept_for_the_next_run(reference, tmp_path, monkeypatch):
    extractor = load_extractor("demo")
    features = extractor(reference.images)
    first = canary_figures(reference, features, extractor, tmp_path)
    monkeypatch.setattr(Extractor, "__call__", None)
    assert canary_figures(reference, features, extractor, tmp_path) == first


@pytest.mark.parametrize(
    "blind",
    [
        lambda images: (torch.zeros(len(images), 8), None),
        lambda images: (torch.randn(len(images), 8, generator=torch.Generator().manual_seed(len(images))), None),
    ],
    ids=["constant", "random"],
)
def test_an_extractor_that_sees_nothing_stops_the_run(reference, tmp_path, blind):
    extractor = Extractor("blind", blind)
    with pytest.raises(SetupError, match=r"do not separate real images from faulty ones \(extractor blind.*The model was not judged"):
        require_telling(figures(reference, extractor, tmp_path), extractor.name)


def test_a_reference_of_one_image_stops_the_run(reference, tmp_path):
    noise = torch.randint(0, 256, reference.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    extractor = load_extractor("demo")
    with pytest.raises(SetupError, match=r"KID against the other reference images is .* for real images and .* for noise"):
        require_telling(figures(Reference("noise", noise), extractor, tmp_path), extractor.name)


def test_few_images_are_not_asked(reference, tmp_path):
    extractor = load_extractor("demo")
    few = Reference("few", reference.images[:100])
    assert figures(few, extractor, tmp_path) == {}
    require_telling({}, extractor.name)


def test_pairs_that_do_not_belong_together_stop_the_run(reference, tmp_path):
    clip = load_clip("demo")
    require_aligned(reference, clip, tmp_path)
    shuffled = Reference("shuffled", reference.images, prompts=reference.prompts[50:] + reference.prompts[:50])
    with pytest.raises(SetupError, match=r"real images score .* with their own prompts and .* with shuffled ones"):
        require_aligned(shuffled, clip, tmp_path)
    require_aligned(Reference("unpaired", reference.images), clip, tmp_path)


def test_sparse_points_on_black_are_a_sound_reference(tmp_path):
    """64 such images are as far from the others, by Fréchet's biased distance, as black frames are."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(1000, 3, 256, dtype=torch.uint8)
    for image in images:
        image[:, torch.randperm(256, generator=generator)[:4]] = 255
    sparse, extractor = Reference("stars", images.view(-1, 3, 16, 16)), load_extractor("pixels")
    require_telling(figures(sparse, extractor, tmp_path), extractor.name)
