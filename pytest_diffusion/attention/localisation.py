"""Attention maps over noised reference images with object masks, to test whether a word's map lies on the named object."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from pytest_diffusion.attention.record import AttentionRecord
from pytest_diffusion.attention.recorder import attention_layers, record_attention
from pytest_diffusion.attention.run import judged_layers
from pytest_diffusion.attention.tokens import word_places
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.references import Reference
from pytest_diffusion.models.latents import LatentCodec
from pytest_diffusion.models.one_call import STEP, DenoiserCall
from pytest_diffusion.samples.generate import shared_batch_size
from pytest_diffusion.samples.seeds import seed_of, seeds_of
from pytest_diffusion.verdicts.errors import NotApplicable

IMAGES = 64


@dataclass(frozen=True)
class Localisation:
    """Attention maps of noised references, float32 (N, tokens, h, w), mean over the judged layers, with each image's object mask."""

    maps: torch.Tensor
    masks: torch.Tensor
    """bool (N, H, W): True where the named object is."""
    places: list[list[list[int]]]
    """For each image and each of its words, the indices of the word's tokens."""
    layers: list[str]
    images: torch.Tensor
    """The references, uint8 (N, 3, H, W)."""
    words: list[tuple[str, ...]]

    def word_maps(self, *, shift: int = 0) -> torch.Tensor:
        """Maps of each word, (N, words, h, w), mean over its tokens, or over the tokens `shift` positions after them."""
        last = self.maps.shape[1] - 1
        return torch.stack(
            [
                torch.stack([self.maps[row, [min(max(place + shift, 0), last) for place in word]].mean(0) for word in words])
                for row, words in enumerate(self.places)
            ]
        )


def run_localisation(pipeline: Any, reference: Reference, settings: Settings) -> Localisation:
    """Attention maps of one denoiser call on reference images, noised to the level of the third of four steps.

    Raises NotApplicable for references without masks, and for models without text, a VAE or a known noise level.
    """
    if reference.images is None or reference.masks is None or reference.prompts is None:
        raise NotApplicable("the reference has no object masks: give a .jsonl or .csv with the columns mask and words.")
    layers = judged_layers(attention_layers(pipeline), settings)
    codec = LatentCodec.of(pipeline)
    # Cropping the image to the model's size can remove the whole object.
    rows = [row for row in range(len(reference.images)) if bool(reference.masks[row].any())][: settings.times_effort(IMAGES)]
    prompts, images = reference.prompts, reference.images

    def recorded(part: slice) -> AttentionRecord:
        batch = rows[part]
        latents = codec.encode(images[batch])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed_of(settings, part.start)))
        with record_attention(pipeline, layers=layers, steps=[STEP]) as record:
            call = DenoiserCall.catch(pipeline, [prompts[row] for row in batch], settings, seeds=seeds_of(settings, len(batch)))
            call.output(call.noised(latents, noise))
        return record

    maps, places, kept = [], [], []
    left = iter(rows)
    for record in shared_batch_size(settings, pipeline).parts(len(rows), recorded):
        for index, row in enumerate(itertools.islice(left, len(record.tokens))):
            try:
                found = [word_places(record.tokens[index], word) for word in reference.words[row]]
            except ValueError:
                continue  # the tokenizer truncates the prompt before the word, or does not keep it as one word
            # Maps of smaller layers are resized to the largest.
            maps.append(record.maps(index)[0].mean(0))
            places.append(found)
            kept.append(row)
    if not kept:
        raise NotApplicable(
            f"{len(rows)} of {len(reference.images)} references with masks show the object after cropping to the model's size, "
            "but the tokenizer keeps none of their words whole."
        )
    width = min(len(named) for named in places)
    words = [reference.words[row][:width] for row in kept]
    return Localisation(
        torch.stack(maps), reference.masks[kept], [named[:width] for named in places], layers, reference.images[kept], words
    )
