"""A recorded run over prompts whose modifier and noun are known: what the attention checks look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pytest_diffusion.adapters.attention import AttentionRecord, LayerRecord, cross_attention_layers, record_attention, word_place
from pytest_diffusion.adapters.pipelines import call_pipeline
from pytest_diffusion.errors import ModelError, NotApplicable
from pytest_diffusion.samples.generate import automatic_batch_size, to_uint8
from pytest_diffusion.samples.prompts import Phrase
from pytest_diffusion.settings import Settings

MAP_STEPS = 4


@dataclass(frozen=True)
class AttentionRun:
    """Records of batches of prompts, the images uint8 (N, 3, H, W) they gave, and the layers that are judged."""

    phrases: list[Phrase]
    records: list[AttentionRecord]
    images: torch.Tensor
    named: list[str]

    def entropies(self, layer: str) -> torch.Tensor:
        """Normalised token entropy (steps, prompts) of a layer."""
        return torch.cat([record.layers[layer].entropies() for record in self.records], dim=1)

    def token_maps(self, layer: str, words: Sequence[str]) -> torch.Tensor:
        """Late maps of one word of each prompt, (prompts, h, w)."""
        maps, row = [], 0
        for record in self.records:
            late = _late(record.layers[layer])
            for index in range(len(late)):
                maps.append(late[index, record.token_index(index, words[row])])
                row += 1
        return torch.stack(maps)

    def content_maps(self, layer: str) -> list[torch.Tensor]:
        """Late maps of the content tokens of each prompt: one (tokens, h, w) for each."""
        maps: list[torch.Tensor] = []
        for record in self.records:
            late = _late(record.layers[layer])
            assert record.content is not None
            maps += [late[index][record.content[index]] for index in range(len(late))]
        return maps


def run_attention(pipeline: Any, phrases: Sequence[Phrase], settings: Settings, *, layers: Sequence[str] | None = None) -> AttentionRun:
    """Generate one image for each phrase and record every cross-attention layer (or `layers`) on the way.

    Figures are judged on `settings.attention_layers`, by default the decoder's (up blocks), where attention
    follows the picture that is being drawn; the bottleneck's does not, and a mean over all would dilute it.
    Raises NotApplicable for a model without text cross-attention, ModelError for layers that match nothing.
    """
    chosen = list(layers) if layers is not None else cross_attention_layers(pipeline)
    named = _named(chosen, settings)
    phrases = _readable(pipeline, phrases)
    batch_size = automatic_batch_size(settings, pipeline)
    steps = sorted({round(index * (settings.steps - 1) / (MAP_STEPS - 1)) for index in range(MAP_STEPS)})
    records, images = [], []
    for start in range(0, len(phrases), batch_size):
        batch = phrases[start : start + batch_size]
        with record_attention(pipeline, layers=chosen, steps=steps if start == 0 else ()) as record:
            images.append(
                call_pipeline(
                    pipeline,
                    prompts=[phrase.prompt for phrase in batch],
                    seeds=[settings.seed + start + index for index in range(len(batch))],
                    settings=settings,
                )
            )
        records.append(record)
    return AttentionRun(list(phrases), records, torch.from_numpy(to_uint8(np.concatenate(images))[0]), named)


def _readable(pipeline: Any, phrases: Sequence[Phrase]) -> list[Phrase]:
    """The phrases whose words the tokenizer keeps whole; a short context may cut a word off."""
    kept = []
    for phrase in phrases:
        tokenizer = pipeline.tokenizer
        ids = tokenizer(phrase.prompt, max_length=tokenizer.model_max_length, truncation=True).input_ids
        tokens = tokenizer.convert_ids_to_tokens(ids)
        try:
            word_place(tokens, phrase.noun), word_place(tokens, phrase.modifier)
        except ValueError:
            continue
        kept.append(phrase)
    if not kept:
        raise NotApplicable(f"the tokenizer ({type(pipeline.tokenizer).__name__}) keeps no noun of the attention prompts as a word.")
    return kept


def _named(layers: Sequence[str], settings: Settings) -> list[str]:
    if settings.attention_layers is None:
        return [name for name in layers if name.startswith("up_blocks")] or list(layers)
    named = [name for name in layers if name.startswith(settings.attention_layers)]
    if not named:
        raise ModelError(f"--diffusion-attention-layers={','.join(settings.attention_layers)} matches none of: {', '.join(layers)}.")
    return named


def _late(layer: LayerRecord) -> torch.Tensor:
    maps = layer.late if layer.late is not None else layer.early
    if maps is None:
        raise ValueError("The layer recorded no cross-attention maps.")
    return maps.cpu()
