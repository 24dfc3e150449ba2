"""A recorded run over prompts with a known modifier and noun: the input of the attention checks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pytest_diffusion.attention.record import AttentionRecord, LayerRecord
from pytest_diffusion.attention.recorder import attention_layers, record_attention
from pytest_diffusion.attention.tokens import word_places
from pytest_diffusion.config.settings import Settings
from pytest_diffusion.data.prompts import Phrase
from pytest_diffusion.models.call import call_pipeline
from pytest_diffusion.models.capabilities import denoiser, uses_guidance
from pytest_diffusion.models.one_call import EnoughSeen
from pytest_diffusion.samples.generate import shared_batch_size, to_uint8
from pytest_diffusion.samples.seeds import seeds_of
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable

MAP_STEPS, MAP_SIDE = 4, 32


@dataclass(frozen=True)
class AttentionRun:
    """Attention records by batch of prompts, the generated images, uint8 (N, 3, H, W), and the layers that are judged.

    `unguided` records the first step of the first batch again, without guidance; None for a model that uses no guidance.
    """

    phrases: list[Phrase]
    records: list[AttentionRecord]
    images: torch.Tensor
    named: list[str]
    unguided: AttentionRecord | None = None
    are_named: bool = True
    """Whether the user named these layers; False where they are the default."""

    def entropies(self, layer: str) -> torch.Tensor:
        """Normalised token entropy (steps, prompts) of a layer."""
        return torch.cat([record.layers[layer].entropies() for record in self.records], dim=1)

    def token_maps(self, layer: str, words: Sequence[str]) -> torch.Tensor:
        """Late-step maps of one word of each prompt, mean over its sub-word tokens, (prompts, h, w)."""
        maps, row = [], 0
        for record in self.records:
            late = _late(record.layers[layer])
            for index in range(len(late)):
                maps.append(late[index, word_places(record.tokens[index], words[row])].mean(0))
                row += 1
        return torch.stack(maps)

    def all_maps(self, layer: str) -> list[torch.Tensor]:
        """Late-step maps of all tokens of each prompt, including special tokens and padding: one (tokens, h, w) per prompt."""
        return [maps for record in self.records for maps in _late(record.layers[layer])]

    def content_maps(self, layer: str) -> list[torch.Tensor]:
        """Late-step maps of the content tokens of each prompt: one (tokens, h, w) per prompt."""
        maps: list[torch.Tensor] = []
        for record in self.records:
            late = _late(record.layers[layer])
            assert record.content is not None
            maps += [late[index][record.content[index]] for index in range(len(late))]
        return maps


def run_attention(pipeline: Any, phrases: Sequence[Phrase], settings: Settings, *, layers: Sequence[str] | None = None) -> AttentionRun:
    """Attention records of a run that generates one image for each phrase; all layers that attend to text, or `layers`, are recorded.

    Figures are judged on `settings.attention_layers`, by default the decoder's layers (up blocks). Their attention
    follows the layout of the image. The bottleneck's does not, and a mean over all layers would weaken the signal.
    Raises NotApplicable for a model without attention to text, ModelError for layers that match nothing.
    """
    chosen = list(layers) if layers is not None else attention_layers(pipeline)
    named = judged_layers(chosen, settings)
    phrases = _readable(pipeline, phrases)
    steps = sorted({round(index * (settings.steps - 1) / (MAP_STEPS - 1)) for index in range(MAP_STEPS)})

    def recorded(rows: slice) -> tuple[AttentionRecord, NDArray[np.floating[Any]]]:
        prompts = [phrase.prompt for phrase in phrases[rows]]
        with record_attention(pipeline, layers=chosen, steps=steps if rows.start == 0 else ()) as record:
            images = call_pipeline(pipeline, prompts=prompts, seeds=seeds_of(settings, len(prompts), first=rows.start), settings=settings)
        for name, layer in record.layers.items():
            _shrink(layer, is_judged=name in named)
        return record, images

    batch = shared_batch_size(settings, pipeline)
    records, images = map(list, zip(*batch.parts(len(phrases), recorded), strict=True))
    guided = uses_guidance(pipeline) and records[0].predictions > 1
    # As many prompts as the first record has: without guidance, the denoiser needs half of the memory.
    first = phrases[: len(records[0].tokens)]
    unguided = _first_step_unguided(pipeline, first, settings, chosen) if guided else None
    return AttentionRun(
        list(phrases),
        records,
        torch.from_numpy(to_uint8(np.concatenate(images))[0]),
        named,
        unguided,
        settings.attention_layers is not None,
    )


def _first_step_unguided(pipeline: Any, phrases: Sequence[Phrase], settings: Settings, layers: Sequence[str]) -> AttentionRecord:
    """Record of the first step alone, without guidance. The latents of that step do not depend on guidance."""

    def stop(*_: Any) -> None:
        raise EnoughSeen

    network = denoiser(pipeline)
    assert network is not None
    with record_attention(pipeline, layers=layers, steps=[0]) as record:
        handle = network.register_forward_hook(stop)
        try:
            with suppress(EnoughSeen):
                call_pipeline(
                    pipeline,
                    prompts=[phrase.prompt for phrase in phrases],
                    seeds=seeds_of(settings, len(phrases)),
                    settings=settings,
                    guidance_scale=1.0,
                )
        finally:
            handle.remove()
    return record


def _readable(pipeline: Any, phrases: Sequence[Phrase]) -> list[Phrase]:
    """The phrases whose words the tokenizer keeps whole; a short context may cut a word off."""
    tokenizers = [one for name in ("tokenizer", "tokenizer_2", "tokenizer_3") if (one := getattr(pipeline, name, None)) is not None]
    kept = [phrase for phrase in phrases if all(_spells(tokenizer, phrase) for tokenizer in tokenizers)]
    if not kept:
        names = ", ".join(type(tokenizer).__name__ for tokenizer in tokenizers)
        raise NotApplicable(f"the tokenizer ({names}) keeps none of the nouns of the attention prompts as a whole word.")
    return kept


def _spells(tokenizer: Any, phrase: Phrase) -> bool:
    limit = min(tokenizer.model_max_length, 512)  # the tokenizer of T5 has no limit
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(phrase.prompt, max_length=limit, truncation=True).input_ids)
    try:
        word_places(tokens, phrase.noun), word_places(tokens, phrase.modifier)
    except ValueError:
        return False
    return True


def judged_layers(layers: Sequence[str], settings: Settings) -> list[str]:
    if settings.attention_layers is None:
        return [name for name in layers if name.startswith("up_blocks")] or list(layers)
    named = [name for name in layers if name.startswith(settings.attention_layers)]
    if not named:
        raise ModelError(f"--diffusion-attention-layers={','.join(settings.attention_layers)} matches none of: {', '.join(layers)}.")
    return named


def _shrink(layer: LayerRecord, *, is_judged: bool) -> None:
    """Keep late maps of judged layers only, at most 32 positions a side: Flux at 1024 pixels has 57 layers of 8 MB per half and image."""
    layer.late = _late(layer) if is_judged and layer.is_cross else None
    layer.early = None
    if layer.late is not None and max(layer.late.shape[-2:]) > MAP_SIDE:
        smaller = min(MAP_SIDE, layer.late.shape[-2]), min(MAP_SIDE, layer.late.shape[-1])
        # The mean of several positions' probabilities still sums to one over the tokens.
        layer.late = torch.nn.functional.adaptive_avg_pool2d(layer.late, smaller)


def _late(layer: LayerRecord) -> torch.Tensor:
    maps = layer.late if layer.late is not None else layer.early
    if maps is None:
        raise ValueError("The layer recorded no cross-attention maps.")
    return maps.cpu()
