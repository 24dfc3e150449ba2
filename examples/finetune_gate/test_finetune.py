"""A test of one's own beside the comparison: lime was learned in pictures, not only in the loss."""

import torch
from finetune import LIME

from pytest_diffusion.demo.scenes import COLOURS

COUNT = 8


def lime_images(pipeline):
    """How many of eight pictures of "a lime circle" have an object that is nearer to lime than to any colour that the demo knew."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(COUNT)]
    images = pipeline(["a lime circle"] * COUNT, num_inference_steps=10, generator=generators, output_type="pt").images.flatten(2)
    darkest = images.sum(1).topk(images.shape[2] // 10, largest=False).indices
    objects = images.gather(2, darkest[:, None].expand(-1, 3, -1)).mean(2)
    known = torch.tensor([LIME, *COLOURS.values()])
    return int((torch.cdist(objects.float(), known).argmin(1) == 0).sum())


def test_lime_is_lime(diffusion_pipeline, diffusion_baseline_pipeline):
    assert lime_images(diffusion_pipeline) >= 6
    assert lime_images(diffusion_baseline_pipeline) <= 2
