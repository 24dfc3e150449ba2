"""Cross-attention as it happens: probabilities recomputed beside the user's own processors and reduced at once.

Fused attention never forms probabilities, so for each recorded layer softmax(Q·Kᵀ/√d) is computed for the
text tokens and the conditional half of the batch only. What is kept does not grow with the number of steps:
entropies (one number per step, layer and prompt), running means of token maps, and the maps of the few
steps that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_diffusion.adapters.pipelines import denoiser, is_text_conditioned
from pytest_diffusion.adapters.schedulers import num_train_timesteps
from pytest_diffusion.errors import ModelError, NotApplicable
from pytest_diffusion.maths.attention import token_entropy


@dataclass
class LayerRecord:
    """What one layer showed. Maps are means over heads and over the steps of a half, float32 (B, tokens, h, w)."""

    is_cross: bool
    entropy: list[torch.Tensor] = field(default_factory=list)
    early: torch.Tensor | None = None
    late: torch.Tensor | None = None
    early_steps: int = 0
    late_steps: int = 0
    row_error: float = 0.0
    steps: dict[int, torch.Tensor] = field(default_factory=dict)
    """Maps of the steps that were asked for, by step index."""

    def entropies(self) -> torch.Tensor:
        """Normalised token entropy (steps, B)."""
        return torch.stack(self.entropy)


@dataclass
class AttentionRecord:
    """A recorded run: layers by name, tokens of each prompt, and which of them carry content."""

    layers: dict[str, LayerRecord] = field(default_factory=dict)
    timesteps: list[float] = field(default_factory=list)
    tokens: list[list[str]] = field(default_factory=list)
    content: torch.Tensor | None = None
    """bool (B, tokens): neither start, end nor padding."""

    def token_index(self, row: int, word: str) -> int:
        """Place of the last sub-word token of `word` in prompt `row`. Raises ValueError when it is not there."""
        return word_place(self.tokens[row], word)


def word_place(tokens: Sequence[str], word: str) -> int:
    """Index of the last of the CLIP tokens that spell `word`. Raises ValueError when it is not there, or cut off."""
    spelled = ""
    for place, token in enumerate(tokens):
        spelled = "" if token.startswith("<|") else spelled + token.removesuffix("</w>")
        if token.endswith("</w>"):
            if spelled == word:
                return place
            spelled = ""
    raise ValueError(f"The word {word!r} is not among the tokens {list(tokens)}.")


def cross_attention_layers(pipeline: Any) -> list[str]:
    """Names of the denoiser's `attn2` modules. Raises NotApplicable where there is none."""
    network = denoiser(pipeline)
    if not is_text_conditioned(pipeline) or network is None:
        raise NotApplicable(f"{type(pipeline).__name__} is not conditioned on text, so it has no cross-attention.")
    names = [name for name, _ in network.named_modules() if name.endswith(".attn2")]
    if not names:
        raise NotApplicable(
            f"{type(network).__name__} has no attn2 modules, so its text attention cannot be told from self-attention here."
        )
    return names


@contextmanager
def record_attention(pipeline: Any, *, layers: Sequence[str] | None = None, steps: Sequence[int] = ()) -> Iterator[AttentionRecord]:
    """Record the cross-attention of the pipeline call made inside the `with` block.

    `layers` are module names of the denoiser (default: every `attn2`), `steps` the step indices whose
    token maps are kept one by one. The user's processors stay in charge of the output and are restored
    afterwards, also after an exception. Raises NotApplicable for models without text cross-attention,
    ModelError for an unknown layer or nested use.
    """
    chosen = list(layers) if layers is not None else cross_attention_layers(pipeline)
    network = denoiser(pipeline)
    if network is None:
        raise NotApplicable(f"{type(pipeline).__name__} has no UNet or transformer to record.")
    named = dict(network.named_modules())
    missing = [name for name in chosen if not hasattr(named.get(name), "processor")]
    if missing:
        raise ModelError(f"{missing[0]!r} is not an attention layer of {type(network).__name__}.")
    record = AttentionRecord()
    originals = {name: named[name].processor for name in chosen}
    if any(isinstance(processor, _Recorder) for processor in originals.values()):
        raise ModelError("record_attention is already recording this pipeline; leave the outer block first.")
    half = num_train_timesteps(pipeline.scheduler) / 2
    handles = [
        network.register_forward_pre_hook(lambda _, args, kwargs: _note_timestep(record, args, kwargs), with_kwargs=True),
        pipeline.text_encoder.register_forward_pre_hook(
            lambda _, args, kwargs: _note_tokens(record, pipeline, args, kwargs), with_kwargs=True
        ),
    ]
    for name in chosen:
        # The processor is set on the module itself: set_processor would look for LoRA weights to drop.
        named[name].processor = _Recorder(originals[name], name, record, half, frozenset(steps))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
        for name, processor in originals.items():
            named[name].processor = processor


class _Recorder:
    """Calls the layer's own processor, and computes the conditional half's probabilities beside it."""

    def __init__(self, processor: Any, name: str, record: AttentionRecord, half: float, steps: frozenset[int]) -> None:
        self.processor, self.name, self.record, self.half, self.steps = processor, name, record, half, steps

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        states = kwargs.get("encoder_hidden_states", args[0] if args else None)
        with torch.no_grad():
            self._reduce(attn, hidden_states, states)
        output: torch.Tensor = self.processor(attn, hidden_states, *args, **kwargs)
        return output

    def _reduce(self, attn: Any, hidden_states: torch.Tensor, states: torch.Tensor | None) -> None:
        record = self.record
        is_cross = states is not None and record.content is not None and states.shape[1] == record.content.shape[1]
        layer = record.layers.setdefault(self.name, LayerRecord(is_cross))
        if record.content is None:
            raise ModelError("record_attention saw no tokens: call the pipeline with prompts, not with prompt_embeds.")
        if states is None or not is_cross:
            layer.is_cross = False
            return
        batch = len(record.content)
        repeats = max(1, (len(hidden_states) // 2 if len(hidden_states) >= 2 * batch else len(hidden_states)) // batch)
        conditional = slice(len(hidden_states) - batch * repeats, None)
        content = record.content.repeat_interleave(repeats, 0)
        probs, entropy = _probabilities(attn, hidden_states[conditional], states[conditional], content)
        # torch.maximum keeps nan, which max() would lose.
        layer.row_error = float(torch.maximum((probs.sum(-1) - 1).abs().max().cpu(), torch.tensor(layer.row_error)))
        layer.entropy.append(entropy)
        maps = _as_maps(probs)
        step = len(layer.entropy) - 1
        if step in self.steps:
            layer.steps[step] = maps.cpu()
        if record.timesteps[-1] >= self.half:
            layer.early_steps += 1
            layer.early = maps if layer.early is None else layer.early.lerp_(maps, 1 / layer.early_steps)
        else:
            layer.late_steps += 1
            layer.late = maps if layer.late is None else layer.late.lerp_(maps, 1 / layer.late_steps)


def _probabilities(
    attn: Any, hidden_states: torch.Tensor, states: torch.Tensor, content: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over heads of softmax(Q·Kᵀ/√d), (B, pixels, tokens), and the entropy over content tokens, (B,)."""
    if hidden_states.ndim == 4:
        hidden_states = hidden_states.flatten(2).transpose(1, 2)
    if getattr(attn, "norm_cross", None) is not None:
        states = attn.norm_encoder_hidden_states(states)
    query, key = attn.to_q(hidden_states), attn.to_k(states)
    count, heads = len(query), attn.heads
    query = query.reshape(count, -1, heads, query.shape[-1] // heads).transpose(1, 2)
    key = key.reshape(count, -1, heads, key.shape[-1] // heads).transpose(1, 2)
    if getattr(attn, "norm_q", None) is not None:
        query = attn.norm_q(query)
    if getattr(attn, "norm_k", None) is not None:
        key = attn.norm_k(key)
    scores = (query.float() @ key.float().transpose(-1, -2)) * attn.scale
    mean = scores.softmax(-1).mean(1)
    entropies = [
        token_entropy(row[..., mask]).mean() if int(mask.sum()) > 1 else torch.tensor(math.nan)
        for row, mask in zip(scores, content.to(scores.device), strict=True)
    ]
    return mean, torch.stack([entropy.cpu() for entropy in entropies])


def _as_maps(probs: torch.Tensor) -> torch.Tensor:
    """(B, pixels, tokens) as (B, tokens, h, w); square where the count allows, else one row."""
    batch, pixels, tokens = probs.shape
    side = math.isqrt(pixels)
    height = side if side * side == pixels else 1
    return probs.transpose(1, 2).reshape(batch, tokens, height, pixels // height)


def _note_timestep(record: AttentionRecord, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
    record.timesteps.append(float(torch.as_tensor(timestep).flatten()[0]) if timestep is not None else math.nan)


def _note_tokens(record: AttentionRecord, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Keep the ids of the first call: pipelines encode the prompt before the negative prompt."""
    if record.content is not None:
        return
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(ids, torch.Tensor):
        return
    ids = ids.cpu()
    tokenizer = pipeline.tokenizer
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    ended = (ids == tokenizer.eos_token_id).cumsum(1) > 0
    record.content = ~ended & ~torch.isin(ids, torch.tensor([value for value in special if value is not None]))
    record.tokens = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids]
