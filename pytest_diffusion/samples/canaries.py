"""Canaries: before a model is judged, the metrics must separate real images from black frames, noise and one tight cluster."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from pytest_diffusion.data.prompts import foreign_prompts
from pytest_diffusion.data.references import Reference
from pytest_diffusion.features.clip import Scorer
from pytest_diffusion.features.identity import Features
from pytest_diffusion.features.store import Extract, stored_embeds, stored_reference_features
from pytest_diffusion.maths.frechet import frechet_distance
from pytest_diffusion.maths.kernel import kernel_estimate
from pytest_diffusion.maths.manifold import manifold_scores
from pytest_diffusion.maths.scores import clip_scores
from pytest_diffusion.maths.statistics import mean_error
from pytest_diffusion.verdicts.errors import SetupError

_SIZE = 64


def canary_figures(reference: Reference, features: Features, extractor: Extract, root: Path) -> dict[str, dict[str, float]]:
    """KID, Fréchet distance, precision and recall of four small sets against the reference, by set and figure.

    The sets have 64 images each: "real" (held out of the reference), "black", "noise" and "cluster" (one real
    image with a little noise). Features of the synthetic sets are stored under `root`. Empty for fewer than 256
    reference images: their nearest-neighbour balls are so wide that noise may lie inside.
    """
    if reference.images is None or len(reference.images) < 4 * _SIZE:
        return {}
    chosen = torch.randperm(len(reference.images), generator=torch.Generator().manual_seed(0))
    held_out, rest = features.values[chosen[:_SIZE]], features.values[chosen[_SIZE:]]
    generator = torch.Generator().manual_seed(1)
    shape = (_SIZE, *reference.images.shape[1:])
    one = reference.images[chosen[0]].int()
    made = {
        "black": torch.zeros(shape, dtype=torch.uint8),
        "noise": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "cluster": (one + torch.randint(-4, 5, shape, generator=generator)).clamp(0, 255).to(torch.uint8),
    }
    sets = {"real": held_out} | {name: stored_reference_features(images, extractor, root).values for name, images in made.items()}
    found: dict[str, dict[str, float]] = {}
    for name, values in sets.items():
        scores, kernel = manifold_scores(values, rest, k=3), kernel_estimate(values, rest)
        found[name] = {
            "KID": kernel.value,
            "its error": kernel.standard_error,
            "Fréchet distance": frechet_distance(values, rest),
            "precision": scores.precision,
            "recall": scores.recall,
        }
    return found


def require_telling(figures: dict[str, dict[str, float]], extractor: str) -> None:
    """Raise SetupError unless each synthetic set scores worse than real images; otherwise no verdict would be meaningful."""
    if not figures:
        return
    real = figures["real"]
    # By KID, which has no bias: the Fréchet distance of 64 real images is mostly bias, which black frames do not have.
    blind = [
        f"KID against the other reference images is {real['KID']:.3g} ± {real['its error']:.2g} for real images "
        f"and {figures[name]['KID']:.3g} for {name}"
        for name in ("black", "noise", "cluster")
        if not figures[name]["KID"] - real["KID"] > 3 * math.hypot(real["its error"], figures[name]["its error"])
    ]
    if not figures["noise"]["precision"] < real["precision"]:
        blind.append(f"precision of noise is {figures['noise']['precision']:.2f}, of real images {real['precision']:.2f}")
    if not figures["cluster"]["recall"] < real["recall"]:
        blind.append(f"recall of one repeated image is {figures['cluster']['recall']:.2f}, of real images {real['recall']:.2f}")
    if blind:
        raise SetupError(
            f"The metrics do not separate real images from faulty ones (extractor {extractor}, {_SIZE} images against the reference): "
            f"{'; '.join(blind)}. The model was not judged. Check the extractor and the reference images."
        )


def require_aligned(reference: Reference, clip: Scorer, root: Path) -> None:
    """Raise SetupError unless the reference's images score higher with their own prompts than with shuffled ones, by 3 standard errors.

    Embeddings of the images are stored under `root`.
    """
    if reference.images is None or reference.prompts is None:
        return
    prompts, images = reference.prompts[:256], reference.images[:256]
    if len(set(prompts)) < 8:
        return
    embeds = stored_embeds(images, clip, root)
    own, other = (clip_scores(embeds, clip.text_embeds(texts)) for texts in (prompts, foreign_prompts(prompts)))
    gain, error = float((own - other).mean()), mean_error(own - other)
    if not gain > 3 * error:
        raise SetupError(
            f"The CLIP score does not separate matching from shuffled prompts (CLIP {clip.name}, {len(prompts)} pairs): "
            f"real images score {float(own.mean()):.1f} with their own prompts and {float(other.mean()):.1f} with shuffled ones. "
            "The model was not judged. Check the pairs of the reference and --diffusion-clip-model."
        )
