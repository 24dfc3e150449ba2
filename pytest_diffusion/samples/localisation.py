"""Attention over noised reference images whose objects are known, to see whether a word looks at what it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.adapters.attention import attention_layers, record_attention
from pytest_diffusion.adapters.latents import LatentCodec
from pytest_diffusion.adapters.references import Reference
from pytest_diffusion.adapters.text_tokens import word_places
from pytest_diffusion.errors import NotApplicable
from pytest_diffusion.samples.attention_run import judged_layers
from pytest_diffusion.samples.generate import automatic_batch_size
from pytest_diffusion.samples.one_call import STEP, DenoiserCall
from pytest_diffusion.settings import Settings

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
    count = min(IMAGES, len(reference.images))
    batch_size = automatic_batch_size(settings, pipeline)
    maps, places = [], []
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        latents = codec.encode(reference.images[rows.start : rows.stop])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(settings.seed + start))
        with record_attention(pipeline, layers=layers, steps=[STEP]) as record:
            call = DenoiserCall.catch(pipeline, [reference.prompts[row] for row in rows], settings)
            call.output(call.noised(latents, noise))
        # Layers of several sizes are brought to the largest.
        maps += [record.maps(index)[0].mean(0) for index in range(len(rows))]
        places += [[word_places(record.tokens[index], word) for word in reference.words[row]] for index, row in enumerate(rows)]
    width = min(len(named) for named in places)
    kept, words = [named[:width] for named in places], [named[:width] for named in reference.words[:count]]
    return Localisation(torch.stack(maps), reference.masks[:count], kept, layers, reference.images[:count], words)
