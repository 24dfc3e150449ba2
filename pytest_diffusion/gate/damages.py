"""Damage in weights and configurations: each kind changes a pipeline, yields, and takes the change back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pytest_diffusion.config.settings import Settings
from pytest_diffusion.gate.damage import (
    LOSSES_OF_REFERENCES,
    SCORES_OF_CLIP,
    Target,
    damage,
    kept_attribute,
    kept_config,
    kept_weights,
    quantised_weights,
)
from pytest_diffusion.models.capabilities import modules
from pytest_diffusion.models.levels import prediction_type_of
from pytest_diffusion.verdicts.errors import NotApplicable

_NOISE = (0.02, 0.05, 0.1, 0.2)


@damage("noise of {} in the denoiser's weights", strengths=_NOISE, usual=0.05, is_continuous=True, sees=LOSSES_OF_REFERENCES)
def denoiser_noise(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Normal noise on every weight, in units of the root mean square of its tensor."""
    yield from _noisy(target, target.denoiser, strength, seed)


@damage("noise of {} in the text encoder's weights", strengths=(0.05, 0.1, 0.2, 0.4), usual=0.2, is_continuous=True, sees=SCORES_OF_CLIP)
def text_encoder_noise(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The same in the first text encoder."""
    yield from _noisy(target, target.text_encoder, strength, seed)


@damage("noise of {} in the decoder's weights", strengths=_NOISE, usual=0.05, is_continuous=True, sees=LOSSES_OF_REFERENCES)
def decoder_noise(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The same in the VAE's decoder."""
    yield from _noisy(target, target.vae.decoder, strength, seed)


@damage("one head of each attention to the text gives nothing", sees=SCORES_OF_CLIP)
def head_zeroed(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The values of the first head are zero; of every attention, where none is to the text alone."""
    part = target.denoiser
    found = {name: one for name, one in part.named_modules() if getattr(one, "to_v", None) is not None and hasattr(one, "heads")}
    layers = [one for name, one in found.items() if name.endswith("attn2")] or list(found.values())
    layers = [one for one in layers if getattr(one, "heads", 1) > 1]
    if not layers:
        raise NotApplicable("its denoiser has no attention of several heads")
    with kept_weights(part):
        for one in layers:
            to_v: Any = one.to_v
            rows = to_v.weight.shape[0] // int(one.heads)
            to_v.weight[:rows] = 0
            if to_v.bias is not None:
                to_v.bias[:rows] = 0
        yield target.settings


@damage("the denoiser's middle block gives nothing", sees=LOSSES_OF_REFERENCES, is_long=True)
def block_zeroed(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """All weights of the middle block are zero, so that it hands on what it was given."""
    part = target.denoiser
    blocks = getattr(part, "transformer_blocks", None)
    block: Any = blocks[len(blocks) // 2] if blocks is not None and len(blocks) else getattr(part, "mid_block", None)
    if block is None:
        raise NotApplicable("its denoiser has no middle block")
    with kept_weights(block):
        for weight in block.parameters():
            weight.zero_()
        yield target.settings


@damage("weights rounded to {} bits", strengths=(5, 4, 3), usual=4, sees=LOSSES_OF_REFERENCES)
def few_bits(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Matrices of denoiser and text encoder with so many bits, one scale for each row."""
    with quantised_weights(target, int(strength)):
        yield target.settings


@damage("the other prediction type is declared", sees="samples: losses see the denoiser alone")
def prediction_type(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """V in place of noise, or the reverse."""
    scheduler = target.pipeline.scheduler
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}.get(prediction_type_of(scheduler))
    if other is None or "prediction_type" not in scheduler.config:
        raise NotApplicable(f"its prediction type, {prediction_type_of(scheduler)}, has no other to be taken for")
    with kept_config(scheduler, prediction_type=other):
        yield target.settings


@damage(
    "the VAE's scaling factor is {} too large", strengths=(0.02, 0.05, 0.2, 1.0), usual=0.2, is_continuous=True, sees=LOSSES_OF_REFERENCES
)
def scaling_factor(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Latents are divided by it before they are decoded."""
    factor = target.vae.config.get("scaling_factor")
    if not isinstance(factor, float):
        raise NotApplicable("its VAE has no scaling factor")
    with kept_config(target.pipeline.vae, scaling_factor=factor * (1 + strength)):
        yield target.settings


@damage("the VAE's shift factor is lost", sees=LOSSES_OF_REFERENCES)
def shift_factor(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """A shift of 0."""
    if not target.vae.config.get("shift_factor"):
        raise NotApplicable("its VAE has no shift factor")
    with kept_config(target.pipeline.vae, shift_factor=0.0):
        yield target.settings


@damage(
    "the token of one word is moved by {} towards that of another",
    strengths=(0.1, 0.25, 0.5, 1.0),
    usual=0.5,
    is_continuous=True,
    is_long=True,
)
def concept_moved(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Two words of the prompts that have tokens of their own; the seed chooses them."""
    embedding, words = _words(target)
    one, other = words[seed % len(words)], words[(seed + 1) % len(words)]
    with kept_weights(embedding):
        weight: Any = embedding.weight
        weight[one] = (1 - strength) * weight[one] + strength * weight[other]
        yield target.settings


@damage("the tokens of words are exchanged", sees=SCORES_OF_CLIP)
def tokens_permuted(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """Each of the words of the prompts has the embedding of the next one, as with a tokenizer of another vocabulary."""
    embedding, words = _words(target)
    with kept_weights(embedding):
        weight: Any = embedding.weight
        weight[words] = weight[[*words[1:], words[0]]].clone()
        yield target.settings


@damage("the adapter is not loaded", in_code=True, sees=LOSSES_OF_REFERENCES)
def lora_not_loaded(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The adapter (LoRA) with a scale of 0."""
    yield from _rescaled_adapter(target, 0.0)


@damage("the adapter is loaded twice", in_code=True, sees=LOSSES_OF_REFERENCES)
def lora_twice(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The adapter (LoRA) with twice its scale."""
    yield from _rescaled_adapter(target, 2.0)


@damage("the averaged weights are not used", sees=LOSSES_OF_REFERENCES)
def ema_not_applied(target: Target, strength: float, seed: int) -> Iterator[Settings]:
    """The weights of training in place of their moving average, where the model's folder holds both (a `non_ema` file)."""
    from safetensors.torch import load_file

    part = target.denoiser
    name = next(name for name, module in modules(target.pipeline).items() if getattr(module, "_orig_mod", module) is part)
    files = sorted((Path(target.settings.model or "") / name).glob("*.non_ema.safetensors"))
    if len(files) != 1:
        raise NotApplicable("its folder does not hold the weights of training beside their average")
    state = load_file(files[0])
    with kept_weights(part):
        part.load_state_dict(state)
        yield target.settings


def _noisy(target: Target, part: torch.nn.Module, amount: float, seed: int) -> Iterator[Settings]:
    generator = torch.Generator().manual_seed(seed)
    with kept_weights(part):
        for weight in part.parameters():
            plain = weight.float()  # half precision rounds small numbers to 0, and squares to infinity
            noise = torch.randn(weight.shape, generator=generator).to(plain)
            weight.copy_(plain + amount * plain.square().mean().sqrt() * noise)
        yield target.settings


def _words(target: Target) -> tuple[torch.nn.Module, list[int]]:
    """The embedding of the first text encoder, and the tokens of up to eight words of the prompts, the most frequent first."""
    encoder, tokenizer = target.text_encoder, getattr(target.pipeline, "tokenizer", None)
    if tokenizer is None or not target.prompts or not hasattr(encoder, "get_input_embeddings"):
        raise NotApplicable("it has no prompts, or no table of tokens")
    counted = Counter(word for prompt in target.prompts for word in set(re.findall(r"[a-z]+", prompt.lower())))
    shared = [word for word, count in counted.most_common() if len(word) > 3 and count < 0.9 * len(target.prompts)]
    tokens = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in shared]
    single = list(dict.fromkeys(one[0] for one in tokens if len(one) == 1))[:8]
    if len(single) < 2:
        raise NotApplicable("fewer than two words of its prompts have tokens of their own")
    embedding: Any = encoder.get_input_embeddings()  # type: ignore[operator]
    return embedding, single


def _rescaled_adapter(target: Target, factor: float) -> Iterator[Settings]:
    with ExitStack() as kept:
        layers: Sequence[Any] = [one for part in modules(target.pipeline).values() for one in part.modules() if hasattr(one, "lora_A")]
        if not layers:
            raise NotApplicable("it has no adapter")
        for layer in layers:
            scaling = {name: factor * value for name, value in layer.scaling.items()}
            kept.enter_context(kept_attribute(layer, "scaling", scaling))
        yield target.settings
