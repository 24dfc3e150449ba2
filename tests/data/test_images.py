import pytest
import torch

from pytest_diffusion.data.images import as_uint8, resize_images


def test_resize_is_antialiased():
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = resize_images(stripes, 16, 16)
    assert small.min() > 100
    assert small.max() < 155
    assert resize_images(stripes, 64, 64) is stripes


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "expected (N, 3, H, W)"),
        (torch.zeros(1, 4, 8, 8), "expected (N, 3, H, W)"),
        (torch.full((1, 3, 8, 8), 1.5), "floats between 1.5 and 1.5"),
        (torch.full((1, 3, 8, 8), float("nan")), "images has 192 non-finite entries, the first at index (0, 0, 0, 0)"),
        (torch.zeros(2, 8, 8, 3), "permute(0, 3, 1, 2)"),
        (torch.zeros(2, 4, 8, 8), "A fourth channel is alpha"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "dtype torch.int32"),
    ],
)
def test_value_ranges_are_never_guessed(images, message):
    with pytest.raises(ValueError, match=r".*") as error:
        as_uint8(images, "images")
    assert message in str(error.value)
