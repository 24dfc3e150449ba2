import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from pytest_diffusion.demo import reference_images
from pytest_diffusion.features.clip import load_clip
from pytest_diffusion.features.extractors import load_extractor
from pytest_diffusion.verdicts.errors import ModelError


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14, mlp_ratio=2)
    model = Dinov2Model(config).eval()
    model.save_pretrained(folder)
    return folder, model


def test_dinov2_gives_the_class_token_of_normalised_images(dinov2):
    folder, model = dinov2
    images = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = load_extractor(f"dinov2:{folder}")(images)
    mean, std = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=(images / 255 - mean) / std).last_hidden_state[:, 0]
    assert torch.allclose(features.values, expected, atol=1e-5)
    assert features.probabilities is None
    assert features.protocol["resize"].startswith("224x224, bicubic, antialiased")
    assert features.extractor.startswith(f"dinov2:{folder}-")
    with pytest.raises(ModelError, match="dinov2:/nowhere/at/all cannot be loaded"):
        load_extractor("dinov2:/nowhere/at/all")


def test_another_set_of_weights_is_another_extractor(dinov2, tmp_path):
    folder, model = dinov2
    with torch.no_grad():
        model.layernorm.weight[0] += 1
    model.save_pretrained(tmp_path)
    assert load_extractor(f"dinov2:{folder}").name.rpartition("-")[2] != load_extractor(f"dinov2:{tmp_path}").name.rpartition("-")[2]


def test_batches_change_no_features(dinov2):
    extractor = load_extractor("demo")
    images = reference_images(20)
    assert torch.allclose(extractor(images, batch_size=7).values, extractor(images).values, atol=1e-5)


def test_pixels_are_the_features_of_small_images():
    images = reference_images(4)[..., :8, :8]
    assert torch.equal(load_extractor("pixels")(images).values, images.flatten(1) / 255)
    assert load_extractor("pixels")(reference_images(4)).values.shape == (4, 3 * 16 * 16)


def test_a_clip_says_what_its_figures_rest_on():
    protocol = load_clip("demo").protocol
    assert "bicubic, antialiased" in protocol["resize"]
    assert len(protocol["weights"]) == 8
    assert "torch 2" in protocol["versions"]
