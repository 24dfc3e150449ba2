"""Plots of the checklist, each drawn from its check's series; a check names its plot where it is declared."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

from pytest_diffusion.verdicts.drawing import PALETTE, Series, axes_of, empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_snr(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 3.0)
    for name, values in series["log_snr"].items():
        finite = [(index / (len(values) - 1), value) for index, value in enumerate(values)]
        shown = [(place, value) for place, value in finite if math.isfinite(value)]
        own = name == "this model"
        axes.plot(
            *zip(*shown, strict=True), label=name, linewidth=2.4 if own else 1.1, linestyle="-" if own else "--", zorder=3 if own else 2
        )
    axes.set(xlabel="t / T (clean to noisy)", ylabel="log-SNR in nats", title="Noise schedule beside the textbook ones")
    axes.legend()
    return figure


def midway(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 2.2)
    names = list(series["falls"])
    axes.barh(
        names, [series["falls"][name] for name in names], color=[PALETTE[1] if name == "this model" else PALETTE[0] for name in names]
    )
    axes.set(xlabel="steepest fall of log-SNR, nats per t/T", title="Mid-way fall: a cosine is the gentlest")
    return figure


def distance_by_size(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 3.0)
    axes.plot(series["sizes"], series["distances"], marker="o", label="N samples on both sides")
    axes.axhline(series["infinity"], linestyle="--", linewidth=1, color=PALETTE[1], label="extrapolated")
    axes.set(xscale="log", xlabel="samples N", ylabel="Fréchet distance", title="Fréchet distance against N: its bias falls with N")
    axes.legend()
    axes.set_xticks(series["sizes"], [str(size) for size in series["sizes"]])
    axes.minorticks_off()
    return figure


def clip_scores(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 3.0)
    axes.hist([series["scores"], series["other"]], bins=24, label=["own prompt", "another's prompt"], histtype="stepfilled", alpha=0.65)
    axes.set(xlabel="CLIP score", ylabel="samples", title="Samples with their own and with another prompt")
    axes.legend()
    return figure


def entropy(series: Series) -> Figure:
    figure, axes = axes_of(5.6, 3.2)
    timesteps = series["timesteps"]
    for name, values in series["entropy"].items():
        axes.plot(
            timesteps[: len(values)],
            values,
            label=name.replace(".transformer_blocks", "").replace(".attn2", ""),
            linewidth=2 if name.startswith("up") else 1,
        )
    axes.invert_xaxis()
    axes.set(xlabel="timestep (noisy to clean)", ylabel="token entropy (1 = uniform)", title="Attention over the steps, by layer")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def maps(series: Series) -> Figure | None:
    from matplotlib.image import imread

    maps, tokens = series["maps"], series["tokens"]
    if not maps or not tokens:
        return None
    image = imread(io.BytesIO(base64.b64decode(series["image"].partition(",")[2])))
    height, width = image.shape[:2]
    figure = empty_figure(1.35 * (len(tokens) + 1) + 0.4, 1.4 * len(maps) + 0.3)
    grid = figure.subplots(len(maps), len(tokens) + 1, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    grid[0][0].imshow(image, interpolation="nearest")
    grid[0][0].set_title("generated", fontsize=9)
    for row, (timestep, by_token) in enumerate(zip(series["map_timesteps"], maps, strict=True)):
        for axes, token, values in zip(grid[row][1:], tokens, by_token, strict=True):
            # The picture in grey below, so that colour is attention alone.
            axes.imshow(image[..., :3].mean(-1), extent=(0, width, height, 0), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.imshow(values, extent=(0, width, height, 0), cmap="inferno", alpha=0.6, interpolation="bilinear")
            axes.set_title(token if row == 0 else "", fontsize=10)
        grid[row][1].text(
            -0.08, 0.5, f"t = {timestep:.0f}", fontsize=8, rotation=90, va="center", ha="right", transform=grid[row][1].transAxes
        )
    figure.suptitle(f"Attention by word, “{series['prompt']}”, {series['map_layer'].removesuffix('.attn2')}", fontsize=9)
    return figure


def sharpening(series: Series) -> Figure:
    layers = series["share_by_layer"]
    names = [name.replace(".transformer_blocks", "").replace(".attn2", "") for name in layers]
    figure, axes = axes_of(5.6, 0.28 * len(names) + 1.2)
    for row, (share, low, high) in enumerate(layers.values()):
        axes.plot([low, high], [row, row], color=PALETTE[0], linewidth=1.4)
        axes.plot(share, row, marker="o", color=PALETTE[0])
    axes.axvline(0.5, linestyle="--", linewidth=1, color=PALETTE[1])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="share of prompts whose token entropy falls, 95 % interval", xlim=(-0.02, 1.02), title="Sharpening, by layer")
    axes.invert_yaxis()
    return figure


def localisation(series: Series) -> Figure:
    from matplotlib.image import imread

    shown = series["examples"]
    figure = empty_figure(1.45 * len(shown), 1.9)
    for axes, example in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        image = imread(io.BytesIO(base64.b64decode(example["image"].partition(",")[2])))
        height, width = image.shape[:2]
        axes.axis("off")
        axes.imshow(image[..., :3].mean(-1), extent=(0, width, height, 0), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.imshow(example["map"], extent=(0, width, height, 0), cmap="inferno", alpha=0.6, interpolation="bilinear")
        rows, columns = len(example["mask"]), len(example["mask"][0])
        places = [width * (column + 0.5) / columns for column in range(columns)], [height * (row + 0.5) / rows for row in range(rows)]
        axes.contour(*places, example["mask"], levels=[0.5], colors=["white"], linewidths=1.2)
        axes.set_title(f"{example['word']} {example['overlap']:.2f}", fontsize=9)
    figure.suptitle("Noised references: where a word looks, and the outline of what it names", fontsize=9)
    return figure


def scale(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 2.8)
    axes.plot(series["factors"], series["log_ratios"], marker="o", markersize=3)
    axes.axhline(0, linewidth=1, color="0.6")
    axes.axvline(1, linestyle="--", linewidth=1, color=PALETTE[1], label="as encoded")
    axes.set(xscale="log", xlabel="factor on the encoded latents", ylabel="too strong (below), too weak")
    axes.set_title("Predictions fit at the scale of training")
    axes.legend()
    return figure


def strength(series: Series) -> Figure:
    figure, axes = axes_of(4.6, 2.6)
    axes.plot(series["strengths"], series["change"], marker="o")
    axes.set(xlabel="strength: from the source's prompt to the target's", ylabel="change along the direction")
    axes.set_title("Further along, more change")
    return figure


def slerp(series: Series) -> Figure:
    figure = empty_figure(8.0, 2.6)
    left, right = figure.subplots(1, 2)
    left.bar(range(1, len(series["steps"]) + 1), series["steps"])
    left.set(xlabel="frame", ylabel="step", title="Steps between decoded frames")
    weights = [index / (len(series["slerp_norms"]) - 1) for index in range(len(series["slerp_norms"]))]
    right.plot(weights, series["slerp_norms"], label="slerp")
    right.plot(weights, series["lerp_norms"], label="linear", linestyle="--")
    right.set(xlabel="weight", ylabel="norm of the latent", title="A straight line dips in norm", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    return figure


def outlier_scores(series: Series) -> Figure | None:
    figure, axes = axes_of(5.6, 3.0)
    values = {name: [math.log10(max(score, 1e-4)) for score in scores if math.isfinite(score)] for name, scores in series["scores"].items()}
    values = {name: scores for name, scores in values.items() if scores}
    if not values:
        return None
    low, high = min(min(scores) for scores in values.values()), max(max(scores) for scores in values.values())
    edges = [low + (high - low) * index / 40 for index in range(41)]
    for name, scores in values.items():
        axes.hist(scores, bins=edges, label=name, histtype="stepfilled", alpha=0.55)
    axes.set(xlabel="log10 of the outlier score", ylabel="images", title="How atypical latents are")
    axes.legend()
    return figure


def loss(series: Series) -> Figure:
    """ε-loss by timestep, of the model and of the linear filter."""
    figure, axes = axes_of(4.6, 2.8)
    axes.plot(series["timesteps"], series["model"], marker="o", label="the model")
    axes.plot(series["timesteps"], series["closed_form"], marker="s", linestyle="--", label="linear filter")
    axes.set(xlabel="timestep", ylabel="loss of the predicted noise", yscale="log", title="Loss against a closed form")
    axes.legend()
    return figure


def trajectory(series: Series) -> Figure:
    """R² and mean squared error of the clean predictions along the trajectory."""
    figure, axes = axes_of(4.6, 2.8)
    axes.plot(series["log_snr"], series["r2"], marker="o")
    axes.set(xlabel="log-SNR", ylabel="R²", title="Clean predictions against a closed form")
    other = axes.twinx()
    other.plot(series["log_snr"], series["mse"], color=PALETTE[1], linestyle="--")
    other.set_ylabel("mean squared error")
    other.grid(visible=False)
    return figure
