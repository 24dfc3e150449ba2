import pytest
import torch

from pytest_diffusion.config.imports import import_past_torchvision
from pytest_diffusion.maths.similarity import psnr, ssim

# torchmetrics also where torch-fidelity is installed and torchvision is not.
torchmetrics = import_past_torchvision("torchmetrics.functional.image", purpose="this test", install="torchmetrics")


def pictures(seed, count=4, shape=(3, 24, 40)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def test_they_are_torchmetrics():
    first = pictures(0)
    second = (first + 0.1 * pictures(1)).clamp(0, 1)
    for index in range(len(first)):
        one, other = first[index : index + 1], second[index : index + 1]
        assert float(psnr(one, other)) == pytest.approx(float(torchmetrics.peak_signal_noise_ratio(one, other, data_range=1.0)), rel=1e-5)
        _, full = torchmetrics.structural_similarity_index_measure(one, other, data_range=1.0, return_full_image=True)
        # torchmetrics counts a border of reflected pixels too; without it the two are the same.
        assert float(ssim(one, other)) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-5)


def test_closed_forms():
    images = pictures(2)
    assert psnr(images, images).tolist() == [pytest.approx(120)] * 4
    assert psnr(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.1)).item() == pytest.approx(20, abs=1e-5)
    assert ssim(images, images).tolist() == [pytest.approx(1)] * 4
    # Flat images: only the luminance term, (2ab + c)/(a² + b² + c) with c = 1e-4.
    flat = ssim(torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6))
    # Variances, E[x²] - E[x]², are exact to a few 2**-24 of E[x²] in float32, which is about 1e-4 of the constant 9e-4 beside them.
    assert flat.item() == pytest.approx((0.24 + 1e-4) / (0.4 + 1e-4), rel=2e-4)
    assert ssim(images, pictures(3)).abs().max() < 0.2


def test_each_image_needs_its_partner():
    for figure in (psnr, ssim):
        assert figure(pictures(0, 9), pictures(1, 9)).shape == (9,)
        with pytest.raises(ValueError, match="argument 2 is longer"):
            figure(pictures(0, 4), pictures(1, 8))


def test_images_smaller_than_the_window_are_refused():
    with pytest.raises(ValueError, match="images are 20x8; SSIM needs at least 11"):
        ssim(torch.zeros(1, 3, 8, 20), torch.zeros(1, 3, 8, 20))
