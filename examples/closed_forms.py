"""A trained UNet beside the closed forms, on scikit-learn's digits: samples, loss by timestep, and R² along the trajectory.

    python examples/closed_forms.py                       # trains for a minute or two on two cores
    python examples/closed_forms.py --training-steps 300  # a taste

Writes the trained pipeline and two pictures to --folder (default: build/closed_forms). A second run finds the network there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from pytest_diffusion import assert_denoising_loss_below, compare_trajectories, create_model, epsilon_loss
from pytest_diffusion.analytic.compare import Denoisers
from pytest_diffusion.data.references import load_reference

SCHEDULE = {"prediction_type": "v_prediction", "clip_sample": False}
TIMESTEPS = [10, 50, 100, 200, 300, 500, 700, 900]


def digits() -> torch.Tensor:
    """All digits, float (1797, 1, 8, 8) in [-1, 1], in an order that mixes the kinds."""
    images = load_reference("digits", height=8, width=8, limit=2000).images
    assert images is not None
    return (images[:, :1].float() / 127.5 - 1)[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]


def train(images: torch.Tensor, steps: int) -> diffusers.UNet2DModel:
    """A small UNet that predicts the velocity (arXiv:2202.00512): its clean predictions stay small errors where there is only noise."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(32, 48),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler(**SCHEDULE)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=1e-2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        noise, timesteps = torch.randn_like(batch), torch.randint(1000, (64,))
        predicted = unet(scheduler.add_noise(batch, noise, timesteps), timesteps).sample
        loss = F.mse_loss(predicted, scheduler.get_velocity(batch, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    return unet.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-steps", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("build/closed_forms"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    images = digits()
    seen, held_out = images[:1400], images[1400:]
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    checkpoint = options.folder / f"unet-{options.training_steps}"
    if not (checkpoint / "model_index.json").is_file():
        pipeline = diffusers.DDPMPipeline(train(seen, options.training_steps), diffusers.DDPMScheduler(**SCHEDULE))
        pipeline.save_pretrained(checkpoint)
    models = {"trained UNet": create_model("baseline_unet", folder=checkpoint, scheduler=scheduler)}
    for name in ("wiener", "gaussian_mixture", "optimal", "pca_locality", "scfdm"):
        models[name] = create_model(name, seen, scheduler=scheduler)
    unet = models["trained UNet"]

    figure = Figure(figsize=(9, 1.1 * len(models)), layout="constrained")
    for index, (name, model) in enumerate(models.items()):
        drawn = model.sample(12, generator=torch.Generator().manual_seed(1), num_inference_steps=50).images
        axes = figure.add_subplot(len(models), 1, index + 1)
        axes.imshow(torch.cat(list(drawn[:, 0]), dim=1).clamp(-1, 1), cmap="gray_r", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(options.folder / "samples.png", dpi=150)

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, model in models.items():
        losses = epsilon_loss(model, held_out, TIMESTEPS)
        left.plot(TIMESTEPS, losses.values, marker="o", markersize=3, label=name)
        if model is not unet:
            along = compare_trajectories(unet, model, num_inference_steps=50)
            right.plot(along.log_snr, along.r2, label=name)
            print(f"{name}: R2 with the UNet {along.overall:.3f}, loss at t=300 {losses.values[4]:.4f}")
        else:
            print(f"{name}: loss at t=300 {losses.values[4]:.4f}")
    left.set(xlabel="timestep", ylabel="loss on held-out digits", yscale="log", title="Loss of the predicted noise")
    right.set(xlabel="log-SNR", ylabel="R²", ylim=(-0.1, 1.02), title="Clean predictions, along the UNet's way")
    left.legend(fontsize=7)
    right.legend(fontsize=7)
    figure.savefig(options.folder / "curves.png", dpi=150)
    verdict = assert_denoising_loss_below(Denoisers(unet, models["wiener"], held_out))
    print(verdict.message)
    print(f"Pictures: {options.folder / 'samples.png'}, {options.folder / 'curves.png'}")


if __name__ == "__main__":
    main()
