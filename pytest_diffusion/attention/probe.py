"""Hooks that read one layer's queries and keys and reduce them to maps and entropies; the layer's output is not changed.

Fused attention does not store the probabilities, so softmax(Q·Kᵀ/√d) is computed here, for the text tokens and the
conditional part of the batch only.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_diffusion.attention.record import AttentionRecord, LayerRecord
from pytest_diffusion.attention.tokens import TokenListener
from pytest_diffusion.maths.attention import token_entropy
from pytest_diffusion.models.capabilities import guidance_groups, predicts_negative_apart
from pytest_diffusion.verdicts.errors import ModelError, NotApplicable

_BLOCK = {"cpu": 2**18}
"""Largest number of scores in one block: as many as a core's cache holds, or `_LARGE_BLOCK` (256 MB) on an accelerator."""
_LARGE_BLOCK = 2**26


@dataclass
class Run:
    """State of the current denoiser call."""

    pipeline: Any
    network: torch.nn.Module
    record: AttentionRecord
    tokens: TokenListener
    steps: frozenset[int]
    latent_shape: tuple[int, ...] = ()
    """Height and width of the latents, or of their grid of patches where they come as a sequence."""
    conditional: bool = True
    is_early: bool = True
    text_states: torch.Tensor | None = None
    content: torch.Tensor | None = None
    """bool (B, tokens), on the model's device."""
    columns: slice | torch.Tensor = field(default_factory=lambda: slice(None))
    """Tokens that are content in at least one row; entropies are computed over these only."""

    def note_call(self, network: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the call's timestep, its latent grid, and whether it is the prediction for the prompt."""
        given = inspect.signature(network.forward).bind_partial(*args, **kwargs).arguments
        states = given.get("encoder_hidden_states")
        # SD3's skip-layer guidance calls the denoiser once more, with some layers skipped.
        self.conditional = given.get("skip_layers") is None
        if self.conditional and predicts_negative_apart(self.pipeline) and isinstance(states, torch.Tensor):
            if self.text_states is None:
                self.text_states = states
            same_shape = states.shape == self.text_states.shape
            self.conditional = states is self.text_states or (same_shape and torch.equal(states, self.text_states))
        if not self.conditional:
            return
        sample = given.get("sample", given.get("hidden_states"))
        grid = given.get("img_ids")
        if isinstance(sample, torch.Tensor) and sample.ndim == 4:
            self.latent_shape = tuple(sample.shape[-2:])
        elif isinstance(grid, torch.Tensor):
            self.latent_shape = tuple(int(side) + 1 for side in grid.reshape(-1, 3)[:, 1:].amax(0))
        else:
            raise NotApplicable(f"the latent grid of {type(network).__name__} is unknown, so its attention has no maps.")
        self._note_timestep(given.get("timestep"))

    def _note_timestep(self, timestep: Any) -> None:
        """Note the scheduler's timestep of this call. Networks may receive it in another unit (Flux: a fraction of 1)."""
        plan = torch.as_tensor(self.pipeline.scheduler.timesteps).double().cpu()
        value = float(torch.as_tensor(timestep).flatten()[0])
        scale = float(plan.max()) if value <= 1 < float(plan.max()) and self.latent_shape and self._counts_in_shares(plan, value) else 1.0
        place = int((plan - value * scale).abs().argmin())
        self.is_early = 2 * place < len(plan) - 1
        self.record.timesteps.append(float(plan[place]))

    def _counts_in_shares(self, plan: torch.Tensor, value: float) -> bool:
        """Whether the network receives timesteps divided by about 1,000: then none of the scheduler's timesteps equals the value."""
        return float((plan - value).abs().min()) > 1e-3 * max(1.0, abs(value))

    def rows(self, count: int) -> slice:
        """The rows of a batch of `count` that predict for the prompt. Raises ModelError where they cannot be determined."""
        groups, place = guidance_groups(self.pipeline, self.tokens.calls)
        prompts = len(next(iter(self.tokens.ids.values())))
        if count % (groups * prompts):
            raise ModelError(
                f"the denoiser received {count} rows for {prompts} prompts with {groups} predictions each; "
                "the rows cannot be assigned to prompts."
            )
        size = count // groups
        return slice(place * size, (place + 1) * size)

    def align(self, length: int, count: int, device: torch.device) -> None:
        """Assign tokens to the positions of a text sequence of `length`, for a batch of `count`; done once in a run."""
        if self.content is not None:
            return
        text = self.tokens.aligned(length)
        rows = self.rows(count)
        self.record.predictions = guidance_groups(self.pipeline, self.tokens.calls)[0]
        self.record.text = text.repeated((rows.stop - rows.start) // len(text.tokens))
        content = self.record.text.content
        places = content.any(0).nonzero().flatten()
        if len(places) and len(places) == int(places[-1] - places[0]) + 1:
            self.columns = slice(int(places[0]), int(places[-1]) + 1)
        else:
            self.columns = places.to(device)
        self.content = content.to(device)[:, self.columns]


class Probe:
    """Hooks of one layer: they keep its projections and reduce them after its forward pass."""

    def __init__(self, name: str, attn: Any, run: Run) -> None:
        self.name, self.attn, self.run = name, attn, run
        self.seen: dict[str, torch.Tensor] = {}
        self.step = -1
        self.mask: torch.Tensor | None = None
        self.rotary: tuple[torch.Tensor, torch.Tensor] | None = None

    def hooks(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        handles = [
            self.attn.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.attn.register_forward_hook(self._end),
        ]
        for part in ("to_q", "to_k", "add_k_proj", "to_qkv", "to_kv", "to_added_qkv"):
            projection = getattr(self.attn, part, None)
            if projection is not None:
                handles.append(projection.register_forward_hook(self._keep(part)))
        return handles

    def _begin(self, attn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.clear()
        self.mask = kwargs.get("attention_mask", args[2] if len(args) > 2 else None)
        self.rotary = kwargs.get("image_rotary_emb", args[3] if len(args) > 3 else None)

    def _keep(self, part: str) -> Any:
        def keep(module: Any, args: Any, output: torch.Tensor) -> None:
            if self.run.conditional:
                # A processor may project again for a perturbed prediction; only the first projection is used.
                self.seen.setdefault(part, output.detach())

        return keep

    def _end(self, attn: Any, args: Any, output: Any) -> None:
        if not self.run.conditional or not self.seen:
            return
        with torch.no_grad():
            self._reduce()
        self.seen.clear()

    def _reduce(self) -> None:
        run, record = self.run, self.run.record
        query, key, is_joint = self._text_block()
        layer = record.layers.setdefault(self.name, LayerRecord(key is not None, is_joint))
        if key is None:
            layer.is_cross = False
            return
        run.align(key.shape[1], len(query), query.device)
        assert run.content is not None
        rows = run.rows(len(query))
        mask = self.mask if not is_joint else None
        maps, entropy = self._probabilities(query[rows], key[rows], None if mask is None else mask[rows], is_joint)
        layer.entropy.append(entropy)
        self.step = len(layer.entropy) - 1
        if layer.grid is None:
            layer.grid = _grid(run.latent_shape, maps.shape[1])
        if self.step in run.steps:
            layer.steps[self.step] = maps.to("cpu", copy=True)  # a copy, because `maps` becomes the running mean
        if run.is_early:
            layer.early_steps += 1
            layer.early = maps if layer.early is None else layer.early.lerp_(maps, 1 / layer.early_steps)
        else:
            layer.late_steps += 1
            layer.late = maps if layer.late is None else layer.late.lerp_(maps, 1 / layer.late_steps)

    def _text_block(self) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
        """Queries of the image (B, pixels, D), keys of the text (B, tokens, D) or None for self-attention, and whether they are joint."""
        seen = dict(self.seen)
        if "to_qkv" in seen:
            seen["to_q"], seen["to_k"] = seen["to_qkv"].chunk(3, -1)[:2]
        if "to_kv" in seen:
            seen["to_k"] = seen["to_kv"].chunk(2, -1)[0]
        if "to_added_qkv" in seen:
            seen["add_k_proj"] = seen["to_added_qkv"].chunk(3, -1)[1]
        query, key = seen["to_q"], seen["to_k"]
        if "add_k_proj" in seen:
            return query, seen["add_k_proj"], True
        pixels = math.prod(self.run.latent_shape)
        if getattr(self.attn, "pre_only", False) and query.shape[1] > pixels:
            # Text and image come as one sequence, the text first.
            length = query.shape[1] - pixels
            return query[:, length:], key[:, :length], True
        return (
            (query, key, False)
            if key.shape[1] != query.shape[1] or getattr(self.attn, "is_cross_attention", False)
            else (query, None, False)
        )

    def _probabilities(
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, is_joint: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean over heads of softmax(Q·Kᵀ/√d), (B, pixels, tokens), and the entropy over content tokens, (B,)."""
        assert self.run.content is not None
        attn, content, columns = self.attn, self.run.content, self.run.columns
        queries = _heads(query, attn, getattr(attn, "norm_q", None))
        text_is_added = "add_k_proj" in self.seen or "to_added_qkv" in self.seen
        keys = _heads(key, attn, getattr(attn, "norm_added_k" if text_is_added else "norm_k", None))
        if self.rotary is not None and is_joint:
            queries, keys = _rotated(queries, keys, self.rotary)
        # Keys are scaled, not queries: the text has fewer positions.
        keys = keys.float().transpose(-1, -2) * getattr(attn, "scale", queries.shape[-1] ** -0.5)
        queries = queries.float()
        if mask is not None:
            mask = mask.reshape(len(mask), 1, -1, mask.shape[-1])
            mask = torch.zeros_like(mask, dtype=queries.dtype).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask.float()
        count, heads, pixels, _ = queries.shape
        block = max(1, _BLOCK.get(queries.device.type, _LARGE_BLOCK) // (heads * keys.shape[-1]))
        rows = max(1, min(count, block // pixels))
        means = queries.new_empty(count, pixels, keys.shape[-1])
        entropy = queries.new_zeros(count)
        for first in range(0, count, rows):
            part = slice(first, first + rows)
            for start in range(0, pixels, block):
                few = slice(start, start + block)
                scores = queries[part, :, few] @ keys[part]
                if mask is not None:
                    scores += mask[part]
                probabilities = scores.softmax(-1)
                torch.mean(probabilities, 1, out=means[part, few])
                entropy[part] += token_entropy(probabilities[..., columns], content[part]) * (scores.shape[2] / pixels)
        return means, entropy


def _heads(states: torch.Tensor, attn: Any, norm: Any) -> torch.Tensor:
    """States (B, N, D) split into heads (B, heads, N, d), and normalised as in the layer: over all channels, or per head."""
    if norm is not None and _norm_width(norm) == states.shape[-1] != states.shape[-1] // attn.heads:
        states, norm = norm(states), None
    split = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    normed: torch.Tensor = split if norm is None else norm(split)
    return normed


def _norm_width(norm: Any) -> int:
    shape = getattr(norm, "normalized_shape", None) or getattr(norm, "dim", None) or norm.weight.shape
    return int(shape[-1])


def _rotated(queries: torch.Tensor, keys: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Image queries and text keys with rotary position embeddings applied; the text comes first in the sequence."""
    from diffusers.models.embeddings import apply_rotary_emb

    length = keys.shape[2]
    cosine, sine = rotary
    return (
        apply_rotary_emb(queries, (cosine[length:], sine[length:]), sequence_dim=2),
        apply_rotary_emb(keys, (cosine[:length], sine[:length]), sequence_dim=2),
    )


def _grid(latent_shape: tuple[int, ...], pixels: int) -> tuple[int, int]:
    """Height and width of a layer's grid: the latents' size, halved (rounding up) until the grid has `pixels` positions."""
    height, width = latent_shape
    while height * width > pixels:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != pixels:
        raise NotApplicable(
            f"{pixels} positions match no grid of latents of {latent_shape[0]}x{latent_shape[1]}, so the layer has no maps."
        )
    return height, width
