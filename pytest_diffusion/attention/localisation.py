"""Attention over noised reference images whose objects are known, to see whether a word looks at what it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.attention.recorder import attention_layers, record_attention
from pytest_diffusion.attention.run import judged_layers
from pytest_diffusion.attention.tokens import word_places
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.one_call import STEP, DenoiserCall
from pytest_diffusion.samples.generate import automatic_batch_size
from pytest_diffusion.samples.seeds import seed_of, seeds_of
from pytest_diffusion.verdicts.errors import NotApplicable

IMAGES = 64


@dataclass(frozen=True)
class Localisation:
    """Maps float32 (N, tokens, h, w) of noised references, mean over the judged layers, and where each word's object is."""

    maps: torch.Tensor
    masks: torch.Tensor
    """bool (N, H, W)."""
    places: list[list[list[int]]]
    """For each image and each of its words, the places of the word's tokens."""
    layers: list[str]
    images: torch.Tensor
    """The references, uint8 (N, 3, H, W)."""
    words: list[tuple[str, ...]]

    def word_maps(self, *, shift: int = 0) -> torch.Tensor:
        """Maps (N, words, h, w), of the tokens `shift` places after each word's own."""
        last = self.maps.shape[1] - 1
        return torch.stack(
            [
                torch.stack([self.maps[row, [min(max(place + shift, 0), last) for place in word]].mean(0) for word in words])
                for row, words in enumerate(self.places)
            ]
        )


def run_localisation(pipeline: Any, reference: Reference, settings: Settings) -> Localisation:
    """Noise reference images to the middle of a short plan and record one call of the denoiser on them.

    Raises NotApplicable for references without masks, and models without text, a VAE, or a known noise level.
    """
    if reference.images is None or reference.masks is None or reference.prompts is None:
        raise NotApplicable("the reference says of no word where it is: give a .jsonl or .csv with columns mask and words.")
    layers = judged_layers(attention_layers(pipeline), settings)
    codec = LatentCodec.of(pipeline)
    # Of some things nothing is left when the image is cropped to the model's size.
    rows = [row for row in range(len(reference.images)) if bool(reference.masks[row].any())][:IMAGES]
    batch_size = automatic_batch_size(settings, pipeline)
    maps, places, kept = [], [], []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        latents = codec.encode(reference.images[batch])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed_of(settings, start)))
        with record_attention(pipeline, layers=layers, steps=[STEP]) as record:
            call = DenoiserCall.catch(pipeline, [reference.prompts[row] for row in batch], settings, seeds=seeds_of(settings, len(batch)))
            call.output(call.noised(latents, noise))
        for index, row in enumerate(batch):
            try:
                found = [word_places(record.tokens[index], word) for word in reference.words[row]]
            except ValueError:
                continue  # the tokenizer cuts the prompt before the word, or splits the word in two
            # Layers of several sizes are brought to the largest.
            maps.append(record.maps(index)[0].mean(0))
            places.append(found)
            kept.append(row)
    if not kept:
        raise NotApplicable(
            f"of {len(reference.images)} references with masks, {len(rows)} show anything within the model's size, "
            "and the tokenizer keeps the words of none."
        )
    width = min(len(named) for named in places)
    words = [reference.words[row][:width] for row in kept]
    return Localisation(
        torch.stack(maps), reference.masks[kept], [named[:width] for named in places], layers, reference.images[kept], words
    )
